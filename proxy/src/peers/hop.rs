//! The field with which a request goes from one Machine to another: who sends it, for whom, why, and that it is true.
//!
//! A request has one hop at the most: what came with this field never leaves the Machine that it came to. The field is signed
//! for one request to one Machine, and is worth something for a minute. Everybody else's is removed before the app sees it.

use std::net::{IpAddr, Ipv6Addr};

use http::HeaderName;
use outrigger_policy::affinity::LONGEST_NAME;
use ring::digest::{SHA256, digest};

use crate::exchange::Request;
use crate::seal::{Keys, Opened, Purpose};

/// The field.
pub static X_OUTRIGGER_HOP: HeaderName = HeaderName::from_static("x-outrigger-hop");
/// In the answer of a peer that does not take what is sent to it: the sender does it itself.
pub static X_OUTRIGGER_REFUSED: HeaderName = HeaderName::from_static("x-outrigger-refused");
/// Where a peer says how it is.
pub const PROBE_PATH: &str = "/.outrigger/probe";

/// By how many seconds the clocks of two Machines may differ.
const SKEW_SECONDS: u32 = 60;
const DIGEST_BYTES: usize = 16;
const FIXED_BYTES: usize = 1 + 4 + 8 + 16 + DIGEST_BYTES + 1;

/// Why a request is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its session is at home there.
    Session = 1,
    /// The app of the sender cannot take it.
    Failover = 2,
    /// It only asks how the peer is.
    Probe = 3,
}

impl Kind {
    /// Those that carry a client's request.
    pub const CARRYING: [Self; 2] = [Self::Session, Self::Failover];

    /// For metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Failover => "failover",
            Self::Probe => "probe",
        }
    }
}

/// What a Machine says of a request that it sends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Why.
    pub kind: Kind,
    /// Whose request it is.
    pub client: IpAddr,
    /// A number that the answer to a probe repeats.
    pub nonce: u64,
    /// The Machine that sends it.
    pub from: Box<str>,
}

/// Which request a hop belongs to.
fn fingerprint(request: &Request<'_>) -> [u8; DIGEST_BYTES] {
    let parts = [request.method.as_str(), request.target, request.host];
    // What is between them is in none of them.
    let text = parts.join(" ").into_bytes();
    let mut fingerprint = [0; DIGEST_BYTES];
    fingerprint.copy_from_slice(&digest(&SHA256, &text).as_ref()[..DIGEST_BYTES]);
    fingerprint
}

impl Hop {
    /// Signs this hop of `request` to the Machine `to` (empty for a probe: its name is what is asked for), at `now` in seconds
    /// since 1970.
    pub fn seal(&self, keys: &Keys, request: &Request<'_>, to: &str, now: u32) -> Vec<u8> {
        let client = match self.client {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let from = &self.from.as_bytes()[..self.from.len().min(LONGEST_NAME)];
        let mut text = Vec::with_capacity(FIXED_BYTES + from.len() + to.len());
        text.push(self.kind as u8);
        text.extend_from_slice(&now.to_be_bytes());
        text.extend_from_slice(&self.nonce.to_be_bytes());
        text.extend_from_slice(&client.octets());
        text.extend_from_slice(&fingerprint(request));
        // At most 63.
        text.push(from.len() as u8);
        text.extend_from_slice(from);
        text.extend_from_slice(to.as_bytes());
        let mut out = Vec::new();
        keys.seal(Purpose::Hop, &text, &mut out);
        out
    }

    /// Reads what [`Hop::seal`] wrote for `request` to the Machine `here`; `None` for anything else.
    pub fn open(keys: &Keys, sealed: &[u8], request: &Request<'_>, here: &str, now: u32) -> Option<Self> {
        let mut buffer = [0; size_of::<Opened>()];
        let text = keys.open(Purpose::Hop, sealed, &mut buffer)?;
        let (kind, rest) = text.split_first()?;
        let (sent, rest) = rest.split_first_chunk::<4>()?;
        let (nonce, rest) = rest.split_first_chunk::<8>()?;
        let (client, rest) = rest.split_first_chunk::<16>()?;
        let (digest, rest) = rest.split_first_chunk::<DIGEST_BYTES>()?;
        let (length, rest) = rest.split_first()?;
        let (from, to) = rest.split_at_checked(usize::from(*length))?;
        let kind = [Kind::Session, Kind::Failover, Kind::Probe].into_iter().find(|known| *known as u8 == *kind)?;
        let is_for_us = to == here.as_bytes() || (kind == Kind::Probe && to.is_empty());
        let is_fresh = u32::from_be_bytes(*sent).abs_diff(now) <= SKEW_SECONDS;
        if !is_for_us || !is_fresh || *digest != fingerprint(request) {
            return None;
        }
        Some(Self {
            kind,
            client: IpAddr::V6(Ipv6Addr::from(*client)).to_canonical(),
            nonce: u64::from_be_bytes(*nonce),
            from: std::str::from_utf8(from).ok()?.into(),
        })
    }
}

/// How a Machine is, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It takes what its peers cannot.
    Ready = 1,
    /// Its own app cannot take requests; its sessions are still its own.
    Unready = 2,
    /// It is about to leave.
    Leaving = 3,
    /// Requests wait for their turn at it: it has nothing to spare.
    Busy = 4,
}

