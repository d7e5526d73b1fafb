//! Names of keys in Redis: the same on all Machines, and HMACs, so that they do not reveal the client.

use std::net::IpAddr;

use outrigger_identity::client::Client;
use outrigger_identity::verified::VerifiedKind;
use outrigger_rules::sections::limits::{By, Limit};
use ring::hmac;

/// Returns the name of the key that `client` has under `limit` on a route. `naming` is the key of the HMACs. `presented_key`
/// returns the API key that an unverified client has presented; without it, such a client has no name.
pub fn of<'k>(
    limit: &Limit,
    naming: &hmac::Key,
    client: &Client,
    route: &str,
    presented_key: impl FnOnce() -> Option<&'k [u8]>,
) -> Option<[u64; 2]> {
    let mut context = hmac::Context::with_key(naming);
    let mut part = |kind: u8, bytes: &[u8]| {
        context.update(&[kind]);
        // With the lengths, different lists of parts never have the same bytes.
        context.update(&bytes.len().to_le_bytes());
        context.update(bytes);
    };
    part(b'l', limit.name.as_bytes());
    if matches!(limit.by, By::Client | By::ClientAndRoute) {
        match &client.verified {
            Some(verified) => {
                let kind = if verified.kind == VerifiedKind::User { b'u' } else { b'k' };
                part(kind, verified.name.as_bytes());
            }
            None if client.id != client.address_id => part(b'x', presented_key()?),
            None => address(client.address, &mut part),
        }
    }
    match limit.by {
        By::Address => address(client.address, &mut part),
        By::Route | By::ClientAndRoute => part(b'r', route.as_bytes()),
        By::Client | By::Machine => {}
    }
    let tag = context.sign();
    let word = |at: usize| tag.as_ref()[at..at + 8].try_into().map_or(1, u64::from_le_bytes).max(1);
    Some([word(0), word(8)])
}

/// As [`Client::hash_of`] sees it: a /64 is one client.
fn address(address: IpAddr, part: &mut impl FnMut(u8, &[u8])) {
    match address.to_canonical() {
        IpAddr::V4(v4) => part(b'4', &v4.octets()),
        IpAddr::V6(v6) => part(b'6', &v6.octets()[..8]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_rules::config::Config;
    use std::path::Path;

    const RULES: &str = "rate_limits.shared = \"redis\"\nrate_limits.redis.url = \"redis://localhost\"\n\
                         [[rate_limits.rules]]\nname = \"a\"\nrate = \"1/1h\"\nby = \"client-and-route\"\n\
                         [[rate_limits.rules]]\nname = \"b\"\nrate = \"1/1h\"\nby = \"address\"\n\
                         [[rate_limits.rules]]\nname = \"c\"\nrate = \"1/1h\"\nby = \"machine\"\n";

    fn names(address: &str, route: &str) -> Vec<[u64; 2]> {
        let limits = Config::parse(Path::new("test"), RULES, &|_| None).unwrap().limits;
        assert_eq!(
            limits.all.iter().filter(|limit| limit.is_shared).count(),
            limits.all.len() - 1,
            "not the Machine's"
        );
        let client = Client { address: address.parse().unwrap(), ..Client::UNKNOWN };
        let naming = &limits.sharing.as_ref().unwrap().naming;
        limits.all.iter().map(|limit| of(limit, naming, &client, route, || None).unwrap()).collect()
    }

    #[test]
    fn all_machines_call_a_key_the_same_and_different_keys_differently() {
        let (one, again) = (names("192.0.2.1", "default"), names("::ffff:192.0.2.1", "default"));
        assert_eq!(one, again);
        let others = [names("192.0.2.2", "default"), names("192.0.2.1", "health"), names("2001:db8::1", "default")];
        let mut all = [one, others.concat()].concat();
        assert_eq!(names("2001:db8::1", "default"), names("2001:db8::2", "default"), "a /64 is one client");
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        // Limit `c` has one name for all four; the third call differs from the first only in names with the route.
        assert_eq!(count - all.len(), 3 + 6);
    }
}
