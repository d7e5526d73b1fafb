//! The steps between an event of [`super::attempts`] and the next action: reports to the circuit breaker, the retry budget, and
//! checks whether the app is down or a peer takes the request. They do not block.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_policy::flags::Mode;
use outrigger_rules::sections::faults::Effect;

use super::attempts::{Event, Next, Price, Report, Step};
use crate::engine::exchange::Exchange;
use crate::engine::receipts::steps::{Step as Noted, is_unusual};
use crate::engine::rejection::Rejection;
use crate::engine::retries;
use crate::engine::stages::admit::NoTurn;
use crate::engine::stages::breakers::{self, End};
use crate::engine::stages::{failover, faults, hold};
use crate::engine::state::State;
use crate::engine::traces;
use crate::mechanism::peers::Peer;
use crate::mechanism::peers::hop::Kind;
use crate::mechanism::peers::metrics::SentOn;

/// Takes an event, and returns the driver's next action.
#[inline]
pub fn happened(state: &State, exchange: &mut Exchange, event: Event) -> Next {
    let mut step = exchange.attempts.on(event);
    let next = loop {
        match step {
            Step::Go(None, next) => break next,
            Step::Go(Some(report), next) => {
                breakers::ended(state, exchange, end(report));
                break next;
            }
            Step::Buy(price) => {
                let bought = Event::Bought(buy(state, exchange, price));
                step = exchange.attempts.on(bought);
            }
        }
    };
    traces::happened(exchange, event, next);
    if is_unusual(event, next) {
        exchange.steps.add(exchange.started, Noted::Attempt(event, next));
    }
    next
}

fn end(report: Report) -> End {
    match report {
        Report::Answered(status) => End::Answered(status, clock::now()),
        Report::Failed => End::Failed,
        Report::NotConnected => End::NotConnected,
        Report::Unknown => End::Unknown,
    }
}

fn buy(state: &State, exchange: &Exchange, price: Price) -> Option<Duration> {
    let now = clock::now();
    match price {
        Price::Pause => retries::pause(exchange, now, None),
        Price::Budget => retries::pay(state, exchange, now).then_some(Duration::ZERO),
        Price::PauseAndBudget(retry_after) => {
            retries::pause(exchange, now, retry_after).filter(|_| retries::pay(state, exchange, now))
        }
    }
}

/// The request has a permit, or needs none.
#[inline]
pub fn admitted(state: &State, exchange: &mut Exchange, is_idempotent: bool) -> Next {
    let most = if exchange.resilience == Mode::Enforce { exchange.route().attempts } else { 1 };
    happened(state, exchange, Event::Admitted { most, is_idempotent })
}

/// The request gets no permit here. A peer may have a free one.
pub fn not_admitted(state: &State, exchange: &mut Exchange, no_turn: NoTurn) -> Next {
    let event = match no_turn {
        NoTurn::AppDown => Event::HoldOver,
        NoTurn::Refused(rejection) => {
            // An upload that asks again has sent a part of its body.
            let peer = exchange.attempts.is_queued()
                && rejection == Rejection::Overloaded
                && failover::may_serve_elsewhere(state, exchange);
            Event::NotAdmitted { rejection, peer }
        }
    };
    happened(state, exchange, event)
}

/// The app refused the connection: the request goes to a peer, waits for the app, or fails.
pub fn refused(state: &Arc<State>, exchange: &mut Exchange) -> Next {
    let waits = hold::refused(state, exchange);
    let peer = failover::takes(state, exchange);
    if waits && !peer {
        exchange.held_since.get_or_insert_with(clock::now);
    }
    happened(state, exchange, Event::Refused { waits, peer })
}

/// The app has not accepted the connection so far, and nothing of the request was sent. Returns the next action if the app answers no
/// other requests either and a peer takes this one.
#[cold]
pub fn not_accepted(state: &State, exchange: &mut Exchange) -> Option<Next> {
    let is_silent = state.peers.as_ref().is_some_and(|peers| peers.local.is_silent());
    (is_silent && failover::takes(state, exchange))
        .then(|| happened(state, exchange, Event::Refused { waits: false, peer: true }))
}

