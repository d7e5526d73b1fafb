//! What the app is told about the client: `X-Forwarded-…`, `Forwarded` (RFC 7239). `traceparent` and `tracestate` pass as they came.
//! Pure: a request in, fields out.

use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{HeaderName, header};

use crate::affinity::X_OUTRIGGER_MACHINE;
use crate::config::ForwardedStyle;
use crate::exchange::{Exchange, Kind, Request};

/// In answers and requests.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static FLY_FORWARDED_PROTO: HeaderName = HeaderName::from_static("fly-forwarded-proto");
/// The time that is left, in milliseconds.
pub static X_REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// Whether a field may reach the app: what only an edge or a proxy may say is believed from trusted senders only, and
/// the proxy's own (`X-Outrigger-…`) from nobody.
pub fn may_pass(name: &str, is_trusted: bool) -> bool {
    let starts = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    // The first letter decides for nearly every field.
    match name.as_bytes().first() {
        Some(b'x' | b'X') if starts("x-outrigger-") => false,
        Some(b'x' | b'X') => is_trusted || !(starts("x-forwarded-") || is("x-real-ip") || is("x-request-id")),
        Some(b'f' | b'F') => is_trusted || !(is("forwarded") || starts("fly-")),
        _ => true,
    }
}

/// The fields that the proxy adds to a request, replacing those of the same name.
#[derive(Debug, Default)]
pub struct Added {
    text: Vec<u8>,
    /// Each name, and where its value ends in `text`.
    ends: Vec<(&'static HeaderName, usize)>,
}

impl Added {
    /// For one request that is sent `now`, by what was decided about it.
    pub fn fill(&mut self, request: &Request<'_>, exchange: &Exchange, now: Instant) {
        self.text.clear();
        self.ends.clear();
        let headers = &exchange.rules.config.headers;
        let (fields, trusted) = (request.fields, exchange.client.is_trusted);
        // A peer has said it all.
        let style = if exchange.hop.is_some() { ForwardedStyle::Off } else { headers.forwarded };
        let earlier = |name| if trusted { fields.all(name) } else { Vec::new() };
        if matches!(style, ForwardedStyle::Both | ForwardedStyle::XForwarded) {
            self.add(&X_FORWARDED_FOR, |text| {
                write_list(text, &earlier(&X_FORWARDED_FOR));
                write_address(text, exchange.connected);
            });
            if !(trusted && fields.has(&X_FORWARDED_PROTO)) {
                self.add(&X_FORWARDED_PROTO, |text| text.extend_from_slice(proto(request, trusted)));
            }
            let is_said = trusted && fields.has(&X_FORWARDED_HOST);
            if !request.host.is_empty() && !is_said {
                self.add(&X_FORWARDED_HOST, |text| text.extend_from_slice(request.host.as_bytes()));
            }
        }
        if matches!(style, ForwardedStyle::Both | ForwardedStyle::Rfc7239) {
            self.add(&header::FORWARDED, |text| {
                write_list(text, &earlier(&header::FORWARDED));
                write_forwarded(text, exchange.connected, request.host, proto(request, trusted));
            });
        }
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
            let left = whole_milliseconds(exchange.deadline.saturating_duration_since(now));
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

/// The scheme that a trusted edge saw: `http` or `https`, nothing else.
fn proto<'a>(request: &Request<'a>, is_trusted: bool) -> &'a [u8] {
    let said = || request.fields.get(&FLY_FORWARDED_PROTO).or_else(|| request.fields.get(&X_FORWARDED_PROTO));
    let said = if is_trusted { said() } else { None };
    said.filter(|said| matches!(*said, b"http" | b"https")).unwrap_or(b"http")
}

fn write_list(text: &mut Vec<u8>, earlier: &[&[u8]]) {
    for value in earlier {
        text.extend_from_slice(value);
        text.extend_from_slice(b", ");
    }
}

fn write_forwarded(text: &mut Vec<u8>, connected: IpAddr, host: &str, proto: &[u8]) {
    text.extend_from_slice(b"for=");
    if connected.is_ipv6() {
        text.extend_from_slice(b"\"[");
        write_address(text, connected);
        text.extend_from_slice(b"]\"");
    } else {
        write_address(text, connected);
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
        let written =
            |address: &str, host, proto| text(|out| write_forwarded(out, address.parse().unwrap(), host, proto));
        assert_eq!(
            written("192.0.2.1", "a.example:8080", b"https"),
            "for=192.0.2.1;host=\"a.example:8080\";proto=https"
        );
        assert_eq!(written("2001:db8::1", "", b"http"), "for=\"[2001:db8::1]\";proto=http");
    }

    #[test]
    fn believes_an_edge_only_when_it_is_one() {
        for name in
            ["X-Forwarded-For", "x-forwarded-proto", "Forwarded", "Fly-Client-IP", "fly-request-id", "X-Real-IP"]
        {
            assert!(!may_pass(name, false) && may_pass(name, true), "{name}");
        }
        assert!(!may_pass("X-Outrigger-Tier", true));
        for name in ["X-Api-Key", "From", "X-Forward", "Host"] {
            assert!(may_pass(name, false), "{name}");
        }
    }
}
