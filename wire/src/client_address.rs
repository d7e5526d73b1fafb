//! Determines the client's address: which header names it, which senders may set that header, and how it is parsed. Pure.
//!
//! Exactly one header is trusted ([`AddressSource`]), and only from the networks of [`Edge`]. All other headers that name a
//! client's address are removed from the request to the app: see [`crate::sieve`].

use std::net::IpAddr;

use http::{HeaderName, header};
use outrigger_policy::flags::Network;

use crate::names::X_FORWARDED_FOR;
use crate::request::Fields;

/// The source of the client's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressSource {
    /// The connection.
    #[default]
    Connection,
    /// `X-Forwarded-For`: the right-most address outside the trusted networks.
    ForwardedFor,
    /// `Forwarded` (RFC 7239): likewise among its `for` parameters.
    Forwarded,
    /// A header with one address, such as `Fly-Client-IP`.
    Header(HeaderName),
}

/// The kind of sender, which decides which headers about the client are trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sender {
    /// Any other client: its headers about the client are not trusted.
    #[default]
    Stranger,
    /// A trusted proxy.
    Proxy,
    /// Fly's edge.
    Fly,
    /// Another Machine, which has removed the headers that its client may not send.
    Peer,
}

impl Sender {
    /// The request comes from Fly's edge, directly or through another Machine.
    pub fn is_by_fly(self) -> bool {
        matches!(self, Self::Fly | Self::Peer)
    }
}

/// The proxy in front of Outrigger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    /// The source of the client's address in requests of trusted senders.
    pub source: AddressSource,
    /// Trusted networks.
    pub networks: Vec<Network>,
    /// The trusted senders are Fly's edge.
    pub is_fly: bool,
}

impl Edge {
    /// The kind of sender at the address `connected`.
    pub fn sender(&self, connected: IpAddr) -> Sender {
        if !self.trusts(connected) {
            Sender::Stranger
        } else if self.is_fly {
            Sender::Fly
        } else {
            Sender::Proxy
        }
    }

    /// The client's address according to this sender; `None` if only the connection's address is known.
    pub fn client(&self, sender: Sender, fields: Fields<'_>) -> Option<IpAddr> {
        let mut client = None;
        self.each_hop(sender, fields, |hop| client = Some(hop));
        client
    }

    /// Calls `hop` with each trusted address, from the nearest to the client's own.
    pub fn each_hop(&self, sender: Sender, fields: Fields<'_>, mut hop: impl FnMut(IpAddr)) {
        if !matches!(sender, Sender::Proxy | Sender::Fly) {
            return;
        }
        match &self.source {
            AddressSource::Connection => {}
            AddressSource::ForwardedFor => {
                let lines = fields.all(&X_FORWARDED_FOR);
                let nodes = lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
                self.walk(nodes.map(node), hop);
            }
            AddressSource::Forwarded => {
                let elements = forwarded_elements(fields);
                self.walk(elements.iter().rev().map(|element| parameter(element, "for").and_then(node)), hop);
            }
            AddressSource::Header(name) => {
                let (mut only, mut lines) = (None, 0);
                fields.each(name, |value| (only, lines) = (node(value), lines + 1));
                if let (Some(address), 1) = (only, lines) {
                    hop(address);
                }
            }
        }
    }

    /// The scheme in the client's element of `Forwarded`.
    pub fn forwarded_proto<'a>(&self, fields: Fields<'a>) -> Option<&'a [u8]> {
        let mut hops = 0;
        self.each_hop(Sender::Proxy, fields, |_| hops += 1);
        let elements = forwarded_elements(fields);
        let client = elements.len().checked_sub(hops).and_then(|index| elements.get(index))?;
        parameter(client, "proto")
    }

    /// Walks from the right: each trusted address vouches for the next one, and an invalid address ends the walk.
    fn walk(&self, nodes: impl Iterator<Item = Option<IpAddr>>, mut hop: impl FnMut(IpAddr)) {
        for address in nodes.map_while(|node| node) {
            hop(address);
            if !self.trusts(address) {
                break;
            }
        }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }
}

impl AddressSource {
    /// The source that corresponds to a header.
    pub fn of(name: HeaderName) -> Self {
        if name == X_FORWARDED_FOR {
            Self::ForwardedFor
        } else if name == header::FORWARDED {
            Self::Forwarded
        } else {
            Self::Header(name)
        }
    }

    /// The header of this source.
    pub fn header(&self) -> Option<&HeaderName> {
        match self {
            Self::Connection => None,
            Self::ForwardedFor => Some(&X_FORWARDED_FOR),
            Self::Forwarded => Some(&header::FORWARDED),
            Self::Header(name) => Some(name),
        }
    }
}

/// Parses an address of a forwarding header: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:80`.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let address = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let is_port = |port: &str| port.parse::<u16>().is_ok();
        (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(address)?
    } else {
        match text.split_once(':') {
            // More than one colon is an IPv6 address.
            Some((address, port)) if !port.contains(':') => port.parse::<u16>().ok().map(|_| address)?,
            _ => text,
        }
    };
    address.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

fn forwarded_elements(fields: Fields<'_>) -> Vec<&[u8]> {
    fields.all(&header::FORWARDED).into_iter().flat_map(|line| split_unquoted(line, b',')).collect()
}

/// A parameter of an element of `Forwarded`, without its quotes. Addresses and schemes need no escapes.
fn parameter<'a>(element: &'a [u8], name: &str) -> Option<&'a [u8]> {
    split_unquoted(element, b';').find_map(|pair| {
        let at = memchr::memchr(b'=', pair)?;
        let (key, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        key.eq_ignore_ascii_case(name.as_bytes()).then_some(unquoted.unwrap_or(value))
    })
}

