//! Headers that tell the app about the client: `X-Forwarded-…`, `Forwarded` (RFC 7239). `tracestate` passes unchanged, and
//! `traceparent` unless the request is recorded. Pure: a request in, headers out.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderName, Version, header};

use crate::client_address::{AddressSource, Edge, Sender};
use crate::names::{TRACEPARENT, X_FORWARDED_FOR, X_OUTRIGGER_MACHINE, X_REQUEST_ID, X_REQUEST_TIMEOUT_MS};
use crate::request::Request;
use crate::request_id::RequestId;
use crate::trace_context::TraceParent;
use crate::via::{self, Pseudonym};

static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static X_FORWARDED_SSL: HeaderName = HeaderName::from_static("x-forwarded-ssl");
static FLY_FORWARDED_PROTO: HeaderName = HeaderName::from_static("fly-forwarded-proto");
static FLY_FORWARDED_PORT: HeaderName = HeaderName::from_static("fly-forwarded-port");
static FLY_FORWARDED_SSL: HeaderName = HeaderName::from_static("fly-forwarded-ssl");

/// Which headers tell the app about the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedStyle {
    /// `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` (RFC 7239).
    #[default]
    Both,
    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Rfc7239,
    /// None of them.
    Off,
}

/// The request's connection and sender, and which headers the app gets.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding<'a> {
    /// The kind of sender.
    pub sender: Sender,
    /// The trusted proxy and the source of the client's address.
    pub edge: &'a Edge,
    /// The address at the other end of its connection.
    pub connected: IpAddr,
    /// The HTTP version of the request.
    pub received: Version,
    /// This process's pseudonym.
    pub pseudonym: &'a Pseudonym,
    /// Which headers tell the app about the client.
    pub style: ForwardedStyle,
    /// This process is named in `Via` instead of `CDN-Loop`.
    pub with_via: bool,
    /// The request id, if the app gets it.
    pub request_id: Option<&'a RequestId>,
    /// The home Machine of the session, if the app gets it.
    pub keeper: Option<&'a str>,
    /// The span that the app's belong to, if the request is recorded.
    pub trace: Option<TraceParent>,
    /// The time until the deadline; `None` for a stream, which has none.
    pub time_left: Option<Duration>,
}

/// The headers that the proxy adds to a request, replacing headers of the same name.
#[derive(Debug, Default)]
pub struct Added {
    text: Vec<u8>,
    /// Each name, and the end of its value in `text`.
    ends: Vec<(&'static HeaderName, usize)>,
    /// The connection's address, then those from headers; kept to reuse the allocation.
    hops: Vec<IpAddr>,
}

impl Added {
    /// Fills in the headers for one request.
    pub fn fill(&mut self, request: &Request<'_>, forwarding: &Forwarding<'_>) {
        self.text.clear();
        self.ends.clear();
        let Forwarding { sender, edge, .. } = *forwarding;
        let fields = request.fields;
        // A peer has set them already.
        let style = if sender == Sender::Peer { ForwardedStyle::Off } else { forwarding.style };
        self.hops.clear();
        if style != ForwardedStyle::Off {
            self.hops.push(forwarding.connected);
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
            // Headers set by a trusted proxy are kept.
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
        self.add(via::field(forwarding.with_via), |text| {
            via::write(text, fields, forwarding.with_via, forwarding.received, forwarding.pseudonym);
        });
        if let Some(id) = forwarding.request_id {
            self.add(&X_REQUEST_ID, |text| text.extend_from_slice(id.as_bytes()));
        }
        if let Some(name) = forwarding.keeper {
            self.add(&X_OUTRIGGER_MACHINE, |text| text.extend_from_slice(name.as_bytes()));
        }
        if let Some(trace) = forwarding.trace {
            self.add(&TRACEPARENT, |text| text.extend_from_slice(trace.header().as_bytes()));
        }
        if let Some(left) = forwarding.time_left {
            // The last header: it is rewritten for requests that waited. Writing into a vector cannot fail.
            let left = whole_milliseconds(left);
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

    /// Whether a header of this name is replaced.
    pub fn replaces(&self, name: &str) -> bool {
        self.ends.iter().any(|(own, _)| own.as_str().len() == name.len() && own.as_str().eq_ignore_ascii_case(name))
    }
}

/// Rounded up, so that 0 means that no time is left.
pub fn whole_milliseconds(left: Duration) -> u128 {
    left.as_nanos().div_ceil(1_000_000)
}

/// The client's scheme as a trusted sender names it.
pub fn scheme(request: &Request<'_>, sender: Sender, edge: &Edge) -> &'static str {
    if proto(request, sender, edge) == b"https" { "https" } else { "http" }
}

/// The client's scheme as a trusted sender names it: only `http` or `https`.
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

/// Writes one element per hop, the client's first; `hops` begins with the nearest.
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
        // The host was checked: it contains neither quotes nor backslashes.
        if !host.is_empty() {
            text.extend_from_slice(b";host=\"");
            text.extend_from_slice(host.as_bytes());
            text.push(b'"');
        }
        text.extend_from_slice(b";proto=");
        text.extend_from_slice(proto);
    }
}

/// Writes the address in its usual form. IPv4 avoids `fmt`, since this runs for every request.
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
    fn writes_addresses_as_the_standard_library_does() {
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
}
