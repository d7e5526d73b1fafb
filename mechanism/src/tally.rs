//! How requests end for each client, for the comparison of changed rules with the ones before (`policy/src/probation.rs`).
//!
//! Clients are counted in [`CELLS`] cells by a hash, so the memory is fixed (100 KiB), and a client costs no more than another one, however
//! many requests it sends. A request adds to four counters of one cell, without a lock; twice a second the counters are read and reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use outrigger_identity::hash::mix;
use outrigger_policy::priority::Priority;
use outrigger_policy::probation::measures::{Ending, RUNGS_MS, Row, rung};
use outrigger_policy::probation::{Bin, CELLS};

/// A cell whose requests wait without an answer for this many bins in a row is unanswered: a second.
const WAITS: u8 = 2;

/// The counters of a cell. Aligned, so that few cores write to one cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell {
    begun: AtomicU32,
    answered: AtomicU32,
    endings: [AtomicU32; Ending::ALL.len()],
    rungs: [AtomicU32; RUNGS_MS.len()],
    priorities: [[AtomicU32; 2]; Priority::ALL.len()],
}

/// A request that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How.
    pub ending: Ending,
    /// The version of the configuration under which it began.
    pub version: u64,
    /// Its route's priority, if it has a route.
    pub priority: Option<Priority>,
    /// How long the app took for it, if that says something about the app.
    pub took: Option<Duration>,
}

/// Counters of all clients.
#[derive(Debug)]
pub struct Tally {
    cells: Box<[Cell]>,
    /// Requests that began under another version of the configuration are not counted.
    version: AtomicU64,
    is_off: AtomicBool,
}

impl Default for Tally {
    fn default() -> Self {
        let cells = (0..CELLS).map(|_| Cell::default()).collect();
        Self { cells, version: AtomicU64::new(1), is_off: AtomicBool::new(false) }
    }
}

/// A request without an answer, until it is dropped.
#[derive(Debug)]
pub struct Unanswered {
    tally: Arc<Tally>,
    cell: u16,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.tally.cells[usize::from(self.cell)].answered.fetch_add(1, Ordering::Relaxed);
    }
}

const fn cell_of(client: u64) -> u16 {
    (mix(client) % CELLS as u64) as u16
}

impl Tally {
    /// Counts requests that begin under this version, from now on. `is_off`: it stops counting.
    pub fn follow(&self, version: u64, is_off: bool) {
        self.version.store(version, Ordering::Relaxed);
        self.is_off.store(is_off, Ordering::Relaxed);
    }

    /// Counts a request that begins; `client` is a hash of who sent it.
    pub fn begin(self: &Arc<Self>, client: u64) -> Option<Unanswered> {
        if self.is_off.load(Ordering::Relaxed) {
            return None;
        }
        let cell = cell_of(client);
        self.cells[usize::from(cell)].begun.fetch_add(1, Ordering::Relaxed);
        Some(Unanswered { tally: Arc::clone(self), cell })
    }

