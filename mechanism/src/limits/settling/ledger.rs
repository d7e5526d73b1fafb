//! The keys that need a sync, and their usage reports.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use outrigger_policy::lease::UsageReport;
use outrigger_policy::limiter::Quota;

use crate::limits::shared::{Asks, Cells};

/// Usage is reported within this time, unless the lease runs out earlier.
const SETTLE_EVERY: Duration = Duration::from_millis(200);
/// The maximum number of usage reports in a batch.
const BATCH: usize = 512;
/// How often keys without new usage are checked.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A usage report, ready to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) index: usize,
    pub(super) name: [u64; 2],
    pub(super) quota: Quota,
    pub(super) bill: UsageReport,
    /// The debt when the report was written; the report may contain less.
    pub(super) debt: i32,
}

impl Due {
    /// A report for an unused key that expires within a millisecond: a Redis that is read-only or full returns an
    /// error.
    pub(super) const PROBE: Self = Self {
        index: 0,
        name: [0, 0],
        quota: Quota::MILLISECOND,
        bill: UsageReport { debt: 1, ago_ns: 0, known_ns: 0 },
        debt: 1,
    };
}

/// The task's state of a cell in use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Note {
    /// When the current debt began.
    since: u64,
    pub(super) settled_at: u64,
    is_queued: bool,
    is_urgent: bool,
    is_leaving: bool,
}

/// The keys that need a sync, and when.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) notes: HashMap<usize, Note, foldhash::fast::RandomState>,
    urgent: VecDeque<usize>,
    soon: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Ledger {
    /// Queues the keys that have asked for a sync. Returns whether there were any.
    pub(super) fn collect(&mut self, cells: &Cells, now: u64) -> bool {
        let mut any = false;
        cells.asking(|index| {
            any = true;
            self.queue(index, cells.cell(index).asks(), now);
        });
        any
    }

    pub(super) fn queue(&mut self, index: usize, asks: Asks, now: u64) {
        let note = self.notes.entry(index).or_default();
        if !note.is_queued {
            (note.is_queued, note.since) = (true, now);
            let due = note.settled_at.saturating_add(SETTLE_EVERY.as_nanos() as u64).max(now);
            self.soon.push(Reverse((due, index)));
        }
        if asks == Asks::Now && !note.is_urgent {
            note.is_urgent = true;
            self.urgent.push_back(index);
        }
    }

    /// Returns the next key that is due. A key may be in both queues.
    fn next(&mut self, now: u64) -> Option<usize> {
        loop {
            let index = match self.urgent.pop_front() {
                Some(index) => index,
                None if self.soon.peek().is_some_and(|Reverse((due, _))| *due <= now) => self.soon.pop()?.0.1,
                None => return None,
            };
            if let Some(note) = self.notes.get_mut(&index).filter(|note| note.is_queued) {
                (note.is_queued, note.is_urgent) = (false, false);
                return Some(index);
            }
        }
    }

    /// Returns the usage reports that are due, at most a batch.
    pub(super) fn bills(&mut self, cells: &Cells, machines: u32, was_alone: bool, now: u64) -> Vec<Due> {
        let mut bills = Vec::new();
        while bills.len() < BATCH
            && let Some(index) = self.next(now)
        {
            let cell = cells.cell(index);
            let Some(name) = cell.name() else {
                // The name is being written at this moment.
                self.queue(index, Asks::Soon, now);
                break;
            };
            cell.heard();
            let account = cell.account();
            let Some(quota) = cell.quota().filter(|_| account.debt != 0) else { continue };
            let debt = if was_alone { cell.remaining_debt(quota, machines, now) } else { account.debt };
            let note = self.notes.get(&index).copied().unwrap_or_default();
            // The share's arrival time already accounts for the age of the usage.
            let ago_ns = if was_alone { 0 } else { now.saturating_sub(note.since) };
            let bill = UsageReport { debt, ago_ns, known_ns: account.told.saturating_sub(now) };
            bills.push(Due { index, name, quota, bill, debt: account.debt });
        }
        bills
    }

    /// Queues keys with debt that did not ask, and frees idle ones.
    pub(super) fn sweep(&mut self, cells: &Cells, machines: u32, now: u64) {
        let mut asking = Vec::new();
        self.notes.retain(|index, note| {
            let cell = cells.cell(*index);
            if note.is_queued {
                return true;
            }
            if cell.account().debt != 0 {
                asking.push(*index);
            } else if note.is_leaving {
                cells.free(*index);
                return false;
            } else if cell.is_idle(now) && now.saturating_sub(note.settled_at) > SWEEP_EVERY.as_nanos() as u64 {
                cells.leave(*index);
                note.is_leaving = true;
            }
            if let Some(quota) = cell.quota() {
                cell.keep_within(quota, machines, now);
            }
            true
        });
        for index in asking {
            self.queue(index, Asks::Soon, now);
        }
    }

    /// Frees all cells: no limit is shared any more.
    pub(super) fn close(&mut self, cells: &Cells) {
        for (index, _) in self.notes.drain() {
            cells.free(index);
        }
        self.urgent.clear();
        self.soon.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_keys_are_synced_at_once_and_others_on_schedule() {
        let mut ledger = Ledger::default();
        let now = 1 << 50;
        let later = now + SETTLE_EVERY.as_nanos() as u64;
        ledger.notes.insert(1, Note { settled_at: now, ..Note::default() });
        ledger.queue(1, Asks::Soon, now);
        ledger.queue(2, Asks::Soon, now);
        // A key without a recent sync is new to the other Machines as well.
        assert_eq!((ledger.next(now), ledger.next(now)), (Some(2), None));
        ledger.queue(1, Asks::Now, now);
        ledger.queue(1, Asks::Now, now);
        assert_eq!((ledger.next(now), ledger.next(later)), (Some(1), None));
        assert_eq!(ledger.notes[&1].since, now);
    }
}
