//! What the app is told about the client: `X-Forwarded-…`, `Forwarded` (RFC 7239). `traceparent` and `tracestate` pass as they came.
//! Pure: a request in, fields out.

use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{HeaderName, Version, header};

use crate::affinity::X_OUTRIGGER_MACHINE;
use crate::client_address::{AddressSource, Edge, Sender, X_FORWARDED_FOR};
use crate::config::ForwardedStyle;
use crate::credentials::client_hash;
use crate::exchange::{Exchange, Kind, Request};
use crate::via::{self, Pseudonym};

/// In answers and requests.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static X_FORWARDED_SSL: HeaderName = HeaderName::from_static("x-forwarded-ssl");
static FLY_FORWARDED_PROTO: HeaderName = HeaderName::from_static("fly-forwarded-proto");
static FLY_FORWARDED_PORT: HeaderName = HeaderName::from_static("fly-forwarded-port");
static FLY_FORWARDED_SSL: HeaderName = HeaderName::from_static("fly-forwarded-ssl");
/// The time that is left, in milliseconds.
pub static X_REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// What becomes of a header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The app gets it, unless the proxy writes it anew.
    Passes,
    /// The app does not get it.
    Removed,
    /// The same, and it is counted: its sender may not say it.
    Forged,
}

/// Who may send a header that is not every client's to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// This proxy alone.
    Proxy,
    /// It names the client's address: only the one that is believed passes.
    Address,
    /// Fly's edge.
    Fly,
    /// A proxy in front.
    Forwarded,
    /// A proxy in front; clients send it in good faith, too.
    RequestId,
    /// Anybody, in its usual spelling.
    Anybody,
}

/// What may pass, by who sent the request.
#[derive(Clone, Copy, Debug)]
pub struct Sieve<'a> {
    /// Who sent it.
    pub sender: Sender,
    /// What names the client.
    pub edge: &'a Edge,
    /// The headers that the rules look at: no other spelling of them passes.
    pub read: &'a [HeaderName],
    /// The request's client is its connection: a header that names another one is worth a note.
    pub notes_claims: bool,
}

/// What was removed from a request.
#[derive(Debug)]
pub struct Removed<N> {
    /// Something that its sender may not say.
    pub forged: bool,
    /// A header that names a client's address, and a hash of its value.
    pub claim: Option<(N, u64)>,
}

impl<'a> Sieve<'a> {
    /// For a request of this exchange.
    pub fn of(exchange: &'a Exchange) -> Self {
        let sender = exchange.client.sender;
        let notes_claims = sender != Sender::Peer && exchange.client.address == exchange.connected;
        let config = &exchange.rules.config;
        Self { sender, edge: &config.edge, read: &config.read_headers, notes_claims }
    }

    /// What becomes of a header. Other spellings of a guarded name (`X_Forwarded_For`), and of one that is read, pass from
    /// nobody: CGI, WSGI, Rack and PHP give the app one variable for all of them.
    pub fn passage(&self, name: &str) -> Passage {
        use {Guard as G, Passage::*, Sender as S};
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let source = self.edge.source.header();
        let is_source = source.is_some_and(|source| is(source.as_str()));
        if self.read.iter().chain(source).any(|read| reads_as(name, read.as_str()) && !is(read.as_str())) {
            return Forged;
        }
        let guard = match guard(name) {
            // A header of the operator's own choice.
            None if is_source => Some(G::Address),
            Some(_) if !is_source && !is_usual(name) => return Forged,
            guard => guard,
        };
        match (guard, self.sender) {
            (None | Some(G::Anybody), _) => Passes,
            (Some(G::Proxy), _) => Forged,
            (Some(G::RequestId), S::Stranger) => Removed,
            (Some(_), S::Peer) | (Some(G::RequestId), _) => Passes,
            (Some(_), S::Stranger) => Forged,
            (Some(G::Address), S::Proxy | S::Fly) => {
                if is_source {
                    Passes
                } else {
                    Removed
                }
            }
            (Some(G::Fly), S::Fly) | (Some(G::Forwarded), S::Proxy) => Passes,
            (Some(G::Fly), S::Proxy) => Removed,
            // What Fly's edge sets is written anew; in all others a client's own values come through (docs/fly.md).
            (Some(G::Forwarded), S::Fly) => {
                if is("x-forwarded-proto") {
                    Passes
                } else {
                    Removed
                }
            }
        }
    }

