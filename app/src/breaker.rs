//! The breaker in front of a database: who may ask it, and what is said when it opens and closes.
//!
//! What to decide is [`outrigger_policy::breaker`]'s; here are its clock, its lock, its log and its metrics. A pool asks
//! before anybody waits for a connection, so that an open breaker refuses at once:
//!
//! ```text
//!   ask ─┬─► Call ─┬─► succeeded   the database did as asked, or said why not
//!        │         ├─► failed      it could not be reached, broke off, or was silent for too long
//!        │         └─► (dropped)   nobody knows: the client left, its time was short, the pool was busy
//!        └─► ApiError::BreakerOpen
//! ```
//!
//! While it is open nobody opens connections either ([`Breaker::turn_to_connect`]). It need not wait for its time to pass:
//! [`crate::health`] looks every other second whether the database answers again, and says so ([`Breaker::answers`]).
//!
//! `FF_ENABLE_CIRCUIT_BREAKER` off leaves everything to the pool. `monitor` counts and reports, and refuses nobody.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_policy::breaker::{Breaker as Machine, Caller, Failure, Outcome, Permit, Settings, Span, State};
use outrigger_policy::flags::Mode;
use serde::Serialize;
use tokio::sync::watch;

use crate::error::{ApiError, Dependency};
use crate::metrics::Metrics;

/// Whoever sets a short time gets a longer one with every failed probe, up to this: many short ones would be a siege.
const LONGEST: Duration = Duration::from_secs(60);
/// Probes at the same time. Several, since a request takes more than one call and the outbox asks beside it.
const PROBES: u32 = 3;
/// So many probes in a row close it.
pub const SUCCESSES: u32 = 2;

/// When it opens, for how long, and whether that counts.
#[derive(Clone, Copy, Debug)]
pub struct BreakerSettings {
    /// Failures in a row; 0: never.
    pub failures: u32,
    pub open_for: Duration,
    pub mode: Mode,
}

/// The breaker of one database.
#[derive(Debug)]
pub struct Breaker {
    dependency: Dependency,
    mode: Mode,
    metrics: Metrics,
    began: Instant,
    dice: RandomState,
    inner: Mutex<Inner>,
    /// For those who wait for a change.
    state: watch::Sender<State>,
    /// Held by the one who opens a connection to a database in doubt.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Inner {
    machine: Machine,
    /// Nanoseconds since the breaker began: when it was closed last.
    closed_until: u64,
    last_failure: String,
}

/// What the health report says of a breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub state: &'static str,
    /// In a row, up to now.
    pub failures: u32,
    pub mode: &'static str,
    #[serde(flatten)]
    pub trouble: Option<Trouble>,
}

/// Why it is not closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    pub reason: &'static str,
    pub last_failure: String,
    /// How long it has not been closed by now.
    pub open_for_ms: u64,
    /// How much longer it refuses, unless the database answers sooner.
    pub retry_after_ms: u64,
}

/// It changed its state. Told after the lock is free: the log may be slow.
struct Change {
    from: State,
    to: State,
    reason: &'static str,
    failures: u32,
    last_failure: String,
    not_closed_for: Duration,
    open_for: Duration,
}

