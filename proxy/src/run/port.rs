//! A free port for the app.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use outrigger_wire::random::random;
use socket2::{Domain, Socket, Type};

/// The lowest port that is chosen: well-known services are below.
const LOWEST: u16 = 10_000;
/// Fewer ports than these are not enough to choose from.
const FEW: u16 = 1000;

/// A port on which nothing listens at any address, and none of `avoided`.
///
/// It is not one of those that the kernel gives to outgoing connections: while the app is down, such a connection could take its port.
/// Even one to the app itself could, since a connection from a port to the same port needs no listener.
///
/// # Errors
/// No port is free.
pub fn free(avoided: &[u16]) -> io::Result<u16> {
    let range = outside(fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default().trim());
    for _ in 0..200 {
        let span = u64::from(range.end() - range.start()) + 1;
        let port = range.start() + u16::try_from(random() % span).unwrap_or_default();
        if !avoided.contains(&port) && is_free(port)? {
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no port is free for the app: set app.address"))
}

/// The larger part of the ports outside of the kernel's range, which is written "32768\t60999".
fn outside(kernels: &str) -> RangeInclusive<u16> {
    let mut ends = kernels.split_ascii_whitespace().map(|end| end.parse().ok());
    let (Some(Some(first)), Some(Some(last))) = (ends.next(), ends.next()) else { return LOWEST..=32_767 };
    let (below, above) = (u16::saturating_sub(first, LOWEST), u16::MAX - u16::max(last, LOWEST));
    if below.max(above) < FEW {
        LOWEST..=u16::MAX
    } else if below >= above {
        LOWEST..=first - 1
    } else {
        last + 1..=u16::MAX
    }
}

fn is_free(port: u16) -> io::Result<bool> {
    let addresses = [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
    for address in addresses.into_iter().map(|address: SocketAddr| address) {
        let bound = Socket::new(Domain::for_address(address), Type::STREAM, None)
            .and_then(|socket| socket.bind(&address.into()));
        match bound {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Ok(false),
            // Without IPv6, nobody listens there.
            Err(_) if address.is_ipv6() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_kernels_ports_are_left_out() {
        assert_eq!(outside("32768\t60999"), 10_000..=32_767);
        assert_eq!(outside("1024 40000"), 40_001..=65_535);
        assert_eq!(outside("1024 65535"), 10_000..=65_535);
        assert_eq!(outside("10500 65535"), 10_000..=65_535);
        assert_eq!(outside(""), 10_000..=32_767);
    }

    #[test]
    fn avoided_ports_are_not_chosen() {
        let avoided: Vec<u16> = (0..=u16::MAX).filter(|port| port % 2 == 0).collect();
        assert!((0..100).all(|_| free(&avoided).unwrap() % 2 == 1));
    }

    #[test]
    fn a_port_is_free_if_nothing_listens_at_any_address() {
        let port = free(&[]).unwrap();
        assert!(is_free(port).unwrap());
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            // There may be no IPv6.
            let Ok(taken) = TcpListener::bind(address) else { continue };
            assert!(!is_free(taken.local_addr().unwrap().port()).unwrap(), "{address}");
        }
    }
}