impl Condition {
    /// Signs the answer to the probe with this nonce.
    pub fn seal(self, keys: &Keys, nonce: u64, name: &str) -> Vec<u8> {
        let text = [&[self as u8][..], &nonce.to_be_bytes(), name.as_bytes()].concat();
        let mut out = Vec::new();
        keys.seal(Purpose::Probe, &text, &mut out);
        out
    }

    /// Reads the answer to the probe with this nonce: how it is, and its name.
    pub fn open(keys: &Keys, sealed: &[u8], nonce: u64) -> Option<(Self, Box<str>)> {
        let mut buffer = [0; size_of::<Opened>()];
        let text = keys.open(Purpose::Probe, sealed, &mut buffer)?;
        let (condition, rest) = text.split_first()?;
        let (answered, name) = rest.split_first_chunk::<8>()?;
        let all = [Self::Ready, Self::Unready, Self::Leaving, Self::Busy];
        let condition = all.into_iter().find(|known| *known as u8 == *condition)?;
        let is_asked_for = u64::from_be_bytes(*answered) == nonce && outrigger_policy::affinity::is_name(name);
        is_asked_for.then_some((condition, std::str::from_utf8(name).ok()?.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Fields;
    use http::Method;

    const NOW: u32 = 1_800_000_000;

    fn keys(letter: &str) -> Keys {
        Keys::parse(&letter.repeat(32)).unwrap().unwrap()
    }

    fn request<'a>(method: &'a Method, path: &'a str) -> Request<'a> {
        Request {
            method,
            path,
            host: "a",
            fields: Fields::Wire(&[]),
            is_http10: false,
            target: path,
            has_endless_body: false,
        }
    }

    fn hop(kind: Kind) -> Hop {
        Hop { kind, client: "192.0.2.7".parse().unwrap(), nonce: 7, from: "a".into() }
    }

    #[test]
    fn a_hop_is_worth_something_for_one_request_to_one_machine_for_a_minute() {
        let get = request(&Method::GET, "/cart");
        let sealed = hop(Kind::Session).seal(&keys("k"), &get, "b", NOW);
        let opened = |keys: &Keys, request: &Request<'_>, here, now| Hop::open(keys, &sealed, request, here, now);
        assert_eq!(opened(&keys("k"), &get, "b", NOW + 60), Some(hop(Kind::Session)));
        assert_eq!(opened(&keys("k"), &get, "c", NOW), None, "another Machine");
        assert_eq!(opened(&keys("x"), &get, "b", NOW), None, "another key");
        assert_eq!(opened(&keys("k"), &get, "b", NOW + 61), None, "too late");
        assert_eq!(opened(&keys("k"), &request(&Method::POST, "/cart"), "b", NOW), None, "another method");
        assert_eq!(opened(&keys("k"), &request(&Method::GET, "/admin"), "b", NOW), None, "another path");
        let asked = Request { target: "/cart?all", ..get };
        assert_eq!(opened(&keys("k"), &asked, "b", NOW), None, "another query");
        assert_eq!(opened(&keys("k"), &Request { host: "b", ..get }, "b", NOW), None, "another host");
    }

    #[test]
    fn only_a_probe_may_be_for_anybody() {
        let get = request(&Method::GET, PROBE_PATH);
        let to_anybody = |kind| hop(kind).seal(&keys("k"), &get, "", NOW);
        assert!(Hop::open(&keys("k"), &to_anybody(Kind::Probe), &get, "b", NOW).is_some());
        assert!(Hop::open(&keys("k"), &to_anybody(Kind::Session), &get, "b", NOW).is_none());
    }

    #[test]
    fn the_longest_names_fit() {
        let (from, to) = ("f".repeat(LONGEST_NAME), "t".repeat(LONGEST_NAME));
        let get = request(&Method::GET, "/");
        let hop = Hop { client: "2001:db8::1".parse().unwrap(), from: from.into(), ..hop(Kind::Failover) };
        let sealed = hop.seal(&keys("k"), &get, &to, NOW);
        assert_eq!(Hop::open(&keys("k"), &sealed, &get, &to, NOW), Some(hop));
    }

    #[test]
    fn a_peer_proves_how_it_is_for_each_probe_anew() {
        let sealed = Condition::Ready.seal(&keys("k"), 7, "b");
        assert_eq!(Condition::open(&keys("k"), &sealed, 7), Some((Condition::Ready, "b".into())));
        assert_eq!(Condition::open(&keys("k"), &sealed, 8), None);
        assert_eq!(Condition::open(&keys("x"), &sealed, 7), None);
        assert_eq!(Condition::open(&keys("k"), b"ready", 7), None);
    }
}