/// The app has not responded within the time for an attempt. Returns [`Next::GoOn`] if the attempt goes on all the same. `is_news`: it
/// is the first time that this attempt is found so.
#[cold]
pub fn overdue(state: &State, exchange: &mut Exchange, may_repeat: bool, is_news: bool) -> Next {
    if is_news {
        state.metrics.attempts.overdue.inc();
    }
    let is_silent = state.peers.as_ref().is_some_and(|peers| peers.local.overdue(is_news));
    // An app that answers nothing is as good as down: to leave it costs no budget.
    let may_leave = may_repeat && exchange.attempts.may_leave();
    if may_leave && is_silent && failover::takes(state, exchange) {
        return happened(state, exchange, Event::Overdue { may_repeat, peer: true });
    }
    if may_leave
        && is_news
        && exchange.attempts.was_in_time()
        && let Some(peer) = failover::second(state, exchange)
    {
        if !retries::pay(state, exchange, clock::now()) {
            return Next::GoOn;
        }
        failover::leaves(peer, state, exchange);
        return happened(state, exchange, Event::Overdue { may_repeat, peer: true });
    }
    if !is_news {
        return Next::GoOn;
    }
    happened(state, exchange, Event::Overdue { may_repeat, peer: false })
}

/// The peer that was asked as well has responded first.
#[cold]
pub fn hedge_won(state: &State, exchange: &mut Exchange, peer: Arc<Peer>) -> Next {
    state.metrics.attempts.hedges_won.inc();
    state.metrics.peers.sent(Kind::Failover, SentOn::Answered);
    if let Some(peers) = &state.peers {
        peers.local.overdue(true);
    }
    failover::leaves(peer, state, exchange);
    happened(state, exchange, Event::HedgeWon)
}

/// Asks the circuit breaker whether the attempt may be made; returns the fault to inject, if there is one.
///
/// # Errors
/// The next action if the circuit breaker is open.
#[inline]
pub fn enter(state: &State, exchange: &mut Exchange, now: Instant) -> Result<Option<Fault>, Next> {
    match breakers::enter(state, exchange, now) {
        Ok(()) if exchange.faults.is_empty() => Ok(None),
        Ok(()) => Ok(fault(state, exchange)),
        Err(rejection) => Err(breaker_is_open(state, exchange, rejection)),
    }
}

fn breaker_is_open(state: &State, exchange: &mut Exchange, rejection: Rejection) -> Next {
    let retry_after = rejection.problem().retry_after.unwrap_or_default();
    let peer = failover::takes(state, exchange);
    happened(state, exchange, Event::BreakerOpen { retry_after, peer })
}

/// A fault to inject into an attempt: a delay, then its effect.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The delay, no longer than the time that is left.
    pub delay: Duration,
    after: After,
}

#[derive(Clone, Copy, Debug)]
enum After {
    DeadlineOver,
    Effect(Effect),
}

fn fault(state: &State, exchange: &mut Exchange) -> Option<Fault> {
    let (delay, effect) = faults::next(exchange)?;
    exchange.steps.add(exchange.started, Noted::Fault(delay));
    state.metrics.faults.inc();
    let left = exchange.deadline.saturating_duration_since(clock::now());
    let after = if delay >= left { After::DeadlineOver } else { After::Effect(effect) };
    Some(Fault { delay: delay.min(left), after })
}

impl Fault {
    /// The event after its delay; `None` if the attempt goes on. `may_repeat` is as in [`Event::Closed`], and called only if
    /// needed.
    pub fn event(self, exchange: &Exchange, may_repeat: impl FnOnce() -> bool) -> Option<Event> {
        match self.after {
            After::DeadlineOver => Some(Event::Expired),
            After::Effect(Effect::Pass) => None,
            After::Effect(Effect::Abort(status)) => Some(Event::FaultStatus {
                status,
                wants_retry: retries::is_wanted(exchange, status.as_u16()) && may_repeat(),
            }),
            After::Effect(Effect::Reset) => Some(Event::Closed { is_stale: false, may_repeat: may_repeat() }),
        }
    }
}

/// The head of a response of the app is complete. `may_repeat` is called only if the route retries this status.
#[inline]
pub fn answered(
    state: &State,
    exchange: &mut Exchange,
    status: u16,
    retry_after: Option<Duration>,
    may_repeat: impl FnOnce() -> bool,
) -> Next {
    exchange.says_when = retry_after.is_some();
    let wants_retry = retries::is_wanted(exchange, status) && may_repeat();
    happened(state, exchange, Event::Answered { status, wants_retry, retry_after })
}
