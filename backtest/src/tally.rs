//! Counts of a replay: by route and tier, reason, limit, client and time.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_policy::tier::Tier;
use outrigger_traffic::request::ClientKind;

/// The number of tiers.
const TIERS: usize = Tier::ALL.len();
/// Clients that are counted; beyond, the rarest are forgotten.
const MOST_CLIENTS: usize = 65_536;

/// Requests, and those of them that were rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All.
    pub requests: u64,
    /// Rejected by rules that are replayed: limits, bans, circuit breakers, the queue.
    pub refused: u64,
    /// Rejected for other reasons, such as a path that can be read in several ways: the same in each replay.
    pub fixed: u64,
}

impl Count {
    /// All rejections.
    pub const fn rejected(self) -> u64 {
        self.refused + self.fixed
    }
}

/// Names and their numbers.
#[derive(Clone, Debug, Default)]
pub struct Names(Vec<Arc<str>>);

impl Names {
    /// The number of a name, which is added if it is new.
    pub fn number(&mut self, name: &Arc<str>) -> usize {
        let known = self.0.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            self.0.push(Arc::clone(name));
            self.0.len() - 1
        })
    }

    /// All names, by number.
    pub fn all(&self) -> &[Arc<str>] {
        &self.0
    }
}

/// The clients with the most rejections: exact up to [`MOST_CLIENTS`], then at least as often as counted (Misra and Gries, "Finding
/// repeated elements", 1982).
#[derive(Clone, Debug, Default)]
pub struct Heavy {
    counts: HashMap<(u64, ClientKind), u64, foldhash::fast::RandomState>,
}

impl Heavy {
    #[inline]
    fn add(&mut self, client: u64, kind: ClientKind) {
        if self.counts.len() >= MOST_CLIENTS && !self.counts.contains_key(&(client, kind)) {
            self.counts.retain(|_, count| {
                *count -= 1;
                *count > 0
            });
            return;
        }
        *self.counts.entry((client, kind)).or_default() += 1;
    }

    /// The first `most`, with their counts.
    pub fn top(&self, most: usize) -> Vec<(u64, ClientKind, u64)> {
        let mut all: Vec<_> = self.counts.iter().map(|((client, kind), count)| (*client, *kind, *count)).collect();
        all.sort_unstable_by_key(|(client, _, count)| (std::cmp::Reverse(*count), *client));
        all.truncate(most);
        all
    }

    /// The number of clients with rejections, up to [`MOST_CLIENTS`].
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// The rejections of one client.
    pub fn of(&self, client: u64, kind: ClientKind) -> u64 {
        self.counts.get(&(client, kind)).copied().unwrap_or_default()
    }
}

/// Waits by their length: buckets of an eighth of a power of two, so a quantile is at most 12 % too high.
#[derive(Clone, Debug)]
pub struct Waits {
    buckets: Box<[u64; 64 * 8]>,
    /// The number of waits.
    pub count: u64,
    /// The longest wait, in nanoseconds.
    pub longest_ns: u64,
}

impl Default for Waits {
    fn default() -> Self {
        Self { buckets: Box::new([0; 64 * 8]), count: 0, longest_ns: 0 }
    }
}

impl Waits {
    /// Adds one that was longer than zero.
    pub fn add(&mut self, wait_ns: u64) {
        if wait_ns == 0 {
            return;
        }
        let power = wait_ns.ilog2();
        let eighth = if power >= 3 { wait_ns >> (power - 3) & 7 } else { 0 };
        self.buckets[power as usize * 8 + eighth as usize] += 1;
        self.count += 1;
        self.longest_ns = self.longest_ns.max(wait_ns);
    }

    /// The wait that this share of all waits did not exceed, in nanoseconds.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                let (power, eighth) = (at as u32 / 8, at as u64 % 8);
                let top = if power >= 3 { (8 + eighth + 1) << (power - 3) } else { 2 << power };
                return top.min(self.longest_ns);
            }
        }
        self.longest_ns
    }
}

