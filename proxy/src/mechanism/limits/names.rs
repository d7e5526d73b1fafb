//! Names of keys in Redis: the same on all Machines, and HMACs, so that they do not reveal the client.

use std::net::IpAddr;

use outrigger_identity::verified::VerifiedKind;
use outrigger_rules::sections::limits::{By, Limit};
use outrigger_wire::request::Request;
use ring::hmac;

use crate::engine::exchange::Exchange;

/// Returns the name of the key that `exchange` has under `limit`. `None` if the client presented an unknown API key and
/// `request` is `None`: only the request contains that key.
pub fn of(limit: &Limit, exchange: &Exchange, request: Option<&Request<'_>>) -> Option<[u64; 2]> {
    let config = &exchange.rules.config;
    let mut context = hmac::Context::with_key(&config.limits.sharing.as_ref()?.naming);
    let mut part = |kind: u8, bytes: &[u8]| {
        context.update(&[kind]);
        // With the lengths, different lists of parts never have the same bytes.
        context.update(&bytes.len().to_le_bytes());
        context.update(bytes);
    };
    part(b'l', limit.name.as_bytes());
    if matches!(limit.by, By::Client | By::ClientAndRoute) {
        match &exchange.client.verified {
            Some(verified) => {
                let kind = if verified.kind == VerifiedKind::User { b'u' } else { b'k' };
                part(kind, verified.name.as_bytes());
            }
            None if exchange.client.id != exchange.client.address_id => {
                part(b'x', config.credentials.presented_key(request?.fields)?);
            }
            None => address(exchange.client.address, &mut part),
        }
    }
    match limit.by {
        By::Address => address(exchange.client.address, &mut part),
        By::Route | By::ClientAndRoute => part(b'r', exchange.route().name.as_bytes()),
        By::Client | By::Machine => {}
    }
    let tag = context.sign();
    let word = |at: usize| tag.as_ref()[at..at + 8].try_into().map_or(1, u64::from_le_bytes).max(1);
    Some([word(0), word(8)])
}

/// As [`outrigger_identity::client::Client::hash_of`] sees it: a /64 is one client.
fn address(address: IpAddr, part: &mut impl FnMut(u8, &[u8])) {
    match address.to_canonical() {
        IpAddr::V4(v4) => part(b'4', &v4.octets()),
        IpAddr::V6(v6) => part(b'6', &v6.octets()[..8]),
    }
}
