//! State that a pool's users share: waiting requests, held connections, and consecutive failures of the database.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::error::Dependency;
use crate::keeper::ConnectionError;
use crate::pool::metrics::PoolMetrics;

/// How often holders are checked.
const LOOK: Duration = Duration::from_secs(5);

/// State shared by a pool's users, its connections and its leak detection.
#[derive(Debug)]
pub struct Shared {
    dependency: Dependency,
    pub metrics: PoolMetrics,
    waiting: AtomicI64,
    failures: AtomicU32,
    errors: AtomicU64,
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
    /// No waits, holders or failures.
    pub fn new(dependency: Dependency, metrics: PoolMetrics) -> Self {
        Self {
            dependency,
            metrics,
            waiting: AtomicI64::new(0),
            failures: AtomicU32::new(0),
            errors: AtomicU64::new(0),
            last_error: Mutex::new(None),
            held: Mutex::new(HashMap::new()),
            next: AtomicU64::new(0),
        }
    }

    /// The pool's label in metrics and logs.
    pub fn name(&self) -> &'static str {
        self.dependency.name()
    }

    /// Records that a connection is held for `what`; returns the id for [`Self::let_go`].
    pub fn hold(&self, what: &'static str) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let held = Held { what, since: Instant::now(), told: false };
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id, held);
        id
    }

    /// Records that the holder returned its connection.
    pub fn let_go(&self, id: u64) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Number of requests that wait for a connection.
    pub fn waiting(&self) -> i64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Consecutive failures.
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Number of connections since start that failed to open or failed their check because of the database.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// The last failure, until the next success.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records a failure of the database.
    pub fn failed(&self, reason: &str) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        // Only the first failure in a row is logged; the metrics count the rest.
        if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(dependency = self.name(), reason, "{} failed: {reason}", self.dependency);
        }
    }

    /// Records a response of the database.
    pub fn succeeded(&self) {
        // A plain read first, so that the common case does not write to a shared cache line.
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        let failures = self.failures.swap(0, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if failures > 0 {
            let dependency = self.dependency;
            tracing::info!(dependency = self.name(), failures, "{dependency} responds again after {failures} failures");
        }
    }
}

/// Counts a waiting request until dropped, including on cancellation.
#[derive(Debug)]
pub struct Waiting {
    shared: Arc<Shared>,
    pub since: Instant,
}

impl Waiting {
    /// Counts from now on.
    pub fn new(shared: &Arc<Shared>) -> Self {
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), since: Instant::now() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Receives bb8's connection errors.
#[derive(Clone, Debug)]
pub struct Sink(pub Arc<Shared>);

impl bb8::ErrorSink<ConnectionError> for Sink {
    fn sink(&self, error: ConnectionError) {
        match error {
            ConnectionError::Expired => {}
            // A restarted database closes idle connections: counted, but not a failure of the database.
            ConnectionError::Closed => self.0.metrics.connection_errors.with_label_values(&[self.0.name()]).inc(),
            error => {
                if !matches!(error, ConnectionError::Full(_)) {
                    self.0.errors.fetch_add(1, Ordering::Relaxed);
                }
                self.0.metrics.connection_errors.with_label_values(&[self.0.name()]).inc();
                self.0.failed(&error.to_string());
            }
        }
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<ConnectionError>> {
        Box::new(self.clone())
    }
}

/// Logs each holder, once, that keeps a connection for longer than `leak_after`. Ends with the pool.
pub async fn watch_for_leaks(pool: Weak<Shared>, leak_after: Duration) {
    loop {
        tokio::time::sleep(LOOK.min(leak_after)).await;
        let Some(shared) = pool.upgrade() else { return };
        let mut held = shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        for holder in held.values_mut().filter(|h| !h.told && h.since.elapsed() >= leak_after) {
            holder.told = true;
            shared.metrics.leaks.with_label_values(&[shared.name()]).inc();
            let (what, seconds) = (holder.what, holder.since.elapsed().as_secs());
            tracing::warn!(pool = shared.name(), what, seconds, "{what} has held a connection for {seconds} s");
        }
    }
}
