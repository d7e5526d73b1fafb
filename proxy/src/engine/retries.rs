//! The cost of a retry: a pause that ends before the deadline, and a token of the budget.
//!
//! [`crate::engine::attempts`] decides whether one is made:
//!
//! | the attempt ended | which requests are retried | cost |
//! |---|---|---|
//! | a kept connection was closed before a byte of the response came | repeatable, or not read | none: the app has not seen it |
//! | the app refused the connection | all | a wait for the app, see [`crate::engine::stages::hold`]; no attempt, no budget |
//! | no connection within `connect_timeout` | all: the app has not seen it | an attempt, budget |
//! | a new connection was closed before the response | repeatable, or not read | an attempt, budget |
//! | a response with a status that the route retries | repeatable | an attempt, budget |
//! | no response within the time for an attempt | repeatable, once | an attempt, budget; without them it waits on |
//! | the deadline passed, or the response was not HTTP | none | |
//!
//! A request is repeatable if it is idempotent (RFC 9110 section 9.2.2), no byte of a response has been passed on, and its
//! body is kept: Outrigger keeps one of up to 64 KiB.

use std::time::{Duration, Instant};

use outrigger_policy::flags::Mode;
use outrigger_policy::retry;
use outrigger_wire::random::dice;

use crate::engine::exchange::Exchange;
use crate::engine::state::State;

/// Adds a request's share to the budgets for retries and for hedged requests.
pub fn pay_in(state: &State, exchange: &Exchange) {
    if exchange.resilience == Mode::Enforce && exchange.route().attempts > 1 {
        let rules = &exchange.rules.config.retry;
        let mut budgets = state.budgets();
        budgets.retries.pay_in(rules.budget);
        if state.peers.is_some() {
            budgets.hedges.pay_in(rules.hedge_budget);
        }
    }
}

/// The pause before another attempt, or `None` if it would not end before the deadline.
pub fn pause(exchange: &Exchange, now: Instant, asked_for: Option<Duration>) -> Option<Duration> {
    let rules = &exchange.rules.config.retry;
    let jittered = || retry::pause(exchange.attempts.made(), rules.backoff, rules.max_backoff, dice());
    // A date in the past gives zero: the usual pause applies.
    let pause = asked_for.filter(|pause| !pause.is_zero()).unwrap_or_else(jittered);
    (now + pause < exchange.deadline).then_some(pause)
}

/// Whether a response with this status is retried.
pub fn is_wanted(exchange: &Exchange, status: u16) -> bool {
    exchange.resilience == Mode::Enforce && exchange.route().retry_statuses.contains(&status)
}

/// Takes one token of the retry budget; returns false if it is used up.
pub fn pay(state: &State, exchange: &Exchange, now: Instant) -> bool {
    let is_paid =
        state.budgets().retries.pay(state.nanoseconds(now), exchange.rules.config.retry.budget, exchange.client.id);
    if is_paid {
        state.metrics.attempts.retries.inc();
    } else {
        state.metrics.attempts.retries_denied.inc();
    }
    is_paid
}

/// Takes one token of the budget for hedged requests; returns false if it is used up.
pub fn pay_hedge(state: &State, exchange: &Exchange, now: Instant) -> bool {
    let is_paid = state.budgets().hedges.pay(
        state.nanoseconds(now),
        exchange.rules.config.retry.hedge_budget,
        exchange.client.id,
    );
    if !is_paid {
        state.metrics.attempts.hedges_denied.inc();
    }
    is_paid
}
