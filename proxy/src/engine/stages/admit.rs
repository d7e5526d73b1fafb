//! Is there room for this request?

use std::time::{Duration, Instant};

use outrigger_policy::flags::Mode;
use outrigger_wire::names::X_REQUEST_TIMEOUT_MS;
use outrigger_wire::request::Request;

use crate::engine::bounds::LONG_BODY;
use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::stages::{failover, hold};
use crate::engine::state::{Phase, State};
use crate::mechanism::breakers;
use crate::mechanism::gate::{Entry, Wish};

/// Health fails first when the process is about to leave, so that traffic goes elsewhere while it can still be served.
///
/// # Errors
/// [`Rejection::Draining`], for readiness and general health only.
pub fn while_leaving(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let asks_for_traffic = exchange.route().is_health && matches!(request.path, "/health" | "/health/ready");
    if asks_for_traffic && state.drain.phase() != Phase::Serving { Err(Rejection::Draining) } else { Ok(()) }
}

/// A body that says how long it is can be refused before it is sent; others are counted on their way.
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

/// So much of a body is kept by Pingora to be sent again.
const REPLAYABLE_BYTES: u64 = 64 << 10;

/// Sets the time by which the head of the answer must be there: the route's, or less if the client has less.
///
/// # Errors
/// None: what is no number of milliseconds is no wish.
pub fn deadline(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let route = exchange.route();
    let (mut timeout, comes_from_peer) = (route.timeout, exchange.hop.is_some());
    // A peer says what is left of a time that it has given itself.
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

/// Gives the exchange a slot at the app, or a place in the queue for one. Health needs none.
///
/// # Errors
/// [`Rejection::Overloaded`], or [`Rejection::AppRestarting`] when too many wait for it already.
pub fn slot(state: &State, _: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let route = &exchange.rules.config.routes.all()[exchange.route];
    if state.reach.is_away() && failover::is_guest(exchange) {
        return Err(Rejection::AppRestarting);
    }
    if state.reach.is_away() && !hold::must_wait(state, exchange) {
        // Others wait for the app; this one hears at once that it is away.
        return Ok(());
    }
    let mode = match (exchange.admission, exchange.rules.config.gate.mode) {
        // Whoever waits for an app that is away does so in the same queue, whatever slots mean otherwise.
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

/// Whether the exchange has to have a slot before it is sent to the app, as long as that is there.
pub fn needs_permit(exchange: &Exchange) -> bool {
    let is_off = exchange.admission == Mode::Off || exchange.rules.config.gate.mode == Mode::Off;
    !is_off && !exchange.route().is_health
}

/// Asks for a slot.
///
/// # Errors
/// As [`slot`].
pub fn ask(state: &State, exchange: &mut Exchange, mode: Mode) -> Result<(), Rejection> {
    let route = &exchange.rules.config.routes.all()[exchange.route];
    // Kept by name, so that what was learnt of a route outlives a change of the rules.
    let class = (exchange.rules.route_tags[exchange.route] & 0xffff) as u16;
    let is_guest = failover::is_guest(exchange);
    let wish = Wish { priority: route.priority, client: exchange.client.id, class, mode, is_guest };
    let tier = exchange.client.tier;
    let count = |priority| state.metrics.refusals.monitored(Rejection::Overloaded, priority, tier);
    match state.gate.ask(wish, exchange.turn_began, count) {
        Entry::Go(permit) => exchange.permit = Some(permit),
        Entry::Wait(waiting) => exchange.waiting = Some(waiting),
        Entry::Refused => return Err(no_place(state, exchange)),
    }
    Ok(())
}

/// Until when a request may wait for its turn: longer for an app that is away.
pub fn wait_deadline(state: &State, exchange: &mut Exchange) -> Instant {
    if hold::must_wait(state, exchange) {
        exchange.held_since.get_or_insert_with(Instant::now);
    }
    let config = &exchange.rules.config;
    let for_slot = exchange.turn_began + config.gate.settings.max_wait;
    let longest = exchange.held_since.map_or(for_slot, |since| for_slot.max(since + config.app.hold));
    exchange.deadline.min(longest)
}

/// Why a request that waited did not get its turn.
pub fn no_turn(state: &State, exchange: &Exchange, now: Instant) -> NoTurn {
    if now >= exchange.deadline {
        NoTurn::Refused(Rejection::Expired)
    } else if hold::must_wait(state, exchange)
        && exchange.held_since.is_some_and(|since| now >= since + exchange.rules.config.app.hold)
    {
        NoTurn::AppAway
    } else {
        NoTurn::Refused(no_place(state, exchange))
    }
}

/// See [`no_turn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// It is refused.
    Refused(Rejection),
    /// The app did not come back in time.
    AppAway,
}

fn no_place(state: &State, exchange: &Exchange) -> Rejection {
    if hold::must_wait(state, exchange) { Rejection::AppRestarting } else { Rejection::Overloaded }
}

/// Gives the permit back at the head of a response whose length is known, or that is done: the app has worked it out, and what
/// is left is a transfer at the client's pace. The app may still work on a body of unknown length: see
/// [`let_go_of_long_answer`].
pub fn let_go_at_head(exchange: &mut Exchange, length: Option<u64>) {
    if length.is_some() {
        exchange.permit = None;
    }
}

/// Gives the permit back when the rest of the response is long, and says that the attempt was a success.
pub fn let_go_of_long_answer(state: &State, exchange: &mut Exchange, now: Instant) {
    let holds_any = exchange.permit.is_some() || exchange.attempt.is_some();
    if let (true, Some(at)) = (holds_any, exchange.head_at)
        && now.duration_since(at) > LONG_BODY
    {
        exchange.permit = None;
        breakers::ended(state, exchange, breakers::End::Answered(exchange.status, at));
    }
}
