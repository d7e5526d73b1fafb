//! A request: parsed, decided by the stages, and rewritten for the app.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::{Method, Version};
use outrigger_wire::accept::prefers_html;
use outrigger_wire::forwarding::Added;
use outrigger_wire::request::{Fields, Kind, Request};
use outrigger_wire::request_id::RequestId;
use outrigger_wire::rewrite::{self, Sifting};
use outrigger_wire::scan::{Framing, Head, MOST_FIELDS};

use crate::engine::claims;
use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::{Problem, Rejection};
use crate::engine::stages;
use crate::engine::stages::{breakers, failover};
use crate::engine::state::State;
use crate::engine::traces;
use crate::http1::Origin;
use crate::http1::buffers::scratch;
use crate::http1::upload::Upload;
use crate::mechanism::traces::Traced;

/// A request after the stages.
pub(super) struct Prepared {
    pub(super) exchange: Exchange,
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) host: String,
    /// The head for the app or the peer.
    pub(super) head: BytesMut,
    /// The response, if a stage has rejected it.
    pub(super) refused: Option<Problem>,
}

/// A request as it was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    pub(super) head: &'a Head,
    pub(super) version: Version,
    pub(super) origin: Origin,
    pub(super) body: Option<&'a Upload>,
    /// The address at which an HTTP/1.0 request arrived.
    pub(super) local: Option<SocketAddr>,
}

/// Kept of a request that its session's home declined.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) started: Instant,
    pub(super) request_id: RequestId,
    /// The time in which the client sent the body, which is not the app's.
    pub(super) clients_time: Duration,
    /// Its trace.
    pub(super) traced: Traced,
}

/// Runs the stages and writes the head for the app; nothing here waits. All of it is on the stack of one call, so that an idle
/// connection holds none of it. `None`: the head cannot be parsed.
pub(super) fn prepare(
    state: &State,
    bytes: &[u8],
    Received { head, version, origin, body, local }: Received<'_>,
    mut earlier: Option<Earlier>,
) -> Option<Prepared> {
    thread_local! {
        static ADDED: RefCell<Added> = RefCell::default();
    }
    // To initialize them would cost as much as to parse a small request.
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    // `accept` has parsed it with the same bound, so this succeeds; otherwise the connection closes.
    parsed.parse_with_uninit_headers(bytes, &mut fields).ok()?;
    let method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    let target = parsed.path?;
    let path = path_of(target);
    let host = parsed.headers.iter().find(|field| field.name.len() == 4 && field.name.eq_ignore_ascii_case("host"));
    // HTTP/1.0 allows it; the app gets the address at which the request arrived.
    let own_host = local.filter(|_| host.is_none()).map(|local| local.to_string());
    let host = host.and_then(|host| std::str::from_utf8(host.value).ok()).unwrap_or_default();
    let request = Request {
        method: &method,
        path,
        host,
        fields: Fields::Wire(parsed.headers),
        is_http10: head.is_http10,
        target,
        has_endless_body: head.framing == Framing::Chunked,
    };

    let mut exchange = Exchange::new(state.rules.load_full());
    exchange.connected = origin.client;
    exchange.listener = origin.listener;
    let accept =
        parsed.headers.iter().filter(|field| field.name.len() == 6 && field.name.eq_ignore_ascii_case("accept"));
    exchange.prefers_html = prefers_html(accept.map(|field| field.value));
    if let Some(earlier) = &mut earlier {
        exchange.has_lost_home = true;
        exchange.started = earlier.started;
        exchange.traced = std::mem::take(&mut earlier.traced);
    }
    exchange.in_flight = Some(state.enter());
    let verdict = match body {
        None => stages::decide(state, &request, &mut exchange),
        Some(body) => decide_with_body(state, &request, &mut exchange, body),
    };
    traces::received(&mut exchange, &request, version);
    if let Some(earlier) = &earlier {
        exchange.request_id = earlier.request_id;
        exchange.deadline += earlier.clients_time;
    }
    let mut out = scratch();
    if verdict.is_ok() && matches!(exchange.destination, Destination::App | Destination::Peer(..)) {
        let removed = ADDED.with_borrow_mut(|added| {
            let now = if earlier.is_some() { exchange.turn_began } else { exchange.started };
            added.fill(&request, &exchange.forwarding(version, &state.pseudonym, now));
            let hides_session = exchange.sticky.is_enforced();
            let is_chunked = head.framing == Framing::Chunked;
            let sifting = Sifting {
                sieve: exchange.sieve(),
                hides_session,
                is_upgrade: exchange.kind == Kind::Upgrade,
                is_chunked,
                host: own_host.as_deref(),
            };
            rewrite::write_request(&mut out, &parsed, added, sifting)
        });
        claims::removed(state, &mut exchange, &removed);
    }
    exchange.rejection = verdict.err();
    let refused = exchange.rejection.map(Rejection::problem);
    // After the head is freed, only the access log needs the path, the signature for a peer, and the circuit breaker after a
    // body that has not arrived yet.
    let waits_for_body = body.is_some_and(|body| !body.is_whole);
    let keeps_target = exchange.rules.config.log.access || state.peers.is_some() || waits_for_body;
    let target = if keeps_target { target.to_owned() } else { String::new() };
    let host = if state.peers.is_some() { host.to_owned() } else { String::new() };
    Some(Prepared { exchange, method, target, host, head: out, refused })
}

/// Decides about a request whose body may not have arrived. Then it does not ask for a permit yet, but an open circuit breaker
/// rejects it already.
fn decide_with_body(
    state: &State,
    request: &Request<'_>,
    exchange: &mut Exchange,
    body: &Upload,
) -> Result<(), Rejection> {
    stages::check(state, request, exchange)?;
    if body.is_longer_than(exchange.route().max_body_bytes) {
        return Err(Rejection::BodyTooLarge);
    }
    if !matches!(exchange.destination, Destination::App) {
        return Ok(());
    }
    if body.is_whole {
        return stages::take_turn(state, request, exchange);
    }
    match breakers::may_pass(state, request, exchange) {
        Err(_) if failover::takes(state, exchange) => Ok(()),
        verdict => verdict,
    }
}

/// The target without the query.
pub(super) fn path_of(target: &str) -> &str {
    &target[..memchr::memchr2(b'?', b'#', target.as_bytes()).unwrap_or(target.len())]
}
