//! What the app is told about the client: `X-Forwarded-…`, `Forwarded` (RFC 7239), `traceparent` (W3C Trace Context).
//! Pure: text in, field values out.

use std::io::Write;
use std::net::IpAddr;

use http::HeaderValue;

use crate::request_id::{hex, random};

/// Fields that only an edge or a proxy may set. From anybody who is not trusted they are removed.
pub fn is_edge_field(name: &str) -> bool {
    // The first letter decides for nearly every other field.
    match name.as_bytes().first() {
        Some(b'x') => {
            name.starts_with("x-forwarded-") || name.starts_with("x-outrigger-") || name == "x-real-ip" || name == "x-request-id"
        }
        Some(b'f') => name == "forwarded" || name.starts_with("fly-"),
        _ => false,
    }
}

/// The client, appended to what a trusted edge has sent.
pub fn x_forwarded_for<'a>(earlier: impl Iterator<Item = &'a HeaderValue>, connected: IpAddr) -> Option<HeaderValue> {
    let mut text = Vec::with_capacity(40);
    for value in earlier {
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b", ");
    }
    write_address(&mut text, connected);
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
}

/// One element of `Forwarded`, appended to what a trusted edge has sent.
pub fn forwarded<'a>(
    earlier: impl Iterator<Item = &'a HeaderValue>,
    connected: IpAddr,
    host: &str,
    proto: &[u8],
) -> Option<HeaderValue> {
    let mut text = Vec::with_capacity(96);
    for value in earlier {
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b", ");
    }
    text.extend_from_slice(b"for=");
    if connected.is_ipv6() {
        text.extend_from_slice(b"\"[");
        write_address(&mut text, connected);
        text.extend_from_slice(b"]\"");
    } else {
        write_address(&mut text, connected);
    }
    // A host was checked to hold neither quotes nor backslashes.
    if !host.is_empty() {
        text.extend_from_slice(b";host=\"");
        text.extend_from_slice(host.as_bytes());
        text.push(b'"');
    }
    text.extend_from_slice(b";proto=");
    text.extend_from_slice(proto);
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
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

/// Whether a `traceparent` is one that may be passed on.
pub fn is_traceparent(value: &[u8]) -> bool {
    let lower_hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let nonzero = |part: &[u8]| part.iter().any(|b| *b != b'0');
    let Some((known, rest)) = value.split_at_checked(55) else { return false };
    let (version, trace, parent, flags) = (&known[..2], &known[3..35], &known[36..52], &known[53..]);
    // A later version may go on after a dash; version 00 may not.
    let ends_well = rest.is_empty() || (version != b"00" && rest.starts_with(b"-"));
    known[2] == b'-'
        && known[35] == b'-'
        && known[52] == b'-'
        && [version, trace, parent, flags].into_iter().all(lower_hex)
        && version != b"ff"
        && nonzero(trace)
        && nonzero(parent)
        && ends_well
}

/// A new trace that nobody has decided to record.
pub fn new_traceparent() -> Option<HeaderValue> {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let words = [random() | 1, random() | 1, random() | 1];
    let bytes = words.iter().flat_map(|word| word.to_be_bytes());
    for (index, byte) in bytes.enumerate() {
        let at = if index < 16 { 3 + 2 * index } else { 36 + 2 * (index - 16) };
        text[at..at + 2].copy_from_slice(&hex(byte));
    }
    HeaderValue::from_bytes(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_the_client_to_what_the_edge_said() {
        let earlier = [HeaderValue::from_static("203.0.113.9"), HeaderValue::from_static("198.51.100.1")];
        let value = x_forwarded_for(earlier.iter(), "10.0.200.7".parse().unwrap()).unwrap();
        assert_eq!(value, "203.0.113.9, 198.51.100.1, 10.0.200.7");
        let value = x_forwarded_for([].iter(), "2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(value, "2001:db8::1");
    }

    #[test]
    fn writes_forwarded_as_rfc_7239_does() {
        let value = forwarded([].iter(), "192.0.2.1".parse().unwrap(), "a.example:8080", b"https").unwrap();
        assert_eq!(value, "for=192.0.2.1;host=\"a.example:8080\";proto=https");
        let value = forwarded([].iter(), "2001:db8::1".parse().unwrap(), "", b"http").unwrap();
        assert_eq!(value, "for=\"[2001:db8::1]\";proto=http");
    }

    #[test]
    fn knows_a_traceparent() {
        let made = new_traceparent().unwrap();
        assert!(is_traceparent(made.as_bytes()), "{made:?}");
        assert!(is_traceparent(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(is_traceparent(b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"));
        for wrong in [
            &b""[..],
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert!(!is_traceparent(wrong));
        }
    }

    #[test]
    fn knows_the_fields_of_an_edge() {
        for name in ["x-forwarded-for", "x-forwarded-proto", "forwarded", "fly-client-ip", "fly-request-id", "x-outrigger-tier"] {
            assert!(is_edge_field(name), "{name}");
        }
        for name in ["x-api-key", "from", "x-forward", "host"] {
            assert!(!is_edge_field(name), "{name}");
        }
    }
}
