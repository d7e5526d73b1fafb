//! The queues between requests and the writer: one for each worker, each with a bound, so that nobody waits for anybody.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use outrigger_policy::audit::{Class, Hash};
use outrigger_rules::sections::audit::AuditRules;
use outrigger_trail::keys::MasterKeys;
use tokio::sync::{Notify, oneshot};

use crate::engine::metrics::AuditMetrics;
use crate::engine::state::Snapshot;
use crate::mechanism::audit::event::{Act, Item};

/// Where an entry has its place.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// Its name.
    pub id: u128,
    /// Its chain.
    pub class: Class,
    /// Its number there.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// Who is told that an entry is on disk; dropped, it is not.
pub type Done = oneshot::Sender<Receipt>;

/// The near end of the trail: queues, and what the writer says of itself.
#[derive(Debug)]
pub struct Trail {
    pub(super) shards: Vec<Mutex<Batch>>,
    /// Items in each shard at the most.
    pub(super) room: usize,
    /// By class: what found no room since the writer last looked.
    pub(super) lost: [AtomicU64; Class::ALL.len()],
    /// By class: whether entries get to disk.
    pub(super) writable: [AtomicBool; Class::ALL.len()],
    /// By class: the last entry that is on disk.
    pub(super) committed: [AtomicU64; Class::ALL.len()],
    /// The writer sleeps until it is woken.
    pub(super) asleep: AtomicBool,
    /// Somebody waits for it.
    pub(super) urgent: AtomicBool,
    /// Nothing is written any more.
    pub(super) is_closed: AtomicBool,
    /// How often a spool was opened: what was known of the one before may not hold.
    pub openings: AtomicU64,
    pub(super) thread: OnceLock<Thread>,
    pub(super) keys: OnceLock<MasterKeys>,
    commands: Mutex<Sender<Command>>,
    /// Entries have got to disk.
    pub progress: Notify,
    /// Everything is written, and the chains are closed.
    pub(super) has_ended: AtomicBool,
    /// The app has all of it, now that nothing more is written.
    pub(super) shipped: Notify,
    pub(super) metrics: AuditMetrics,
}

/// What is queued, and the rules that it was decided under: `rules[i].0` is the first item with them.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) items: Vec<Item>,
    pub(super) rules: Vec<(usize, Arc<Snapshot>)>,
}

impl Batch {
    pub(super) fn push(&mut self, rules: &Arc<Snapshot>, item: Item) {
        if self.rules.last().is_none_or(|(_, last)| !Arc::ptr_eq(last, rules)) {
            self.rules.push((self.items.len(), Arc::clone(rules)));
        }
        self.items.push(item);
    }

    /// An item and its rules.
    pub(super) fn get(&self, number: usize) -> Option<(&Arc<Snapshot>, &Item)> {
        let of = self.rules.partition_point(|(first, _)| *first <= number).checked_sub(1)?;
        Some((&self.rules.get(of)?.1, self.items.get(number)?))
    }

    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.rules.clear();
        // A burst's room is given back.
        self.items.shrink_to(4096);
    }
}

/// What else the writer is asked for.
#[derive(Debug)]
pub enum Command {
    /// The data keys of these subjects are to be destroyed.
    Forget(Vec<String>, Authority, oneshot::Sender<Result<usize, ForgetError>>),
    /// The app has everything of a class up to this entry, and heard of this erasure.
    Shipped(Class, u64, u64),
    /// What is too old is to be dropped.
    Expire,
    /// Everything before this is to be on disk, and the chains closed.
    Close(oneshot::Sender<()>),
}

/// Who has decided that a subject is to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// An operator, here: a hold of this spool comes first.
    Operator,
    /// PostgreSQL, which has looked at its own holds and destroyed its keys.
    Postgres,
}

/// Why no data key was destroyed.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// A hold keeps what is about one of the subjects.
    #[error("hold {id} of {by} keeps what is about this subject ({reason}); release it first, if it may be")]
    Held {
        /// Its name.
        id: String,
        /// Who asked for it.
        by: String,
        /// Why.
        reason: String,
    },
    /// Holds or keys cannot be read or written.
    #[error("{0}")]
    Failed(String),
}

thread_local! {
    /// The shard of this thread: workers have one each, everything else shares the first.
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// From now on this thread is worker `number`, from 0.
pub fn is_worker(number: usize) {
    SHARD.set(number + 1);
}

impl Trail {
    /// A trail for so many workers; whoever writes it gets the far end.
    pub fn new(rules: &AuditRules, workers: usize, metrics: AuditMetrics) -> (Self, Receiver<Command>) {
        let (commands, receiver) = channel();
        let trail = Self {
            shards: (0..=workers).map(|_| Mutex::default()).collect(),
            room: (rules.queue / (workers + 1)).max(8),
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

    /// Queues an item; what finds no room is counted, and nobody waits for it.
    pub(super) fn push(&self, rules: &Arc<Snapshot>, item: Item) {
        let class = item.event().class();
        let is_awaited = item.is_awaited();
        let mut batch = lock(&self.shards[SHARD.get() % self.shards.len()]);
        if self.is_closed.load(Ordering::Relaxed) {
            drop(batch);
            self.metrics.lost(class, "closed", 1);
            return;
        }
        // Who waits is one of so many connections, and is not to be kept out by those who do not.
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

    /// Queues something that was done, whatever the flag says.
    pub fn enter(&self, rules: &Arc<Snapshot>, act: Act) {
        self.push(rules, Item::Act(Box::new(act)));
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

    /// Asks the writer for something.
    pub fn command(&self, command: Command) {
        // Without a writer there is nobody to ask, and whoever waits for an answer sees that.
        let _ = self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command);
        self.wake_now();
    }

    /// The keys that it is written with; `None` before it has begun.
    pub fn keys(&self) -> Option<&MasterKeys> {
        self.keys.get()
    }

    /// Whether entries of a class get to disk.
    pub fn is_writable(&self, class: Class) -> bool {
        self.writable[class as usize].load(Ordering::Relaxed)
    }

    /// The last entry of a class that is on disk.
    pub fn committed(&self, class: Class) -> u64 {
        self.committed[class as usize].load(Ordering::Acquire)
    }

    /// Shows whether entries get to disk.
    pub fn show(&self) {
        self.metrics.show_writable(&self.writable);
        self.metrics.queued.set(i64::try_from(self.queued()).unwrap_or(i64::MAX));
    }

    /// What is queued now.
    pub fn queued(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).items.len()).sum()
    }

    /// Waits until everything is on disk and the chains are closed.
    pub fn close(&self, patience: Duration) {
        let (done, closed) = oneshot::channel();
        self.command(Command::Close(done));
        let deadline = Instant::now() + patience;
        let mut closed = closed;
        while matches!(closed.try_recv(), Err(oneshot::error::TryRecvError::Empty)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.has_ended.store(true, Ordering::Release);
        self.progress.notify_one();
    }

    /// Waits until the app has what a closed trail holds: the disk may be gone with the Machine.
    pub async fn is_shipped(&self, patience: Duration) {
        // Too late is for the next start, if there is one with this directory.
        let _ = tokio::time::timeout(patience, self.shipped.notified()).await;
    }
}

pub(super) fn lock(shard: &Mutex<Batch>) -> MutexGuard<'_, Batch> {
    // Whoever panicked while holding it has left items, which are whole.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
