//! The connection pool for both databases: bb8 with additions.
//!
//! - A [`Checkout`] dropped before [`Checkout::release`] (deadline passed, client disconnected, error) is
//!   *interrupted*: its query is cancelled and its connection closed, so the next request never gets a connection
//!   with an old query still running.
//! - Connections live for 80 to 100 % of the configured lifetime, so they are not replaced all at once.
//! - A holder that keeps a connection for too long is named in the log, once.
//! - A wait that ends without a connection reports why: all are busy, or the database does not respond.
//! - A [`Breaker`] in front: after a database has failed, requests are rejected instead of waiting for it.
//!
//! With `FF_ENABLE_ENHANCED_POOLING` off this is plain bb8: no jitter, no leak detection, no minimum. `monitor` only
//! detects leaks.

pub mod metrics;

use std::fmt;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bb8::{PooledConnection, RunError};
use outrigger_policy::flags::Mode;
use serde::Serialize;

use crate::breaker::{Breaker, BreakerSettings, Call, SUCCESSES};
use crate::deadline::Deadline;
use crate::error::ApiError;
use crate::keeper::{Backend, CHECK_TIMEOUT, Keeper};
use crate::metrics::Metrics;
use crate::pool::metrics::CLOSED;
use crate::pool_state::{Shared, Sink, Waiting, watch_for_leaks};

/// After this many consecutive failures, a request waits only for [`FAILING_PATIENCE`]: long enough to notice that
/// the database is back, short enough that requests do not pile up.
const FAILING: u32 = 3;
const FAILING_PATIENCE: Duration = Duration::from_millis(500);
/// No response for at least this long counts as the database's failure, whichever timeout ended the call. Less does
/// not: the deadline was too short.
const SILENCE: Duration = Duration::from_millis(500);
/// Like [`SILENCE`] while the database is failing: shorter than every time limit used then.
const SILENCE_WHEN_FAILING: Duration = Duration::from_millis(200);
/// How often the pool refills itself.
const UPKEEP: Duration = Duration::from_secs(5);

/// Sizes and timeouts of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    pub min: u32,
    pub max: u32,
    pub acquire_timeout: Duration,
    pub max_lifetime: Duration,
    pub idle_timeout: Duration,
    pub leak_after: Duration,
    pub open_timeout: Duration,
    pub enhanced: Mode,
    pub breaker: BreakerSettings,
}

/// The pool of one database.
pub struct Pool<B: Backend> {
    inner: bb8::Pool<Keeper<B>>,
    backend: Arc<B>,
    breaker: Arc<Breaker>,
    shared: Arc<Shared>,
    settings: PoolSettings,
}

impl<B: Backend> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("of", &B::DEPENDENCY).field("numbers", &self.numbers()).finish_non_exhaustive()
    }
}

/// A pool's statistics in the health report.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PoolNumbers {
    pub total: u32,
    pub active: u32,
    pub idle: u32,
    pub waiting: i64,
    pub max: u32,
    pub min: u32,
}

impl<B: Backend> Pool<B> {
    /// Fills the pool to its minimum in the background; the database may be down.
    pub fn start(backend: B, settings: PoolSettings, metrics: Metrics) -> Self {
        let backend = Arc::new(backend);
        let breaker = Arc::new(Breaker::new(B::DEPENDENCY, settings.breaker, metrics.breaker));
        let shared = Arc::new(Shared::new(B::DEPENDENCY, metrics.pool));
        let enhanced = settings.enhanced == Mode::Enforce;
        let jitter = RandomState::new();
        let keeper = Keeper { backend: Arc::clone(&backend), breaker: Arc::clone(&breaker), settings, jitter };
        let inner = bb8::Pool::builder()
            .max_size(settings.max)
            .min_idle(enhanced.then_some(settings.min))
            .connection_timeout(settings.acquire_timeout)
            .max_lifetime(settings.max_lifetime)
            .idle_timeout(settings.idle_timeout)
            .reaper_rate(if enhanced { UPKEEP } else { Duration::from_secs(30) })
            .error_sink(Box::new(Sink(Arc::clone(&shared))))
            .build_unchecked(keeper);
        if settings.enhanced != Mode::Off {
            tokio::spawn(watch_for_leaks(Arc::downgrade(&shared), settings.leak_after));
        }
        Self { inner, backend, breaker, shared, settings }
    }

