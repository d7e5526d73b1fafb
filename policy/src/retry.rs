//! The retry budget and the backoff between attempts.
//!
//! The budget is a token bucket, like those of Finagle and linkerd: each request deposits a fraction of a token, each retry
//! withdraws one token, so retries are at most that fraction of requests. Under low traffic, a few retries per second are
//! free. The bucket is small, so that tokens saved in normal operation cannot become a burst of retries in an outage.
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
//! assert!(budget.pay(0, settings));
//! assert!(!budget.pay(0, settings));
//!
//! // The third retry waits for up to 400 ms; a random number of 0.5 gives half of that.
//! let wait = pause(3, Duration::from_millis(100), Duration::from_secs(1), 0.5);
//! assert_eq!(wait, Duration::from_millis(200));
//! ```

use std::time::Duration;

/// The size of the bucket, in seconds of free retries; at least one token.
const SAVED: f64 = 2.0;

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
}

impl Budget {
    /// Deposits the share of one request. Call it once for each request, not for its retries.
    pub fn pay_in(&mut self, settings: Settings) {
        self.tokens = (self.tokens + settings.share).min(Self::most(settings));
    }

    /// Withdraws one retry at `now` and returns true, or returns false if the budget does not allow it.
    pub fn pay(&mut self, now: u64, settings: Settings) -> bool {
        let second = now / 1_000_000_000;
        if second != self.second {
            (self.second, self.retries) = (second, 0);
        }
        let is_free = self.retries < settings.free_per_second;
        if self.tokens < 1.0 && !is_free {
            return false;
        }
        // Free retries make the balance negative, so the total is at most the larger of the two allowances.
        self.tokens = (self.tokens - 1.0).max(-f64::from(settings.free_per_second));
        self.retries = self.retries.saturating_add(1);
        true
    }

    /// Returns the saved tokens, 0 or more. Free retries are not included.
    pub fn left(&self, settings: Settings) -> f64 {
        self.tokens.clamp(0.0, Self::most(settings))
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
            attempts += (0..2).filter(|_| budget.pay(now, SETTINGS)).count() as u64;
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
        let burst = (0..1000).filter(|_| budget.pay(0, SETTINGS)).count();
        assert_eq!(burst, 6);
    }

    proptest! {
        #[test]
        fn a_pause_is_within_its_bound(attempt in any::<u32>(), first in 0..10_000u64, most in 0..10_000u64, dice in 0.0..=1.0f64) {
            let (first, most) = (Duration::from_millis(first), Duration::from_millis(most));
            let pause = pause(attempt, first, most, dice);
            prop_assert!(pause <= most);
            prop_assert!(attempt != 1 || pause <= first);
        }

        #[test]
        fn retries_are_never_more_than_the_share_and_the_free_ones(
            gaps in prop::collection::vec((0..50u64, 0..4u8), 1..400),
        ) {
            let (mut budget, mut now, mut requests, mut retries) = (Budget::default(), 0, 0_u32, 0_u32);
            for (gap, wanted) in gaps {
                now += gap * MS;
                requests += 1;
                budget.pay_in(SETTINGS);
                retries += (0..wanted).filter(|_| budget.pay(now, SETTINGS)).count() as u32;
            }
            let seconds = (now / (1000 * MS) + 1) as f64;
            prop_assert!(f64::from(retries) <= 0.2 * f64::from(requests) + 3.0 * seconds + 1e-6);
        }
    }
}
