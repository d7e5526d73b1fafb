//! Shared rate limits: how much of a quota a Machine may spend before it syncs with the store.
//!
//! One *store* (Redis) keeps the quota's arrival time (see [`crate::limiter`]). Each Machine remembers the value that it
//! last read, and admits requests locally up to a *lease*: its share of the quota that was left then. It reports its usage
//! afterwards and receives the new arrival time.
//!
//! ```text
//!   store      ────────────●─────────────────────●──────►  arrival time, including all reported usage
//!                     read ↓   ↑ report      read ↓   ↑
//!   Machine    ── spends ──────┴──── spends ──────────┴──►  at most one lease between two syncs
//! ```
//!
//! Leases reserve nothing: an idle Machine withholds no quota from the others, and a Machine that stops loses none. The
//! Machines together over-admit at most one lease each, because they decide on an old value. The excess is debt: the store
//! adds it to the arrival time, and the key waits for it afterwards. In the long run the rate is exact.
//!
//! While the store is unreachable, each Machine applies its [`Quota::share`], starting at the arrival time that it knows.
//!
//! # Examples
//!
//! ```
//! use outrigger_policy::lease::{Account, UsageReport, settle};
//! use outrigger_policy::limiter::Quota;
//! use outrigger_policy::tier::Multiplier;
//!
//! let quota = Quota::new("600/1m".parse().unwrap(), 600, Multiplier::ONE).unwrap();
//! let (machines, now) = (5, 1_000_000_000);
//!
//! // A new key: each of five Machines may spend a fifth of the burst before it syncs.
//! let mut account = Account::default();
//! for _ in 0..120 {
//!     account.debt = account.spend(quota, machines, now, 1).unwrap().debt;
//! }
//! assert!(account.spend(quota, machines, now, 1).is_err());
//!
//! // The store adds the reported usage; the next lease is a fifth of the 480 that are left.
//! let bill = UsageReport { debt: account.debt, ..UsageReport::default() };
//! account = Account { told: settle(None, bill, quota, machines, now), debt: 0 };
//! assert_eq!(account.standing(quota, now).remaining, 480);
//! assert!(account.spend(quota, machines, now, 96).is_ok());
//! ```

use std::time::Duration;

use crate::limiter::{Exceeded, Quota, Standing};

/// The `retry_after` of a request that exceeds the lease: by then the next sync has usually finished.
pub const SETTLES_IN: Duration = Duration::from_millis(50);

/// A Machine's state of one key of a shared quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The arrival time last read from the store, in nanoseconds; 0 before the first sync.
    pub told: u64,
    /// Usage that is not yet reported, in units of cost. Negative: to be given back.
    pub debt: i32,
}

/// The result of a request that was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    /// The new value of [`Account::debt`].
    pub debt: i32,
    /// More than half of the lease is used up: sync now.
    pub is_urgent: bool,
}

impl Account {
    /// Spends `cost` of a quota shared by `machines` (0 counts as 1).
    ///
    /// # Errors
    /// [`Exceeded`] if the quota is used up as far as this Machine knows, or if the lease is ([`SETTLES_IN`]).
    #[inline]
    pub fn spend(self, quota: Quota, machines: u32, now: u64, cost: u32) -> Result<Spent, Exceeded> {
        let latest = now.saturating_add(quota.burst_ns());
        let from = self.told.max(now);
        let after = u64::from(self.debt.max(0).unsigned_abs()) + u64::from(cost);
        let left = latest.saturating_sub(from) / quota.charge_ns(1);
        if after > left {
            let due = from.saturating_add(quota.charge_ns(1).saturating_mul(after)).saturating_sub(latest);
            return Err(Exceeded { retry_after: Duration::from_nanos(due.max(1)) });
        }
        // At least this request, or no Machine could spend the last part of a quota.
        let lease = (left / u64::from(machines.max(1))).max(cost.into());
        if after > lease {
            return Err(Exceeded { retry_after: SETTLES_IN });
        }
        let debt = self.debt.saturating_add(i32::try_from(cost).unwrap_or(i32::MAX));
        Ok(Spent { debt, is_urgent: 2 * after > lease })
    }

    /// Returns the remaining quota at `now`, as far as this Machine knows.
    #[inline]
    pub fn standing(self, quota: Quota, now: u64) -> Standing {
        quota.standing(self.arrival(quota, 1, now), now)
    }

