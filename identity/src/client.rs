//! The client of a request.

use std::net::IpAddr;
use std::sync::Arc;

use outrigger_policy::tier::Tier;
use outrigger_wire::client_address::Sender;

use crate::hash::client_hash;
use crate::verified::{Verified, VerifiedKind};

/// The client of a request, as far as it is known.
#[derive(Clone, Debug)]
pub struct Client {
    /// The client's address: the connection's, or the one from a trusted edge.
    pub address: IpAddr,
    /// The kind of sender, which decides whether its headers about the client are trusted.
    pub sender: Sender,
    /// The client's key in rate limits: a hash of the verified user, else of the API key, else of the address.
    pub id: u64,
    /// A hash of the address (IPv6: of its /64), regardless of the user.
    pub address_id: u64,
    /// Selects the factor for rate limits.
    pub tier: Tier,
    /// The verified user or key.
    pub verified: Option<Arc<Verified>>,
}

impl Client {
    /// Not yet identified.
    pub const UNKNOWN: Self = Self {
        address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        sender: Sender::Stranger,
        id: 0,
        address_id: 0,
        tier: Tier::Anonymous,
        verified: None,
    };

    /// A hash of the origin, for quotas shared by origin: the verified user or key, which cannot be invented; else the
    /// network of the address, since a subscriber may have many addresses (IPv6: the /48).
    pub fn origin(&self) -> u64 {
        match (&self.verified, self.address.to_canonical()) {
            (Some(verified), _) => verified.hash,
            (None, IpAddr::V4(v4)) => client_hash(b'4', &v4.octets()),
            (None, IpAddr::V6(v6)) => client_hash(b'n', &v6.octets()[..6]),
        }
    }

    /// The name for operators: `user:ann`, `key:acme`, `address:192.0.2.1`, `address:2001:db8:1:2::/64`; an unknown key by
    /// its hash.
    pub fn shown(&self) -> String {
        match &self.verified {
            Some(verified) => verified.shown(),
            None if self.id != self.address_id => format!("unknown-key:{:016x}", self.id),
            None => Self::shown_address(self.address),
        }
    }

    /// The name of an address for operators.
    pub fn shown_address(address: IpAddr) -> String {
        match address.to_canonical() {
            IpAddr::V4(v4) => format!("address:{v4}"),
            IpAddr::V6(v6) => {
                format!("address:{}/64", std::net::Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)))
            }
        }
    }

    /// The client of a name for operators: its name as it is shown, and its hash.
    pub fn named(text: &str) -> Option<(String, u64)> {
        let (kind, name) = text.split_once(':')?;
        if name.is_empty() {
            return None;
        }
        match kind {
            "address" => {
                let address = name.strip_suffix("/64").unwrap_or(name).parse().ok()?;
                Some((Self::shown_address(address), Self::hash_of(address)))
            }
            // Only its hash is known.
            "unknown-key" => u64::from_str_radix(name, 16).ok().map(|hash| (text.to_owned(), hash)),
            "user" | "key" => {
                let kind = if kind == "user" { VerifiedKind::User } else { VerifiedKind::Key };
                let verified = Verified::new(kind, name, Tier::default());
                Some((verified.shown(), verified.hash))
            }
            _ => None,
        }
    }

    /// The hash of an address in rate limits. A subscriber with IPv6 can use a whole /64, so that counts as one.
    pub fn hash_of(address: IpAddr) -> u64 {
        match address.to_canonical() {
            IpAddr::V4(v4) => client_hash(b'4', &v4.octets()),
            IpAddr::V6(v6) => client_hash(b'6', &v6.octets()[..8]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_parsed_as_it_is_shown() {
        let shown = |text| Client::named(text).map(|(who, _)| who);
        assert_eq!(shown("address:192.0.2.1").as_deref(), Some("address:192.0.2.1"));
        assert_eq!(shown("address:2001:db8:1:2:3::9").as_deref(), Some("address:2001:db8:1:2::/64"));
        assert_eq!(Client::named("address:2001:db8:1:2::/64"), Client::named("address:2001:db8:1:2:3::9"));
        assert_eq!(shown("user:ann").as_deref(), Some("user:ann"));
        for wrong in ["", "192.0.2.1", "address:", "address:x", "tier:pro", "user:"] {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
    }
}
