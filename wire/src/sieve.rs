//! Selects the request headers that the app gets, by sender: clients may not send headers reserved for trusted proxies.
//! Pure: names in, verdicts out.

use http::HeaderName;

use crate::client_address::{Edge, Sender};

/// How a request header is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It is forwarded, unless the proxy replaces it.
    Passes,
    /// It is removed.
    Removed,
    /// It is removed and counted as forged: this sender may not send it.
    Forged,
}

/// The senders that may set a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// Only this proxy.
    Proxy,
    /// It names the client's address: only the trusted source passes.
    Address,
    /// Fly's edge.
    Fly,
    /// A trusted proxy.
    Forwarded,
    /// A trusted proxy; other clients send it in good faith, too.
    RequestId,
    /// All senders, in its usual spelling.
    Anybody,
}

/// Decides which headers pass, by sender.
#[derive(Clone, Copy, Debug)]
pub struct Sieve<'a> {
    /// The kind of sender.
    pub sender: Sender,
    /// The trusted proxy and the source of the client's address.
    pub edge: &'a Edge,
    /// Headers that the configuration reads: other spellings of them are removed.
    pub read: &'a [HeaderName],
    /// The client is its connection's address: headers with another address are noted.
    pub notes_claims: bool,
}

/// Headers removed from a request.
#[derive(Debug)]
pub struct Removed<N, V> {
    /// A header that this sender may not send was among them.
    pub forged: bool,
    /// The first header with an untrusted client address, and its value.
    pub claim: Option<(N, V)>,
}

impl<N, V> Default for Removed<N, V> {
    fn default() -> Self {
        Self { forged: false, claim: None }
    }
}

impl<'a> Sieve<'a> {
    /// How a header is treated. Other spellings of a guarded name (`X_Forwarded_For`) or of a name that the configuration
    /// reads are removed for all senders: CGI, WSGI, Rack and PHP merge them into one variable.
    pub fn passage(&self, name: &str) -> Passage {
        use {Guard as G, Passage::*, Sender as S};
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let source = self.edge.source.header();
        let is_source = source.is_some_and(|source| is(source.as_str()));
        if self.read.iter().chain(source).any(|read| reads_as(name, read.as_str()) && !is(read.as_str())) {
            return Forged;
        }
        let guard = match guard(name) {
            // A header that the operator configured.
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
            // Headers that Fly's edge overwrites pass; others may hold the client's own values (docs/fly.md).
            (Some(G::Forwarded), S::Fly) => {
                if is("x-forwarded-proto") {
                    Passes
                } else {
                    Removed
                }
            }
        }
    }

    /// Whether only some senders may set a header of this name.
    pub fn is_guarded(&self, name: &str) -> bool {
        let source = self.edge.source.header();
        source.is_some_and(|source| name.eq_ignore_ascii_case(source.as_str()))
            || guard(name).is_some_and(|guard| guard != Guard::Anybody)
    }

    /// Whether a removed header claims a client address that is to be noted.
    pub fn is_claim(&self, name: &str) -> bool {
        self.notes_claims && is_usual(name) && guard(name) == Some(Guard::Address)
    }
}

/// Whether an app may mistake one name for the other: CGI maps `-` to `_` in the variable's name, and some servers map every
/// character that is neither letter nor digit.
fn reads_as(name: &str, other: &str) -> bool {
    let read = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(|(a, b)| read(a) == read(b))
}

/// Whether a name has the usual spelling of guarded headers.
fn is_usual(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The senders that may set a header of this name, in any spelling.
fn guard(name: &str) -> Option<Guard> {
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| reads_as(start, prefix));
    let is = |other: &&str| reads_as(name, other);
    // The first letter is enough for most headers.
    match name.as_bytes().first()?.to_ascii_lowercase() {
        b'x' if begins("x-outrigger-") => Some(Guard::Proxy),
        b'x' if X_ADDRESSES.iter().any(is) => Some(Guard::Address),
        b'x' if begins("x-forwarded-") => Some(Guard::Forwarded),
        // Frameworks that support these serve the path that they name instead of the request's own.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client_address::AddressSource;

    #[test]
    fn each_sender_may_set_its_own_headers() {
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
    fn another_spelling_of_a_guarded_name_is_always_removed() {
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
            assert!(!sieve.is_claim(name), "{name}");
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
        // The operator's own choice is trusted as written.
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