    /// A hash of the address that a removed header claims, where that is worth a note.
    pub fn claim(&self, name: &str, value: &[u8]) -> Option<u64> {
        (self.notes_claims && is_usual(name) && guard(name) == Some(Guard::Address)).then(|| client_hash(b'c', value))
    }
}

/// Whether an app may take the two names for one: CGI maps `-` to `_` in the variable's name, and some servers every
/// character that is neither letter nor digit.
fn reads_as(name: &str, other: &str) -> bool {
    let read = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(|(a, b)| read(a) == read(b))
}

/// Whether a name is spelled as those of guarded headers are.
fn is_usual(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Who may send a header of this name, in whichever spelling.
fn guard(name: &str) -> Option<Guard> {
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| reads_as(start, prefix));
    let is = |other: &&str| reads_as(name, other);
    // The first letter decides for nearly every header.
    match name.as_bytes().first()?.to_ascii_lowercase() {
        b'x' if begins("x-outrigger-") => Some(Guard::Proxy),
        b'x' if X_ADDRESSES.iter().any(is) => Some(Guard::Address),
        b'x' if begins("x-forwarded-") => Some(Guard::Forwarded),
        // Frameworks that know these serve the path that they name instead of the request's own.
        b'x' if ["x-original-url", "x-original-uri", "x-rewrite-url"].iter().any(is) => Some(Guard::Forwarded),
        b'x' if is(&"x-request-id") => Some(Guard::RequestId),
        b'x' if is(&"x-request-timeout-ms") => Some(Guard::Anybody),
        b'f' if F_ADDRESSES.iter().any(is) => Some(Guard::Address),
        b'f' if begins("fly-") => Some(Guard::Fly),
        b'c' if C_ADDRESSES.iter().any(is) => Some(Guard::Address),
        b'c' if is(&"content-length") => Some(Guard::Anybody),
        b't' if is(&"transfer-encoding") => Some(Guard::Anybody),
        b'a' | b'd' | b'i' | b'p' | b't' | b'w' if OTHER_ADDRESSES.iter().any(is) => Some(Guard::Address),
        _ => None,
    }
}

/// Headers in which proxies name a client, by their first letter.
const X_ADDRESSES: [&str; 18] = [
    "x-forwarded-for",
    "x-forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-remote-ip",
    "x-remote-addr",
    "x-proxyuser-ip",
    "x-envoy-external-address",
    "x-appengine-user-ip",
    "x-appengine-remote-addr",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-vercel-forwarded-for",
    "x-nf-client-connection-ip",
    "x-sucuri-clientip",
];
const F_ADDRESSES: [&str; 4] = ["forwarded", "fly-client-ip", "forwarded-for", "fastly-client-ip"];
const C_ADDRESSES: [&str; 6] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-ip",
    "cdn-src-ip",
    "cloudfront-viewer-address",
];
const OTHER_ADDRESSES: [&str; 6] = [
    "true-client-ip",
    "do-connecting-ip",
    "incap-client-ip",
    "ali-cdn-real-ip",
    "proxy-client-ip",
    "wl-proxy-client-ip",
];

/// How a request came, who sends it on, and when.
#[derive(Clone, Copy, Debug)]
pub struct Sending<'a> {
    /// The version of HTTP that it came by.
    pub received: Version,
    /// This process.
    pub pseudonym: &'a Pseudonym,
    /// When it is sent.
    pub now: Instant,
}

