//! The signed header of a request that one Machine sends to another: sender, receiver, client, reason and the request
//! itself.
//!
//! A request is forwarded at most once: a request that arrived with this header never leaves the Machine it came to.
//! The header is signed for one request to one run of one Machine, is valid for a minute, and is accepted once
//! ([`super::used`]). The header is removed from all other requests before the app sees them.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_identity::signing::{Keys, Purpose, VerifyBuffer};
use outrigger_policy::affinity::LONGEST_NAME;
use outrigger_wire::names::X_OUTRIGGER_HOP;
use outrigger_wire::random::random;
use outrigger_wire::request::{Fields, Request};
use ring::digest::{self, SHA256};

/// Where a peer says how it is.
pub const PROBE_PATH: &str = "/.outrigger/probe";
/// The path at which a peer gives its summary, signed.
pub const SUMMARY_PATH: &str = "/.outrigger/summary";
/// The path at which a peer gives its snapshot, signed.
pub const STATE_PATH: &str = "/.outrigger/state";

/// The maximum difference between the clocks of two Machines, in seconds.
pub const SKEW_SECONDS: u32 = 60;
const DIGEST_BYTES: usize = 16;
const FIXED_BYTES: usize = 1 + 4 + 8 + 8 + 8 + 16 + DIGEST_BYTES + 1;

/// Why a request is sent to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The peer is the session's home.
    Session = 1,
    /// The app of the sender cannot serve it.
    Failover = 2,
    /// A health check of the peer.
    Probe = 3,
}

impl Kind {
    /// The kinds that carry a client's request.
    pub const CARRYING: [Self; 2] = [Self::Session, Self::Failover];

    /// Returns the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Failover => "failover",
            Self::Probe => "probe",
        }
    }
}

/// A number that no other hop has: the run of the sending process, and a counter in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce {
    /// The run of the sending process.
    pub run: u64,
    /// The counter.
    pub count: u64,
}

/// Makes the nonces of this process.
#[derive(Debug)]
pub struct Nonces {
    run: u64,
    next: AtomicU64,
}

impl Default for Nonces {
    fn default() -> Self {
        // Zero stands for an unknown run.
        Self { run: random() | 1, next: AtomicU64::new(1) }
    }
}

impl Nonces {
    /// Returns the run of this process.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// Returns the next nonce.
    pub fn next(&self) -> Nonce {
        Nonce { run: self.run, count: self.next.fetch_add(1, Ordering::Relaxed) }
    }
}

/// The Machine that a hop is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receiver<'a> {
    /// Its name; empty for a probe, which asks for it.
    pub name: &'a str,
    /// The run of its process, from its response to a probe; 0 for a probe.
    pub run: u64,
}

impl Receiver<'static> {
    /// Any Machine: for probes only.
    pub const ANY: Self = Self { name: "", run: 0 };
}

/// The content of the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Why the request is sent.
    pub kind: Kind,
    /// The address of the client.
    pub client: IpAddr,
    /// The nonce of the hop.
    pub nonce: Nonce,
    /// The Machine that sends the request.
    pub from: Box<str>,
}

/// Why a request on the listener for peers is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopRefused {
    /// The header is missing, or not signed with any of the keys.
    Unsigned,
    /// It was sent more than a minute ago, or clocks differ by more than a minute.
    Stale,
    /// It was sent to another Machine, or to an earlier run of this one.
    Elsewhere,
    /// The request is not the one that was signed.
    Altered,
    /// It has been accepted before, or is too old to tell.
    Used,
}

impl HopRefused {
    /// All reasons.
    pub const ALL: [Self; 5] = [Self::Unsigned, Self::Stale, Self::Elsewhere, Self::Altered, Self::Used];

    /// Returns the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Stale => "stale",
            Self::Elsewhere => "elsewhere",
            Self::Altered => "altered",
            Self::Used => "used",
        }
    }
}

/// Returns a digest of all that the receiving app acts on: method, target, host, and every header except those of one
/// connection (RFC 9110 section 7.6.1). `Content-Length`, `Transfer-Encoding` and `Upgrade` are included, because they
/// say what follows the head.
fn fingerprint(request: &Request<'_>) -> [u8; DIGEST_BYTES] {
    let mut hash = digest::Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(request.method.as_str().as_bytes());
    part(request.target.as_bytes());
    part(request.host.as_bytes());
    let mut fields: Vec<(Cow<'_, str>, &[u8])> = match request.fields {
        Fields::Map(map) => map.iter().map(|(name, value)| (Cow::Borrowed(name.as_str()), value.as_bytes())).collect(),
        Fields::Wire(fields) => {
            fields.iter().map(|field| (Cow::Owned(field.name.to_ascii_lowercase()), field.value)).collect()
        }
    };
    fields.retain(|(name, _)| !is_of_the_connection(name));
    // Headers with different names have no order; the stable sort keeps that of headers with the same name.
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, value) in fields {
        part(name.as_bytes());
        part(value.trim_ascii());
    }
    let mut fingerprint = [0; DIGEST_BYTES];
    fingerprint.copy_from_slice(&hash.finish().as_ref()[..DIGEST_BYTES]);
    fingerprint
}