/// Splits at each `separator` outside quoted strings.
fn split_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |byte| {
        let escapes = is_quoted && !is_escaped && *byte == b'\\';
        is_quoted ^= *byte == b'"' && !is_escaped;
        is_escaped = escapes;
        *byte == separator && !is_quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    fn edge(name: &'static str) -> Edge {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()).into();
        Edge { source: AddressSource::of(HeaderName::from_static(name)), networks, is_fly: false }
    }

    fn hops(edge: &Edge, fields: &[(&'static str, &str)]) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let mut hops = Vec::new();
        edge.each_hop(Sender::Proxy, Fields::Map(&map), |hop| hops.push(hop.to_string()));
        hops
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_not_trusted() {
        let listed = |value: &str| hops(&edge("x-forwarded-for"), &[("x-forwarded-for", value)]);
        assert_eq!(listed("6.6.6.6, 203.0.113.9, 10.1.1.1"), ["10.1.1.1", "203.0.113.9"]);
        assert_eq!(listed("203.0.113.9:4711,10.1.1.1"), ["10.1.1.1", "203.0.113.9"]);
        assert_eq!(listed("[2001:db8::1]:80"), ["2001:db8::1"]);
        assert_eq!(listed("2001:db8::1, fd00::7"), ["fd00::7", "2001:db8::1"]);
        assert_eq!(listed("::ffff:192.0.2.1"), ["192.0.2.1"]);
        // All addresses are in the private network: the first one is the client.
        assert_eq!(listed("10.2.2.2, 10.1.1.1"), ["10.1.1.1", "10.2.2.2"]);
        // Addresses beyond an invalid one are unknown.
        assert_eq!(listed("6.6.6.6, unknown, 10.1.1.1"), ["10.1.1.1"]);
        assert!(listed("6.6.6.6, junk").is_empty() && listed("").is_empty() && listed("1.2.3.4:x").is_empty());
        let several = [("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("x-forwarded-for", "10.1.1.1")];
        assert_eq!(hops(&edge("x-forwarded-for"), &several), ["10.1.1.1", "203.0.113.9"]);
    }

    #[test]
    fn exactly_one_header_is_read() {
        let all = [("fly-client-ip", "6.6.6.6"), ("x-forwarded-for", "203.0.113.9"), ("cf-connecting-ip", "192.0.2.1")];
        assert_eq!(hops(&edge("x-forwarded-for"), &all), ["203.0.113.9"]);
        assert_eq!(hops(&edge("fly-client-ip"), &all), ["6.6.6.6"]);
        assert_eq!(hops(&edge("cf-connecting-ip"), &all), ["192.0.2.1"]);
        assert!(hops(&edge("true-client-ip"), &all).is_empty());
        assert!(hops(&Edge { source: AddressSource::Connection, ..edge("forwarded") }, &all).is_empty());
        let twice = [("fly-client-ip", "192.0.2.1"), ("fly-client-ip", "192.0.2.2")];
        assert!(hops(&edge("fly-client-ip"), &twice).is_empty(), "two addresses are none");
        assert!(hops(&edge("fly-client-ip"), &[("fly-client-ip", "192.0.2.1, 192.0.2.2")]).is_empty());
    }

    #[test]
    fn headers_of_untrusted_senders_are_ignored() {
        let edge = edge("x-forwarded-for");
        let map = HeaderMap::from_iter([(X_FORWARDED_FOR.clone(), HeaderValue::from_static("203.0.113.9"))]);
        let sender = |address: &str| edge.sender(address.parse().unwrap());
        assert_eq!(
            (sender("10.9.9.9"), sender("::ffff:10.9.9.9"), sender("192.0.2.1")),
            (Sender::Proxy, Sender::Proxy, Sender::Stranger)
        );
        assert_eq!(edge.client(Sender::Stranger, Fields::Map(&map)), None);
        assert_eq!(Edge { is_fly: true, ..edge.clone() }.sender("10.1.1.1".parse().unwrap()), Sender::Fly);
    }

    #[test]
    fn reads_forwarded_as_rfc_7239_writes_it() {
        let edge = edge("forwarded");
        let value = "for=6.6.6.6;proto=http, For=\"[2001:db8::1]:4711\" ; proto=\"https\";host=\"a,b;for=9.9.9.9\", for=10.0.0.1";
        assert_eq!(hops(&edge, &[("forwarded", value)]), ["10.0.0.1", "2001:db8::1"]);
        let map = HeaderMap::from_iter([(header::FORWARDED, HeaderValue::from_static(value))]);
        assert_eq!(edge.forwarded_proto(Fields::Map(&map)), Some(&b"https"[..]));
        assert!(hops(&edge, &[("forwarded", "for=192.0.2.1, for=_hidden")]).is_empty());
        assert!(hops(&edge, &[("forwarded", "by=192.0.2.1")]).is_empty());
        assert_eq!(hops(&edge, &[("forwarded", "host=\"a\\\",for=6.6.6.6\";for=192.0.2.1")]), ["192.0.2.1"]);
    }

    proptest! {
        /// The client is always the address that the trusted proxy appends, for any forged prefix.
        #[test]
        fn a_clients_own_headers_never_set_its_address(forged in "[ -~]{0,40}", of_list in any::<bool>()) {
            let name = if of_list { "x-forwarded-for" } else { "forwarded" };
            let appended = if of_list { "203.0.113.9" } else { "for=203.0.113.9" };
            // As two lines: an unclosed quote in the first does not reach the second.
            prop_assert_eq!(hops(&edge(name), &[(name, &forged), (name, appended)]), ["203.0.113.9"]);
            if of_list {
                let joined = format!("{forged}, {appended}");
                prop_assert_eq!(hops(&edge(name), &[(name, &joined)]), ["203.0.113.9"]);
            }
        }
    }
}
