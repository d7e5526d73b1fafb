//! Who asks.

use std::net::IpAddr;
use std::sync::Arc;

use outrigger_policy::tier::Tier;
use outrigger_wire::client_address::Sender;

use crate::hash::client_hash;
use crate::verified::Verified;

/// Who asks, as far as it is known.
#[derive(Clone, Debug)]
pub struct Client {
    /// The client's address: the connection's, or what a trusted edge says.
    pub address: IpAddr,
    /// Who sent the request, which decides what it may say of the client.
    pub sender: Sender,
    /// Who it is to limits: a hash of the verified user, else of the API key, else of the address.
    pub id: u64,
    /// A hash of the address (IPv6: of its /64), whoever signed in from there.
    pub address_id: u64,
    /// What it may multiply.
    pub tier: Tier,
    /// The user or key that was verified.
    pub verified: Option<Arc<Verified>>,
}

impl Client {
    /// Nobody yet.
    pub const UNKNOWN: Self = Self {
        address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        sender: Sender::Stranger,
        id: 0,
        address_id: 0,
        tier: Tier::Anonymous,
        verified: None,
    };

    /// Where it comes from, for what is shared by origin: the user or key that was verified, which cannot be made up; else the
    /// network of its address, of which a subscriber may have many (IPv6: the /48).
    pub fn origin(&self) -> u64 {
        match (&self.verified, self.address.to_canonical()) {
            (Some(verified), _) => verified.hash,
            (None, IpAddr::V4(v4)) => client_hash(b'4', &v4.octets()),
            (None, IpAddr::V6(v6)) => client_hash(b'n', &v6.octets()[..6]),
        }
    }

    /// As operators name it: `user:ann`, `key:acme`, `address:192.0.2.1`, `address:2001:db8:1:2::/64`; a key that nobody
    /// knows only by its hash.
    pub fn shown(&self) -> String {
        match &self.verified {
            Some(verified) => verified.shown(),
            None if self.id != self.address_id => format!("unknown-key:{:016x}", self.id),
            None => Self::shown_address(self.address),
        }
    }

    /// The name that operators give an address.
    pub fn shown_address(address: IpAddr) -> String {
        match address.to_canonical() {
            IpAddr::V4(v4) => format!("address:{v4}"),
            IpAddr::V6(v6) => {
                format!("address:{}/64", std::net::Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)))
            }
        }
    }

    /// The hash by which limits know an address. A subscriber with IPv6 has a whole /64 to choose from.
    pub fn hash_of(address: IpAddr) -> u64 {
        match address.to_canonical() {
            IpAddr::V4(v4) => client_hash(b'4', &v4.octets()),
            IpAddr::V6(v6) => client_hash(b'6', &v6.octets()[..8]),
        }
    }
}