/// The counts of one replay, or of the record.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By route, then by tier.
    pub by_route: Vec<[Count; TIERS]>,
    /// Rejections by reason.
    pub by_reason: Vec<(Arc<str>, u64)>,
    /// Rejections by rate limit.
    pub by_limit: Vec<u64>,
    /// Rejections by client.
    pub by_client: Heavy,
    /// Requests and rejections over time.
    pub over_time: Vec<Count>,
    /// How long requests waited for a permit.
    pub waits: Waits,
    /// How often each circuit breaker opened.
    pub openings: Vec<(Arc<str>, u64)>,
    /// How often a client was banned.
    pub bans: u64,
    /// Requests that rules in `monitor` would have rejected.
    pub monitored: u64,
}

/// Where a request is counted.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The number of its route's name.
    pub route: usize,
    /// Its client's tier.
    pub tier: Tier,
    /// The number of its span of time.
    pub time: usize,
    /// Its client.
    pub client: (u64, ClientKind),
    /// It is from the time before the one that is asked for: it only brings limits and breakers into their states.
    pub is_before: bool,
}

impl Tally {
    /// With room for this many spans of time.
    pub fn new(spans: usize) -> Self {
        Self { over_time: vec![Count::default(); spans], ..Self::default() }
    }

    fn each(&mut self, place: Place, change: impl Fn(&mut Count)) {
        if place.is_before {
            return;
        }
        if place.route >= self.by_route.len() {
            self.by_route.resize(place.route + 1, <[Count; TIERS]>::default());
        }
        change(&mut self.by_route[place.route][place.tier as usize]);
        if let Some(span) = self.over_time.get_mut(place.time) {
            change(span);
        }
    }

    /// Counts a request.
    #[inline]
    pub fn asked(&mut self, place: Place) {
        self.each(place, |count| count.requests += 1);
    }

    /// Counts its rejection. `is_fixed`: not by rules that are replayed.
    pub fn refused(&mut self, place: Place, reason: &Arc<str>, is_fixed: bool) {
        self.each(place, |count| if is_fixed { count.fixed += 1 } else { count.refused += 1 });
        if place.is_before {
            return;
        }
        self.by_client.add(place.client.0, place.client.1);
        match self.by_reason.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += 1,
            None => self.by_reason.push((Arc::clone(reason), 1)),
        }
    }

    /// Counts the rate limit that rejected it.
    pub fn limited(&mut self, place: Place, limit: usize) {
        if place.is_before {
            return;
        }
        if limit >= self.by_limit.len() {
            self.by_limit.resize(limit + 1, 0);
        }
        self.by_limit[limit] += 1;
    }

    /// Counts a circuit breaker that opened.
    pub fn opened(&mut self, breaker: &Arc<str>) {
        match self.openings.iter_mut().find(|(known, _)| known == breaker) {
            Some((_, count)) => *count += 1,
            None => self.openings.push((Arc::clone(breaker), 1)),
        }
    }

    /// All requests.
    pub fn total(&self) -> Count {
        self.by_route.iter().flatten().fold(Count::default(), |sum, count| Count {
            requests: sum.requests + count.requests,
            refused: sum.refused + count.refused,
            fixed: sum.fixed + count.fixed,
        })
    }

    /// Those of a route and a tier.
    pub fn of(&self, route: usize, tier: Tier) -> Count {
        self.by_route.get(route).map(|tiers| tiers[tier as usize]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_at_most_an_eighth_too_high() {
        let mut waits = Waits::default();
        (1..=1000).for_each(|n| waits.add(n * 1000));
        for share in [0.5, 0.9, 0.99] {
            let (exact, shown) = (share * 1_000_000.0, waits.quantile(share) as f64);
            assert!((exact..=exact * 1.126).contains(&shown), "{share}: {shown}");
        }
        assert_eq!((waits.quantile(1.0), Waits::default().quantile(0.5)), (1_000_000, 0));
    }

    #[test]
    fn clients_are_bounded_and_the_heaviest_stay() {
        let mut heavy = Heavy::default();
        for n in 0..3 * MOST_CLIENTS as u64 {
            heavy.add(n + 100, ClientKind::Address);
            heavy.add(7, ClientKind::User);
        }
        assert!(heavy.len() <= MOST_CLIENTS);
        assert_eq!(heavy.top(1)[0].0, 7);
    }
}
