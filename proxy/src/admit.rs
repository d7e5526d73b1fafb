//! Is there room for this request?

use std::time::{Duration, Instant};

use outrigger_policy::flags::Mode;

use crate::exchange::{Exchange, Request};
use crate::gate::{Entry, Wish};
use crate::rejection::Rejection;
use crate::state::{Phase, State};

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
    let announced = request
        .fields
        .get(&http::header::CONTENT_LENGTH)
        .and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > exchange.route().max_body_bytes) {
        return Err(Rejection::BodyTooLarge);
    }
    Ok(())
}

/// Gives the exchange a slot at the app, or a place in the queue for one. Health needs none.
///
/// # Errors
/// [`Rejection::Overloaded`]
pub fn slot(state: &State, _: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let route = &exchange.rules.config.routes.all()[exchange.route];
    let mode = match (exchange.admission, exchange.rules.config.gate.mode) {
        (Mode::Off, _) | (_, Mode::Off) => return Ok(()),
        (Mode::Monitor, _) | (_, Mode::Monitor) => Mode::Monitor,
        (Mode::Enforce, Mode::Enforce) => Mode::Enforce,
    };
    if route.is_health {
        return Ok(());
    }
    // Kept by name, so that what was learnt of a route outlives a change of the rules.
    let class = (exchange.rules.route_tags[exchange.route] & 0xffff) as u16;
    let wish = Wish { priority: route.priority, client: exchange.client.id, class, mode };
    let tier = exchange.client.tier;
    let count = |priority| state.metrics.refusals.monitored(Rejection::Overloaded, priority, tier);
    match state.gate.ask(wish, exchange.started, count) {
        Entry::Go(permit) => exchange.permit = Some(permit),
        Entry::Wait(waiting) => exchange.waiting = Some(waiting),
        Entry::Refused => return Err(Rejection::Overloaded),
    }
    Ok(())
}

/// Until when a request may wait for its slot.
pub fn wait_deadline(exchange: &Exchange) -> Instant {
    let longest = exchange.rules.config.gate.settings.max_wait;
    exchange.started + longest.min(exchange.route().timeout)
}

/// How long the body of an answer may go on before its slot is given back: what is left is a transfer, not work.
const LONG_BODY: Duration = Duration::from_secs(1);

/// Gives the slot back when the rest of the answer is long.
pub fn let_go_of_long_answer(exchange: &mut Exchange, now: Instant) {
    if exchange.permit.is_some() && exchange.head_at.is_some_and(|at| now.duration_since(at) > LONG_BODY) {
        exchange.permit = None;
    }
}

/// The same where nobody is asked while the client takes its time: the slot is given back by then, if not before.
pub fn let_go_later(exchange: &mut Exchange) {
    if let Some(permit) = exchange.permit.take() {
        let task = tokio::spawn(async move {
            tokio::time::sleep(LONG_BODY).await;
            drop(permit);
        });
        exchange.lingering = Some(Lingering(task));
    }
}

/// A slot that is given back after a while, or now when this is dropped.
#[derive(Debug)]
pub struct Lingering(tokio::task::JoinHandle<()>);

impl Drop for Lingering {
    fn drop(&mut self) {
        self.0.abort();
    }
}
