//! This Machine's state of shared rate limits: one cache line per key, without network access.
//!
//! [`outrigger_policy::lease`] decides on local state, with one compare-and-swap, whether or not Redis is available.
//! Used cells are marked, and a background task ([`super::settling`]) syncs them with Redis.
//!
//! ```text
//!   request ──► find(tag) ──► Cell: told · debt ──► spent          the task ──► dirty ──► sync ──► Redis
//!                               └─ its bit in `dirty` ─────────────────┘           told, debt ◄──────┘
//! ```
//!
//! A tag has two candidate lines of tags, and one cell in them. Only the task frees a cell: once the key's quota is
//! full and its debt is zero. If both lines are full, the key is limited to this Machine's share, in the table of the
//! limits that are not shared. There are no locks; two threads that add the same new key at the same moment may each
//! get a cell for it: one lease more, once in the key's life.

mod cell;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use outrigger_identity::clock;
use outrigger_policy::lease::Account;
use outrigger_policy::limiter::{Exceeded, Quota, Standing};

pub use crate::limits::shared::cell::{Asks, Cell};

/// Tags per cache line.
const TAGS: usize = 8;
/// The tag of an unused cell.
const FREE: u64 = 0;
/// The tag of a cell that is about to be freed: lookups no longer find it.
const LEAVING: u64 = 1;

/// One cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Tags([AtomicU64; TAGS]);

/// How shared rate limits are enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// No limit is shared.
    #[default]
    Off = 0,
    /// Redis is unavailable: each Machine enforces its share.
    Degraded = 1,
    /// All Machines enforce them together.
    Shared = 2,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Off, Self::Degraded, Self::Shared];

    /// Returns the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Degraded => "degraded",
            Self::Shared => "shared",
        }
    }
}

/// The state of sharing, for operators.
#[derive(Clone, Debug)]
pub struct Standpoint {
    /// The mode.
    pub mode: Mode,
    /// Why Redis is unavailable.
    pub reason: Option<String>,
    /// When the mode began.
    pub since: Instant,
}

/// The state of all shared rate limits.
#[derive(Debug)]
pub struct Shared {
    keys: usize,
    cells: OnceLock<Cells>,
    mode: AtomicU8,
    machines: AtomicU32,
    standpoint: Mutex<Standpoint>,
}

impl Shared {
    /// Creates the state for this many keys, allocated once a limit is shared: 90 bytes each.
    pub fn new(keys: usize) -> Self {
        let standpoint = Standpoint { mode: Mode::Off, reason: None, since: clock::now() };
        Self {
            keys,
            cells: OnceLock::new(),
            mode: AtomicU8::new(Mode::Off as u8),
            machines: AtomicU32::new(1),
            standpoint: Mutex::new(standpoint),
        }
    }

    /// Returns the cells; `None` until a limit is shared.
    pub fn cells(&self) -> Option<&Cells> {
        self.cells.get()
    }

    /// Returns the cells, and allocates them if necessary.
    pub fn prepare(&self) -> &Cells {
        self.cells.get_or_init(|| Cells::new(self.keys))
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Acquire) {
            2 => Mode::Shared,
            1 => Mode::Degraded,
            _ => Mode::Off,
        }
    }

    /// Returns the number of Machines that share a quota; at least one.
    pub fn machines(&self) -> u32 {
        self.machines.load(Ordering::Relaxed)
    }

    /// Sets the number of Machines.
    pub fn set_machines(&self, machines: u32) {
        self.machines.store(machines.max(1), Ordering::Relaxed);
    }

    /// Returns the state for operators.
    pub fn standpoint(&self) -> Standpoint {
        self.lock().clone()
    }

    /// Sets the mode.
    pub fn set(&self, mode: Mode, reason: Option<String>) {
        let mut standpoint = self.lock();
        let since = if standpoint.mode == mode { standpoint.since } else { clock::now() };
        *standpoint = Standpoint { mode, reason, since };
        self.mode.store(mode as u8, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Standpoint> {
        // The value is always replaced as a whole.
        self.standpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the conditions that apply at `now`.
    pub fn law(&self, now: u64) -> Law {
        Law { mode: self.mode(), machines: self.machines(), now }
    }
}

/// The conditions under which a request is admitted.
#[derive(Clone, Copy, Debug)]
pub struct Law {
    mode: Mode,
    machines: u32,
    now: u64,
}

impl Law {
    /// Returns this Machine's share of a quota, for keys without a cell.
    pub fn share(self, quota: Quota, cost: u32) -> Quota {
        quota.share(self.machines, cost)
    }
}

/// A charge to a key, which can be undone.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'t> {
    cells: &'t Cells,
    index: usize,
    quota: Quota,
    cost: u32,
    law: Law,
}

impl Charge<'_> {
    /// Undoes the charge.
    pub fn take_back(self) {
        self.cells.give_back_to(self.index, self.quota, self.cost, self.law);
    }

    /// Returns the remaining quota after the charge.
    pub fn standing(self) -> Standing {
        self.cells.standing_of(self.index, self.quota, self.law)
    }
}