    /// Returns the arrival time with the unreported usage counted `times` times.
    pub fn arrival(self, quota: Quota, times: u32, now: u64) -> u64 {
        let debt = quota.charge_ns(self.debt.unsigned_abs()).saturating_mul(times.into());
        match self.debt {
            0.. => self.told.max(now).saturating_add(debt),
            _ => self.told.max(now).saturating_sub(debt),
        }
    }
}

/// Returns the part of `debt` that must still be reported after an outage of the store, in which this Machine applied its
/// share up to the arrival time `tat`. Usage that has refilled since is not reported.
pub fn remaining_debt(debt: i32, quota: Quota, machines: u32, tat: u64, now: u64) -> i32 {
    let of_one = quota.charge_ns(machines.max(1));
    let taken = tat.saturating_sub(now).div_ceil(of_one);
    debt.min(i32::try_from(taken).unwrap_or(i32::MAX))
}

/// Returns how far ahead of now the store's arrival time can be, in nanoseconds: the burst plus the largest total debt.
pub fn furthest(quota: Quota, machines: u32) -> u64 {
    quota.burst_ns().saturating_mul(2).saturating_add(quota.charge_ns(machines))
}

/// A usage report: sent by a Machine to the store, for one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageReport {
    /// Usage since the last report, in units of cost.
    pub debt: i32,
    /// The age of the first usage in this report, in nanoseconds: quota that refilled since then is not charged.
    pub ago_ns: u64,
    /// How far ahead of now the arrival time is that the Machine knows, in nanoseconds. A store that has lost its data
    /// starts from it.
    pub known_ns: u64,
}