    /// Counts a request that ended.
    pub fn end(&self, client: u64, Ended { ending, version, priority, took }: Ended) {
        if self.is_off.load(Ordering::Relaxed) || version != self.version.load(Ordering::Relaxed) {
            return;
        }
        let cell = &self.cells[usize::from(cell_of(client))];
        cell.endings[ending as usize].fetch_add(1, Ordering::Relaxed);
        let milliseconds = |took: Duration| u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        if let Some(rung) = took.and_then(|took| rung(milliseconds(took))) {
            cell.rungs[rung].fetch_add(1, Ordering::Relaxed);
        }
        if let Some(priority) = priority {
            let [all, bad] = &cell.priorities[priority as usize];
            all.fetch_add(1, Ordering::Relaxed);
            if ending.is_bad() {
                bad.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A reader's knowledge of a cell.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// The answered requests at the last look.
    answered: u32,
    /// For how many bins requests have waited since without an answer.
    waits: u8,
    /// Requests without an answer that began before [`Reader::restart`]: at most as many.
    old: u32,
}

/// Reads a tally, bin after bin.
#[derive(Debug)]
pub struct Reader {
    cells: Box<[Seen]>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { cells: vec![Seen::default(); CELLS].into() }
    }
}

impl Reader {
    /// Forgets what was counted so far: other rules are in force. Requests that wait already do not count as unanswered.
    pub fn restart(&mut self, tally: &Tally) {
        drop(self.take(tally));
        for (cell, seen) in tally.cells.iter().zip(&mut self.cells) {
            let answered = cell.answered.load(Ordering::Relaxed);
            seen.old = cell.begun.load(Ordering::Relaxed).wrapping_sub(answered);
            seen.waits = 0;
        }
    }

    /// Takes what was counted since the last call.
    pub fn take(&mut self, tally: &Tally) -> Bin {
        let mut bin = Bin::default();
        for (number, (cell, seen)) in (0..).zip(tally.cells.iter().zip(&mut self.cells)) {
            // In this order: one that begins in between has not been answered.
            let answered = cell.answered.load(Ordering::Relaxed);
            let open = cell.begun.load(Ordering::Relaxed).wrapping_sub(answered);
            seen.old = seen.old.min(open);
            let is_waiting = open > seen.old && seen.answered == answered;
            seen.waits = if is_waiting { seen.waits.saturating_add(1) } else { 0 };
            seen.answered = answered;
            let take = |counter: &AtomicU32| match counter.load(Ordering::Relaxed) {
                0 => 0,
                _ => counter.swap(0, Ordering::Relaxed),
            };
            let row = Row {
                endings: std::array::from_fn(|at| take(&cell.endings[at])),
                rungs: std::array::from_fn(|at| take(&cell.rungs[at])),
                priorities: std::array::from_fn(|at| [take(&cell.priorities[at][0]), take(&cell.priorities[at][1])]),
                is_unanswered: seen.waits >= WAITS,
            };
            if row != Row::default() {
                bin.rows.push((number, row));
            }
        }
        bin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine(version: u64) -> Ended {
        let (priority, took) = (Some(Priority::High), Some(Duration::from_millis(30)));
        Ended { ending: Ending::Fine, version, priority, took }
    }

    #[test]
    fn a_bin_has_what_was_counted_since_the_last_one_under_this_version() {
        let (tally, mut reader) = (Arc::new(Tally::default()), Reader::default());
        tally.end(1, fine(1));
        tally.end(1, Ended { ending: Ending::RateLimited, took: None, ..fine(1) });
        tally.end(2, fine(7));
        let bin = reader.take(&tally);
        let [(_, row)] = bin.rows[..] else { panic!("{bin:?}") };
        assert_eq!((row.endings[Ending::Fine as usize], row.endings[Ending::RateLimited as usize]), (1, 1));
        assert_eq!((row.priorities[Priority::High as usize], row.rungs[3]), ([2, 1], 1));
        assert!(reader.take(&tally).rows.is_empty());
        tally.follow(7, false);
        tally.end(2, fine(7));
        assert_eq!(reader.take(&tally).rows.len(), 1);
        tally.follow(8, true);
        tally.end(2, fine(8));
        assert!(tally.begin(2).is_none() && reader.take(&tally).rows.is_empty());
    }

    #[test]
    fn a_client_whose_requests_all_wait_x() {
        let (tally, mut reader) = (Arc::new(Tally::default()), Reader::default());
        let waiting = tally.begin(1);
        let is_unanswered = |reader: &mut Reader| reader.take(&tally).rows.iter().any(|(_, row)| row.is_unanswered);
        let found: Vec<bool> = (0..6).map(|_| is_unanswered(&mut reader)).collect();
        assert_eq!(found, [false, true, true, true, true, true]);
        // Another one of its requests is answered.
        drop(tally.begin(1));
        assert!(!is_unanswered(&mut reader));
        // Its successor waits under other rules.
        reader.restart(&tally);
        assert!((0..6).all(|_| !is_unanswered(&mut reader)));
        let second = tally.begin(1);
        assert!((0..6).any(|_| is_unanswered(&mut reader)));
        drop((waiting, second));
        assert!((0..6).all(|_| !is_unanswered(&mut reader)));
    }
}