/// The fields that the proxy adds to a request, replacing those of the same name.
#[derive(Debug, Default)]
pub struct Added {
    text: Vec<u8>,
    /// Each name, and where its value ends in `text`.
    ends: Vec<(&'static HeaderName, usize)>,
    /// The connection's address, then those that it names; kept for its room.
    hops: Vec<IpAddr>,
}

impl Added {
    /// For one request, by what was decided about it.
    pub fn fill(&mut self, request: &Request<'_>, exchange: &Exchange, sending: Sending<'_>) {
        self.text.clear();
        self.ends.clear();
        let headers = &exchange.rules.config.headers;
        let (fields, sender) = (request.fields, exchange.client.sender);
        let edge = &exchange.rules.config.edge;
        // A peer has said it all.
        let style = if sender == Sender::Peer { ForwardedStyle::Off } else { headers.forwarded };
        self.hops.clear();
        if style != ForwardedStyle::Off {
            self.hops.push(exchange.connected);
            edge.each_hop(sender, fields, |hop| self.hops.push(hop));
        }
        let hops = std::mem::take(&mut self.hops);
        let proto = || proto(request, sender, edge);
        if matches!(style, ForwardedStyle::Both | ForwardedStyle::XForwarded) {
            self.add(&X_FORWARDED_FOR, |text| {
                for (index, hop) in hops.iter().rev().enumerate() {
                    separate(text, index);
                    write_address(text, *hop);
                }
            });
            // A proxy's own word stays as it is.
            let is_said = |name| sender == Sender::Proxy && fields.has(name);
            if !is_said(&X_FORWARDED_PROTO) {
                self.add(&X_FORWARDED_PROTO, |text| text.extend_from_slice(proto()));
            }
            if !request.host.is_empty() && !is_said(&X_FORWARDED_HOST) {
                self.add(&X_FORWARDED_HOST, |text| text.extend_from_slice(request.host.as_bytes()));
            }
            if sender == Sender::Fly {
                for (name, of_edge) in
                    [(&X_FORWARDED_PORT, &FLY_FORWARDED_PORT), (&X_FORWARDED_SSL, &FLY_FORWARDED_SSL)]
                {
                    if let Some(value) = fields.get(of_edge) {
                        self.add(name, |text| text.extend_from_slice(value));
                    }
                }
            }
        }
        if matches!(style, ForwardedStyle::Both | ForwardedStyle::Rfc7239) {
            self.add(&header::FORWARDED, |text| write_forwarded(text, &hops, request.host, proto()));
        }
        self.hops = hops;
        self.add(via::field(headers.via), |text| {
            via::write(text, fields, headers.via, sending.received, sending.pseudonym);
        });
        if headers.request_id {
            self.add(&X_REQUEST_ID, |text| text.extend_from_slice(exchange.request_id.as_bytes()));
        }
        if exchange.sticky.is_enforced()
            && let Some(name) = exchange.sticky.keeper(&exchange.rules.config.this)
        {
            self.add(&X_OUTRIGGER_MACHINE, |text| text.extend_from_slice(name.as_bytes()));
        }
        if exchange.kind == Kind::Plain {
            // The last field: the fast lane writes it again when the request had to wait. Writing into a vector cannot fail.
            let left = whole_milliseconds(exchange.deadline.saturating_duration_since(sending.now));
            self.add(&X_REQUEST_TIMEOUT_MS, |text| drop(write!(text, "{left}")));
        }
    }

    fn add(&mut self, name: &'static HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.text);
        self.ends.push((name, self.text.len()));
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static HeaderName, &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        starts.zip(&self.ends).map(|(start, (name, end))| (*name, &self.text[start..*end]))
    }

    /// Whether a field of this name is replaced.
    pub fn replaces(&self, name: &str) -> bool {
        self.ends.iter().any(|(own, _)| own.as_str().len() == name.len() && own.as_str().eq_ignore_ascii_case(name))
    }
}

/// Rounded up: nothing is left only when nothing is.
pub fn whole_milliseconds(left: Duration) -> u128 {
    left.as_nanos().div_ceil(1_000_000)
}

/// The scheme that the client used, as a trusted sender says: `http` or `https`, nothing else.
fn proto<'a>(request: &Request<'a>, sender: Sender, edge: &Edge) -> &'a [u8] {
    let fields = request.fields;
    let said = match sender {
        Sender::Stranger | Sender::Peer => None,
        Sender::Fly => fields.get(&FLY_FORWARDED_PROTO).or_else(|| fields.get(&X_FORWARDED_PROTO)),
        Sender::Proxy if edge.source == AddressSource::Forwarded => edge.forwarded_proto(fields),
        Sender::Proxy => fields.get(&X_FORWARDED_PROTO),
    };
    said.filter(|said| matches!(*said, b"http" | b"https")).unwrap_or(b"http")
}

