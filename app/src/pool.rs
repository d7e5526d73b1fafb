//! One pool for both databases: bb8, with what bb8 leaves open.
//!
//! - A [`Checkout`] that is dropped before [`Checkout::release`] (the deadline passed, the client left, an error) is
//!   *interrupted*: its work is cancelled and its connection closed, never handed to the next request with an old
//!   query still running.
//! - Connections live between 80 and 100 % of the configured lifetime, so that they never go together.
//! - Whoever holds one for too long is named in the log, once.
//! - A wait that ends without a connection says why: all busy, or the database does not answer.
//!
//! `FF_ENABLE_ENHANCED_POOLING` off leaves plain bb8: no jitter, no watch, no warm minimum. `monitor` only watches.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bb8::{ManageConnection, PooledConnection, RunError};
use outrigger_policy::flags::Mode;
use serde::Serialize;

use crate::deadline::Deadline;
use crate::error::{ApiError, Dependency};
use crate::metrics::Metrics;

/// A connection that worked this recently is handed out without a check.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// Longest time for the check of a connection that rested longer.
const CHECK_TIMEOUT: Duration = Duration::from_millis(500);
/// After this many failures in a row, a request waits for [`FAILING_PATIENCE`] only: long enough to notice that the
/// database is back, and not so long that its requests pile up.
const FAILING: u32 = 3;
const FAILING_PATIENCE: Duration = Duration::from_millis(500);
/// How often the pool refills itself and looks for leaks.
const UPKEEP: Duration = Duration::from_secs(5);

/// What the pool needs to know about a database.
pub trait Backend: Send + Sync + 'static {
    /// A connection.
    type Client: Send + Sync + 'static;
    /// Names the pool.
    const DEPENDENCY: Dependency;

    /// Opens a connection that is ready for work. The pool bounds its time.
    fn open(&self) -> impl Future<Output = Result<Self::Client, ConnectionError>> + Send;
    /// Asks whether the other end still answers. The pool bounds its time.
    fn check(&self, client: &Self::Client) -> impl Future<Output = Result<(), ConnectionError>> + Send;
    /// Whether the connection is known to be gone.
    fn is_closed(&self, client: &Self::Client) -> bool;
    /// Stops whatever the connection is doing; it is closed right after.
    fn interrupt(&self, client: &Self::Client);
}

/// Why a connection is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("{0}")]
    Failed(String),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the connection was closed")]
    Closed,
    /// Old enough to be replaced; no failure.
    #[error("the connection reached its age")]
    Expired,
}

/// Sizes and times of a pool.
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
}

/// The pool of one database. Cloning is cheap and shares it.
pub struct Pool<B: Backend> {
    inner: bb8::Pool<Keeper<B>>,
    backend: Arc<B>,
    shared: Arc<Shared>,
    settings: PoolSettings,
}

impl<B: Backend> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("of", &B::DEPENDENCY).field("numbers", &self.numbers()).finish_non_exhaustive()
    }
}

