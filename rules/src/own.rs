//! Recognizes addresses of this proxy's own listeners.
//!
//! An upstream with such an address would send every request back to this proxy.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::config::Config;

/// Advice for the operator.
pub const HINT: &str =
    "name the address where the app itself listens: requests would return here until resources run out";

/// A listener of this proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its key in the configuration.
    pub key: &'static str,
    /// The address on which it listens.
    pub address: SocketAddr,
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({})", self.key, self.address)
    }
}

/// All listeners of this proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnListeners(Vec<Own>);

impl OwnListeners {
    /// The listeners of the configuration.
    pub fn of(config: &Config) -> Self {
        let some = |key, address: Option<SocketAddr>| address.map(|address| Own { key, address });
        let all = [
            some("server.listen", Some(config.server.listen)),
            some("server.h2c_listen", config.server.h2c_listen),
            some("admin.listen", Some(config.admin.listen)),
            some("peers.listen", config.peers.as_ref().map(|peers| peers.listen)),
        ];
        Self(all.into_iter().flatten().collect())
    }

    /// Their ports.
    pub fn ports(&self) -> Vec<u16> {
        self.0.iter().map(|own| own.address.port()).collect()
    }

    /// Adds the listeners of `others`.
    pub fn extend(&mut self, others: &Self) {
        self.0.extend(&others.0);
    }

    /// All except the listener for peers: the addresses of peers may include this Machine's.
    #[must_use]
    pub fn without_peers(mut self) -> Self {
        self.0.retain(|own| own.key != "peers.listen");
        self
    }

    /// The listener that a connection to `target` reaches. May ask the kernel whether an address is this host's.
    pub fn reached_by(&self, target: SocketAddr) -> Option<Own> {
        let ip = connected_to(target.ip());
        let listens = |own: &&Own| {
            let listener = own.address.ip().to_canonical();
            let same_family = listener.is_ipv4() == ip.is_ipv4() || listener == IpAddr::from(Ipv6Addr::UNSPECIFIED);
            own.address.port() == target.port()
                && target.port() != 0
                && (listener == ip || (listener.is_unspecified() && same_family && is_local(ip)))
        };
        self.0.iter().find(listens).copied()
    }
}

/// The address that a connection to `ip` reaches: the unspecified address leads to this host.
fn connected_to(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Whether this host has the address. Asks the kernel for the route: to itself, a host sends from the same address. No
/// packet is sent.
fn is_local(ip: IpAddr) -> bool {
    let here: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let route = || {
        let socket = UdpSocket::bind((here, 0))?;
        socket.connect((ip, 9))?;
        socket.local_addr()
    };
    ip.is_loopback() || route().is_ok_and(|from: SocketAddr| from.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(listener: &str, target: &str) -> bool {
        let own = Own { key: "server.listen", address: listener.parse().unwrap() };
        OwnListeners(vec![own]).reached_by(target.parse().unwrap()).is_some()
    }

    #[test]
    fn knows_its_own_listeners_by_every_address() {
        for (listener, target) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("127.0.0.1:80", "[::ffff:127.0.0.1]:80"),
            ("127.0.0.1:80", "0.0.0.0:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "127.1.2.3:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("[::1]:80", "[::1]:80"),
            ("[::1]:80", "[::]:80"),
        ] {
            assert!(reached(listener, target), "{listener} by {target}");
        }
    }

    #[test]
    fn another_port_host_or_family_is_not_ours() {
        for (listener, target) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("127.0.0.1:80", "[::1]:80"),
            ("0.0.0.0:80", "[::1]:80"),
            ("0.0.0.0:80", "192.0.2.1:80"),
            ("[::]:80", "192.0.2.1:80"),
            ("[::]:80", "[2001:db8::1]:80"),
        ] {
            assert!(!reached(listener, target), "{listener} by {target}");
        }
    }

    #[test]
    fn an_address_of_an_interface_is_local() {
        // The address that this host sends from; without a network, it has none.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let own = socket.local_addr().unwrap().ip();
            assert!(is_local(own), "{own}");
        }
        assert!(!is_local("192.0.2.1".parse().unwrap()));
    }
}
