//! The traffic record: the part of it that comes from a request that has ended. Without a record, a request costs one branch.

use std::time::Duration;

use outrigger_identity::verified::VerifiedKind;
use outrigger_policy::flags::Mode;
use outrigger_traffic::request::{Applied, ClientKind, Facts, RecordedRequest};
use outrigger_wire::request::Request;

use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::Rejection;
use crate::engine::stages::breakers::had_less_time;
use crate::engine::state::State;
use crate::mechanism::traffic::{Seen, method_number};

/// Notes the facts, other than path and method, that the route of a request may depend on.
#[inline]
pub fn routed(request: &Request<'_>, exchange: &mut Exchange) {
    if let Some(basis) = &exchange.rules.traffic {
        exchange.hints = basis.hints(request);
    }
}

/// The end of a request, as far as the exchange does not know it.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'e> {
    /// Since its head.
    pub duration: Duration,
    /// How long the app took for the head of its response.
    pub service: Option<Duration>,
    /// The label of the rejection or of the app's failure.
    pub reason: Option<&'static str>,
    /// The client disconnected.
    pub client_left: bool,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// The method.
    pub method: &'e http::Method,
    /// The path.
    pub path: &'e str,
}

/// Queues the request for the record, if there is one.
#[inline]
pub fn ended(state: &State, exchange: &Exchange, ended: &Ended<'_>) {
    if exchange.rules.traffic.is_some() {
        record(state, exchange, ended);
    }
}

#[cold]
fn record(state: &State, exchange: &Exchange, ended: &Ended<'_>) {
    let Some(basis) = &exchange.rules.traffic else { return };
    let client = &exchange.client;
    let kind = match &client.verified {
        Some(verified) if verified.kind == VerifiedKind::User => ClientKind::User,
        Some(_) => ClientKind::Key,
        None if client.id != client.address_id => ClientKind::UnknownKey,
        None => ClientKind::Address,
    };
    let limit = match exchange.rejection {
        Some(Rejection::QuotaExceeded { limit, .. }) => Some(limit),
        _ => None,
    };
    let facts = Facts::default()
        .with(Facts::REJECTED, exchange.rejection.is_some())
        .with(Facts::ANSWERED, exchange.answered_by_app)
        .with(Facts::SAYS_WHEN, exchange.says_when)
        .with(Facts::HAD_LESS_TIME, had_less_time(exchange))
        .with(Facts::CLIENT_LEFT, ended.client_left)
        .with(Facts::COUNTED_HERE, exchange.is_counted_here())
        .with(Facts::FOR_APP, matches!(exchange.destination, Destination::App))
        .with(Facts::STREAM, exchange.stream.is_some());
    let seen = Seen {
        started: exchange.started,
        total: ended.duration,
        queued: exchange.queued,
        service: ended.service,
        method: method_number(ended.method),
        route: exchange.route,
        is_routed: !exchange.rejection.is_some_and(comes_before_the_route),
        hints: exchange.hints,
        status: exchange.status,
        reason: ended.reason,
        limit,
        tier: client.tier as u8,
        kind,
        client: client.id,
        address: client.address_id,
        admission: applied(exchange.admission),
        resilience: applied(exchange.resilience),
        facts,
        attempts: u8::try_from(exchange.attempts.made()).unwrap_or(u8::MAX),
        body_class: RecordedRequest::class_of(ended.request_bytes),
    };
    state.traffic.push(basis, seen, ended.path);
}

const fn applied(mode: Mode) -> Applied {
    match mode {
        Mode::Off => Applied::Off,
        Mode::Monitor => Applied::Monitor,
        Mode::Enforce => Applied::Enforce,
    }
}

/// Whether a request is rejected for this before it has a route.
const fn comes_before_the_route(rejection: Rejection) -> bool {
    matches!(
        rejection,
        Rejection::DotSegment
            | Rejection::ControlCharacter
            | Rejection::AmbiguousPath
            | Rejection::NotPublic
            | Rejection::RepeatedCredential
            | Rejection::NotAPeer
            | Rejection::Loop
    )
}