    /// Returns a connection for `what`, a name for the log. Waits until the deadline or the acquire timeout,
    /// whichever is first.
    ///
    /// # Errors
    /// [`ApiError::BreakerOpen`] immediately, [`ApiError::PoolExhausted`] if all connections are in use,
    /// [`ApiError::Unavailable`] if no connection can be opened.
    pub async fn checkout(&self, what: &'static str, deadline: Deadline) -> Result<Checkout<B>, ApiError> {
        let call = self.breaker.ask()?;
        let errors_before = self.shared.errors();
        let deadline = if self.failures() >= FAILING { deadline.within(FAILING_PATIENCE) } else { deadline };
        let waiting = Waiting::new(&self.shared);
        let acquired = deadline.run(self.inner.get_owned()).await;
        let waited = waiting.since.elapsed();
        drop(waiting);
        self.shared.metrics.acquire.with_label_values(&[self.shared.name()]).observe(waited.as_secs_f64());
        match acquired {
            Ok(Ok(connection)) => Ok(Checkout {
                held: self.shared.hold(what),
                shared: Arc::clone(&self.shared),
                backend: Arc::clone(&self.backend),
                call: Some(call),
                connection,
                released: false,
            }),
            Ok(Err(RunError::User(error))) => {
                let reason = error.to_string();
                call.failed(&reason);
                Err(self.unavailable(reason))
            }
            Ok(Err(RunError::TimedOut)) | Err(_) => Err(self.why_none(call, waited, errors_before)),
        }
    }

    /// Sends health checks through the pool until the circuit breaker closes or opens again, so that no client
    /// request has to be the probe.
    pub async fn try_out(&self) {
        for _ in 0..SUCCESSES {
            if !self.breaker.is_in_doubt() {
                return;
            }
            let Ok(session) = self.checkout("breaker::try_out", Deadline::after(CHECK_TIMEOUT * 2)).await else {
                return;
            };
            match tokio::time::timeout(CHECK_TIMEOUT, self.backend.check(session.client())).await {
                Ok(Ok(())) => session.release(),
                Ok(Err(error)) => return session.fail(&error.to_string()),
                Err(_) => return session.fail(&format!("no response within {} ms", CHECK_TIMEOUT.as_millis())),
            }
        }
    }

    /// Number of connections by state.
    pub fn numbers(&self) -> PoolNumbers {
        let state = self.inner.state();
        PoolNumbers {
            total: state.connections,
            active: state.connections.saturating_sub(state.idle_connections),
            idle: state.idle_connections,
            waiting: self.shared.waiting(),
            max: self.settings.max,
            min: self.settings.min,
        }
    }

    /// Consecutive failures of connections, checks and requests.
    pub fn failures(&self) -> u32 {
        self.shared.failures()
    }

    /// The last failure, until the next success.
    pub fn last_error(&self) -> Option<String> {
        self.shared.last_error()
    }

    /// How long a call must be without a response for that to count as the database's failure.
    pub fn silence(&self) -> Duration {
        if self.failures() > 0 { SILENCE_WHEN_FAILING } else { SILENCE }
    }