/// What the health report says of a pool.
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
    /// Starts filling the pool to its minimum in the background; the database may be away.
    pub fn start(backend: B, settings: PoolSettings, metrics: Metrics) -> Self {
        let backend = Arc::new(backend);
        let shared = Arc::new(Shared::new(B::DEPENDENCY, metrics));
        let enhanced = settings.enhanced == Mode::Enforce;
        let keeper = Keeper { backend: Arc::clone(&backend), settings, jitter: RandomState::new() };
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
        Self { inner, backend, shared, settings }
    }

    /// A connection for `what`, a name for the log. Waits until the deadline or the acquire timeout, whichever is first.
    ///
    /// # Errors
    /// [`ApiError::PoolExhausted`] when all are in use, [`ApiError::Unavailable`] when none can be had.
    pub async fn checkout(&self, what: &'static str, deadline: Deadline) -> Result<Checkout<B>, ApiError> {
        let deadline = if self.failures() >= FAILING { deadline.within(FAILING_PATIENCE) } else { deadline };
        let waiting = Waiting::new(&self.shared);
        let acquired = deadline.run(self.inner.get_owned()).await;
        let waited = waiting.since.elapsed();
        drop(waiting);
        self.shared.metrics.pool_acquire.with_label_values(&[self.shared.name()]).observe(waited.as_secs_f64());
        match acquired {
            Ok(Ok(connection)) => Ok(Checkout {
                held: self.shared.hold(what),
                shared: Arc::clone(&self.shared),
                backend: Arc::clone(&self.backend),
                connection,
                released: false,
            }),
            Ok(Err(RunError::User(error))) => Err(self.unavailable(error.to_string())),
            Ok(Err(RunError::TimedOut)) | Err(_) => Err(self.why_none(waited)),
        }
    }

    /// How many there are, and what they do.
    pub fn numbers(&self) -> PoolNumbers {
        let state = self.inner.state();
        PoolNumbers {
            total: state.connections,
            active: state.connections.saturating_sub(state.idle_connections),
            idle: state.idle_connections,
            waiting: self.shared.waiting.load(Ordering::Relaxed),
            max: self.settings.max,
            min: self.settings.min,
        }
    }

    /// Failures since the last success, of connections, checks and requests.
    pub fn failures(&self) -> u32 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    /// Why the database was last found wanting, while it is.
    pub fn last_error(&self) -> Option<String> {
        self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The database did not do what it was asked for.
    pub fn failed(&self, reason: &str) {
        self.shared.failed(reason);
    }

    /// The database answered.
    pub fn succeeded(&self) {
        self.shared.succeeded();
    }

    /// Brings this pool's gauges and counters up to date, for a scrape.
    pub fn publish(&self) {
        let (numbers, metrics, pool) = (self.numbers(), &self.shared.metrics, self.shared.name());
        for (state, count) in [
            ("total", numbers.total),
            ("active", numbers.active),
            ("idle", numbers.idle),
            ("max", numbers.max),
            ("min", numbers.min),
        ] {
            metrics.pool_connections.with_label_values(&[pool, state]).set(count.into());
        }
        metrics.pool_waiting.with_label_values(&[pool]).set(numbers.waiting);
        let statistics = self.inner.state().statistics;
        // bb8 keeps the totals; the counters follow them.
        let follow = |counter: prometheus::IntCounter, total: u64| counter.inc_by(total.saturating_sub(counter.get()));
        follow(metrics.pool_opened.with_label_values(&[pool]), statistics.connections_created);
        for (reason, total) in [
            ("broken", statistics.connections_closed_broken),
            ("invalid", statistics.connections_closed_invalid),
            ("lifetime", statistics.connections_closed_max_lifetime),
            ("idle", statistics.connections_closed_idle_timeout),
        ] {
            follow(metrics.pool_closed.with_label_values(&[pool, reason]), total);
        }
        metrics.dependency_failures.with_label_values(&[pool]).set(self.failures().into());
    }

    fn why_none(&self, waited: Duration) -> ApiError {
        let state = self.inner.state();
        if state.connections >= self.settings.max && self.failures() == 0 {
            self.count_failure("exhausted");
            return ApiError::PoolExhausted(B::DEPENDENCY);
        }
        self.unavailable(self.last_error().unwrap_or_else(|| format!("no connection within {} ms", waited.as_millis())))
    }

    fn unavailable(&self, reason: String) -> ApiError {
        self.count_failure("unavailable");
        ApiError::Unavailable { dependency: B::DEPENDENCY, reason }
    }

    fn count_failure(&self, reason: &str) {
        self.shared.metrics.pool_acquire_failures.with_label_values(&[self.shared.name(), reason]).inc();
    }
}

/// A connection in use. Release it when its work ended; dropped before, it is interrupted and closed.
#[must_use = "a checkout that is dropped closes its connection"]
pub struct Checkout<B: Backend> {
    connection: PooledConnection<'static, Keeper<B>>,
    backend: Arc<B>,
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

    /// Gives the connection back: its work ended, it is as good as before.
    pub fn release(mut self) {
        self.released = true;
        self.connection.worked_at = Instant::now();
        self.shared.succeeded();
    }
}

impl<B: Backend> Drop for Checkout<B> {
    fn drop(&mut self) {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.held);
        if !self.released {
            self.connection.interrupted = true;
            self.backend.interrupt(&self.connection.client);
        }
    }
}

/// A connection and what decides whether it is still good.
#[derive(Debug)]
pub struct Member<C> {
    client: C,
    expires_at: Option<Instant>,
    worked_at: Instant,
    interrupted: bool,
}

/// Opens, checks and judges connections for bb8.
#[derive(Debug)]
pub struct Keeper<B> {
    backend: Arc<B>,
    settings: PoolSettings,
    jitter: RandomState,
}

impl<B: Backend> Keeper<B> {
    /// Between 80 and 100 % of the lifetime, or `None` when bb8's own limit is all there is.
    fn expiry(&self, now: Instant) -> Option<Instant> {
        (self.settings.enhanced == Mode::Enforce).then(|| {
            let percent = 80 + self.jitter.hash_one(now) % 20;
            now + self.settings.max_lifetime.mul_f64(percent as f64 / 100.0)
        })
    }
}