/// The store's side of a sync: returns the new arrival time from the old one (`None`: unknown key) and a report at `now`.
///
/// Redis runs the proxy's script, which does the same; this version is for simulations.
pub fn settle(before: Option<u64>, bill: UsageReport, quota: Quota, machines: u32, now: u64) -> u64 {
    let before = before.unwrap_or_else(|| now.saturating_add(bill.known_ns));
    let since = before.max(now.saturating_sub(bill.ago_ns)).min(now.saturating_add(furthest(quota, machines)));
    let debt = quota.charge_ns(bill.debt.unsigned_abs());
    let after = if bill.debt < 0 { since.saturating_sub(debt) } else { since.saturating_add(debt) };
    after.max(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::Multiplier;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1000 * MS;

    fn quota(rate: &str, burst: u32) -> Quota {
        Quota::new(rate.parse().unwrap(), burst, Multiplier::ONE).unwrap()
    }

    fn bill(debt: i32) -> UsageReport {
        UsageReport { debt, ..UsageReport::default() }
    }

    #[test]
    fn a_key_without_a_known_arrival_time_has_one_lease() {
        let quota = quota("600/1m", 600);
        let mut account = Account::default();
        for _ in 0..120 {
            account.debt = account.spend(quota, 5, SECOND, 1).unwrap().debt;
        }
        assert_eq!(account.spend(quota, 5, SECOND, 1), Err(Exceeded { retry_after: SETTLES_IN }));
        assert_eq!(account.standing(quota, SECOND).remaining, 480);
        // The stored arrival time includes the reported usage; the next lease is a share of the rest.
        let told = settle(None, bill(account.debt), quota, 5, SECOND);
        assert_eq!(told, SECOND + 12 * SECOND);
        let account = Account { told, debt: 95 };
        assert!(account.spend(quota, 5, SECOND, 1).is_ok_and(|spent| spent.debt == 96 && spent.is_urgent));
        assert!(account.spend(quota, 5, SECOND, 2).is_err());
    }

    #[test]
    fn the_last_tokens_of_a_quota_can_be_spent_at_any_cost() {
        let quota = quota("60/1m", 20);
        let full = Account::default();
        assert!(full.spend(quota, 10, SECOND, 20).is_ok_and(|spent| spent.is_urgent));
        let told = settle(None, bill(20), quota, 10, SECOND);
        let wait = Account { told, debt: 0 }.spend(quota, 10, SECOND, 20).unwrap_err().retry_after;
        assert_eq!(wait, Duration::from_secs(20));
        assert!(Account { told, debt: 0 }.spend(quota, 10, SECOND + 20 * SECOND, 20).is_ok());
    }

    #[test]
    fn returned_tokens_can_be_spent_again() {
        let quota = quota("60/1m", 10);
        let told = settle(None, bill(10), quota, 2, SECOND);
        let told = settle(Some(told), bill(-4), quota, 2, SECOND);
        assert_eq!(Account { told, debt: 0 }.standing(quota, SECOND).remaining, 4);
        assert_eq!(settle(Some(told), bill(-40), quota, 2, SECOND), SECOND, "nobody has more than the burst");
    }

    #[test]
    fn a_store_without_data_restores_the_arrival_time_from_a_report() {
        let quota = quota("60/1m", 10);
        let told = settle(None, bill(7), quota, 2, SECOND);
        assert_eq!(settle(None, UsageReport { known_ns: told - SECOND, ..bill(1) }, quota, 2, SECOND), told + SECOND);
    }

    #[test]
    fn an_arrival_time_is_the_same_fraction_of_a_quota_and_of_its_share() {
        let quota = quota("600/1m", 600);
        let share = quota.share(5, 1);
        let half = SECOND + quota.burst_ns() / 2;
        assert_eq!((quota.standing(half, SECOND).remaining, share.standing(half, SECOND).remaining), (300, 60));
        assert_eq!((share.burst(), share.charge_ns(1)), (120, SECOND / 2));
        // A share below the cost of one request still admits one, at the price of a longer wait.
        let dear = quota.share(5, 200);
        assert!(dear.take(0, SECOND, 200).is_ok_and(|tat| tat == SECOND + 100 * SECOND));
    }

    #[test]
    fn time_covers_what_was_spent_during_an_outage() {
        let quota = quota("60/1m", 60);
        let mut tat = 0;
        let mut debt = 0;
        // Two of three Machines, a minute of all that their share allows.
        for step in 0..600 {
            if let Ok(after) = quota.share(3, 1).take(tat, SECOND + step * 100 * MS, 1) {
                (tat, debt) = (after, debt + 1);
            }
        }
        assert_eq!(debt, 39, "20 at once, then one every three seconds");
        assert_eq!(remaining_debt(debt, quota, 3, tat, SECOND + 60 * SECOND), 19);
        assert_eq!(remaining_debt(debt, quota, 3, tat, tat), 0);
        assert_eq!(remaining_debt(5, quota, 3, tat, SECOND), 5);
    }

    /// A simulated Machine.
    #[derive(Clone, Debug, Default)]
    struct Machine {
        account: Account,
        /// The report on its way: arrival at the store, and the report.
        sent: Option<(u64, UsageReport)>,
        owes_since: u64,
        /// The response on its way: arrival here, arrival time, reported usage.
        coming: Option<(u64, u64, i32)>,
        settled_at: u64,
        most_lease: u64,
    }

    /// Simulates Machines that share one key, in steps of 1 ms. Returns the times of admitted requests, and the sum of the
    /// largest lease of each Machine.
    fn simulated(
        quota: Quota,
        loads: &[u32],
        cost: u32,
        delays: &[u64],
        ms: u64,
        mut random: impl FnMut(u64) -> u64,
    ) -> (Vec<u64>, u64) {
        let machines = u32::try_from(loads.len()).unwrap();
        let mut all = vec![Machine::default(); loads.len()];
        let mut store = None;
        let mut admitted = Vec::new();
        for step in 0..ms {
            let now = SECOND + step * MS;
            for (machine, load) in all.iter_mut().zip(loads) {
                if let Some((at, told, debt)) = machine.coming
                    && at <= now
                {
                    machine.account = Account { told, debt: machine.account.debt - debt };
                    (machine.coming, machine.settled_at) = (None, now);
                }
                if let Some((at, bill)) = machine.sent
                    && at <= now
                {
                    let told = settle(store, bill, quota, machines, now);
                    store = Some(told);
                    machine.sent = None;
                    machine.coming = Some((now + delays[random(delays.len() as u64) as usize] * MS, told, bill.debt));
                }
                let mut urgent = false;
                // `load` requests per second, at random.
                let asked = load / 1000 + u32::from(random(1000) < u64::from(load % 1000));
                for _ in 0..asked {
                    if let Ok(spent) = machine.account.spend(quota, machines, now, cost) {
                        let left = u64::from(machine.account.standing(quota, now).remaining);
                        machine.most_lease = machine.most_lease.max(left / u64::from(machines)).max(cost.into());
                        if machine.account.debt == 0 {
                            machine.owes_since = now;
                        }
                        machine.account.debt = spent.debt;
                        urgent |= spent.is_urgent;
                        admitted.push(now);
                    }
                }
                let is_due = urgent || now >= machine.settled_at + 200 * MS;
                if machine.account.debt != 0 && machine.sent.is_none() && machine.coming.is_none() && is_due {
                    let delay = delays[random(delays.len() as u64) as usize];
                    let account = machine.account;
                    let (ago_ns, known_ns) = (now - machine.owes_since, account.told.saturating_sub(now));
                    machine.sent = Some((now + delay * MS, UsageReport { debt: account.debt, ago_ns, known_ns }));
                    machine.owes_since = now;
                }
            }
        }
        (admitted, all.iter().map(|machine| machine.most_lease).sum())
    }

    fn random(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed | 1;
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    }

    #[test]
    fn five_machines_under_ten_times_the_load_admit_the_quota_and_less_than_a_lease_each_more() {
        let quota = quota("600/1m", 600);
        let (admitted, leases) = simulated(quota, &[20; 5], 1, &[2, 3, 7], 300_000, random(7));
        let due = 600 + 3000;
        let count = admitted.len() as u64;
        assert!((due..=due + leases).contains(&count), "{count} of {due}, leases of {leases}");
        // The actual excess is smaller: leases shrink with the remaining quota.
        assert!(count <= due + 5, "{count} of {due}");
    }

    #[test]
    fn an_idle_machine_reserves_no_quota() {
        let quota = quota("6000/1m", 100);
        let (admitted, _) = simulated(quota, &[1000, 1, 1, 1, 1], 1, &[5, 20], 60_000, random(3));
        let due = 100 + 6000;
        // Its lease is a fifth of the rest; the quota that it cannot spend during a sync stays in the store.
        assert!((due - 25..=due + 20).contains(&admitted.len()), "{} of {due}", admitted.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_interval_admits_more_than_the_quota_and_a_lease_per_machine(
            (count, burst) in (1..3000_u32, 1..3000_u32),
            loads in prop::collection::vec(0..4000_u32, 1..8),
            delays in prop::collection::vec(0..80_u64, 1..4),
            cost in 1..4_u32,
            seed: u64,
        ) {
            let quota = Quota::new(crate::limiter::Rate::new(count, Duration::from_secs(3)).unwrap(), burst, Multiplier::ONE);
            let (quota, cost) = (quota.unwrap(), cost.min(burst));
            let (admitted, leases) = simulated(quota, &loads, cost, &delays, 5000, random(seed));
            let mut taken = 0;
            for at in &admitted {
                taken += u64::from(cost);
                let allowed = u64::from(burst) + (at - SECOND) / quota.charge_ns(1) + leases;
                prop_assert!(taken <= allowed, "{taken} of {allowed} after {} ms", (at - SECOND) / MS);
            }
        }

        #[test]
        fn frequent_requests_get_the_whole_quota(
            (count, burst) in (30..2000_u32, 20..2000_u32),
            machines in 1..6_usize,
            delays in prop::collection::vec(0..20_u64, 1..4),
            seed: u64,
        ) {
            // Quota that refills during two syncs stays in the store and is spent afterwards, if the burst has room for twice as much.
            let refills = 2 * (delays.iter().max().unwrap() + 2) * u64::from(count) / 3000 + 1;
            let slow = (refills + 2) * machines as u64;
            let burst = burst.max(2 * slow as u32);
            let quota = Quota::new(crate::limiter::Rate::new(count, Duration::from_secs(3)).unwrap(), burst, Multiplier::ONE);
            let quota = quota.unwrap();
            let each = (10 * count / 3 / machines as u32).max(20) + burst / machines as u32;
            let (admitted, _) = simulated(quota, &vec![each; machines], 1, &delays, 6000, random(seed));
            let due = u64::from(burst) + 6 * SECOND / quota.charge_ns(1);
            prop_assert!(admitted.len() as u64 + slow >= due, "{} of {due}, {slow} may be missing", admitted.len());
        }

        #[test]
        fn no_number_makes_it_panic(told: u64, debt: i32, now: u64, machines: u32, cost: u32, interval: u64, burst: u32) {
            let quota = Quota::from_parts(interval, burst);
            let account = Account { told, debt };
            let _ = account.spend(quota, machines, now, cost);
            let _ = account.standing(quota, now);
            let _ = quota.share(machines, cost).take(told, now, cost);
            let _ = remaining_debt(debt, quota, machines, told, now);
            let bill = UsageReport { debt, ago_ns: told, known_ns: now };
            prop_assert!(settle(Some(told), bill, quota, machines, now) >= now);
            prop_assert!(settle(None, bill, quota, machines, now) >= now);
        }
    }
}
