//! The state of every quota: two words a key, in a table whose size never changes.
//!
//! A key's state is its arrival time (see [`outrigger_policy::limiter`]), and one that is not in the future says nothing:
//! whoever needs room takes such a cell, so idle keys are forgotten without a sweep, and without anybody noticing. A key
//! has eight cells to choose from, in two cache lines. When all eight are in use, it shares a cell with other latecomers of its
//! limit and its origin: memory stays bounded, nobody goes unlimited, and who brings many keys from one origin takes nothing from
//! clients of another one.
//!
//! There are no locks. Two threads that bring the same new key in the same moment may each find a cell for it; the
//! second one's charge is then forgotten: one request more than the quota, once in the key's life.

use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_policy::limiter::{Exceeded, Quota};

const CELLS: usize = 4;

#[derive(Debug, Default)]
struct Cell {
    /// The key's hash; 0 is nobody's.
    tag: AtomicU64,
    /// Its arrival time.
    tat: AtomicU64,
}

/// One cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    cells: [Cell; CELLS],
}

/// All keys of all limits.
#[derive(Debug)]
pub struct Table {
    lines: Box<[Line]>,
    latecomers: Box<[AtomicU64]>,
}

/// Cells for latecomers: 512 KiB. Two origins share one by chance only.
const LATECOMERS: usize = 65_536;

/// What a charge was put on, so that it can be taken back.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'t> {
    cell: &'t AtomicU64,
    ns: u64,
    /// The arrival time with it.
    pub tat: u64,
    /// The table is full where this key belongs.
    pub overflowed: bool,
}

/// It is too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// For how long.
    pub exceeded: Exceeded,
    /// The key has no cell of its own: others may have used up what it shares with them.
    pub overflowed: bool,
}

impl Charge<'_> {
    /// As if the request had never come.
    pub fn take_back(self) {
        self.cell.fetch_sub(self.ns, Ordering::Relaxed);
    }
}

impl Table {
    /// Room for about so many keys that are in use at the same time; 20 bytes for each.
    pub fn new(keys: usize) -> Self {
        let lines = (keys.max(CELLS) * 5 / 4).div_ceil(CELLS);
        Self {
            lines: (0..lines).map(|_| Line::default()).collect(),
            latecomers: (0..LATECOMERS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Takes `cost` from the quota of the key `tag`, or, when there is no cell for it, from the one that it shares with other
    /// keys of the same `origin`, a hash of the limit and of where the key comes from.
    ///
    /// # Errors
    /// [`Refused`]: nothing was taken.
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

    /// Asks the processor for a key that will be needed.
    #[inline]
    pub fn warm(&self, tag: u64) {
        std::hint::black_box(self.lines(tag.max(1))[0].cells[0].tag.load(Ordering::Relaxed));
    }

    /// The arrival time of the key `tag`; 0 if nothing is known of it.
    pub fn look(&self, tag: u64) -> u64 {
        self.find(tag.max(1)).map_or(0, |tat| tat.load(Ordering::Relaxed))
    }

    /// Keys in use, and cells.
    pub fn size(&self, now: u64) -> (usize, usize) {
        let cells = self.lines.iter().flat_map(|line| &line.cells);
        (cells.filter(|cell| cell.tat.load(Ordering::Relaxed) > now).count(), self.lines.len() * CELLS)
    }

    /// Its two lines: any two, far from each other.
    #[inline]
    fn lines(&self, tag: u64) -> [&Line; 2] {
        let at = |hash: u64| {
            // The high half of the product is a number below the length, evenly spread.
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

    /// Takes back `ns` of what was taken from the key `tag`.
    pub fn give_back(&self, tag: u64, ns: u64) {
        if let Some(cell) = self.find(tag.max(1)) {
            cell.fetch_sub(ns.min(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }

    /// Forgets what was taken from the key `tag`.
    pub fn forget(&self, tag: u64) {
        if let Some(cell) = self.find(tag.max(1)) {
            cell.store(0, Ordering::Relaxed);
        }
    }

    /// Gives `tag` a cell with its first charge, if there is one.
    fn claim(&self, tag: u64, quota: Quota, now: u64, cost: u32) -> Result<Option<Charge<'_>>, Exceeded> {
        let first = quota.take(0, now, cost)?;
        let idle = |line: &&Line| line.cells.iter().filter(|cell| cell.tat.load(Ordering::Relaxed) <= now).count();
        let [one, other] = self.lines(tag);
        let by_room = if idle(&other) > idle(&one) { [other, one] } else { [one, other] };
        for cell in by_room.into_iter().flat_map(|line| &line.cells) {
            let seen = cell.tat.load(Ordering::Relaxed);
            if seen > now {
                continue;
            }
            // Whoever moves the time has the cell.
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
    fn a_charge_that_is_taken_back_was_never_there() {
        let table = Table::new(100);
        let quota = quota("60/1m", 2);
        table.take(7, quota, SECOND, 1, || 0).unwrap();
        let before = table.look(7);
        table.take(7, quota, SECOND, 1, || 0).unwrap().take_back();
        assert_eq!(table.look(7), before);
    }

    #[test]
    fn a_million_keys_take_twenty_megabytes() {
        let bytes = size_of_val(&*Table::new(1_000_000).lines);
        assert!(bytes <= 20_000_064, "{bytes}");
    }

    #[test]
    fn a_full_table_limits_newcomers_together_and_forgets_nobody() {
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
        // An hour later all of them are idle, and newcomers have the cells.
        assert!(table.take(mix(5_000_000), quota, SECOND + 3600 * SECOND, 1, || 0).is_ok_and(|c| !c.overflowed));
    }

    #[test]
    fn who_fills_the_table_takes_nothing_from_other_origins() {
        let table = Table::new(1000);
        let quota = quota("10/1h", 10);
        // One origin brings a new key with each request.
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
        // A minute in which somebody asks every ten microseconds: ten times as often as allowed.
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
