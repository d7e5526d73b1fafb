//! Stages that admit a request: shutdown, body size, deadline, and the concurrency limit.

use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_policy::flags::Mode;
use outrigger_wire::names::X_REQUEST_TIMEOUT_MS;
use outrigger_wire::request::Request;

use crate::engine::bounds::LONG_BODY;
use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::Rejection;
use crate::engine::stages::{breakers, failover, hold};
use crate::engine::state::{Phase, State};
use crate::mechanism::gate::{Entry, Wish};
use crate::mechanism::health::Condition;

/// Fails health checks during the first phase of a shutdown, so that traffic moves while requests are still served.
///
/// # Errors
/// [`Rejection::Draining`], for readiness and general health only.
pub fn while_leaving(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let asks_for_traffic = exchange.route().is_health && !matches!(request.path, "/health/live" | "/health/detailed");
    if asks_for_traffic && state.drain.phase() != Phase::Serving { Err(Rejection::Draining) } else { Ok(()) }
}

/// Responds to health checks, if the file says how the app is checked: they have no limits, so none of them reaches the app. During
/// a pause and in maintenance all of them succeed: the platform must not remove the Machine for what its operator does.
///
/// # Errors
/// [`Rejection::AppRestarting`] or [`Rejection::Unhealthy`].
pub fn health(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    if !exchange.route().is_health {
        return Ok(());
    }
    if state.reach.is_closed_by_operator() || exchange.rules.config.maintenance.is_on {
        exchange.destination = Destination::Healthy;
        return Ok(());
    }
    if exchange.rules.config.health.check.is_none() {
        return Ok(());
    }
    if state.reach.is_away() {
        return Err(Rejection::AppRestarting);
    }
    match (state.health.condition(), request.path) {
        // An app that responds is alive, whatever it says.
        (Condition::Healthy, _) | (Condition::Unhealthy, "/health/live") => {
            exchange.destination = Destination::Healthy;
            Ok(())
        }
        _ => Err(Rejection::Unhealthy),
    }
}

/// Rejects a body whose declared length is too large; other bodies are counted as they arrive.
///
/// # Errors
/// [`Rejection::BodyTooLarge`]
pub fn body(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    if request.announced_bytes().is_some_and(|bytes| bytes > exchange.route().max_body_bytes) {
        return Err(Rejection::BodyTooLarge);
    }
    exchange.is_replayable = request.has_body_up_to(REPLAYABLE_BYTES);
    Ok(())
}

/// The largest body that is kept, for another attempt.
const REPLAYABLE_BYTES: u64 = 64 << 10;

/// Sets the deadline for the response's head: the route's timeout, or the client's if that is shorter.
///
/// # Errors
/// Never fails: a value that is not a number of milliseconds is ignored.
pub fn deadline(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let route = exchange.route();
    let (mut timeout, comes_from_peer) = (route.timeout, exchange.hop.is_some());
    // A peer sends the time that remains of a deadline that it set itself.
    if (comes_from_peer || (route.heeds_client_timeout && exchange.resilience == Mode::Enforce))
        && let Some(wish) = request.fields.get(&X_REQUEST_TIMEOUT_MS)
        && let Some(wish) = std::str::from_utf8(wish).ok().and_then(|text| text.trim().parse().ok())
    {
        let wish = Duration::from_millis(wish);
        let ample = if comes_from_peer { timeout / 2 } else { timeout };
        (exchange.is_impatient, timeout) = (wish < ample, timeout.min(wish));
    }
    exchange.deadline = exchange.started + timeout;
    Ok(())
}

/// Takes a permit for the exchange, or adds it to the queue. Health checks need no permit.
///
/// # Errors
/// [`Rejection::Overloaded`]; while the app is down or requests are paused, [`Rejection::AppRestarting`] or
/// [`Rejection::Paused`] for a peer's request or if the queue is full.
pub fn slot(state: &State, _: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    permit(state, exchange)
}

