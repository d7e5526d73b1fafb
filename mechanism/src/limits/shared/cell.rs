//! The state of one key, and what the task that syncs it does with it.

use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use outrigger_policy::lease::{self, Account};
use outrigger_policy::limiter::Quota;

/// The state of one key.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Cell {
    /// See [`Account`].
    pub(super) told: AtomicU64,
    /// While Redis is unavailable: the arrival time under this Machine's share.
    pub(super) tat: AtomicU64,
    pub(super) debt: AtomicI32,
    /// Whether the cell needs a sync, and how urgently.
    pub(super) asks: AtomicU8,
    pub(super) burst: AtomicU32,
    pub(super) interval_ns: AtomicU64,
    /// The key's name in Redis.
    pub(super) name: [AtomicU64; 2],
}

/// How urgently a cell needs a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asks {
    /// No sync is needed.
    Nothing = 0,
    /// Sync in a while.
    Soon = 1,
    /// Sync now: little of the lease is left.
    Now = 2,
}

impl Cell {
    /// Returns the key's account.
    pub fn account(&self) -> Account {
        Account { told: self.told.load(Ordering::Relaxed), debt: self.debt.load(Ordering::Relaxed) }
    }

    /// Returns the quota of the last charge; `None` before the first.
    pub fn quota(&self) -> Option<Quota> {
        let (interval_ns, burst) = (self.interval_ns.load(Ordering::Relaxed), self.burst.load(Ordering::Relaxed));
        (interval_ns > 0 && burst > 0).then(|| Quota::from_parts(interval_ns, burst))
    }

    /// Returns the key's name in Redis; `None` while it is being written.
    pub fn name(&self) -> Option<[u64; 2]> {
        let name = [self.name[0].load(Ordering::Acquire), self.name[1].load(Ordering::Acquire)];
        (!name.contains(&0)).then_some(name)
    }

    /// Returns how urgently the cell needs a sync.
    pub fn asks(&self) -> Asks {
        match self.asks.load(Ordering::Relaxed) {
            0 => Asks::Nothing,
            1 => Asks::Soon,
            _ => Asks::Now,
        }
    }

    /// Marks the cell as synced, before the sync: later charges ask again.
    pub fn heard(&self) {
        self.asks.store(Asks::Nothing as u8, Ordering::SeqCst);
    }

    /// Returns the usage to report after an outage of Redis; see [`lease::remaining_debt`].
    pub fn remaining_debt(&self, quota: Quota, machines: u32, now: u64) -> i32 {
        let debt = self.debt.load(Ordering::Relaxed);
        lease::remaining_debt(debt, quota, machines, self.tat.load(Ordering::Relaxed), now)
    }

    /// Records a sync: `debt` was reported, and the arrival time is now `told`.
    pub fn settled(&self, debt: i32, told: u64) {
        self.told.store(told, Ordering::Relaxed);
        self.debt.fetch_sub(debt, Ordering::Relaxed);
    }

    /// Starts local enforcement, because Redis is unavailable: known usage counts against this Machine's share.
    pub fn stand_alone(&self, machines: u32, now: u64) {
        let Some(quota) = self.quota() else { return };
        let furthest = now.saturating_add(lease::furthest(quota, machines));
        self.tat.store(self.account().arrival(quota, machines, now).min(furthest), Ordering::Relaxed);
    }

    /// Caps the arrival times: after a lower limit or a clock jump, a key must not wait for longer than its quota says.
    pub fn keep_within(&self, quota: Quota, machines: u32, now: u64) {
        let furthest = now.saturating_add(lease::furthest(quota, machines));
        if self.told.load(Ordering::Relaxed) > furthest {
            self.told.store(furthest, Ordering::Relaxed);
        }
        if self.tat.load(Ordering::Relaxed) > furthest {
            self.tat.store(furthest, Ordering::Relaxed);
        }
    }

    /// Returns whether the cell can be freed: the quota is full, and the debt is zero.
    pub fn is_idle(&self, now: u64) -> bool {
        let Account { told, debt } = self.account();
        debt == 0 && told <= now && self.tat.load(Ordering::Relaxed) <= now && self.asks() == Asks::Nothing
    }
}
