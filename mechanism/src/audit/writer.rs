//! The writer: a thread that takes queued items, gives each event its place in a chain, and writes them to disk within
//! the commit interval, or at once if a task waits. Items that arrive during a commit share the next one.
//!
//! Items that could not be written are kept and retried, as many as the queue has room for; the rest is counted, and
//! the signed count is added to the chain before the next event. A spool that cannot be opened or disappears is
//! retried.

mod append;
pub(super) mod clock;
mod retention;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use outrigger_policy::audit::Class;
use outrigger_trail::keys::MasterKeys;
use outrigger_trail::spool::{Dropped, Spool, SpoolError};

use crate::audit::event::Item;
use crate::audit::identities::Identities;
use crate::audit::queue::{Batch, Command, Trail, lock};
use crate::audit::receipt::Receipt;
use crate::audit::refusals::{Beyond, Refusal, Refusals};
use crate::audit::writer::append::Lost;
use crate::audit::writer::clock::Clock;

/// How often an unusable spool is retried.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// How long the writer looks for more items before it sleeps until it is woken.
const AWAKE: Duration = Duration::from_secs(1);

/// The side of the audit log that writes.
#[derive(Debug)]
pub struct Writer {
    trail: Arc<Trail>,
    commands: Receiver<Command>,
    keys: MasterKeys,
    identities: Identities,
    spool: Option<Spool>,
    /// Why there is no spool.
    problem: Option<&'static str>,
    tried_at: Option<Instant>,
    /// Items that could not be written.
    pending: Batch,
    /// The batches being written, and the awaited items in them.
    batches: Vec<Batch>,
    awaited: Vec<(usize, usize, Receipt)>,
    /// Items in them that were counted instead of logged one by one.
    counted: Vec<(usize, usize)>,
    lost: [Lost; Class::ALL.len()],
    refusals: Refusals,
    clock: Clock,
    /// How long a commit takes.
    commit_time: Duration,
}

/// Closes the queues when the writer ends: no task must wait for it.
struct Alive<'a>(&'a Trail);

impl std::ops::Drop for Alive<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the writer of the audit log has ended: no entries are written until the next start");
        }
        self.0.is_closed.store(true, Ordering::SeqCst);
        self.0.writable.iter().for_each(|writable| writable.store(false, Ordering::Relaxed));
        for shard in &self.0.shards {
            // Dropping the items notifies the tasks that wait for them.
            lock(shard).clear();
        }
    }
}

impl Writer {
    /// Opens the spool. On failure it is retried later: the proxy serves requests in the meantime.
    pub fn new(trail: Arc<Trail>, keys: MasterKeys, commands: Receiver<Command>) -> Self {
        let mut writer = Self {
            trail,
            commands,
            identities: Identities::new(keys.clone()),
            keys,
            spool: None,
            problem: None,
            tried_at: None,
            pending: Batch::default(),
            batches: Vec::new(),
            awaited: Vec::new(),
            counted: Vec::new(),
            lost: Default::default(),
            refusals: Refusals::default(),
            clock: Clock::now(),
            commit_time: Duration::ZERO,
        };
        writer.open();
        writer
    }

    /// Writes until the process ends.
    pub fn run(mut self) {
        let trail = &*Arc::clone(&self.trail);
        // Set only here.
        let _ = trail.thread.set(std::thread::current());
        let _guard = Alive(trail);
        let mut last_item = Instant::now();
        loop {
            let interval = trail.basis().audit.commit_interval;
            // Leave time for the commit itself, with a margin.
            let wait = interval.saturating_sub(4 * self.commit_time).max(interval / 2);
            let tick = Instant::now() + wait;
            let is_idle = self.pending.items.is_empty() && last_item.elapsed() > AWAKE && self.refusals.is_empty();
            if is_idle && self.spool.is_some() {
                trail.asleep.store(true, Ordering::Release);
                if trail.queued() == 0 && !trail.urgent.load(Ordering::Acquire) {
                    std::thread::park();
                }
                trail.asleep.store(false, Ordering::Release);
                last_item = Instant::now();
            }
            while !trail.urgent.swap(false, Ordering::AcqRel) {
                let left = tick.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                std::thread::park_timeout(left);
            }
            if self.take_and_write(trail) {
                last_item = Instant::now();
            }
            if self.obey(trail) {
                return;
            }
        }
    }