impl Breaker {
    /// Closed, and knows nothing.
    pub fn new(dependency: Dependency, settings: BreakerSettings, metrics: Metrics) -> Self {
        let machine = Machine::new(Settings {
            consecutive: settings.failures,
            window: Span::Calls(1),
            minimum: 1,
            failure_rate: None,
            slow_after: None,
            slow_rate: None,
            open_for: settings.open_for,
            max_open_for: settings.open_for.max(LONGEST),
            jitter: 0.2,
            probes: PROBES,
            successes: SUCCESSES,
            // The pool bounds what comes back at once; refusing some of it would only be longer down.
            ramp: Duration::ZERO,
            // What it is told of is the database's doing, whoever asked.
            min_clients: 1,
            is_shared: false,
        });
        // Counters that are there from the start show their first increase.
        for state in State::ALL {
            metrics.breaker_transitions.with_label_values(&[dependency.name(), state.name()]);
        }
        for mode in [Mode::Enforce, Mode::Monitor] {
            metrics.breaker_refusals.with_label_values(&[dependency.name(), mode.name()]);
        }
        Self {
            dependency,
            mode: settings.mode,
            metrics,
            began: Instant::now(),
            dice: RandomState::new(),
            inner: Mutex::new(Inner { machine, closed_until: 0, last_failure: String::new() }),
            state: watch::Sender::new(State::Closed),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// Somebody wants to ask the database.
    ///
    /// # Errors
    /// [`ApiError::BreakerOpen`], with the time after which asking may help.
    pub fn ask(self: &Arc<Self>) -> Result<Call, ApiError> {
        let mut permit = None;
        if self.mode != Mode::Off {
            match self.change(|inner, now| inner.machine.ask(now, Caller::ANYBODY)) {
                Ok(granted) => permit = Some(granted),
                Err(refused) => {
                    self.metrics.breaker_refusals.with_label_values(&[self.dependency.name(), self.mode.name()]).inc();
                    if self.mode == Mode::Enforce {
                        let reason = self.lock().last_failure.clone();
                        let (dependency, retry_after) = (self.dependency, refused.retry_after);
                        return Err(ApiError::BreakerOpen { dependency, reason, retry_after });
                    }
                }
            }
        }
        Ok(Call { breaker: Arc::clone(self), permit, since: Instant::now() })
    }

    /// Waits while no connection may be opened, which is for as long as the breaker is open. While the database is tried,
    /// they are opened one after the other, and the turn lasts as long as what is returned.
    pub async fn turn_to_connect(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.mode != Mode::Enforce {
            return None;
        }
        let mut state = self.state.subscribe();
        loop {
            let now = *state.borrow_and_update();
            match now {
                State::Closed | State::Ramp => return None,
                // The sender is a field of ours: it is there.
                State::Open => {
                    let _ = state.changed().await;
                }
                State::HalfOpen => {
                    let turn = self.turn.lock().await;
                    // While we waited, another one's attempt may have shown that the database is still away.
                    if *state.borrow() != State::Open {
                        return Some(turn);
                    }
                }
            }
        }
    }

    /// Somebody has seen that the database answers: an open breaker lets the next one try, whatever time is left.
    pub fn answers(&self) {
        if self.is_in_doubt() {
            self.change(|inner, _| inner.machine.try_now());
        }
    }

    /// Whether it is anything but closed.
    pub fn is_in_doubt(&self) -> bool {
        matches!(*self.state.borrow(), State::Open | State::HalfOpen)
    }

    /// For the health report.
    pub fn report(&self) -> Report {
        let now = self.now();
        let inner = self.lock();
        let machine = &inner.machine;
        let state = match machine.state() {
            State::Closed | State::Ramp => "CLOSED",
            State::Open => "OPEN",
            State::HalfOpen => "HALF_OPEN",
        };
        let trouble = (state != "CLOSED").then(|| Trouble {
            reason: machine.reason().map_or("", |reason| reason.name()),
            last_failure: inner.last_failure.clone(),
            open_for_ms: now.saturating_sub(inner.closed_until) / 1_000_000,
            retry_after_ms: machine.open_for(now).map_or(0, |(left, _)| left.as_millis() as u64),
        });
        Report { state, failures: machine.failures(), mode: self.mode.name(), trouble }
    }

    /// Brings its gauges up to date, for a scrape.
    pub fn publish(&self) {
        let now = *self.state.borrow();
        for state in State::ALL {
            let is_present = i64::from(state == now);
            self.metrics.breaker_state.with_label_values(&[self.dependency.name(), state.name()]).set(is_present);
        }
    }

    fn end(&self, permit: Permit, outcome: Outcome, why: &str) {
        self.change(|inner, now| {
            if matches!(outcome, Outcome::Failure(_)) {
                why.clone_into(&mut inner.last_failure);
            }
            let dice = self.dice.hash_one(now) as f64 / u64::MAX as f64;
            inner.machine.record(permit, now, outcome, dice);
        });
    }

    fn change<T>(&self, act: impl FnOnce(&mut Inner, u64) -> T) -> T {
        let (result, change) = {
            let mut inner = self.lock();
            let now = self.now();
            let from = inner.machine.state();
            let result = act(&mut inner, now);
            let to = inner.machine.state();
            if from == State::Closed {
                inner.closed_until = now;
            }
            (result, (from != to).then(|| self.changed(&inner, from, to, now)))
        };
        if let Some(change) = change {
            self.tell(&change);
        }
        result
    }

    fn changed(&self, inner: &Inner, from: State, to: State, now: u64) -> Change {
        // Within the lock, so that those who wait see every change in order.
        self.state.send_replace(to);
        let machine = &inner.machine;
        Change {
            from,
            to,
            reason: machine.reason().map_or("", |reason| reason.name()),
            failures: machine.failures(),
            last_failure: inner.last_failure.clone(),
            not_closed_for: Duration::from_nanos(now.saturating_sub(inner.closed_until)),
            open_for: machine.open_for(now).map_or(Duration::ZERO, |(left, _)| left),
        }
    }

    fn tell(&self, change: &Change) {
        let Change { reason, failures, last_failure, .. } = change;
        let (dependency, name, mode) = (self.dependency, self.dependency.name(), self.mode.name());
        let (from, to) = (change.from.name(), change.to.name());
        self.metrics.breaker_transitions.with_label_values(&[name, to]).inc();
        let open_for_ms = change.open_for.as_millis() as u64;
        let not_closed_for_ms = change.not_closed_for.as_millis() as u64;
        match change.to {
            State::Open => tracing::warn!(
                dependency = name,
                mode,
                from,
                to,
                reason,
                failures,
                last_failure,
                open_for_ms,
                "the breaker of {dependency} opens for {open_for_ms} ms, or until it answers: {last_failure}"
            ),
            State::HalfOpen => tracing::info!(
                dependency = name,
                mode,
                from,
                to,
                not_closed_for_ms,
                "the breaker of {dependency} is half open: a few requests try it after {not_closed_for_ms} ms"
            ),
            State::Closed | State::Ramp => tracing::info!(
                dependency = name,
                mode,
                from,
                to,
                not_closed_for_ms,
                "the breaker of {dependency} closes after {not_closed_for_ms} ms: it answers again"
            ),
        }
    }

    fn now(&self) -> u64 {
        // Enough for 584 years.
        self.began.elapsed().as_nanos() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to ask the database. Says how it went; dropped before, it says nothing.
#[derive(Debug)]
#[must_use = "a call that is dropped says nothing about the database"]
pub struct Call {
    breaker: Arc<Breaker>,
    permit: Option<Permit>,
    since: Instant,
}

impl Call {
    /// The database did as asked, or said why not.
    pub fn succeeded(mut self) {
        let took = self.since.elapsed();
        self.end(Outcome::Success(took), "");
    }

    /// The database could not be reached, broke off, or was silent for too long. `why` is for the log and for clients.
    pub fn failed(mut self, why: &str) {
        self.end(Outcome::Failure(Failure::Away), why);
    }

    fn end(&mut self, outcome: Outcome, why: &str) {
        if let Some(permit) = self.permit.take() {
            self.breaker.end(permit, outcome, why);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Outcome::Ignored, "");
    }
}

#[cfg(test)]
mod tests;