/// Why a key has no cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCell {
    /// Both of its lines are full.
    Full,
    /// Other Machines would not know which client it is.
    Nameless,
}

/// All cells.
#[derive(Debug)]
pub struct Cells {
    tags: Box<[Tags]>,
    cells: Box<[Cell]>,
    /// One bit per cell: it needs a sync.
    dirty: Box<[AtomicU64]>,
}

impl Cells {
    fn new(keys: usize) -> Self {
        let lines = (keys.max(TAGS) * 5 / 4).div_ceil(TAGS);
        let words = (lines * TAGS).div_ceil(64);
        Self {
            tags: (0..lines).map(|_| Tags::default()).collect(),
            cells: (0..lines * TAGS).map(|_| Cell::default()).collect(),
            dirty: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Prefetches the cell of a key.
    #[inline]
    pub fn warm(&self, tag: u64) {
        std::hint::black_box(self.tags[self.lines(tag)[0]].0[0].load(Ordering::Relaxed));
    }

    /// Returns the key's two lines: any two, far apart.
    #[inline]
    fn lines(&self, tag: u64) -> [usize; 2] {
        // The high half of the product is a number below the length, evenly distributed.
        let at = |hash: u64| ((u128::from(hash) * self.tags.len() as u128) >> 64) as usize;
        [at(tag), at(tag.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32))]
    }

    /// Returns the key's cell.
    #[inline]
    pub fn find(&self, tag: u64) -> Option<usize> {
        let tag = tag.max(LEAVING + 1);
        self.lines(tag).into_iter().find_map(|line| {
            let slot = self.tags[line].0.iter().position(|seen| seen.load(Ordering::Acquire) == tag)?;
            Some(line * TAGS + slot)
        })
    }

    /// Returns the key's cell, or a new one whose name in Redis is `name`.
    ///
    /// # Errors
    /// [`NoCell`]
    #[inline]
    pub fn find_or_claim(&self, tag: u64, name: impl FnOnce() -> Option<[u64; 2]>) -> Result<usize, NoCell> {
        match self.find(tag) {
            Some(index) => Ok(index),
            None => self.claim(tag.max(LEAVING + 1), name().ok_or(NoCell::Nameless)?).ok_or(NoCell::Full),
        }
    }

    #[cold]
    fn claim(&self, tag: u64, name: [u64; 2]) -> Option<usize> {
        let room = |line: usize| self.tags[line].0.iter().filter(|tag| tag.load(Ordering::Relaxed) == FREE).count();
        let [one, other] = self.lines(tag);
        let by_room = if room(other) > room(one) { [other, one] } else { [one, other] };
        for line in by_room {
            for (slot, seen) in self.tags[line].0.iter().enumerate() {
                let is_free = seen.load(Ordering::Relaxed) == FREE;
                // Another thread may find the tag and spend before the name is there; the task reads it only for a
                // sync.
                if is_free && seen.compare_exchange(FREE, tag, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    let index = line * TAGS + slot;
                    for (part, value) in self.cells[index].name.iter().zip(name) {
                        part.store(value, Ordering::Release);
                    }
                    return Some(index);
                }
            }
        }
        None
    }

    /// Charges `cost` to the key in cell `index`.
    ///
    /// # Errors
    /// [`Exceeded`]: the key was not charged.
    #[inline]
    pub fn spend(&self, index: usize, quota: Quota, cost: u32, law: Law) -> Result<Charge<'_>, Exceeded> {
        let cell = &self.cells[index];
        let is_urgent = if law.mode == Mode::Shared {
            let told = cell.told.load(Ordering::Relaxed);
            let mut debt = cell.debt.load(Ordering::Relaxed);
            loop {
                let spent = Account { told, debt }.spend(quota, law.machines, law.now, cost)?;
                match cell.debt.compare_exchange_weak(debt, spent.debt, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => break spent.is_urgent,
                    Err(seen) => debt = seen,
                }
            }
        } else {
            let share = law.share(quota, cost);
            let mut tat = cell.tat.load(Ordering::Relaxed);
            loop {
                let after = share.take(tat, law.now, cost)?;
                match cell.tat.compare_exchange_weak(tat, after, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(seen) => tat = seen,
                }
            }
            cell.debt.fetch_add(signed(cost), Ordering::Relaxed);
            false
        };
        self.remember(cell, quota);
        self.ask(index, if is_urgent { Asks::Now } else { Asks::Soon });
        Ok(Charge { cells: self, index, quota, cost, law })
    }

