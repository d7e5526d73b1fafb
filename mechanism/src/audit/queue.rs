//! The queues between requests and the writer: one per worker, and bounded, so that workers wait neither for each other
//! nor for the writer.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_identity::clock;
use outrigger_policy::audit::Class;
use outrigger_trail::keys::MasterKeys;
use tokio::sync::{Notify, oneshot};

use crate::audit::basis::AuditBasis;
use crate::audit::event::{Act, Item};
use crate::audit::metrics::AuditMetrics;

/// The side of the audit log that requests see: queues, and the state of the writer.
#[derive(Debug)]
pub struct Trail {
    /// The configuration in force.
    basis: ArcSwap<AuditBasis>,
    pub(super) shards: Vec<Mutex<Batch>>,
    /// The maximum number of items in a shard.
    pub(super) room: usize,
    /// By class: events dropped for lack of room since the writer last looked.
    pub(super) lost: [AtomicU64; Class::ALL.len()],
    /// By class: whether events get to disk.
    pub(super) writable: [AtomicBool; Class::ALL.len()],
    /// By class: the last event on disk.
    pub(super) committed: [AtomicU64; Class::ALL.len()],
    /// The writer sleeps until it is woken.
    pub(super) asleep: AtomicBool,
    /// The writer must not wait for the end of its interval.
    pub(super) urgent: AtomicBool,
    /// No more events are written.
    pub(super) is_closed: AtomicBool,
    /// How often a spool was opened: state of the previous one may be invalid.
    pub openings: AtomicU64,
    pub(super) thread: OnceLock<Thread>,
    pub(super) keys: OnceLock<MasterKeys>,
    commands: Mutex<Sender<Command>>,
    /// Notifies that events have reached the disk.
    pub progress: Notify,
    /// Everything is written, and the chains are closed.
    pub(super) has_ended: AtomicBool,
    /// Notifies that PostgreSQL has all events of a closed audit log.
    pub(super) shipped: Notify,
    /// The metrics.
    pub metrics: AuditMetrics,
}

/// Queued items, and the configurations under which they were decided: `rules[i].0` is the first item of a configuration.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) items: Vec<Item>,
    pub(super) rules: Vec<(usize, Arc<AuditBasis>)>,
}

impl Batch {
    pub(super) fn push(&mut self, rules: &Arc<AuditBasis>, item: Item) {
        if self.rules.last().is_none_or(|(_, last)| !Arc::ptr_eq(last, rules)) {
            self.rules.push((self.items.len(), Arc::clone(rules)));
        }
        self.items.push(item);
    }

    /// Returns an item and its configuration.
    pub(super) fn get(&self, number: usize) -> Option<(&Arc<AuditBasis>, &Item)> {
        let of = self.rules.partition_point(|(first, _)| *first <= number).checked_sub(1)?;
        Some((&self.rules.get(of)?.1, self.items.get(number)?))
    }

    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.rules.clear();
        // Free the memory of a burst.
        self.items.shrink_to(4096);
    }
}

/// Commands to the writer.
#[derive(Debug)]
pub enum Command {
    /// Destroy the data keys of these subjects.
    Forget(Vec<String>, Authority, oneshot::Sender<Result<usize, ForgetError>>),
    /// The app has stored everything of a class up to this event, and this is the last erasure received from it.
    Shipped(Class, u64, u64),
    /// Delete expired segments.
    Expire,
    /// Write everything before this to disk, and close the chains.
    Close(oneshot::Sender<()>),
}

/// The authority that decided to forget a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// An operator of this Machine: a hold of this spool has precedence.
    Operator,
    /// PostgreSQL, which has checked its own holds and destroyed its keys.
    Postgres,
}

/// Why no data key was destroyed.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// A hold keeps events about one of the subjects.
    #[error("hold {id} of {by} covers this subject ({reason}); release it first, if that is permitted")]
    Held {
        /// The id of the hold.
        id: String,
        /// The person who asked for it.
        by: String,
        /// The reason.
        reason: String,
    },
    /// Holds or keys cannot be read or written.
    #[error("{0}")]
    Failed(String),
}

