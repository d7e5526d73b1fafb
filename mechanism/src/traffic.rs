//! The traffic record: requests on their way to a file for `outrigger backtest`.
//!
//! ```text
//! basis.rs    the configuration's part: paths, hosts and headers that are recorded
//! writer.rs   the thread that makes pseudonyms and templates, and writes · directory.rs: its files, bounded
//! metrics.rs  recorded and lost requests
//! ```
//!
//! A request that ends leaves a [`Seen`] in a bounded queue of its thread; if there is no room, it is counted as lost. Requests never wait
//! for the writer or the disk. Without a record, there is no thread and no queue.

mod basis;
mod directory;
pub mod metrics;
mod writer;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_traffic::request::{Applied, ClientKind, Facts};

pub use self::basis::{Hints, TrafficBasis};
use crate::traffic::metrics::{Loss, TrafficMetrics};
use crate::traffic::writer::Writer;

/// Requests that may wait for the writer, in all queues together.
const ROOM: usize = 65_536;
/// Bytes of their paths, in all queues together.
const PATH_ROOM: usize = 8 << 20;
/// The longest part of a path that is looked at, in bytes.
const LONGEST_PATH: usize = 1024;

/// A request that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When its head was complete.
    pub started: Instant,
    /// Until its end.
    pub total: Duration,
    /// How long it waited in the queue.
    pub queued: Duration,
    /// How long the app took for the head of its response.
    pub service: Option<Duration>,
    /// The method, by its number in [`METHODS`].
    pub method: u8,
    /// The number of its route.
    pub route: usize,
    /// The route follows from its path: it was not rejected before.
    pub is_routed: bool,
    /// Facts, other than path and method, that its route may depend on.
    pub hints: Hints,
    /// The status of its response.
    pub status: u16,
    /// The label of the rejection or of the app's failure.
    pub reason: Option<&'static str>,
    /// The rate limit that rejected it.
    pub limit: Option<u16>,
    /// The number of the client's tier.
    pub tier: u8,
    /// How the client was identified.
    pub kind: ClientKind,
    /// The client's hash.
    pub client: u64,
    /// The hash of its address.
    pub address: u64,
    /// The mode of rate limits, bans and the concurrency limit for it.
    pub admission: Applied,
    /// The mode of circuit breakers for it.
    pub resilience: Applied,
    /// Facts.
    pub facts: Facts,
    /// Attempts at the app or a peer.
    pub attempts: u8,
    /// The size class of its body.
    pub body_class: u8,
}

/// Methods that are recorded by name; the last one is for all others.
pub const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "OTHER"];

/// The number of a method in [`METHODS`].
pub fn method_number(method: &http::Method) -> u8 {
    let known = METHODS.iter().position(|name| *name == method.as_str());
    known.unwrap_or(METHODS.len() - 1) as u8
}

/// A queue.
#[derive(Debug, Default)]
struct Batch {
    /// With the length of its path in `paths`.
    seen: Vec<(Seen, u16)>,
    paths: String,
    /// The configurations, each with its first request.
    bases: Vec<(usize, Arc<TrafficBasis>)>,
}

impl Batch {
    fn clear(&mut self) {
        self.seen.clear();
        self.paths.clear();
        self.bases.clear();
        // Frees the memory of a burst.
        self.seen.shrink_to(4096);
        self.paths.shrink_to(256 << 10);
    }
}

/// The queues to the writer of the record.
#[derive(Debug)]
pub struct Recorder {
    shards: Vec<Mutex<Batch>>,
    room: usize,
    path_room: usize,
    metrics: TrafficMetrics,
    thread: OnceLock<Option<Thread>>,
    is_closed: AtomicBool,
    has_ended: AtomicBool,
}

impl Recorder {
    /// Creates the queues for this many workers.
    pub fn new(workers: usize, metrics: TrafficMetrics) -> Self {
        let shards = workers.max(1);
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            room: (ROOM / shards).max(1024),
            path_room: (PATH_ROOM / shards).max(64 << 10),
            metrics,
            thread: OnceLock::new(),
            is_closed: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        }
    }

    /// Queues a request, without waiting. Starts the writer with the first one.
    pub fn push(self: &Arc<Self>, basis: &Arc<TrafficBasis>, seen: Seen, path: &str) {
        if self.enqueue(basis, seen, path) {
            self.wake();
        }
    }

    /// Returns whether the writer should not wait any longer.
    fn enqueue(&self, basis: &Arc<TrafficBasis>, seen: Seen, path: &str) -> bool {
        let path = if basis.needs_path(&seen) { &path[..path.floor_char_boundary(LONGEST_PATH)] } else { "" };
        let mut batch = lock(&self.shards[shard() % self.shards.len()]);
        if batch.seen.len() >= self.room || batch.paths.len() + path.len() > self.path_room {
            drop(batch);
            self.metrics.lost(Loss::QueueFull, 1);
            return false;
        }
        if batch.bases.last().is_none_or(|(_, last)| !Arc::ptr_eq(last, basis)) {
            let first = batch.seen.len();
            batch.bases.push((first, Arc::clone(basis)));
        }
        batch.seen.push((seen, path.len() as u16));
        let half = self.path_room / 2;
        let is_half_full = batch.paths.len() < half && batch.paths.len() + path.len() >= half;
        batch.paths.push_str(path);
        is_half_full || batch.seen.len() == self.room / 2 || self.thread.get().is_none()
    }

    #[cold]
    fn wake(self: &Arc<Self>) {
        let start = || match Writer::start(Arc::clone(self)) {
            Ok(thread) => Some(thread),
            Err(error) => {
                tracing::error!("the traffic record has no thread: {error}");
                None
            }
        };
        if let Some(thread) = self.thread.get_or_init(start) {
            thread.unpark();
        }
    }

    /// Writes what is queued and ends the writer; waits at most for `patience`.
    pub fn close(&self, patience: Duration) {
        let Some(Some(thread)) = self.thread.get() else { return };
        self.is_closed.store(true, Ordering::Release);
        thread.unpark();
        let deadline = clock::now() + patience;
        while !self.has_ended.load(Ordering::Acquire) && clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn lock(shard: &Mutex<Batch>) -> MutexGuard<'_, Batch> {
    // A panic with the lock held leaves whole requests, or one without its path.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of this thread's queue.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    let own = SHARD.get();
    if own != usize::MAX {
        return own;
    }
    let own = NEXT.fetch_add(1, Ordering::Relaxed);
    SHARD.set(own);
    own
}

#[cfg(test)]
mod tests;
