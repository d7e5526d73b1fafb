//! Which requests are recorded as traces, and their spans. A request that is not recorded costs a branch at each place.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use http::{Method, Version};
use outrigger_identity::clock;
use outrigger_wire::client_address::Sender;
use outrigger_wire::forwarding;
use outrigger_wire::names::TRACEPARENT;
use outrigger_wire::random::dice;
use outrigger_wire::request::{Fields, Request};
use outrigger_wire::rewrite;
use outrigger_wire::trace_context::TraceParent;

use crate::engine::attempts::{Event, Next};
use crate::engine::exchange::Exchange;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::state::State;
use crate::mechanism::outcome::Outcome;
use crate::mechanism::traces::{Finished, PartKind, Recording, Traced};

/// The longest part of a path in a span, in bytes.
const PATH_BYTES: usize = 256;

/// Stage: decides whether the request is recorded.
///
/// # Errors
/// None.
#[inline]
pub fn choose(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let config = &exchange.rules.config;
    let wants = state.traces.is_some() || state.trail.is_some() || config.log.access;
    // A request whose session's home declined it goes on with its trace.
    if wants && matches!(exchange.traced, Traced::No) {
        exchange.traced = decide(state, request, exchange);
    }
    Ok(())
}

fn decide(state: &State, request: &Request<'_>, exchange: &Exchange) -> Traced {
    let parent = parent(request.fields);
    let named = parent.map_or(Traced::No, |parent| Traced::Named(parent.trace_id));
    let (Some(traces), Some(rules)) = (&state.traces, &exchange.rules.config.traces) else { return named };
    let is_recorded = match &parent {
        Some(parent) if rules.follow_parent => parent.is_sampled,
        _ => rules.sample > 0.0 && dice() < rules.sample,
    };
    if is_recorded && traces.has_room() { Traced::Recorded(Box::new(Recording::begin(parent.as_ref()))) } else { named }
}

/// The caller's span. Repeated headers name none.
fn parent(fields: Fields<'_>) -> Option<TraceParent> {
    let (mut first, mut is_repeated) = (None, false);
    fields.each(&TRACEPARENT, |value| is_repeated |= first.replace(value).is_some());
    first.filter(|_| !is_repeated).and_then(TraceParent::parse)
}

/// Notes how the client sent a request that is recorded.
#[inline]
pub fn received(exchange: &mut Exchange, request: &Request<'_>, version: Version) {
    let scheme = || forwarding::scheme(request, exchange.client.sender, &exchange.rules.config.edge);
    if let Traced::Recorded(recording) = &mut exchange.traced {
        (recording.scheme, recording.version) = (scheme(), version);
    }
}

/// An attempt begins, at the app or the peer of this name: the request's head names its span.
#[inline]
pub fn attempt_begins(exchange: &mut Exchange, head: &mut BytesMut, peer: Option<&Arc<str>>) {
    if let Some(recording) = exchange.traced.recording() {
        let span = recording.attempt(peer.cloned(), clock::now());
        rewrite::set_span(head, span);
    }
}

/// It waited for a permit, since `began`.
#[inline]
pub fn waited(exchange: &mut Exchange, began: Instant) {
    let kind = if exchange.held_since.is_some() { PartKind::Hold } else { PartKind::Queue };
    if let Some(recording) = exchange.traced.recording() {
        recording.waited(kind, began, clock::now());
    }
}

/// An event of its attempts, and what comes next.
#[inline]
pub fn happened(exchange: &mut Exchange, event: Event, next: Next) {
    if let Some(recording) = exchange.traced.recording() {
        note(recording, event, next);
    }
}

#[cold]
fn note(recording: &mut Recording, event: Event, next: Next) {
    let error = match event {
        Event::Answered { status, .. } if matches!(next, Next::Relay) => return recording.answered(status),
        Event::Answered { status, .. } => return recording.ended(clock::now(), Some(status), None),
        Event::FaultStatus { status, .. } => return recording.ended(clock::now(), Some(status.as_u16()), None),
        Event::Refused { .. } => Failure::Unreachable.problem().label,
        Event::ConnectTimedOut => Failure::ConnectTimeout.problem().label,
        Event::NoConnection(rejection) => rejection.problem().label,
        Event::Closed { .. } | Event::Unread { .. } => Failure::Closed.problem().label,
        Event::Overdue { .. } if matches!(next, Next::GoOn) => return,
        Event::Overdue { .. } => "attempt-timeout",
        Event::HedgeWon => "hedge-won",
        Event::TimedOut | Event::PeerTimedOut | Event::Expired => Failure::Timeout.problem().label,
        Event::Invalid => Failure::Invalid.problem().label,
        Event::PeerBroke { failure, .. } => failure.problem().label,
        Event::PeerDeclined => "peer-declined",
        Event::ClientLeft => Outcome::ClientClosed.name(),
        _ => return,
    };
    recording.ended(clock::now(), None, Some(error));
}

/// The end of a request, as far as the exchange does not know it.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'e> {
    /// When it ended.
    pub at: Instant,
    /// How it ended.
    pub outcome: Outcome,
    /// The method.
    pub method: &'e Method,
    /// The path.
    pub path: &'e str,
    /// Why Outrigger rejected it or the app failed.
    pub reason: Option<&'static str>,
    /// Bytes of both bodies.
    pub bytes: (u64, u64),
}

/// Queues the spans of a request that has ended, if it is recorded.
#[inline]
pub fn ended(state: &State, exchange: &mut Exchange, ended: &Ended<'_>) {
    if exchange.traced.recording().is_some() {
        send(state, exchange, ended);
    }
}

#[cold]
fn send(state: &State, exchange: &mut Exchange, ended: &Ended<'_>) {
    let (Some(traces), Traced::Recorded(mut recording)) = (&state.traces, std::mem::take(&mut exchange.traced)) else {
        return;
    };
    if let Some(failure) = exchange.failure {
        recording.ended(ended.at, None, Some(failure.problem().label));
    }
    let route = exchange.route();
    let metrics = &exchange.rules.route_metrics[exchange.route];
    let duration = ended.at.saturating_duration_since(exchange.started);
    if exchange.stream.is_none() {
        metrics.exemplify(ended.outcome, duration, (recording.trace_id, recording.span_id));
    }
    let is_guest = recording.parent.is_some() && exchange.client.sender == Sender::Stranger;
    let finished = Finished {
        began: exchange.started,
        ended: ended.at,
        ended_at: clock::wall(),
        request_id: exchange.request_id,
        method: ended.method.clone(),
        path: ended.path[..ended.path.floor_char_boundary(PATH_BYTES)].to_owned(),
        app: exchange.rules.config.app.address.to_string(),
        route: Arc::clone(&route.name),
        pattern: route.conditions.template().cloned(),
        priority: route.priority.name(),
        status: exchange.status,
        outcome: ended.outcome,
        reason: ended.reason,
        request_bytes: ended.bytes.0,
        response_bytes: ended.bytes.1,
        recording,
    };
    traces.send(Box::new(finished), is_guest);
}