thread_local! {
    /// The shard of this thread: workers have one each, all other threads share the first.
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Marks this thread as worker `number`, from 0.
pub fn is_worker(number: usize) {
    SHARD.set(number + 1);
}

impl Trail {
    /// Creates the queues for this many workers, and the receiver of commands for the writer.
    pub fn new(basis: AuditBasis, workers: usize, metrics: AuditMetrics) -> (Self, Receiver<Command>) {
        let (commands, receiver) = channel();
        let room = (basis.audit.queue / (workers + 1)).max(8);
        let trail = Self {
            basis: ArcSwap::from_pointee(basis),
            shards: (0..=workers).map(|_| Mutex::default()).collect(),
            room,
            lost: Default::default(),
            writable: std::array::from_fn(|_| AtomicBool::new(true)),
            committed: Default::default(),
            asleep: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            openings: AtomicU64::new(0),
            thread: OnceLock::new(),
            keys: OnceLock::new(),
            commands: Mutex::new(commands),
            progress: Notify::new(),
            has_ended: AtomicBool::new(false),
            shipped: Notify::new(),
            metrics,
        };
        (trail, receiver)
    }

    /// Returns the configuration in force.
    pub fn basis(&self) -> Arc<AuditBasis> {
        self.basis.load_full()
    }

    /// Brings a configuration into force.
    pub fn set_basis(&self, basis: Arc<AuditBasis>) {
        self.basis.store(basis);
    }

    /// Queues an item without waiting. If there is no room, the item is dropped and counted.
    pub fn push(&self, rules: &Arc<AuditBasis>, item: Item) {
        let class = item.event().class();
        let is_awaited = item.is_awaited();
        let mut batch = lock(&self.shards[SHARD.get() % self.shards.len()]);
        if self.is_closed.load(Ordering::Relaxed) {
            drop(batch);
            self.metrics.lost(class, "closed", 1);
            return;
        }
        // Connections bound the number of waiting tasks; items without one must not displace them.
        if batch.items.len() >= if is_awaited { 2 * self.room } else { self.room } {
            drop(batch);
            self.lost[class as usize].fetch_add(1, Ordering::Relaxed);
            self.metrics.lost(class, "queue_full", 1);
            return;
        }
        batch.push(rules, item);
        let is_half_full = batch.items.len() == self.room / 2;
        drop(batch);
        if is_awaited || is_half_full {
            self.wake_now();
        } else if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.unpark();
        }
    }

    /// Queues an action, regardless of the flag.
    pub fn enter(&self, act: Act) {
        self.push(&self.basis.load(), Item::Act(Box::new(act)));
    }

    fn wake_now(&self) {
        if !self.urgent.swap(true, Ordering::AcqRel) {
            self.unpark();
        }
    }

    fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Sends a command to the writer.
    pub fn command(&self, command: Command) {
        // Without a writer this fails, and a task that waits for the result notices it.
        let _ = self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command);
        self.wake_now();
    }

    /// Returns the keys of the audit log; `None` before the writer has started.
    pub fn keys(&self) -> Option<&MasterKeys> {
        self.keys.get()
    }

    /// Returns whether events of a class get to disk.
    pub fn is_writable(&self, class: Class) -> bool {
        self.writable[class as usize].load(Ordering::Relaxed)
    }

    /// Records that an event of a class was not on disk in time. Until the writer succeeds, requests need not wait for it.
    pub fn is_late(&self, class: Class) {
        self.writable[class as usize].store(false, Ordering::Relaxed);
    }

    /// Returns the number of the last event of a class on disk.
    pub fn committed(&self, class: Class) -> u64 {
        self.committed[class as usize].load(Ordering::Acquire)
    }

    /// Updates the metrics.
    pub fn show(&self) {
        self.metrics.show_writable(&self.writable);
        self.metrics.queued.set(i64::try_from(self.queued()).unwrap_or(i64::MAX));
    }

    /// Returns the number of queued items.
    pub fn queued(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).items.len()).sum()
    }

    /// Waits until everything is on disk and the chains are closed, at most for `patience`.
    pub fn close(&self, patience: Duration) {
        let (done, closed) = oneshot::channel();
        self.command(Command::Close(done));
        let deadline = clock::now() + patience;
        let mut closed = closed;
        while matches!(closed.try_recv(), Err(oneshot::error::TryRecvError::Empty)) && clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.has_ended.store(true, Ordering::Release);
        self.progress.notify_one();
    }

    /// Waits until PostgreSQL has all events of a closed audit log: the disk may be gone with the Machine.
    pub async fn is_shipped(&self, patience: Duration) {
        // On a timeout, the rest is left to the next start with this directory, if there is one.
        let _ = tokio::time::timeout(patience, self.shipped.notified()).await;
    }
}

pub(super) fn lock(shard: &Mutex<Batch>) -> MutexGuard<'_, Batch> {
    // A panic with the lock held leaves only whole items.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
