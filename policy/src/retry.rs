//! The retry budget and the backoff between attempts.
//!
//! The budget is a token bucket, like those of Finagle and linkerd: each request deposits a fraction of a token, each retry
//! withdraws one token, so retries are at most that fraction of requests. Under low traffic, a few retries per second are
//! free. The bucket is small, so that tokens saved in normal operation cannot become a burst of retries in an outage.
//!
//! All clients share a budget, so one whose requests fail on purpose could use it up. A client with more than a fourth of the
//! recent retries ([`HEAVY`]) leaves a saved token and a free retry to others, and what they take is saved again before it gets more.
//!
//! The pause is *full jitter* (Brooker, "Exponential Backoff And Jitter", AWS 2015): a random time between zero and a bound
//! that doubles with each attempt.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//!
//! use outrigger_policy::retry::{Budget, Settings, pause};
//!
//! // One retry for four requests.
//! let settings = Settings { share: 0.25, free_per_second: 0 };
//! let mut budget = Budget::default();
//! (0..4).for_each(|_| budget.pay_in(settings));
//! let client = 1;
//! assert!(budget.pay(0, settings, client));
//! assert!(!budget.pay(0, settings, client));
//!
//! // The third retry waits for up to 400 ms; a random number of 0.5 gives half of that.
//! let wait = pause(3, Duration::from_millis(100), Duration::from_secs(1), 0.5);
//! assert_eq!(wait, Duration::from_millis(200));
//! ```

use std::time::Duration;

use crate::hitters::RecentHitters;
use crate::saved::Shift;

const SECOND: u64 = 1_000_000_000;

/// The size of the bucket, in seconds of free retries; at least one token.
const SAVED: f64 = 2.0;

/// A client with more than one in this many recent retries is heavy, if it has at least as many.
pub const HEAVY: u64 = 4;

/// The saved tokens, and the free retries of a second, that heavy clients leave to others.
const KEPT: u32 = 1;

/// Settings of the retry budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Retries as a fraction of requests, 0 to 1.
    pub share: f64,
    /// Retries per second that need no tokens.
    pub free_per_second: u32,
}

/// The state of a retry budget. Times are nanoseconds on a monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    tokens: f64,
    /// The current second, and the retries in it.
    second: u64,
    retries: u32,
    /// Free retries of heavy clients that are still to be paid for.
    advanced: u32,
    /// Whose requests were retried lately.
    clients: RecentHitters,
}

/// The state of a retry budget in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SavedBudget {
    /// Saved tokens; negative after free retries.
    pub tokens: f64,
    /// The second of the last retry, on the clock of the process.
    pub second: u64,
    /// The retries in it.
    pub retries: u32,
}

impl Budget {
    /// Deposits the share of one request. Call it once for each request, not for its retries.
    pub fn pay_in(&mut self, settings: Settings) {
        self.tokens = (self.tokens + settings.share).min(Self::most(settings));
    }

    /// Withdraws one retry for a client at `now` and returns true, or returns false if the budget does not allow it.
    pub fn pay(&mut self, now: u64, settings: Settings, client: u64) -> bool {
        let second = now / SECOND;
        if second != self.second {
            (self.second, self.retries) = (second, 0);
        }
        let (own, all) = self.clients.share(client, now);
        let is_heavy = own >= HEAVY && own * HEAVY > all;
        let kept = if is_heavy { KEPT } else { 0 };
        while is_heavy && self.advanced > 0 && self.tokens >= f64::from(1 + kept) {
            (self.tokens, self.advanced) = (self.tokens - 1.0, self.advanced - 1);
        }
        // At least one of each, so that the only client of an app is not without.
        let has_token = self.tokens >= f64::from(1 + kept).min(Self::most(settings));
        let free = settings.free_per_second;
        if !has_token && self.retries >= free.saturating_sub(kept).max(free.min(1)) {
            return false;
        }
        self.clients.add(client, now);
        // Free retries make the balance negative, so the total is at most the larger of the two allowances. Those of heavy clients
        // are paid for with the next tokens that they would get, so they take none from others.
        if has_token || !is_heavy {
            self.tokens = (self.tokens - 1.0).max(-f64::from(free));
        } else {
            self.advanced = (self.advanced + 1).min(free);
        }
        self.retries = self.retries.saturating_add(1);
        true
    }

    /// Returns the saved tokens, 0 or more. Free retries are not included.
    pub fn left(&self, settings: Settings) -> f64 {
        self.tokens.clamp(0.0, Self::most(settings))
    }

    /// Returns the state for a snapshot.
    pub const fn saved(&self) -> SavedBudget {
        SavedBudget { tokens: self.tokens, second: self.second, retries: self.retries }
    }

    /// Restores the state of an earlier process, within the bounds of `settings`. Time changes no tokens; the free retries of the last
    /// second count for one that is not over yet.
    #[must_use]
    pub fn restored(saved: SavedBudget, shift: Shift, settings: Settings) -> Self {
        let least = -f64::from(settings.free_per_second);
        let tokens = if saved.tokens.is_finite() { saved.tokens.clamp(least, Self::most(settings)) } else { least };
        let began = shift.moved(saved.second.saturating_mul(SECOND));
        let is_over = began.saturating_add(SECOND) <= shift.now;
        let retries = if is_over { 0 } else { saved.retries };
        Self { tokens, second: shift.now / SECOND, retries, ..Self::default() }
    }

    fn most(settings: Settings) -> f64 {
        (SAVED * f64::from(settings.free_per_second)).max(1.0)
    }
}

