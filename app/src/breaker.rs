//! The circuit breaker in front of a database: admits or rejects calls, and logs when it opens and closes.
//!
//! The decisions are [`outrigger_policy::breaker`]'s; this module adds the clock, the lock, the log and the metrics.
//! A pool asks the breaker before a request waits for a connection, so an open breaker rejects immediately:
//!
//! ```text
//!   ask ─┬─► Call ─┬─► succeeded   the database responded, possibly with an error about the statement
//!        │         ├─► failed      connecting failed, the connection broke, or the database was silent for too long
//!        │         └─► (dropped)   unknown: the client disconnected, the deadline was short, or the pool was busy
//!        └─► ApiError::BreakerOpen
//! ```
//!
//! While the breaker is open, the pool opens no connections either ([`Breaker::turn_to_connect`]). It may close
//! before its time has passed: [`crate::health`] checks every 2 seconds whether the database responds again and calls
//! [`Breaker::answers`].
//!
//! With `FF_ENABLE_CIRCUIT_BREAKER` off, only the pool limits calls. `monitor` counts and logs but rejects no call.

pub mod metrics;

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_policy::breaker::{Breaker as Machine, Caller, Failure, Outcome, Permit, Settings, Span, State};
use outrigger_policy::flags::Mode;
use serde::Serialize;
use tokio::sync::watch;

use crate::breaker::metrics::BreakerMetrics;
use crate::error::{ApiError, Dependency};

/// Upper bound for the open time, which grows with every failed probe: many short periods would keep loading a
/// database that is down. A longer configured time is its own bound.
const LONGEST: Duration = Duration::from_secs(60);
/// Maximum concurrent probes. More than one, since a request makes several calls and the outbox calls as well.
const PROBES: u32 = 3;
/// Consecutive successful probes that close the breaker.
pub const SUCCESSES: u32 = 2;

/// When the breaker opens, for how long, and in which mode.
#[derive(Clone, Copy, Debug)]
pub struct BreakerSettings {
    /// Consecutive failures; 0: never opens.
    pub failures: u32,
    pub open_for: Duration,
    pub mode: Mode,
}

/// The circuit breaker of one database.
#[derive(Debug)]
pub struct Breaker {
    dependency: Dependency,
    mode: Mode,
    metrics: BreakerMetrics,
    began: Instant,
    dice: RandomState,
    inner: Mutex<Inner>,
    /// Notifies tasks that wait for a state change.
    state: watch::Sender<State>,
    /// Serialises connection attempts while the breaker is half-open.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Inner {
    machine: Machine,
    /// When the breaker was last closed, in nanoseconds since its creation.
    closed_until: u64,
    last_failure: String,
}

/// The breaker's part of the health report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub state: &'static str,
    /// Consecutive failures so far.
    pub failures: u32,
    pub mode: &'static str,
    #[serde(flatten)]
    pub trouble: Option<Trouble>,
}

/// Why the breaker is not closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    pub reason: &'static str,
    pub last_failure: String,
    /// Time since it was last closed.
    pub open_for_ms: u64,
    /// How long it will keep rejecting, unless the database responds sooner.
    pub retry_after_ms: u64,
}

/// A state change. Logged after the lock is released, since logging may be slow.
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
    /// A closed breaker without any recorded calls.
    pub fn new(dependency: Dependency, settings: BreakerSettings, metrics: BreakerMetrics) -> Self {
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
            // The pool already bounds the load after recovery; a ramp would only prolong the outage.
            ramp: Duration::ZERO,
            // Failures of the database do not depend on the client, so one client suffices to open it.
            min_clients: 1,
            is_shared: false,
        });
        // Creates the counters at zero, so that their first increase is visible.
        for state in State::ALL {
            metrics.transitions.with_label_values(&[dependency.name(), state.name()]);
        }
        for mode in [Mode::Enforce, Mode::Monitor] {
            metrics.refusals.with_label_values(&[dependency.name(), mode.name()]);
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

    /// Asks to call the database.
    ///
    /// # Errors
    /// [`ApiError::BreakerOpen`] with the time after which to retry.
    pub fn ask(self: &Arc<Self>) -> Result<Call, ApiError> {
        let mut permit = None;
        if self.mode != Mode::Off {
            match self.change(|inner, now| inner.machine.ask(now, Caller::ANYBODY)) {
                Ok(granted) => permit = Some(granted),
                Err(refused) => {
                    self.metrics.refusals.with_label_values(&[self.dependency.name(), self.mode.name()]).inc();
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

    /// Waits until a connection may be opened, which is not the case while the breaker is open. While it is
    /// half-open, connections are opened one at a time: the returned guard must be held meanwhile.
    pub async fn turn_to_connect(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.mode != Mode::Enforce {
            return None;
        }
        let mut state = self.state.subscribe();
        loop {
            let now = *state.borrow_and_update();
            match now {
                State::Closed | State::Ramp => return None,
                // `self` owns the sender, so the channel cannot be closed.
                State::Open => {
                    let _ = state.changed().await;
                }
                State::HalfOpen => {
                    let turn = self.turn.lock().await;
                    // Meanwhile another attempt may have failed and opened the breaker again.
                    if *state.borrow() != State::Open {
                        return Some(turn);
                    }
                }
            }
        }
    }

    /// Reports that the database responds: an open breaker lets the next call probe it, regardless of the time left.
    pub fn answers(&self) {
        if self.is_in_doubt() {
            self.change(|inner, _| inner.machine.try_now());
        }
    }

    /// Whether the breaker is open or half-open.
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

    /// Updates the breaker's gauges before a scrape.
    pub fn publish(&self) {
        let now = *self.state.borrow();
        for state in State::ALL {
            let is_present = i64::from(state == now);
            self.metrics.state.with_label_values(&[self.dependency.name(), state.name()]).set(is_present);
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
        // Sent while the lock is held, so that waiting tasks see every change in order.
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
        self.metrics.transitions.with_label_values(&[name, to]).inc();
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
                "the circuit breaker of {dependency} opens for {open_for_ms} ms, or until it responds: {last_failure}"
            ),
            State::HalfOpen => tracing::info!(
                dependency = name,
                mode,
                from,
                to,
                not_closed_for_ms,
                "the circuit breaker of {dependency} is half-open after {not_closed_for_ms} ms: a few requests probe it"
            ),
            State::Closed | State::Ramp => tracing::info!(
                dependency = name,
                mode,
                from,
                to,
                not_closed_for_ms,
                "the circuit breaker of {dependency} closes after {not_closed_for_ms} ms: it responds again"
            ),
        }
    }

    fn now(&self) -> u64 {
        // Overflows after 584 years.
        self.began.elapsed().as_nanos() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Permission to call the database. Reports the call's outcome; if dropped, nothing is reported.
#[derive(Debug)]
#[must_use = "a call that is dropped says nothing about the database"]
pub struct Call {
    breaker: Arc<Breaker>,
    permit: Option<Permit>,
    since: Instant,
}

impl Call {
    /// The database responded, possibly with an error about the statement.
    pub fn succeeded(mut self) {
        let took = self.since.elapsed();
        self.end(Outcome::Success(took), "");
    }

    /// Connecting failed, the connection broke, or the database was silent for too long. `why` is shown in the log
    /// and to clients.
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
