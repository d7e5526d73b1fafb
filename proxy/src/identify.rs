//! Who asks: the client's address and the request's name.

use std::net::IpAddr;

use http::HeaderMap;
use outrigger_policy::flags::Network;

use crate::exchange::{Client, Exchange, Kind, Request};
use crate::rejection::Rejection;
use crate::request_id::RequestId;
use crate::state::State;

/// Names the request and its client. A trusted edge is believed; anybody else is who the connection says.
///
/// # Errors
/// None: whoever asks gets a name.
pub fn client(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let connected = exchange.connected;
    let is_trusted = exchange.rules.config.trusted.iter().any(|network| network.contains(connected));
    let address = if is_trusted { edge_address(request.headers, &exchange.rules.config.trusted).unwrap_or(connected) } else { connected };
    exchange.client = Client { address, is_trusted };
    let from_edge = request.headers.get("fly-request-id").filter(|_| is_trusted);
    exchange.request_id =
        from_edge.and_then(|name| RequestId::from_edge(name.as_bytes())).unwrap_or_else(RequestId::generate);
    exchange.kind = kind(request);
    Ok(())
}

/// `Fly-Client-IP`, which the edge overwrites; elsewhere the right-most address of `X-Forwarded-For` that is none of ours.
fn edge_address(headers: &HeaderMap, trusted: &[Network]) -> Option<IpAddr> {
    let address = |text: &str| text.trim().parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    if let Some(named) = headers.get("fly-client-ip") {
        return address(named.to_str().ok()?);
    }
    let hops = headers.get_all("x-forwarded-for").iter().rev().filter_map(|value| value.to_str().ok());
    hops.flat_map(|list| list.rsplit(',')).map_while(address).find(|ip| !trusted.iter().any(|n| n.contains(*ip)))
}

fn kind(request: &Request<'_>) -> Kind {
    if request.headers.contains_key(http::header::UPGRADE) && !request.is_http10 {
        return Kind::Upgrade;
    }
    let accepts_events = request
        .headers
        .get(http::header::ACCEPT)
        .is_some_and(|accept| memchr::memmem::find(accept.as_bytes(), b"text/event-stream").is_some());
    if accepts_events { Kind::Stream } else { Kind::Plain }
}