/// [`slot`], also for an upload that asks again.
///
/// # Errors
/// As [`slot`].
pub fn permit(state: &State, exchange: &mut Exchange) -> Result<(), Rejection> {
    let route = &exchange.rules.config.routes.all()[exchange.route];
    if let Some(verdict) = hold::without_permit(state, exchange) {
        return verdict;
    }
    let mode = match (exchange.admission, exchange.rules.config.gate.mode) {
        // Requests that wait while the app is down or paused use the same queue, in every mode.
        _ if hold::must_wait(state, exchange) => Mode::Enforce,
        (Mode::Off, _) | (_, Mode::Off) => return Ok(()),
        (Mode::Monitor, _) | (_, Mode::Monitor) => Mode::Monitor,
        (Mode::Enforce, Mode::Enforce) => Mode::Enforce,
    };
    if route.is_health {
        return Ok(());
    }
    ask(state, exchange, mode)
}

/// Whether the exchange needs a permit before it is sent to an app that is up.
pub fn needs_permit(exchange: &Exchange) -> bool {
    let is_off = exchange.admission == Mode::Off || exchange.rules.config.gate.mode == Mode::Off;
    !is_off && !exchange.route().is_health
}

/// Asks for a permit.
///
/// # Errors
/// As [`slot`].
pub fn ask(state: &State, exchange: &mut Exchange, mode: Mode) -> Result<(), Rejection> {
    let route = &exchange.rules.config.routes.all()[exchange.route];
    // Keyed by name, so that a route's statistics survive a reload.
    let class = (exchange.rules.route_tags[exchange.route] & 0xffff) as u16;
    let is_guest = failover::is_guest(exchange);
    let wish = Wish { priority: route.priority, client: exchange.client.id, class, mode, is_guest };
    let tier = exchange.client.tier;
    let count = |priority| state.metrics.rejections.refusals.monitored(Rejection::Overloaded, priority, tier);
    match state.gate.ask(wish, exchange.turn_began, count) {
        Entry::Go(permit) => exchange.permit = Some(permit),
        Entry::Wait(waiting) => exchange.waiting = Some(waiting),
        Entry::Refused => return Err(no_place(state, exchange)),
    }
    Ok(())
}

/// When a request must leave the queue: later if the app is down or requests are paused.
pub fn wait_deadline(state: &State, exchange: &mut Exchange) -> Instant {
    hold::note_wait(state, exchange);
    let max_wait = exchange.rules.config.gate.settings.max_wait;
    let for_slot = exchange.turn_began.max(exchange.paused_until.unwrap_or(exchange.turn_began)) + max_wait;
    let longest = hold::ends(exchange).map_or(for_slot, |end| for_slot.max(end));
    exchange.deadline.min(longest)
}

/// Why a request that waited got no permit.
pub fn no_turn(state: &State, exchange: &Exchange, now: Instant) -> NoTurn {
    if hold::is_paused(state, exchange) {
        NoTurn::Refused(state.pause.rejection(now))
    } else if now >= exchange.deadline {
        NoTurn::Refused(Rejection::Expired)
    } else if hold::must_wait(state, exchange) && hold::ends(exchange).is_some_and(|end| now >= end) {
        NoTurn::AppDown
    } else {
        NoTurn::Refused(no_place(state, exchange))
    }
}

/// See [`no_turn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// The request is rejected.
    Refused(Rejection),
    /// The app was down for too long.
    AppDown,
}

fn no_place(state: &State, exchange: &Exchange) -> Rejection {
    if hold::is_paused(state, exchange) {
        state.pause.rejection(clock::now())
    } else if hold::must_wait(state, exchange) {
        Rejection::AppRestarting
    } else {
        Rejection::Overloaded
    }
}

/// Returns the permit at the head of a response whose length is known, or that is complete: the app has finished it, and
/// only the transfer at the client's pace remains. For a body of unknown length the app may still be working, see
/// [`let_go_of_long_answer`].
pub fn let_go_at_head(exchange: &mut Exchange, length: Option<u64>) {
    if length.is_some() {
        exchange.permit = None;
    }
}

/// Returns the permit when a response body takes long, and reports the attempt as a success to the circuit breaker.
pub fn let_go_of_long_answer(state: &State, exchange: &mut Exchange, now: Instant) {
    let holds_any = exchange.permit.is_some() || exchange.attempt.is_some();
    if let (true, Some(at)) = (holds_any, exchange.head_at)
        && now.duration_since(at) > LONG_BODY
    {
        exchange.permit = None;
        breakers::ended(state, exchange, breakers::End::Answered(exchange.status, at));
    }
}
