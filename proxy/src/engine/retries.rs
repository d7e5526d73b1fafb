//! Whether an attempt that came to nothing is made again.
//!
//! | it ended | which requests | costs |
//! |---|---|---|
//! | a kept connection was closed before a byte of the answer came | those that may be repeated | nothing: the app was not asked |
//! | the app refused the connection | all | a wait for the app, see [`crate::engine::stages::hold`] |
//! | connecting took too long | all: the app has seen nothing of it | budget |
//! | a new connection was closed before the answer | those that may be repeated | budget |
//! | an answer whose status the rules name | those that may be repeated | budget |
//! | time is over, or what came is no HTTP | none | |
//!
//! What may be repeated is what is idempotent (RFC 9110 section 9.2.2), as long as no byte of an answer has reached the
//! client and the body, if there is one, is still there: Pingora keeps the first 64 KiB of one.

use std::time::{Duration, Instant};

use outrigger_policy::flags::Mode;
use outrigger_policy::retry;
use outrigger_wire::random::dice;

use crate::engine::exchange::Exchange;
use crate::engine::state::State;

/// A request has come: it pays into the budget.
pub fn pay_in(state: &State, exchange: &Exchange) {
    if exchange.resilience == Mode::Enforce && exchange.route().attempts > 1 {
        state.retry_budget().pay_in(exchange.rules.config.retry.budget);
    }
}

/// Whether one more attempt is allowed and there is time for it, and the pause before it. [`pay`] comes next.
pub fn pause(exchange: &Exchange, now: Instant, asked_for: Option<Duration>) -> Option<Duration> {
    let is_last = exchange.is_last_attempt || exchange.attempts >= exchange.route().attempts;
    if exchange.resilience != Mode::Enforce || is_last {
        return None;
    }
    let rules = &exchange.rules.config.retry;
    let jittered = || retry::pause(exchange.attempts, rules.backoff, rules.max_backoff, dice());
    // Zero is what a date that has passed says: as soon as any other retry.
    let pause = asked_for.filter(|pause| !pause.is_zero()).unwrap_or_else(jittered);
    (now + pause < exchange.deadline).then_some(pause)
}

/// Whether an answer with this status is tried again.
pub fn is_wanted(exchange: &Exchange, status: u16) -> bool {
    exchange.resilience == Mode::Enforce && exchange.route().retry_statuses.contains(&status)
}

/// One more attempt is made: false if the budget has nothing left for it.
pub fn pay(state: &State, exchange: &Exchange, now: Instant) -> bool {
    let is_paid = state.retry_budget().pay(state.nanoseconds(now), exchange.rules.config.retry.budget);
    if is_paid {
        state.metrics.retries.inc();
    } else {
        state.metrics.retries_denied.inc();
    }
    is_paid
}