impl<B: Backend> ManageConnection for Keeper<B> {
    type Connection = Member<B::Client>;
    type Error = ConnectionError;

    async fn connect(&self) -> Result<Self::Connection, ConnectionError> {
        let limit = self.settings.open_timeout;
        let opened = tokio::time::timeout(limit, self.backend.open()).await;
        let client = opened.map_err(|_| ConnectionError::TimedOut(limit))??;
        let now = Instant::now();
        Ok(Member { client, expires_at: self.expiry(now), worked_at: now, interrupted: false })
    }

    async fn is_valid(&self, member: &mut Self::Connection) -> Result<(), ConnectionError> {
        if member.expires_at.is_some_and(|at| at <= Instant::now()) {
            return Err(ConnectionError::Expired);
        }
        if self.backend.is_closed(&member.client) {
            return Err(ConnectionError::Closed);
        }
        if member.worked_at.elapsed() < TRUSTED_FOR {
            return Ok(());
        }
        let checked = tokio::time::timeout(CHECK_TIMEOUT, self.backend.check(&member.client)).await;
        checked.map_err(|_| ConnectionError::TimedOut(CHECK_TIMEOUT))??;
        member.worked_at = Instant::now();
        Ok(())
    }

    fn has_broken(&self, member: &mut Self::Connection) -> bool {
        member.interrupted
            || self.backend.is_closed(&member.client)
            || member.expires_at.is_some_and(|at| at <= Instant::now())
    }
}

/// What a pool's users, its connections and its watch share.
#[derive(Debug)]
struct Shared {
    dependency: Dependency,
    metrics: Metrics,
    waiting: AtomicI64,
    failures: AtomicU32,
    last_error: Mutex<Option<String>>,
    held: Mutex<HashMap<u64, Held>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Held {
    what: &'static str,
    since: Instant,
    told: bool,
}

impl Shared {
    fn new(dependency: Dependency, metrics: Metrics) -> Self {
        Self {
            dependency,
            metrics,
            waiting: AtomicI64::new(0),
            failures: AtomicU32::new(0),
            last_error: Mutex::new(None),
            held: Mutex::new(HashMap::new()),
            next: AtomicU64::new(0),
        }
    }

    fn name(&self) -> &'static str {
        self.dependency.name()
    }

    fn hold(&self, what: &'static str) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let held = Held { what, since: Instant::now(), told: false };
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id, held);
        id
    }

    fn failed(&self, reason: &str) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        // The first failure is news, the next thousand are a number in the metrics.
        if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(dependency = self.name(), reason, "{} failed: {reason}", self.dependency);
        }
    }

    fn succeeded(&self) {
        // Read first: the common case writes nothing that other cores have to fetch.
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        let failures = self.failures.swap(0, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if failures > 0 {
            let dependency = self.dependency;
            tracing::info!(dependency = self.name(), failures, "{dependency} answers again after {failures} failures");
        }
    }
}

/// Counts a wait for as long as it lasts, also when the request that waits goes away.
struct Waiting {
    shared: Arc<Shared>,
    since: Instant,
}

impl Waiting {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), since: Instant::now() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where bb8 tells why it could not connect.
#[derive(Clone, Debug)]
struct Sink(Arc<Shared>);

impl bb8::ErrorSink<ConnectionError> for Sink {
    fn sink(&self, error: ConnectionError) {
        match error {
            ConnectionError::Expired => {}
            // A restarted database closes idle connections: worth a count, and no verdict on the database.
            ConnectionError::Closed => self.0.metrics.pool_connection_errors.with_label_values(&[self.0.name()]).inc(),
            error => {
                self.0.metrics.pool_connection_errors.with_label_values(&[self.0.name()]).inc();
                self.0.failed(&error.to_string());
            }
        }
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<ConnectionError>> {
        Box::new(self.clone())
    }
}

/// Names, once each, those who hold a connection for longer than `leak_after`. Ends with the pool.
async fn watch_for_leaks(pool: std::sync::Weak<Shared>, leak_after: Duration) {
    loop {
        tokio::time::sleep(UPKEEP.min(leak_after)).await;
        let Some(shared) = pool.upgrade() else { return };
        let mut held = shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        for holder in held.values_mut().filter(|h| !h.told && h.since.elapsed() >= leak_after) {
            holder.told = true;
            shared.metrics.pool_leaks.with_label_values(&[shared.name()]).inc();
            let (what, seconds) = (holder.what, holder.since.elapsed().as_secs());
            tracing::warn!(pool = shared.name(), what, seconds, "{what} has held a connection for {seconds} s");
        }
    }
}