    /// Charges one unit for a failure that has already happened, if any quota is left. The lease does not apply: it
    /// only bounds what is admitted.
    pub fn charge(&self, index: usize, quota: Quota, law: Law) {
        let law = if law.mode == Mode::Shared { Law { machines: 1, ..law } } else { law };
        if self.spend(index, quota, 1, law).is_ok() {
            self.ask(index, Asks::Now);
        }
    }

    /// Checks whether `cost` could be charged, without charging it.
    ///
    /// # Errors
    /// [`Exceeded`] if it could not.
    pub fn look(&self, index: usize, quota: Quota, cost: u32, law: Law) -> Result<(), Exceeded> {
        let cell = &self.cells[index];
        if law.mode == Mode::Shared {
            cell.account().spend(quota, law.machines, law.now, cost).map(drop)
        } else {
            law.share(quota, cost).take(cell.tat.load(Ordering::Relaxed), law.now, cost).map(drop)
        }
    }

    /// Returns the remaining quota of the key in cell `index`, as far as this Machine knows.
    pub fn standing_of(&self, index: usize, quota: Quota, law: Law) -> Standing {
        let cell = &self.cells[index];
        if law.mode == Mode::Shared {
            cell.account().standing(quota, law.now)
        } else {
            law.share(quota, 1).standing(cell.tat.load(Ordering::Relaxed), law.now)
        }
    }

    /// Undoes a charge of `cost` to the key in cell `index`.
    pub fn give_back_to(&self, index: usize, quota: Quota, cost: u32, law: Law) {
        let cell = &self.cells[index];
        if law.mode != Mode::Shared {
            let back = law.share(quota, cost).charge_ns(cost);
            cell.tat.update(Ordering::Relaxed, Ordering::Relaxed, |tat| tat.saturating_sub(back));
        }
        cell.debt.fetch_sub(signed(cost), Ordering::Relaxed);
        self.ask(index, Asks::Soon);
    }

    /// Stores the quota for the task: it depends on the request's config snapshot.
    #[inline]
    fn remember(&self, cell: &Cell, quota: Quota) {
        if cell.interval_ns.load(Ordering::Relaxed) != quota.charge_ns(1) {
            cell.interval_ns.store(quota.charge_ns(1), Ordering::Relaxed);
        }
        if cell.burst.load(Ordering::Relaxed) != quota.burst() {
            cell.burst.store(quota.burst(), Ordering::Relaxed);
        }
    }

    #[inline]
    fn ask(&self, index: usize, asks: Asks) {
        let cell = &self.cells[index];
        if cell.asks.load(Ordering::Relaxed) < asks as u8 {
            cell.asks.fetch_max(asks as u8, Ordering::Relaxed);
            self.dirty[index / 64].fetch_or(1 << (index % 64), Ordering::Release);
        }
    }

    /// Calls `each` with every cell that has asked for a sync since the last call.
    pub fn asking(&self, mut each: impl FnMut(usize)) {
        for (number, word) in self.dirty.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::Acquire);
            while bits != 0 {
                each(number * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    /// Returns a cell, for the task.
    pub fn cell(&self, index: usize) -> &Cell {
        &self.cells[index]
    }

    /// Hides the cell from lookups; [`Self::free`] follows when threads that had found it no longer use it.
    pub fn leave(&self, index: usize) {
        self.tag(index).store(LEAVING, Ordering::Release);
    }

    /// Frees a cell.
    pub fn free(&self, index: usize) {
        let cell = &self.cells[index];
        cell.told.store(0, Ordering::Relaxed);
        cell.tat.store(0, Ordering::Relaxed);
        cell.debt.store(0, Ordering::Relaxed);
        cell.asks.store(Asks::Nothing as u8, Ordering::Relaxed);
        cell.name.iter().for_each(|part| part.store(0, Ordering::Relaxed));
        self.tag(index).store(FREE, Ordering::Release);
    }

    fn tag(&self, index: usize) -> &AtomicU64 {
        &self.tags[index / TAGS].0[index % TAGS]
    }

    /// Returns the number of cells.
    pub fn room(&self) -> usize {
        self.cells.len()
    }
}

fn signed(cost: u32) -> i32 {
    i32::try_from(cost).unwrap_or(i32::MAX)
}

/// Operations of the task.
#[cfg(test)]
mod tests;
