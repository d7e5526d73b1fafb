//! Detects a proxy in front whose headers about its clients are not trusted, so that all of them count as one client.
//!
//! Only requests from which a header with a client's address was removed are counted; other requests cost no time.
//! Bounded: [`PLACES`] senders are tracked at a time, each for a minute, in a bitmap of [`BITS`] hashed addresses.

use std::net::IpAddr;
use std::sync::Mutex;

use outrigger_metrics::{Declare, IntCounter, IntGauge, Result};

/// The maximum number of senders tracked at a time; further ones are not tracked.
const PLACES: usize = 64;
/// The number of places that a sender may have.
const PROBES: usize = 4;
const BITS: u64 = 256;
/// How long addresses are counted together, and how often this is logged at most, in nanoseconds.
const WINDOW: u64 = 60_000_000_000;
/// From this number of addresses in a window on, a sender is reported.
const MANY: u32 = 10;

/// Metrics of headers of untrusted senders.
#[derive(Debug)]
pub struct ClaimsMetrics {
    /// Requests from which such headers were removed.
    pub forged_fields: IntCounter,
    /// Client addresses that one sender has claimed.
    pub unbelieved: IntGauge,
}

impl ClaimsMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Clients and credentials");
        Ok(Self {
            forged_fields: area
                .when("It rises with all traffic: a proxy in front is not in `identity.trusted`.")
                .counter(
                    "outrigger_forged_fields_total",
                    "Forwarding or edge headers removed because their sender is not trusted.",
                )?,
            unbelieved: area.when("From 10 on: a proxy in front is not in `identity.trusted`.").gauge(
                "outrigger_unbelieved_client_addresses",
                "Approximate number of client addresses that one untrusted sender named within the last minute. \
                 From 10 on, it may be a proxy whose clients all count as one: see identity.trusted.",
            )?,
        })
    }
}

/// A sender whose requests name many clients, all of them untrusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The sender.
    pub from: IpAddr,
    /// The estimated number of addresses.
    pub addresses: u32,
}

/// The addresses that each sender has named.
#[derive(Debug)]
pub struct Claims {
    watched: Mutex<Watched>,
}

#[derive(Debug)]
struct Watched {
    places: [Place; PLACES],
    /// When it was last logged.
    told: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    from: Option<IpAddr>,
    since: u64,
    seen: [u64; BITS as usize / 64],
    /// The number in the previous window.
    before: u32,
}

impl Place {
    const EMPTY: Self = Self { from: None, since: 0, seen: [0; BITS as usize / 64], before: 0 };

    fn is_over(&self, now: u64) -> bool {
        self.from.is_none() || now.saturating_sub(self.since) >= WINDOW
    }

    fn marked(&self) -> u32 {
        self.seen.iter().map(|word| word.count_ones()).sum()
    }

    /// Estimates the number of addresses from the marked bits (linear counting, Whang et al. 1990).
    fn addresses(&self) -> u32 {
        let free = f64::from(BITS as u32 - self.marked().min(BITS as u32 - 1));
        (BITS as f64 * (BITS as f64 / free).ln()).round() as u32
    }
}

impl Default for Claims {
    fn default() -> Self {
        Self { watched: Mutex::new(Watched { places: [Place::EMPTY; PLACES], told: None }) }
    }
}

impl Claims {
    /// Counts a request from `from` with an untrusted client address that hashes to `claim`. Returns what to log: at
    /// most once a minute.
    pub fn note(&self, from: IpAddr, claim: u64, now: u64) -> Option<Merged> {
        // Another worker has the lock: one request more or less does not matter.
        let mut watched = self.watched.try_lock().ok()?;
        let first = outrigger_identity::client::Client::hash_of(from) as usize;
        let mut places = (0..PROBES).map(|probe| (first.wrapping_add(probe)) % PLACES);
        let index = places
            .clone()
            .find(|index| watched.places[*index].from == Some(from))
            .or_else(|| places.find(|index| watched.places[*index].is_over(now)))?;
        let place = &mut watched.places[index];
        if place.is_over(now) {
            let is_same = place.from == Some(from) && now.saturating_sub(place.since) < 2 * WINDOW;
            let before = if is_same { place.addresses() } else { 0 };
            *place = Place { from: Some(from), since: now, before, ..Place::EMPTY };
        }
        let bit = claim % BITS;
        place.seen[(bit / 64) as usize] |= 1 << (bit % 64);
        let addresses = place.addresses();
        let is_told = watched.told.is_some_and(|told| now.saturating_sub(told) < WINDOW);
        if addresses < MANY || is_told {
            return None;
        }
        watched.told = Some(now);
        Some(Merged { from, addresses })
    }

    /// Returns the most addresses that one sender has named within the last minute or two.
    pub fn most(&self, now: u64) -> u32 {
        let Ok(watched) = self.watched.lock() else { return 0 };
        let shown = |place: &Place| {
            let age = now.saturating_sub(place.since);
            if age < WINDOW { place.addresses().max(place.before) } else { place.addresses() }
        };
        let recent = |place: &&Place| place.from.is_some() && now.saturating_sub(place.since) < 2 * WINDOW;
        watched.places.iter().filter(recent).map(shown).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_identity::hash::mix;

    const SECOND: u64 = 1_000_000_000;

    fn sender(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn many_addresses_from_one_sender_are_reported_once_a_minute() {
        let claims = Claims::default();
        let told: Vec<Merged> = (0..1000).filter_map(|n| claims.note(sender(1), mix(n % 130), SECOND)).collect();
        assert_eq!(told.len(), 1);
        assert!(told[0].from == sender(1) && told[0].addresses >= MANY);
        assert!((110..=150).contains(&claims.most(2 * SECOND)), "{} of 130", claims.most(2 * SECOND));
        assert!((0..1000).all(|n| claims.note(sender(1), mix(n), 59 * SECOND).is_none()), "it was told just now");
        assert!((0..1000).any(|n| claims.note(sender(1), mix(n), 62 * SECOND).is_some()), "and again a minute later");
        assert_eq!(claims.most(200 * SECOND), 0, "it is over");
    }

    #[test]
    fn few_addresses_from_many_senders_are_not_reported() {
        let claims = Claims::default();
        for n in 0..10_000_u32 {
            assert_eq!(claims.note(sender(n), mix(u64::from(n % 5)), SECOND + u64::from(n) * SECOND / 100), None);
        }
        assert!(claims.most(101 * SECOND) <= 2);
    }

    #[test]
    fn a_proxy_is_detected_among_untrusted_senders() {
        let claims = Claims::default();
        // More senders than there are places; a minute later their places are free.
        (0..1000).for_each(|n| assert_eq!(claims.note(sender(n), 0, SECOND), None));
        let noticed = |now| (0..100).any(|n| claims.note(sender(5000), mix(n), now).is_some());
        assert!(noticed(SECOND) || noticed(62 * SECOND));
    }
}
