//! A host with an optional port, as in `Host` and `Origin`.

use std::net::{IpAddr, Ipv6Addr};

/// `host[:port]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// The name or address, without brackets and without the trailing dot of a fully qualified name.
    pub host: &'a str,
    /// The port, if any.
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Returns `None` for anything else, such as an authority with a user.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                address.parse::<Ipv6Addr>().ok()?;
                (address, port)
            }
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
            _ => return None,
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
        // No name has an empty label: `a..` is not the fully qualified form of `a.`.
        let has_labels = host.split('.').all(|label| !label.is_empty());
        (has_labels && host.bytes().all(is_host)).then_some(Self { host, port })
    }

    /// The address, unless it is a name.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
    }

    /// Whether both name the same host; ports are ignored.
    pub fn is_named_like(&self, other: Self) -> bool {
        match (self.address(), other.address()) {
            (None, None) => self.host.eq_ignore_ascii_case(other.host),
            (a, b) => a == b,
        }
    }
}

/// Whether `text` is valid in `admin.hosts`: a name or an address, without a port.
pub fn is_host(text: &str) -> bool {
    Authority::parse(text).is_some_and(|host| host.port.is_none() && !text.contains(['[', ':']))
        || text.parse::<Ipv6Addr>().is_ok()
}

/// Whether `value` is a host with an optional port (RFC 9110 section 7.2), or empty (RFC 9112 section 3.2). The characters of
/// a host are those of a domain name, percent-encoded bytes or, in brackets, an address; sub-delimiters are none of them, as
/// the host is written into `Forwarded`.
pub fn is_host_value(value: &[u8]) -> bool {
    let is_hex = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    let mut rest = value;
    if let Some(address) = value.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', address) else { return false };
        let is_address = std::str::from_utf8(&address[..end]).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
        if !is_address {
            return false;
        }
        rest = &address[end + 1..];
    } else {
        while let Some((byte, after)) = rest.split_first() {
            match byte {
                b'.' | b'-' | b'_' | b'~' => rest = after,
                byte if byte.is_ascii_alphanumeric() => rest = after,
                b'%' if is_hex(after.first()) && is_hex(after.get(1)) => rest = &after[2..],
                b':' if rest.len() < value.len() => break,
                _ => return false,
            }
        }
    }
    rest.is_empty() || rest.strip_prefix(b":").is_some_and(|port| port.iter().all(u8::is_ascii_digit))
}

/// Whether both are the same host and port; either may omit the scheme's default port (RFC 9110 section 4.2.3).
pub fn is_same_host(scheme: &[u8], one: &[u8], other: &[u8]) -> bool {
    let default: &[u8] = if scheme.eq_ignore_ascii_case(b"https") { b":443" } else { b":80" };
    let [one, other] =
        [one, other].map(|text| text.strip_suffix(default).or_else(|| text.strip_suffix(b":")).unwrap_or(text));
    one.eq_ignore_ascii_case(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_no_empty_label() {
        let host = |text: &'static str| Authority::parse(text).map(|authority| (authority.host, authority.port));
        assert_eq!(host("a.b.:80"), Some(("a.b", Some(80))));
        assert_eq!(host("[::1]"), Some(("::1", None)));
        for text in ["", ".", "..", "..:0", "a..", "a..b", ".a", ":80"] {
            assert_eq!(host(text), None, "{text}");
        }
    }

    #[test]
    fn the_default_port_may_be_omitted() {
        let same =
            |scheme: &str, one: &str, other: &str| is_same_host(scheme.as_bytes(), one.as_bytes(), other.as_bytes());
        for (scheme, one, other) in [
            ("http", "a", "A"),
            ("http", "a:80", "a"),
            ("HTTP", "a", "a:"),
            ("https", "a:443", "a"),
            ("HTTPS", "[::1]:443", "[::1]:"),
            ("http", "a:8080", "a:8080"),
        ] {
            assert!(same(scheme, one, other) && same(scheme, other, one), "{scheme} {one} {other}");
        }
        for (scheme, one, other) in
            [("http", "a:443", "a"), ("https", "a:80", "a"), ("http", "a", "b"), ("http", "a", ""), ("http", "a.", "a")]
        {
            assert!(!same(scheme, one, other) && !same(scheme, other, one), "{scheme} {one} {other}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        for host in ["", "a", "A-b.example:80", "a:", "[::1]", "[2001:db8::1]:8080", "192.0.2.1:1", "a_b~c.d%41"] {
            assert!(is_host_value(host.as_bytes()), "{host}");
        }
        for other in [
            ":80",
            "a:80:80",
            "a:x",
            "[::1",
            "[::1]x",
            "[]",
            "[a]",
            "::1",
            "[::1]:%41:..",
            "a%4",
            "a%zz",
            "a,b",
            "a b",
            "a/b",
            "a\";for=6",
            "<a>",
            "'a'",
            "a@b",
            "a?b",
            "a#b",
            "a\\",
        ] {
            assert!(!is_host_value(other.as_bytes()), "{other}");
        }
    }
}
