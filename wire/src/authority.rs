//! A host with an optional port, as in `Host` and `Origin`.

use std::net::IpAddr;

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
                address.parse::<std::net::Ipv6Addr>().ok()?;
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
        (!host.is_empty() && host.bytes().all(is_host)).then_some(Self { host, port })
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
        || text.parse::<std::net::Ipv6Addr>().is_ok()
}