    /// Records the result of a health check, which uses its own connection.
    pub fn probed(&self, outcome: &Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.shared.succeeded();
                self.breaker.answers();
            }
            Err(reason) => self.shared.failed(reason),
        }
    }

    /// The circuit breaker in front of this pool.
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }

    /// Updates this pool's gauges and counters before a scrape.
    pub fn publish(&self) {
        let (numbers, metrics, pool) = (self.numbers(), &self.shared.metrics, self.shared.name());
        for (state, count) in [
            ("total", numbers.total),
            ("active", numbers.active),
            ("idle", numbers.idle),
            ("max", numbers.max),
            ("min", numbers.min),
        ] {
            metrics.connections.with_label_values(&[pool, state]).set(count.into());
        }
        metrics.waiting.with_label_values(&[pool]).set(numbers.waiting);
        let statistics = self.inner.state().statistics;
        // Raises the counters to bb8's totals.
        let follow =
            |counter: outrigger_metrics::IntCounter, total: u64| counter.inc_by(total.saturating_sub(counter.get()));
        follow(metrics.opened.with_label_values(&[pool]), statistics.connections_created);
        for (reason, total) in CLOSED.into_iter().zip([
            statistics.connections_closed_broken,
            statistics.connections_closed_invalid,
            statistics.connections_closed_max_lifetime,
            statistics.connections_closed_idle_timeout,
        ]) {
            follow(metrics.closed.with_label_values(&[pool, reason]), total);
        }
        metrics.failures.with_label_values(&[pool]).set(self.failures().into());
        self.breaker.publish();
    }

    fn why_none(&self, call: Call, waited: Duration, errors_before: u64) -> ApiError {
        let connections = self.inner.state().connections;
        if connections >= self.settings.max && self.failures() == 0 {
            self.count_failure("exhausted");
            return ApiError::PoolExhausted(B::DEPENDENCY);
        }
        let reason = self.last_error().unwrap_or_else(|| format!("no connection within {} ms", waited.as_millis()));
        // If other requests hold connections, a failed wait says nothing about the database: their calls will show.
        let is_silent = connections == 0 && waited >= self.silence();
        if is_silent || self.shared.errors() > errors_before {
            call.failed(&reason);
        }
        self.unavailable(reason)
    }

    fn unavailable(&self, reason: String) -> ApiError {
        self.count_failure("unavailable");
        ApiError::Unavailable { dependency: B::DEPENDENCY, reason }
    }

    fn count_failure(&self, reason: &str) {
        self.shared.metrics.acquire_failures.with_label_values(&[self.shared.name(), reason]).inc();
    }
}

/// A connection in use. Call [`Self::release`] when its work ended; dropping it interrupts the work and closes the
/// connection.
#[must_use = "a checkout that is dropped closes its connection"]
pub struct Checkout<B: Backend> {
    connection: PooledConnection<'static, Keeper<B>>,
    backend: Arc<B>,
    call: Option<Call>,
    shared: Arc<Shared>,
    held: u64,
    released: bool,
}

impl<B: Backend> fmt::Debug for Checkout<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkout").field("of", &B::DEPENDENCY).finish_non_exhaustive()
    }
}

impl<B: Backend> Checkout<B> {
    /// The connection.
    pub fn client(&self) -> &B::Client {
        &self.connection.client
    }

    /// Exclusive access to the connection.
    pub fn client_mut(&mut self) -> &mut B::Client {
        &mut self.connection.client
    }

    /// Returns the connection for reuse and records a success.
    pub fn release(mut self) {
        self.released = true;
        self.connection.worked_at = Instant::now();
        self.shared.succeeded();
        if let Some(call) = self.call.take() {
            call.succeeded();
        }
    }

    /// Returns the connection unused.
    pub fn put_back(mut self) {
        self.released = true;
    }

    /// Records a failure of the database and closes the connection.
    pub fn fail(mut self, reason: &str) {
        self.shared.failed(reason);
        if let Some(call) = self.call.take() {
            call.failed(reason);
        }
    }
}

impl<B: Backend> Drop for Checkout<B> {
    fn drop(&mut self) {
        self.shared.let_go(self.held);
        if !self.released {
            self.connection.interrupted = true;
            self.backend.interrupt(&self.connection.client);
        }
    }
}

#[cfg(test)]
mod tests;
