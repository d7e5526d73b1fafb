//! A request of the fast lane: parsed, decided by the stages, and rewritten for the app.

use std::cell::RefCell;
use std::time::Instant;

use bytes::BytesMut;
use http::{Method, Version};
use outrigger_wire::forwarding::Added;
use outrigger_wire::request::{Fields, Request};
use outrigger_wire::request_id::RequestId;
use outrigger_wire::rewrite::{self, Sifting};
use outrigger_wire::scan::MOST_FIELDS;

use crate::engine::claims;
use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::{Problem, Rejection};
use crate::engine::stages;
use crate::engine::state::State;
use crate::http1::Origin;
use crate::http1::buffers::scratch;

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

/// Kept of a request that its session's home declined.
#[derive(Clone, Copy, Debug)]
pub(super) struct Earlier {
    pub(super) started: Instant,
    pub(super) request_id: RequestId,
}

/// Runs the stages and writes the head for the app; nothing here waits. All of it is on the stack of one call, so that an idle
/// connection holds none of it. `None`: the head cannot be parsed.
pub(super) fn prepare(state: &State, head: &[u8], origin: Origin, earlier: Option<Earlier>) -> Option<Prepared> {
    thread_local! {
        static ADDED: RefCell<Added> = RefCell::default();
    }
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    // `accept` has parsed it with the same bound, so this succeeds; otherwise the connection closes.
    parsed.parse(head).ok()?;
    let method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    let target = parsed.path?;
    let path = path_of(target);
    let host = parsed.headers.iter().find(|field| field.name.len() == 4 && field.name.eq_ignore_ascii_case("host"));
    let host = host.and_then(|host| std::str::from_utf8(host.value).ok()).unwrap_or_default();
    let request = Request {
        method: &method,
        path,
        host,
        fields: Fields::Wire(parsed.headers),
        is_http10: false,
        target,
        has_endless_body: false,
    };

    let mut exchange = Exchange::new(state.rules.load_full());
    exchange.connected = origin.client;
    exchange.listener = origin.listener;
    if let Some(earlier) = earlier {
        exchange.has_lost_home = true;
        exchange.started = earlier.started;
    }
    exchange.in_flight = Some(state.enter());
    let verdict = stages::decide(state, &request, &mut exchange);
    if let Some(earlier) = earlier {
        exchange.request_id = earlier.request_id;
    }
    let mut out = scratch();
    if verdict.is_ok() && matches!(exchange.destination, Destination::App | Destination::Peer(..)) {
        let removed = ADDED.with_borrow_mut(|added| {
            let now = if earlier.is_some() { exchange.turn_began } else { exchange.started };
            added.fill(&request, &exchange.forwarding(Version::HTTP_11, &state.pseudonym, now));
            let hides_session = exchange.sticky.is_enforced();
            rewrite::write_request(&mut out, &parsed, added, Sifting { sieve: exchange.sieve(), hides_session })
        });
        claims::removed(state, &mut exchange, &removed);
    }
    exchange.rejection = verdict.err();
    let refused = exchange.rejection.map(Rejection::problem);
    // After the head is freed, only the access log needs the path, and the signature for a peer.
    let keeps_target = exchange.rules.config.log.access || state.peers.is_some();
    let target = if keeps_target { target.to_owned() } else { String::new() };
    let host = if state.peers.is_some() { host.to_owned() } else { String::new() };
    Some(Prepared { exchange, method, target, host, head: out, refused })
}

/// The target without the query.
pub(super) fn path_of(target: &str) -> &str {
    &target[..memchr::memchr2(b'?', b'#', target.as_bytes()).unwrap_or(target.len())]
}