/// Returns the pause before retry number `attempt` (from 1): `dice` × min(`first` × 2^(`attempt` − 1), `most`).
///
/// `dice` is a random number, clamped to 0..=1.
pub fn pause(attempt: u32, first: Duration, most: Duration, dice: f64) -> Duration {
    let doubled = first.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(most).mul_f64(dice.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: Settings = Settings { share: 0.2, free_per_second: 3 };
    const MS: u64 = 1_000_000;

    /// Returns the attempts per request if every attempt fails and each request would be retried twice.
    fn amplification(per_second: u64, seconds: u64) -> f64 {
        let (mut budget, mut attempts) = (Budget::default(), 0_u64);
        let requests = per_second * seconds;
        for n in 0..requests {
            let now = n * 1000 * MS / per_second;
            budget.pay_in(SETTINGS);
            attempts += 1;
            // Many clients.
            attempts += (0..2).filter(|_| budget.pay(now, SETTINGS, n)).count() as u64;
        }
        attempts as f64 / requests as f64
    }

    #[test]
    fn a_dead_app_gets_at_most_a_fifth_more_requests() {
        for per_second in [15, 50, 200, 1000, 10_000] {
            let is = amplification(per_second, 10);
            assert!((1.19..=1.2).contains(&is), "{per_second}: {is}");
        }
        // Under low traffic, three retries per second are free.
        assert!(amplification(2, 10) > 2.0);
    }

    #[test]
    fn the_budget_saves_unused_retries_for_a_short_time_only() {
        let mut budget = Budget::default();
        (0..100_000).for_each(|_| budget.pay_in(SETTINGS));
        let burst = (0..1000).filter(|client| budget.pay(0, SETTINGS, *client)).count();
        assert_eq!(burst, 6);
    }

    #[test]
    fn a_client_whose_requests_always_fail_leaves_retries_for_others() {
        let (mut budget, mut helped, mut attacks) = (Budget::default(), 0, 0);
        for n in 0..1000_u64 {
            // A hundred requests of the attacker a second, each of which wants two retries; five requests of another client a second, of
            // which every second one wants one.
            let now = n * 10 * MS;
            budget.pay_in(SETTINGS);
            attacks += (0..2).filter(|_| budget.pay(now, SETTINGS, 1)).count();
            if n % 20 == 0 {
                budget.pay_in(SETTINGS);
                helped += usize::from(n % 40 != 0 || budget.pay(now, SETTINGS, 2));
            }
        }
        assert_eq!(helped, 50);
        assert!((150..=220).contains(&attacks), "{attacks}");
    }

    #[test]
    fn the_only_client_gets_the_share_of_all() {
        let (mut budget, mut retries) = (Budget::default(), 0);
        for n in 0..1000_u64 {
            budget.pay_in(SETTINGS);
            retries += usize::from(budget.pay(n * 10 * MS, SETTINGS, 1));
        }
        assert!((190..=204).contains(&retries), "{retries}");
        let rare = Settings { share: 0.2, free_per_second: 0 };
        let mut budget = Budget::default();
        let paid = (0..100).filter(|n| {
            budget.pay_in(rare);
            budget.pay(n * 10 * MS, rare, 1)
        });
        assert!((19..=20).contains(&paid.count()));
    }

    proptest! {
        #[test]
        fn a_restored_budget_allows_as_many_retries_as_one_that_waited(
            deposits in 0..40u32,
            paid in 0..10u32,
            age in 0..5_000 * MS,
        ) {
            let (then, mut budget) = (100_000 * MS, Budget::default());
            (0..deposits).for_each(|_| budget.pay_in(SETTINGS));
            let _ = (0..paid).filter(|n| budget.pay(then, SETTINGS, (*n).into())).count();
            // The same clock goes on, so that its seconds begin at the same times.
            let now = then + age;
            let mut restored = Budget::restored(budget.saved(), Shift { was: then, now, age }, SETTINGS);
            let allowed = |budget: &mut Budget| (100..200).filter(|n| budget.pay(now, SETTINGS, *n)).count();
            prop_assert_eq!(allowed(&mut restored), allowed(&mut budget));
        }

        #[test]
        fn no_saved_budget_exceeds_the_bounds(tokens: f64, second: u64, retries: u32, was: u64, now: u64, age: u64) {
            let saved = SavedBudget { tokens, second, retries };
            let mut budget = Budget::restored(saved, Shift { was, now, age }, SETTINGS);
            let allowed = (0..100).filter(|n| budget.pay(now, SETTINGS, *n)).count();
            prop_assert!(allowed <= 6, "{}", allowed);
        }

        #[test]
        fn a_pause_is_within_its_bound(attempt in any::<u32>(), first in 0..10_000u64, most in 0..10_000u64, dice in 0.0..=1.0f64) {
            let (first, most) = (Duration::from_millis(first), Duration::from_millis(most));
            let pause = pause(attempt, first, most, dice);
            prop_assert!(pause <= most);
            prop_assert!(attempt != 1 || pause <= first);
        }

        #[test]
        fn retries_are_never_more_than_the_share_and_the_free_ones(
            gaps in prop::collection::vec((0..50u64, 0..4u8, 0..6u64), 1..400),
        ) {
            let (mut budget, mut now, mut requests, mut retries) = (Budget::default(), 0, 0_u32, 0_u32);
            for (gap, wanted, client) in gaps {
                now += gap * MS;
                requests += 1;
                budget.pay_in(SETTINGS);
                retries += (0..wanted).filter(|_| budget.pay(now, SETTINGS, client)).count() as u32;
            }
            let seconds = (now / (1000 * MS) + 1) as f64;
            prop_assert!(f64::from(retries) <= 0.2 * f64::from(requests) + 3.0 * seconds + 1e-6);
        }
    }
}
