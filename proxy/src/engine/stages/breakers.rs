//! The stage that asks the circuit breaker, and the judgement of each attempt.

use std::sync::Arc;
use std::time::Instant;

use outrigger_identity::clock;
use outrigger_identity::hash::client_hash;
use outrigger_policy::breaker::{Caller, Failure, Outcome, Refused};
use outrigger_policy::flags::Mode;
use outrigger_rules::sections::breaker::BreakerRules;
use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::notices;
use crate::engine::receipts::steps::Step;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;
use crate::mechanism::breakers::{self as mechanism, Cell, SeenResponse};

/// Returns the exchange's circuit breaker, its configuration, and its mode for this client.
fn of(exchange: &Exchange) -> Option<(&Arc<Cell>, &BreakerRules, Mode)> {
    if exchange.resilience == Mode::Off {
        return None;
    }
    let number = usize::from(exchange.route().breaker?);
    let (cell, rules) = (exchange.rules.breakers.get(number)?, exchange.rules.config.breakers.get(number)?);
    let mode = match (exchange.resilience, rules.mode) {
        (_, Mode::Off) | (Mode::Off, _) => return None,
        (Mode::Monitor, _) | (_, Mode::Monitor) => Mode::Monitor,
        (Mode::Enforce, Mode::Enforce) => Mode::Enforce,
    };
    Some((cell, rules, mode))
}

/// Identifies the client to the breaker: without a verified credential, by address, so that many keys make no more
/// clients.
fn caller(exchange: &Exchange) -> Caller {
    let client = &exchange.client;
    let id = if client.verified.is_some() { client.id } else { client.address_id };
    Caller { client: id, place: exchange.place }
}

/// Returns the place of a path without a route of its own: its first segment.
fn place_of(path: &str) -> u64 {
    let segment = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    client_hash(b'p', segment.as_bytes())
}

/// Stage: rejects a request that an open circuit breaker would reject anyway, before it waits for a permit.
///
/// # Errors
/// [`Rejection::BreakerOpen`]
pub fn may_pass(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    if of(exchange).is_some_and(|(_, rules, _)| rules.settings.is_shared) {
        exchange.place = place_of(request.path);
    }
    let Some((cell, _, mode)) = of(exchange) else { return Ok(()) };
    if cell.is_calm() {
        return Ok(());
    }
    match cell.refuses(state.nanoseconds(exchange.started), caller(exchange)) {
        // A state forced by an operator is enforced, regardless of the circuit breaker's mode.
        Some((refused, is_forced)) if mode == Mode::Enforce || is_forced => Err(rejection(refused)),
        _ => Ok(()),
    }
}

/// Asks the circuit breaker before an attempt.
///
/// # Errors
/// [`Rejection::BreakerOpen`]
pub fn enter(state: &State, exchange: &mut Exchange, now: Instant) -> Result<(), Rejection> {
    exchange.attempt = None;
    let Some((cell, _, mode)) = of(exchange) else { return Ok(()) };
    let (entered, change) = cell.enter(caller(exchange), state.nanoseconds(now), now);
    if let Some(change) = change {
        notices::breaker_changed(state, cell, change);
    }
    match entered {
        Ok(attempt) => {
            exchange.attempt = Some(attempt);
            Ok(())
        }
        Err(refused) if mode == Mode::Enforce => Err(rejection(refused)),
        Err(refused) => {
            let (priority, tier) = (exchange.route().priority, exchange.client.tier);
            state.metrics.rejections.refusals.monitored(rejection(refused), priority, tier);
            exchange.steps.add(exchange.started, Step::Monitored(rejection(refused)));
            Ok(())
        }
    }
}

const fn rejection(refused: Refused) -> Rejection {
    Rejection::BreakerOpen { retry_after: refused.retry_after }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The head of the response arrived then, with this status.
    Answered(u16, Instant),
    /// There was no valid response.
    Failed,
    /// There was no connection in time.
    NotConnected,
    /// The app is unreachable.
    Unreached,
    /// Unknown.
    Unknown,
}

/// Judges the app by its response. `None`: not counted.
fn judge(exchange: &Exchange, status: u16) -> Option<Result<(), Failure>> {
    let rules = exchange.route().breaker.and_then(|n| exchange.rules.config.breakers.get(usize::from(n)));
    mechanism::judge(SeenResponse {
        status,
        says_when: exchange.says_when,
        had_less_time: had_less_time(exchange),
        counts_429: rules.is_some_and(|rules| rules.counts_429),
    })
}

/// Returns whether the request had less time than its route allows: by its client's choice, or after it was held.
pub fn had_less_time(exchange: &Exchange) -> bool {
    exchange.is_impatient || exchange.held_since.is_some()
}

/// Returns whether a response with this status is a failure of the app.
pub fn is_failure(exchange: &Exchange, status: u16) -> bool {
    matches!(judge(exchange, status), Some(Err(_)))
}

/// Reports how an attempt ended.
pub fn ended(state: &State, exchange: &mut Exchange, end: End) {
    let Some(mut attempt) = exchange.attempt.take() else { return };
    let outcome = match end {
        End::Answered(status, at) => match judge(exchange, status) {
            None => Outcome::Ignored,
            Some(Ok(())) => Outcome::Success(attempt.duration(at)),
            Some(Err(failure)) => Outcome::Failure(failure),
        },
        End::Failed => Outcome::Failure(Failure::Silent),
        End::NotConnected | End::Unreached => Outcome::Failure(Failure::Away),
        End::Unknown => Outcome::Ignored,
    };
    let now = match end {
        End::Answered(_, at) => at,
        End::Failed | End::NotConnected | End::Unreached | End::Unknown => clock::now(),
    };
    if let Some(change) = attempt.end(outcome, end == End::Unreached, state.nanoseconds(now)) {
        notices::breaker_changed(state, attempt.cell(), change);
    }
}
