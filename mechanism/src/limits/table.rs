//! The state of all quotas: two words per key, in a table of fixed size.
//!
//! A key's state is its arrival time (see [`outrigger_policy::limiter`]). An arrival time in the past carries no
//! information, so a new key may take such a cell: idle keys expire without a sweep. A key has eight cells to choose
//! from, in two cache lines. If all eight are in use, it shares a cell with other overflowing keys of its limit and its
//! origin: memory stays bounded, every key stays limited, and many keys from one origin take no quota from clients of
//! another one.
//!
//! There are no locks. Two threads that add the same new key at the same moment may each find a cell for it; the second
//! charge is then forgotten: one request more than the quota, once in the key's life.

use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_policy::limiter::{Exceeded, Quota};
use outrigger_policy::saved::SavedKey;

const CELLS: usize = 4;

#[derive(Debug, Default)]
struct Cell {
    /// The key's hash; 0 is unused.
    tag: AtomicU64,
    /// The key's arrival time.
    tat: AtomicU64,
}

/// One cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    cells: [Cell; CELLS],
}

/// The keys of all rate limits.
#[derive(Debug)]
pub struct Table {
    lines: Box<[Line]>,
    latecomers: Box<[AtomicU64]>,
}

/// Overflow cells: 512 KiB. Two origins share one only by chance.
const LATECOMERS: usize = 65_536;

/// A charge to a cell, which can be undone.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'t> {
    cell: &'t AtomicU64,
    ns: u64,
    /// The arrival time after the charge.
    pub tat: u64,
    /// The table has no free cell for this key.
    pub overflowed: bool,
}

/// The quota is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// How long to wait.
    pub exceeded: Exceeded,
    /// The key has no cell of its own: other keys may have used up the shared cell.
    pub overflowed: bool,
}

impl Charge<'_> {
    /// Undoes the charge.
    pub fn take_back(self) {
        self.cell.fetch_sub(self.ns, Ordering::Relaxed);
    }
}

