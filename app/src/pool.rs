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

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bb8::{ManageConnection, PooledConnection, RunError};
use outrigger_policy::flags::Mode;
use serde::Serialize;

use crate::deadline::Deadline;
use crate::error::{ApiError, Dependency};
use crate::metrics::Metrics;
use crate::pool_state::{Shared, Sink, Waiting, watch_for_leaks};

/// A connection that worked this recently is handed out without a check.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// Longest time for the check of a connection that rested longer.
const CHECK_TIMEOUT: Duration = Duration::from_millis(500);
/// After this many failures in a row, a request waits for [`FAILING_PATIENCE`] only: long enough to notice that the
/// database is back, and not so long that its requests pile up.
const FAILING: u32 = 3;
const FAILING_PATIENCE: Duration = Duration::from_millis(500);
/// How often the pool refills itself.
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
            waiting: self.shared.waiting(),
            max: self.settings.max,
            min: self.settings.min,
        }
    }

    /// Failures since the last success, of connections, checks and requests.
    pub fn failures(&self) -> u32 {
        self.shared.failures()
    }

    /// Why the database was last found wanting, while it is.
    pub fn last_error(&self) -> Option<String> {
        self.shared.last_error()
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
        self.shared.let_go(self.held);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// A database that can be told to be away, and remembers what was done to it.
    #[derive(Clone, Default)]
    struct Fake(Arc<State>);

    #[derive(Default)]
    struct State {
        away: AtomicBool,
        opened: AtomicUsize,
        interrupted: AtomicUsize,
    }

    impl Backend for Fake {
        type Client = usize;
        const DEPENDENCY: Dependency = Dependency::Postgres;

        async fn open(&self) -> Result<usize, ConnectionError> {
            match self.0.away.load(Ordering::Relaxed) {
                true => Err(ConnectionError::Failed("it is away".to_owned())),
                false => Ok(self.0.opened.fetch_add(1, Ordering::Relaxed)),
            }
        }

        async fn check(&self, _client: &usize) -> Result<(), ConnectionError> {
            Ok(())
        }

        fn is_closed(&self, _client: &usize) -> bool {
            false
        }

        fn interrupt(&self, _client: &usize) {
            self.0.interrupted.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pool(fake: &Fake, enhanced: Mode) -> Pool<Fake> {
        let settings = PoolSettings {
            min: 2,
            max: 3,
            acquire_timeout: Duration::from_millis(200),
            max_lifetime: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            leak_after: Duration::from_millis(20),
            open_timeout: Duration::from_millis(200),
            enhanced,
        };
        Pool::start(fake.clone(), settings, Metrics::new().unwrap())
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    /// Waits for a condition, not for a time.
    async fn until(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..500 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 5 s: {what}");
    }

    #[tokio::test]
    async fn is_warm_at_its_minimum_before_anybody_asks() {
        let fake = Fake::default();
        let pool = pool(&fake, Mode::Enforce);
        until("two idle connections", || pool.numbers().idle == 2).await;
    }

    #[tokio::test]
    async fn is_cold_when_the_flag_is_off() {
        let fake = Fake::default();
        let pool = pool(&fake, Mode::Off);
        pool.checkout("test", soon()).await.unwrap().release();
        assert_eq!(pool.numbers().total, 1);
    }

    #[tokio::test]
    async fn a_released_connection_is_used_again() {
        let fake = Fake::default();
        let pool = pool(&fake, Mode::Off);
        for _ in 0..5 {
            pool.checkout("test", soon()).await.unwrap().release();
        }
        assert_eq!(fake.0.opened.load(Ordering::Relaxed), 1);
        assert_eq!(fake.0.interrupted.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_connection_dropped_in_the_middle_of_its_work_is_never_used_again() {
        let fake = Fake::default();
        let pool = pool(&fake, Mode::Off);
        let first = pool.checkout("test", soon()).await.unwrap();
        let id = *first.client();
        drop(first);
        assert_eq!(fake.0.interrupted.load(Ordering::Relaxed), 1);
        let second = pool.checkout("test", soon()).await.unwrap();
        assert_ne!(*second.client(), id);
        second.release();
    }

    #[tokio::test]
    async fn tells_busy_from_away() {
        let fake = Fake::default();
        let pool = pool(&fake, Mode::Enforce);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(pool.checkout("test", soon()).await.unwrap());
        }
        let busy = pool.checkout("test", soon()).await.unwrap_err();
        assert!(matches!(busy, ApiError::PoolExhausted(Dependency::Postgres)), "{busy:?}");
        // From now on nothing can be opened, and what was open is gone.
        fake.0.away.store(true, Ordering::Relaxed);
        drop(held);
        until("a failed attempt", || pool.failures() > 0).await;
        let away = pool.checkout("test", soon()).await.unwrap_err().to_string();
        assert!(away.contains("it is away"), "{away}");
        fake.0.away.store(false, Ordering::Relaxed);
        until("a connection again", || pool.numbers().total > 0).await;
        pool.checkout("test", soon()).await.unwrap().release();
        assert_eq!((pool.failures(), pool.last_error()), (0, None));
    }

    #[tokio::test]
    async fn nobody_waits_beyond_their_own_deadline() {
        let fake = Fake::default();
        fake.0.away.store(true, Ordering::Relaxed);
        let pool = pool(&fake, Mode::Off);
        let since = Instant::now();
        assert!(pool.checkout("test", Deadline::after(Duration::from_millis(30))).await.is_err());
        assert!(since.elapsed() < Duration::from_millis(150), "{:?}", since.elapsed());
        assert_eq!(pool.numbers().waiting, 0);
    }

    #[tokio::test]
    async fn whoever_holds_a_connection_for_too_long_is_counted_once() {
        let fake = Fake::default();
        let pool = pool(&fake, Mode::Monitor);
        let held = pool.checkout("test", soon()).await.unwrap();
        let leaks = || pool.shared.metrics.pool_leaks.with_label_values(&["postgresql"]).get();
        until("a leak", || leaks() > 0).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(leaks(), 1);
        held.release();
    }

    #[tokio::test]
    async fn lifetimes_differ_and_never_exceed_the_limit() {
        let fake = Fake::default();
        let settings = pool(&fake, Mode::Enforce).settings;
        let keeper = Keeper { backend: Arc::new(fake), settings, jitter: RandomState::new() };
        let now = Instant::now();
        let lives: std::collections::HashSet<Duration> =
            (0..50).map(|n| keeper.expiry(now + Duration::from_nanos(n)).unwrap() - now).collect();
        assert!(lives.len() > 5, "{lives:?}");
        assert!(lives.iter().all(|life| (47..=60).contains(&life.as_secs())), "{lives:?}");
    }
}