fn is_of_the_connection(name: &str) -> bool {
    matches!(name, "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "http2-settings")
        || name == X_OUTRIGGER_HOP.as_str()
}

impl Hop {
    /// Signs this hop of `request`, as it is sent, to the Machine `to`, at `now` in seconds since 1970.
    pub fn sign(&self, keys: &Keys, request: &Request<'_>, to: Receiver<'_>, now: u32) -> Vec<u8> {
        let client = match self.client {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let from = &self.from.as_bytes()[..self.from.len().min(LONGEST_NAME)];
        let mut text = Vec::with_capacity(FIXED_BYTES + from.len() + to.name.len());
        text.push(self.kind as u8);
        text.extend_from_slice(&now.to_be_bytes());
        text.extend_from_slice(&self.nonce.run.to_be_bytes());
        text.extend_from_slice(&self.nonce.count.to_be_bytes());
        text.extend_from_slice(&to.run.to_be_bytes());
        text.extend_from_slice(&client.octets());
        text.extend_from_slice(&fingerprint(request));
        // At most 63 bytes.
        text.push(from.len() as u8);
        text.extend_from_slice(from);
        text.extend_from_slice(to.name.as_bytes());
        let mut out = Vec::new();
        keys.append_signed(Purpose::Hop, &text, &mut out);
        out
    }

    /// Verifies the output of [`Hop::sign`] for `request` to the Machine `here`. [`super::used`] checks for earlier
    /// use.
    ///
    /// # Errors
    /// [`HopRefused`]
    pub fn verify(
        keys: &Keys,
        signed: &[u8],
        request: &Request<'_>,
        here: Receiver<'_>,
        now: u32,
    ) -> Result<Self, HopRefused> {
        let mut buffer = [0; size_of::<VerifyBuffer>()];
        let text = keys.verified(Purpose::Hop, signed, &mut buffer).ok_or(HopRefused::Unsigned)?;
        let Signed { hop, sent, to, digest } = read(text).ok_or(HopRefused::Unsigned)?;
        if sent.abs_diff(now) > SKEW_SECONDS {
            return Err(HopRefused::Stale);
        }
        if to != here && !(hop.kind == Kind::Probe && to == Receiver::ANY) {
            return Err(HopRefused::Elsewhere);
        }
        if digest != fingerprint(request) {
            return Err(HopRefused::Altered);
        }
        Ok(hop)
    }
}

/// The decoded header.
struct Signed<'a> {
    hop: Hop,
    /// In seconds since 1970.
    sent: u32,
    to: Receiver<'a>,
    digest: [u8; DIGEST_BYTES],
}

fn read(text: &[u8]) -> Option<Signed<'_>> {
    let (kind, rest) = text.split_first()?;
    let (sent, rest) = rest.split_first_chunk::<4>()?;
    let (run, rest) = rest.split_first_chunk::<8>()?;
    let (count, rest) = rest.split_first_chunk::<8>()?;
    let (to_run, rest) = rest.split_first_chunk::<8>()?;
    let (client, rest) = rest.split_first_chunk::<16>()?;
    let (digest, rest) = rest.split_first_chunk::<DIGEST_BYTES>()?;
    let (length, rest) = rest.split_first()?;
    let (from, to) = rest.split_at_checked(usize::from(*length))?;
    let kind = [Kind::Session, Kind::Failover, Kind::Probe].into_iter().find(|known| *known as u8 == *kind)?;
    let nonce = Nonce { run: u64::from_be_bytes(*run), count: u64::from_be_bytes(*count) };
    let client = IpAddr::V6(Ipv6Addr::from(*client)).to_canonical();
    let from = std::str::from_utf8(from).ok()?.into();
    Some(Signed {
        hop: Hop { kind, client, nonce, from },
        sent: u32::from_be_bytes(*sent),
        to: Receiver { name: std::str::from_utf8(to).ok()?, run: u64::from_be_bytes(*to_run) },
        digest: *digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderName, HeaderValue, Method};

    const NOW: u32 = 1_800_000_000;
    const B: Receiver<'_> = Receiver { name: "b", run: 5 };

    fn keys(letter: &str) -> Keys {
        Keys::parse(&letter.repeat(32)).unwrap().unwrap()
    }

    fn request<'a>(method: &'a Method, path: &'a str, fields: Fields<'a>) -> Request<'a> {
        Request { method, path, host: "a", fields, is_http10: false, target: path, has_endless_body: false }
    }

    fn hop(kind: Kind) -> Hop {
        let nonce = Nonce { run: 3, count: 7 };
        Hop { kind, client: "192.0.2.7".parse().unwrap(), nonce, from: "a".into() }
    }

    #[test]
    fn a_hop_is_valid_for_one_request_to_one_run_of_one_machine_for_a_minute() {
        let get = request(&Method::GET, "/cart", Fields::Wire(&[]));
        let signed = hop(Kind::Session).sign(&keys("k"), &get, B, NOW);
        let opened = |keys: &Keys, request: &Request<'_>, here, now| Hop::verify(keys, &signed, request, here, now);
        assert_eq!(opened(&keys("k"), &get, B, NOW + 60), Ok(hop(Kind::Session)));
        assert_eq!(opened(&keys("k"), &get, B, NOW - 60), Ok(hop(Kind::Session)), "clocks differ");
        let refused = |keys: &Keys, request: &Request<'_>, here, now| opened(keys, request, here, now).unwrap_err();
        let k = &keys("k");
        assert_eq!(refused(k, &get, Receiver { name: "c", ..B }, NOW), HopRefused::Elsewhere);
        assert_eq!(refused(k, &get, Receiver { run: 6, ..B }, NOW), HopRefused::Elsewhere, "it has restarted");
        assert_eq!(refused(&keys("x"), &get, B, NOW), HopRefused::Unsigned);
        assert_eq!(refused(k, &get, B, NOW + 61), HopRefused::Stale);
        let altered = [
            request(&Method::POST, "/cart", Fields::Wire(&[])),
            request(&Method::GET, "/admin", Fields::Wire(&[])),
            Request { target: "/cart?all", ..get },
            Request { host: "b", ..get },
        ];
        for other in altered {
            assert_eq!(refused(k, &other, B, NOW), HopRefused::Altered, "{other:?}");
        }
    }

    #[test]
    fn every_header_that_the_app_acts_on_is_signed() {
        let wire = |lines: &[(&'static str, &'static str)]| -> Vec<httparse::Header<'static>> {
            lines.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect()
        };
        let sent = wire(&[
            ("Authorization", "Bearer t"),
            ("Cookie", "a=1"),
            ("Cookie", "b=2"),
            ("Content-Length", "5"),
            ("Content-Type", "text/plain"),
        ]);
        let post = request(&Method::POST, "/order", Fields::Wire(&sent));
        let signed = hop(Kind::Failover).sign(&keys("k"), &post, B, NOW);
        let verdict = |fields: Fields<'_>| {
            Hop::verify(&keys("k"), &signed, &request(&Method::POST, "/order", fields), B, NOW).map(drop)
        };
        // As a map, in another order, with headers of the connection, and with the hop itself.
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/plain"),
            ("connection", "close"),
            ("te", "trailers"),
            ("x-outrigger-hop", "AAAA"),
            ("cookie", "a=1"),
            ("content-length", "5"),
            ("authorization", "Bearer t"),
            ("cookie", "b=2"),
        ] {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(verdict(Fields::Map(&map)), Ok(()));
        for (name, value) in [
            ("authorization", "Bearer other"),
            ("cookie", "b=2"),
            ("content-length", "6"),
            ("content-type", "application/json"),
            ("x-api-key", "k"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("x-forwarded-for", "192.0.2.1"),
        ] {
            let mut altered = map.clone();
            altered.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(verdict(Fields::Map(&altered)), Err(HopRefused::Altered), "{name}");
        }
        let mut swapped = map.clone();
        swapped.remove("cookie");
        for value in ["b=2", "a=1"] {
            swapped.append("cookie", HeaderValue::from_static(value));
        }
        assert_eq!(verdict(Fields::Map(&swapped)), Err(HopRefused::Altered));
        map.remove("authorization");
        assert_eq!(verdict(Fields::Map(&map)), Err(HopRefused::Altered));
    }

    #[test]
    fn only_a_probe_may_be_for_any_machine() {
        let get = request(&Method::GET, PROBE_PATH, Fields::Wire(&[]));
        let to_any = |kind| hop(kind).sign(&keys("k"), &get, Receiver::ANY, NOW);
        assert!(Hop::verify(&keys("k"), &to_any(Kind::Probe), &get, B, NOW).is_ok());
        assert_eq!(Hop::verify(&keys("k"), &to_any(Kind::Session), &get, B, NOW), Err(HopRefused::Elsewhere));
    }

    #[test]
    fn the_longest_names_fit() {
        let (from, to) = ("f".repeat(LONGEST_NAME), "t".repeat(LONGEST_NAME));
        let get = request(&Method::GET, "/", Fields::Wire(&[]));
        let hop = Hop { client: "2001:db8::1".parse().unwrap(), from: from.into(), ..hop(Kind::Failover) };
        let to = Receiver { name: &to, run: u64::MAX };
        let signed = hop.sign(&keys("k"), &get, to, NOW);
        assert_eq!(Hop::verify(&keys("k"), &signed, &get, to, NOW), Ok(hop));
    }

    #[test]
    fn no_two_hops_of_a_process_have_the_same_nonce() {
        let nonces = Nonces::default();
        let (first, second) = (nonces.next(), nonces.next());
        assert!(first != second && first.run == second.run && first.run != 0);
    }
}