impl Table {
    /// Creates a table for about this many keys in use at the same time; 20 bytes each.
    pub fn new(keys: usize) -> Self {
        let lines = (keys.max(CELLS) * 5 / 4).div_ceil(CELLS);
        Self {
            lines: (0..lines).map(|_| Line::default()).collect(),
            latecomers: (0..LATECOMERS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Charges `cost` to the key `tag`, or, if no cell is free, to the cell that it shares with other keys of the same
    /// `origin`, a hash of the limit and of where the key comes from.
    ///
    /// # Errors
    /// [`Refused`]: the key was not charged.
    #[inline]
    pub fn take(
        &self,
        tag: u64,
        quota: Quota,
        now: u64,
        cost: u32,
        origin: impl FnOnce() -> u64,
    ) -> Result<Charge<'_>, Refused> {
        let tag = tag.max(1);
        let (cell, overflowed) = match self.find(tag) {
            Some(cell) => (cell, false),
            None => match self.claim(tag, quota, now, cost) {
                Ok(Some(charge)) => return Ok(charge),
                Ok(None) => (&self.latecomers[origin() as usize % LATECOMERS], true),
                Err(exceeded) => return Err(Refused { exceeded, overflowed: false }),
            },
        };
        let mut tat = cell.load(Ordering::Relaxed);
        loop {
            let after = quota.take(tat, now, cost).map_err(|exceeded| Refused { exceeded, overflowed })?;
            match cell.compare_exchange_weak(tat, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(Charge { cell, ns: after.saturating_sub(tat.max(now)), tat: after, overflowed }),
                Err(seen) => tat = seen,
            }
        }
    }

    /// Prefetches the cell of a key.
    #[inline]
    pub fn warm(&self, tag: u64) {
        std::hint::black_box(self.lines(tag.max(1))[0].cells[0].tag.load(Ordering::Relaxed));
    }

    /// Returns the arrival time of the key `tag`; 0 if it is unknown.
    pub fn look(&self, tag: u64) -> u64 {
        self.find(tag.max(1)).map_or(0, |tat| tat.load(Ordering::Relaxed))
    }

    /// Returns the number of keys in use, and of cells.
    pub fn size(&self, now: u64) -> (usize, usize) {
        let cells = self.lines.iter().flat_map(|line| &line.cells);
        (cells.filter(|cell| cell.tat.load(Ordering::Relaxed) > now).count(), self.lines.len() * CELLS)
    }

    /// Returns the key's two lines: any two, far apart.
    #[inline]
    fn lines(&self, tag: u64) -> [&Line; 2] {
        let at = |hash: u64| {
            // The high half of the product is a number below the length, evenly distributed.
            let index = (u128::from(hash) * self.lines.len() as u128) >> 64;
            &self.lines[index as usize]
        };
        [at(tag), at(tag.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32))]
    }

    #[inline]
    fn find(&self, tag: u64) -> Option<&AtomicU64> {
        let mut cells = self.lines(tag).into_iter().flat_map(|line| &line.cells);
        cells.find(|cell| cell.tag.load(Ordering::Acquire) == tag).map(|cell| &cell.tat)
    }

    /// Undoes a charge of `ns` to the key `tag`.
    pub fn give_back(&self, tag: u64, ns: u64) {
        if let Some(cell) = self.find(tag.max(1)) {
            cell.fetch_sub(ns.min(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }

    /// Resets the key `tag`.
    pub fn forget(&self, tag: u64) {
        if let Some(cell) = self.find(tag.max(1)) {
            cell.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the keys whose quota is not full at `now`, with their arrival times. Keys that share a cell are not included.
    pub fn keys(&self, now: u64) -> impl Iterator<Item = SavedKey> {
        let cells = self.lines.iter().flat_map(|line| &line.cells);
        // A cell that changes hands at this moment may show its old key.
        let key =
            |cell: &Cell| SavedKey { tag: cell.tag.load(Ordering::Acquire), tat: cell.tat.load(Ordering::Relaxed) };
        cells.map(key).filter(move |key| key.tag != 0 && key.tat > now)
    }

    /// Restores a key of an earlier process; one that is there already keeps the later arrival time. Returns false if no cell is free.
    pub fn restore(&self, SavedKey { tag, tat }: SavedKey, now: u64) -> bool {
        if let Some(cell) = self.find(tag.max(1)) {
            cell.fetch_max(tat, Ordering::Relaxed);
            return true;
        }
        for cell in self.by_room(tag.max(1), now).into_iter().flat_map(|line| &line.cells) {
            let seen = cell.tat.load(Ordering::Relaxed);
            if seen <= now && cell.tat.compare_exchange(seen, tat, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                cell.tag.store(tag.max(1), Ordering::Release);
                return true;
            }
        }
        false
    }

    /// Returns the key's two lines; the one with more free cells comes first.
    fn by_room(&self, tag: u64, now: u64) -> [&Line; 2] {
        let idle = |line: &&Line| line.cells.iter().filter(|cell| cell.tat.load(Ordering::Relaxed) <= now).count();
        let [one, other] = self.lines(tag);
        if idle(&other) > idle(&one) { [other, one] } else { [one, other] }
    }

    /// Assigns a cell to `tag` with its first charge; `None` if all are in use.
    fn claim(&self, tag: u64, quota: Quota, now: u64, cost: u32) -> Result<Option<Charge<'_>>, Exceeded> {
        let first = quota.take(0, now, cost)?;
        for cell in self.by_room(tag, now).into_iter().flat_map(|line| &line.cells) {
            let seen = cell.tat.load(Ordering::Relaxed);
            if seen > now {
                continue;
            }
            // The thread that changes the time owns the cell.
            if cell.tat.compare_exchange(seen, first, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                cell.tag.store(tag, Ordering::Release);
                return Ok(Some(Charge { cell: &cell.tat, ns: first - now, tat: first, overflowed: false }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_policy::tier::Multiplier;

    const SECOND: u64 = 1_000_000_000;

    fn quota(rate: &str, burst: u32) -> Quota {
        Quota::new(rate.parse().unwrap(), burst, Multiplier::ONE).unwrap()
    }

    fn mix(n: u64) -> u64 {
        let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    }

    #[test]
    fn a_refunded_charge_has_no_effect() {
        let table = Table::new(100);
        let quota = quota("60/1m", 2);
        table.take(7, quota, SECOND, 1, || 0).unwrap();
        let before = table.look(7);
        table.take(7, quota, SECOND, 1, || 0).unwrap().take_back();
        assert_eq!(table.look(7), before);
    }

    #[test]
    fn keys_are_restored_and_idle_ones_are_not_saved() {
        let (table, quota) = (Table::new(1000), quota("60/1m", 3));
        for key in 1..500 {
            table.take(mix(key), quota, SECOND, 2, || 0).unwrap();
        }
        assert_eq!(table.keys(4 * SECOND).count(), 0);
        let saved: Vec<SavedKey> = table.keys(2 * SECOND).collect();
        assert_eq!(saved.len(), 499);
        let restored = Table::new(1000);
        assert!(saved.iter().all(|key| restored.restore(*key, 2 * SECOND)));
        for key in 1..500 {
            assert_eq!(restored.look(mix(key)), 3 * SECOND);
            let later = SavedKey { tag: mix(key), tat: 2 * SECOND };
            assert!(restored.restore(later, 2 * SECOND), "what a peer knows less of changes nothing");
            assert_eq!(restored.look(mix(key)), 3 * SECOND);
        }
        let small = Table::new(100);
        let fitted = saved.iter().filter(|key| small.restore(**key, 2 * SECOND)).count();
        assert!(fitted >= 100 && small.size(2 * SECOND) == (fitted, fitted.max(128)), "{fitted}");
    }

    #[test]
    fn a_million_keys_take_twenty_megabytes() {
        let bytes = size_of_val(&*Table::new(1_000_000).lines);
        assert!(bytes <= 20_000_064, "{bytes}");
    }

    #[test]
    fn a_full_table_shares_one_quota_among_new_keys_and_evicts_no_key() {
        let table = Table::new(1000);
        let quota = quota("1/1h", 1);
        let admitted = |n: u64| table.take(mix(n), quota, SECOND, 1, || 0).is_ok();
        let first: Vec<bool> = (0..900).map(admitted).collect();
        let fitted = first.iter().filter(|a| **a).count();
        assert!(fitted >= 895, "nine tenths of its size fit: {fitted}");
        let others = (900..1_000_000).filter(|n| admitted(*n)).count();
        let (used, cells) = table.size(SECOND);
        assert!(others < cells && used == cells, "{others} more fitted, {used} of {cells} cells are used");
        assert!((0..900).all(|n| !admitted(n)), "each has had its one");
        // An hour later all of them are idle, and new keys can take the cells.
        assert!(table.take(mix(5_000_000), quota, SECOND + 3600 * SECOND, 1, || 0).is_ok_and(|c| !c.overflowed));
    }

    #[test]
    fn filling_the_table_does_not_affect_other_origins() {
        let table = Table::new(1000);
        let quota = quota("10/1h", 10);
        // One origin adds a new key with each request.
        let attacker = 1;
        let admitted = (0..100_000).filter(|n| table.take(mix(*n), quota, SECOND, 1, || attacker).is_ok()).count();
        assert!(admitted <= 1256 + 10, "{admitted}: each cell, and what they share");
        for victim in 2..200_u64 {
            let key = mix(1_000_000 + victim);
            let admitted = (0..20).filter(|_| table.take(key, quota, SECOND, 1, || victim).is_ok()).count();
            assert_eq!(admitted, 10, "what it may have, and no more");
        }
    }

    #[test]
    fn two_threads_on_one_key_get_the_quota_to_a_thousandth() {
        let table = Table::new(100);
        let quota = quota("10000/1s", 10);
        // One minute with a request every ten microseconds: ten times the rate limit.
        let (clock, step, end) = (AtomicU64::new(SECOND), 10_000, 61 * SECOND);
        let hammer = || {
            let mut admitted = 0_u64;
            loop {
                let now = clock.fetch_add(step, Ordering::Relaxed);
                if now >= end {
                    return admitted;
                }
                admitted += u64::from(table.take(42, quota, now, 1, || 0).is_ok());
            }
        };
        let admitted = std::thread::scope(|scope| {
            let threads = [scope.spawn(hammer), scope.spawn(hammer)];
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
        });
        let due = 600_000 + 10;
        assert!(admitted.abs_diff(due) <= due / 1000, "{admitted} of {due}");
    }
}