fn separate(text: &mut Vec<u8>, index: usize) {
    if index > 0 {
        text.extend_from_slice(b", ");
    }
}

/// An element for each hop, the client's first; the nearest is the first of `hops`.
fn write_forwarded(text: &mut Vec<u8>, hops: &[IpAddr], host: &str, proto: &[u8]) {
    for (index, hop) in hops.iter().rev().enumerate() {
        separate(text, index);
        text.extend_from_slice(b"for=");
        if hop.is_ipv6() {
            text.extend_from_slice(b"\"[");
            write_address(text, *hop);
            text.extend_from_slice(b"]\"");
        } else {
            write_address(text, *hop);
        }
        if index > 0 {
            continue;
        }
        // A host was checked to hold neither quotes nor backslashes.
        if !host.is_empty() {
            text.extend_from_slice(b";host=\"");
            text.extend_from_slice(host.as_bytes());
            text.push(b'"');
        }
        text.extend_from_slice(b";proto=");
        text.extend_from_slice(proto);
    }
}

/// The address in its usual form. IPv4 is written by hand: formatting is on the way of every request.
fn write_address(text: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    text.push(b'.');
                }
                if octet >= 100 {
                    text.push(b'0' + octet / 100);
                }
                if octet >= 10 {
                    text.push(b'0' + octet / 10 % 10);
                }
                text.push(b'0' + octet % 10);
            }
        }
        // Writing into a vector cannot fail.
        IpAddr::V6(v6) => drop(write!(text, "{v6}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut text = Vec::new();
        write(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn writes_addresses_as_everybody_does() {
        for address in ["10.0.200.7", "255.255.255.255", "0.0.0.0", "192.168.1.99", "2001:db8::1"] {
            let parsed: IpAddr = address.parse().unwrap();
            assert_eq!(text(|out| write_address(out, parsed)), address);
        }
    }

    #[test]
    fn writes_forwarded_as_rfc_7239_does() {
        let written = |hops: &[&str], host, proto| {
            let hops: Vec<IpAddr> = hops.iter().map(|hop| hop.parse().unwrap()).collect();
            text(|out| write_forwarded(out, &hops, host, proto))
        };
        assert_eq!(
            written(&["192.0.2.1"], "a.example:8080", b"https"),
            "for=192.0.2.1;host=\"a.example:8080\";proto=https"
        );
        assert_eq!(written(&["2001:db8::1"], "", b"http"), "for=\"[2001:db8::1]\";proto=http");
        assert_eq!(
            written(&["10.0.0.2", "10.0.0.1", "2001:db8::1"], "a", b"https"),
            "for=\"[2001:db8::1]\";host=\"a\";proto=https, for=10.0.0.1, for=10.0.0.2"
        );
    }

    #[test]
    fn each_sender_may_say_what_is_its_own() {
        use Passage::{Forged, Passes, Removed};
        let passages = |source: &'static str, name: &str| {
            let edge = Edge { source: AddressSource::of(HeaderName::from_static(source)), ..Edge::default() };
            let by = |sender| Sieve { sender, edge: &edge, read: &[], notes_claims: false }.passage(name);
            [by(Sender::Stranger), by(Sender::Proxy), by(Sender::Fly), by(Sender::Peer)]
        };
        for (source, name, expected) in [
            ("x-forwarded-for", "X-Forwarded-For", [Forged, Passes, Passes, Passes]),
            ("fly-client-ip", "X-Forwarded-For", [Forged, Removed, Removed, Passes]),
            ("fly-client-ip", "Fly-Client-IP", [Forged, Passes, Passes, Passes]),
            ("x-forwarded-for", "Fly-Client-IP", [Forged, Removed, Removed, Passes]),
            ("x-forwarded-for", "CF-Connecting-IP", [Forged, Removed, Removed, Passes]),
            ("x-forwarded-for", "True-Client-IP", [Forged, Removed, Removed, Passes]),
            ("x-forwarded-for", "X-Real-IP", [Forged, Removed, Removed, Passes]),
            ("x-real-ip", "X-Real-IP", [Forged, Passes, Passes, Passes]),
            ("x-real-ip", "Forwarded", [Forged, Removed, Removed, Passes]),
            ("x-my-visitor", "X-My-Visitor", [Forged, Passes, Passes, Passes]),
            ("x-real-ip", "X-My-Visitor", [Passes, Passes, Passes, Passes]),
            ("fly-client-ip", "X-Forwarded-Proto", [Forged, Passes, Passes, Passes]),
            ("fly-client-ip", "X-Forwarded-Host", [Forged, Passes, Removed, Passes]),
            ("fly-client-ip", "fly-region", [Forged, Removed, Passes, Passes]),
            ("x-forwarded-for", "X-Original-URL", [Forged, Passes, Removed, Passes]),
            ("fly-client-ip", "X-Request-Id", [Removed, Passes, Passes, Passes]),
            ("fly-client-ip", "X-Outrigger-Tier", [Forged; 4]),
            ("fly-client-ip", "X-Api-Key", [Passes; 4]),
            ("fly-client-ip", "From", [Passes; 4]),
            ("fly-client-ip", "Host", [Passes; 4]),
            ("fly-client-ip", "", [Passes; 4]),
        ] {
            assert_eq!(passages(source, name), expected, "{name} where {source} is believed");
        }
    }

    #[test]
    fn every_header_that_names_a_client_is_known() {
        for name in X_ADDRESSES.iter().chain(&F_ADDRESSES).chain(&C_ADDRESSES).chain(&OTHER_ADDRESSES) {
            assert_eq!(guard(&name.to_ascii_uppercase()), Some(Guard::Address), "{name}");
        }
    }

    #[test]
    fn another_spelling_of_a_guarded_name_passes_from_nobody() {
        use Passage::{Forged, Passes};
        let edge = |source| Edge { source: AddressSource::of(HeaderName::from_static(source)), ..Edge::default() };
        let passages = |source, read: &[HeaderName], name: &str| {
            [Sender::Stranger, Sender::Proxy, Sender::Fly, Sender::Peer]
                .map(|sender| Sieve { sender, edge: &edge(source), read, notes_claims: true }.passage(name))
        };
        for name in [
            "X_Forwarded_For",
            "x-forwarded_proto",
            "X_REAL_IP",
            "X.Forwarded.For",
            "X-Outrigger_Tier",
            "Fly_Client_IP",
            "fly_client-ip",
            "CF_Connecting_IP",
            "True.Client-IP",
            "X_Request_Id",
            "X_Request_Timeout_Ms",
            "X-Rewrite_Url",
            "Content_Length",
            "TRANSFER_ENCODING",
            "X~Forwarded!Host",
        ] {
            assert_eq!(passages("x-forwarded-for", &[], name), [Forged; 4], "{name}");
            let edge = edge("x-forwarded-for");
            let sieve = Sieve { sender: Sender::Stranger, edge: &edge, read: &[], notes_claims: true };
            assert_eq!(sieve.claim(name, b"192.0.2.1"), None, "{name}");
        }
        for name in ["X-Forward", "X-Request-Timeout-Ms", "Content-Length", "Transfer-Encoding", "access_key"] {
            assert_eq!(passages("x-forwarded-for", &[], name), [Passes; 4], "{name}");
        }
        let read = [HeaderName::from_static("x-api-key"), HeaderName::from_static("plan_name")];
        for (name, expected) in [
            ("X-Api-Key", Passes),
            ("x-api_key", Forged),
            ("X_API_KEY", Forged),
            ("plan_name", Passes),
            ("Plan-Name", Forged),
            ("X-Api-Keys", Passes),
        ] {
            assert_eq!(passages("x-forwarded-for", &read, name), [expected; 4], "{name}");
        }
        // The operator's own choice is believed as it is written.
        for (source, name, expected) in [
            ("x-my-visitor", "X_My_Visitor", [Forged; 4]),
            ("my_visitor", "My-Visitor", [Forged; 4]),
            ("my_visitor", "My_Visitor", [Forged, Passes, Passes, Passes]),
            ("x_real_ip", "X_Real_IP", [Forged, Passes, Passes, Passes]),
            ("x_real_ip", "X-Real-IP", [Forged; 4]),
        ] {
            assert_eq!(passages(source, &[], name), expected, "{name} where {source} is believed");
        }
    }
}
