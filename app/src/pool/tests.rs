use super::*;
use crate::error::Dependency;
use crate::keeper::ConnectionError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A database that can be made unreachable, and that records its calls.
#[derive(Clone, Default)]
struct Fake(Arc<State>);

#[derive(Default)]
struct State {
    away: AtomicBool,
    hangs: AtomicBool,
    attempts: AtomicUsize,
    opened: AtomicUsize,
    interrupted: AtomicUsize,
}

impl Backend for Fake {
    type Client = usize;
    const DEPENDENCY: Dependency = Dependency::Postgres;

    async fn open(&self) -> Result<usize, ConnectionError> {
        self.0.attempts.fetch_add(1, Ordering::Relaxed);
        if self.0.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
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
        breaker: BreakerSettings { failures: 3, open_for: Duration::from_secs(60), mode: Mode::Enforce },
    };
    Pool::start(fake.clone(), settings, Metrics::new().unwrap())
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

/// Waits for a condition instead of a fixed time.
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
async fn opens_its_minimum_before_the_first_checkout() {
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
async fn distinguishes_an_exhausted_pool_from_a_database_that_is_down() {
    let fake = Fake::default();
    let pool = pool(&fake, Mode::Enforce);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.checkout("test", soon()).await.unwrap());
    }
    let busy = pool.checkout("test", soon()).await.unwrap_err();
    assert!(matches!(busy, ApiError::PoolExhausted(Dependency::Postgres)), "{busy:?}");
    // No connection can be opened from now on, and the open one is closed.
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
async fn no_checkout_waits_beyond_its_deadline() {
    let fake = Fake::default();
    fake.0.away.store(true, Ordering::Relaxed);
    let pool = pool(&fake, Mode::Off);
    let since = Instant::now();
    assert!(pool.checkout("test", Deadline::after(Duration::from_millis(30))).await.is_err());
    assert!(since.elapsed() < Duration::from_millis(150), "{:?}", since.elapsed());
    assert_eq!(pool.numbers().waiting, 0);
}

#[tokio::test]
async fn a_connection_held_too_long_is_counted_once() {
    let fake = Fake::default();
    let pool = pool(&fake, Mode::Monitor);
    let held = pool.checkout("test", soon()).await.unwrap();
    let leaks = || pool.shared.metrics.leaks.with_label_values(&["postgresql"]).get();
    until("a leak", || leaks() > 0).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(leaks(), 1);
    held.release();
}

fn state(pool: &Pool<Fake>) -> &'static str {
    pool.breaker().report().state
}

/// A pool whose database went down and whose circuit breaker is open.
async fn left_alone(fake: &Fake) -> Pool<Fake> {
    fake.0.away.store(true, Ordering::Relaxed);
    let pool = pool(fake, Mode::Enforce);
    for _ in 0..3 {
        let error = pool.checkout("test", soon()).await.unwrap_err();
        assert!(matches!(error, ApiError::Unavailable { .. }), "{error:?}");
    }
    pool
}

#[tokio::test]
async fn a_database_that_is_down_gets_no_attempts_of_requests_or_the_pool() {
    let fake = Fake::default();
    let pool = left_alone(&fake).await;
    assert_eq!(state(&pool), "OPEN");
    let error = pool.checkout("test", soon()).await.unwrap_err().to_string();
    assert!(error.contains("PostgreSQL has failed") && error.contains("it is away"), "{error}");
    // bb8 would refill the pool: no attempt is made for longer than its pause between two.
    let before = fake.0.attempts.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fake.0.attempts.load(Ordering::Relaxed), before);
    assert_eq!(pool.numbers().waiting, 0);
}

#[tokio::test]
async fn a_recovered_database_is_probed_before_requests_use_it() {
    let fake = Fake::default();
    let pool = left_alone(&fake).await;
    // No health check has succeeded, and the open time has not passed.
    pool.try_out().await;
    assert_eq!(state(&pool), "OPEN");
    fake.0.away.store(false, Ordering::Relaxed);
    pool.probed(&Ok(()));
    pool.try_out().await;
    assert_eq!((state(&pool), pool.failures()), ("CLOSED", 0));
    until("a warm pool", || pool.numbers().idle >= 2).await;
}

#[tokio::test]
async fn a_failed_probe_after_a_good_health_check_reopens_the_breaker() {
    let fake = Fake::default();
    let pool = left_alone(&fake).await;
    pool.probed(&Ok(()));
    pool.try_out().await;
    assert_eq!(state(&pool), "OPEN");
    assert_eq!(pool.breaker().report().trouble.unwrap().reason, "failed_probe");
}

#[tokio::test]
async fn an_exhausted_pool_is_no_failure_of_the_database() {
    let fake = Fake::default();
    let pool = pool(&fake, Mode::Enforce);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.checkout("test", soon()).await.unwrap());
    }
    for _ in 0..4 {
        let busy = pool.checkout("test", soon()).await.unwrap_err();
        assert!(matches!(busy, ApiError::PoolExhausted(_)), "{busy:?}");
    }
    assert_eq!(pool.breaker().report().failures, 0);
    // A failed checkout that had a connection counts; one that was dropped does not.
    held.pop().unwrap().fail("no answer");
    drop(held.pop());
    assert_eq!(pool.breaker().report().failures, 1);
}

#[tokio::test]
async fn checkouts_with_short_deadlines_count_no_failure() {
    let fake = Fake::default();
    fake.0.hangs.store(true, Ordering::Relaxed);
    let pool = pool(&fake, Mode::Off);
    for _ in 0..5 {
        assert!(pool.checkout("test", Deadline::after(Duration::from_millis(5))).await.is_err());
    }
    assert_eq!((state(&pool), pool.breaker().report().failures), ("CLOSED", 0));
}