    /// Executes the pending commands. Returns true if the writer must end.
    fn obey(&mut self, trail: &Trail) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Forget(subjects, authority, answer) => {
                    // The task that asked may be gone.
                    let _ = answer.send(self.forget(&subjects, authority));
                }
                Command::Shipped(class, through, erasures) => {
                    let now = self.clock.time;
                    let kept = self.spool.as_mut().map(|spool| spool.shipped(class, through, erasures, now));
                    if let Some(Err(e)) = kept {
                        tracing::warn!(
                            "how far the audit log was shipped cannot be stored, entries will be sent again: {e}"
                        );
                    }
                }
                Command::Expire => self.expire(trail),
                Command::Close(done) => {
                    self.close(trail);
                    let _ = done.send(());
                    return true;
                }
            }
        }
        false
    }

    fn open(&mut self) {
        let trail = &*self.trail;
        let basis = trail.basis();
        let audit = &basis.audit;
        self.tried_at = Some(Instant::now());
        match Spool::open(&audit.directory, self.keys.clone(), &audit.machine, audit.spool, Clock::now().time) {
            Ok(mut spool) => {
                if self.problem.take().is_some() {
                    tracing::info!(directory = %audit.directory.display(), "the audit log is written again");
                }
                for alarm in spool.alarms() {
                    tracing::error!(
                        finding = alarm.action,
                        details = alarm.details,
                        "the audit log was changed while no process wrote to it: {} {}",
                        alarm.action,
                        alarm.details
                    );
                    trail.metrics.alarm(alarm.action);
                }
                // Commit the results of recovery before anything else.
                for (class, e) in spool.commit(Clock::now().time) {
                    tracing::warn!(class = class.name(), "the result of the recovery cannot be written: {e}");
                }
                for class in Class::ALL {
                    trail.committed[class as usize].store(spool.committed(class).last, Ordering::Release);
                    trail.writable[class as usize].store(true, Ordering::Relaxed);
                }
                // The keys of the old identities are in the previous spool.
                self.identities = Identities::new(self.keys.clone());
                trail.openings.fetch_add(1, Ordering::Release);
                self.spool = Some(spool);
            }
            Err(e) => {
                if self.problem != Some(e.label()) {
                    tracing::error!(
                        directory = %audit.directory.display(),
                        reason = e.label(),
                        "the audit log cannot be written, retrying: {e}"
                    );
                }
                self.problem = Some(e.label());
                trail.writable.iter().for_each(|writable| writable.store(false, Ordering::Relaxed));
            }
        }
        trail.metrics.show_writable(&trail.writable);
    }

    /// Takes what is queued and writes it. Returns false if the queues were empty.
    fn take_and_write(&mut self, trail: &Trail) -> bool {
        self.note_clock();
        if self.spool.is_none() && self.tried_at.is_none_or(|at| at.elapsed() >= TRY_AGAIN) {
            self.open();
        }
        // After a failure the disk gets a pause before everything is tried again.
        if self.spool.is_some() && self.problem.is_some() && self.tried_at.is_some_and(|at| at.elapsed() < TRY_AGAIN) {
            return true;
        }
        let mut batches = std::mem::take(&mut self.batches);
        batches.resize_with(trail.shards.len() + 1, Batch::default);
        std::mem::swap(&mut batches[0], &mut self.pending);
        for (shard, batch) in trail.shards.iter().zip(&mut batches[1..]) {
            std::mem::swap(&mut *lock(shard), batch);
        }
        let beyond = self.refusals.due(self.clock.time);
        let is_idle = beyond.is_empty() && batches.iter().all(|batch| batch.items.is_empty());
        if self.spool.is_none() {
            self.keep(trail, &mut batches, |_| true, self.problem.unwrap_or("gone"));
            self.refusals.take_back(beyond);
        } else {
            let is_lost = |class: Class| {
                trail.lost[class as usize].load(Ordering::Relaxed) > 0 || self.lost[class as usize].count > 0
            };
            let is_dirty = self.spool.as_ref().is_some_and(Spool::is_dirty);
            if !is_idle || is_dirty || Class::ALL.into_iter().any(is_lost) {
                self.write(trail, &mut batches, beyond);
            }
        }
        for batch in &mut batches {
            batch.clear();
        }
        self.batches = batches;
        !is_idle
    }

    fn write(&mut self, trail: &Trail, batches: &mut [Batch], beyond: Vec<(Refusal, Beyond)>) {
        let gaps = self.write_gaps(trail);
        self.awaited.clear();
        self.counted.clear();
        let clock = self.clock;
        let mut next = vec![0; batches.len()];
        // Each batch is in order: the one with the earliest first item is next.
        let earliest = |batches: &[Batch], next: &[usize]| {
            let firsts = batches.iter().zip(next).enumerate();
            let firsts = firsts.filter_map(|(at, (batch, next))| Some((batch.items.get(*next)?.at(), at)));
            firsts.min().map(|(_, at)| at)
        };
        while let Some(at) = earliest(batches, &next) {
            let number = next[at];
            next[at] += 1;
            let batch = &mut batches[at];
            let Some((rules, item)) = batch.get(number) else { continue };
            // Items that are retried were checked before.
            if at > 0 && self.refusals.is_beyond(item, rules, |at| clock.of(at)) {
                self.counted.push((at, number));
                continue;
            }
            if let Some((id, placed)) = self.append(rules, item)
                && item.is_awaited()
            {
                let class = item.event().class();
                self.awaited.push((at, number, Receipt { id, class, seq: placed.seq, hash: placed.hash }));
            }
        }
        for (refusal, beyond) in &beyond {
            self.append_beyond(refusal, beyond);
        }
        let Some(spool) = &mut self.spool else { return };
        let began = Instant::now();
        let failed = spool.commit(self.clock.time);
        let made_room = spool.take_dropped();
        // A slow commit counts at once, and its effect decays slowly.
        self.commit_time = began.elapsed().max(self.commit_time * 15 / 16);
        trail.metrics.commits.observe(began.elapsed().as_secs_f64());
        trail.metrics.spool_bytes.set(i64::try_from(spool.bytes()).unwrap_or(i64::MAX));
        let has_failed = |class: Class| failed.iter().any(|(of, _)| *of == class);
        for class in Class::ALL {
            let head = spool.committed(class).last;
            let before = trail.committed[class as usize].swap(head, Ordering::Release);
            trail.metrics.entered(class, head.saturating_sub(before));
            trail.writable[class as usize].store(!has_failed(class), Ordering::Relaxed);
            if !has_failed(class) && gaps[class as usize].count > 0 {
                self.lost[class as usize] = Lost::default();
            }
        }
        trail.metrics.show_writable(&trail.writable);
        for (at, number, receipt) in self.awaited.drain(..) {
            let done = batches[at].items.get_mut(number).and_then(Item::take_done);
            // Dropping the sender reports the failure; the rejected request has an event of its own. The task may be
            // gone.
            if let (Some(done), false) = (done, has_failed(receipt.class)) {
                let _ = done.send(receipt);
            }
        }
        if has_failed(Class::Security) {
            self.refusals.take_back(beyond);
        }
        trail.progress.notify_one();
        self.made_room(trail, &made_room);
        self.tell(&failed);
        if let Some(why) = self.problem {
            self.counted.sort_unstable();
            self.keep(trail, batches, has_failed, why);
            if failed.iter().any(|(_, e)| e.label() == "gone") {
                // Opening it again shows what is left.
                self.spool = None;
            }
            self.tried_at = Some(Instant::now());
        }
    }

    /// Logs segments that were deleted for lack of room, with the next commit.
    fn made_room(&mut self, trail: &Trail, dropped: &[Dropped]) {
        for dropped in dropped {
            trail.metrics.dropped(dropped.class, "spool", dropped.last - dropped.first + 1);
            self.note_dropped(dropped, "room");
        }
    }

    /// Logs once that the audit log cannot be written, and once that it can be again.
    fn tell(&mut self, failed: &[(Class, SpoolError)]) {
        let problem = failed.first().map(|(_, e)| e.label());
        if problem == self.problem {
            return;
        }
        self.problem = problem;
        match failed.first() {
            Some((class, e)) => tracing::error!(
                class = class.name(),
                reason = e.label(),
                "the audit log cannot be written, retrying: {e}"
            ),
            None => tracing::info!("the audit log is written again"),
        }
    }

    /// Keeps items that could not be written, as many as there is room for; counts the rest as lost.
    fn keep(&mut self, trail: &Trail, batches: &mut [Batch], has_failed: impl Fn(Class) -> bool, why: &'static str) {
        let room = trail.room * trail.shards.len();
        for (at, batch) in batches.iter_mut().enumerate() {
            let rules = std::mem::take(&mut batch.rules);
            for (number, item) in batch.items.drain(..).enumerate() {
                let class = item.event().class();
                // An awaited item fails, and its rejection is another event. Items in `counted` are counted already.
                let is_counted = class == Class::Security && self.counted.binary_search(&(at, number)).is_ok();
                if !has_failed(class) || item.is_awaited() || is_counted {
                    continue;
                }
                let of = rules.partition_point(|(first, _)| *first <= number).checked_sub(1);
                match of.and_then(|of| rules.get(of)) {
                    Some((_, rules)) if self.pending.items.len() < room => self.pending.push(rules, item),
                    _ => self.count_lost(class, 1, why, trail),
                }
            }
        }
    }

    fn count_lost(&mut self, class: Class, count: u64, why: &'static str, trail: &Trail) {
        trail.metrics.lost(class, why, count);
        self.lost[class as usize].add(count, why, self.clock.time);
    }

    fn close(&mut self, trail: &Trail) {
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.take_and_write(trail) && Instant::now() < deadline {}
        // The queues are closed from here on: further items are counted.
        trail.is_closed.store(true, Ordering::SeqCst);
        self.take_and_write(trail);
        let rest = self.refusals.take();
        if self.spool.is_some() && !rest.is_empty() {
            self.write(trail, &mut [], rest);
        }
        if !self.pending.items.is_empty() {
            tracing::error!(
                entries = self.pending.items.len(),
                "entries of the audit log are lost: they could not be written before the process ended"
            );
        }
        if let Some(spool) = self.spool.take()
            && let Err(e) = spool.close(Clock::now().time)
        {
            tracing::warn!("the audit log could not be closed: {e}");
        }
    }
}
