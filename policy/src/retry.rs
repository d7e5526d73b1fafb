//! When a request may be sent again: how often, after how long, and never so often that a fault becomes a flood.
//!
//! The budget is a token bucket after Finagle's and linkerd's retry budgets: each request pays in a share of a token, each
//! retry takes a whole one, so that retries are never more than that share of requests. Where there are few requests, a few
//! retries a second are free. The bucket is small: what was saved in good times must not become a burst in bad ones.
//!
//! The pause is *full jitter* (Brooker, "Exponential Backoff And Jitter", AWS 2015): anything between nothing and a bound that
//! doubles with each attempt.

use std::time::Duration;

/// How many tokens are saved at the most, in seconds of free retries.
const SAVED: f64 = 2.0;

/// What retries may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Retries as a share of requests, 0 to 1.
    pub share: f64,
    /// Retries a second that are free in any case.
    pub free_per_second: u32,
}

/// What is left for retries. Times are nanoseconds on a monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    tokens: f64,
    /// The second that is counted, and the retries in it.
    second: u64,
    retries: u32,
}

impl Budget {
    /// A request comes: not one more for each of its attempts.
    pub fn pay_in(&mut self, settings: Settings) {
        self.tokens = (self.tokens + settings.share).min(Self::most(settings));
    }

    /// Whether one more attempt is affordable; if so, it is paid.
    pub fn pay(&mut self, now: u64, settings: Settings) -> bool {
        let second = now / 1_000_000_000;
        if second != self.second {
            (self.second, self.retries) = (second, 0);
        }
        let is_free = self.retries < settings.free_per_second;
        if self.tokens < 1.0 && !is_free {
            return false;
        }
        // A free one is only an advance, so that both together are not more than the larger of the two.
        self.tokens = (self.tokens - 1.0).max(-f64::from(settings.free_per_second));
        self.retries = self.retries.saturating_add(1);
        true
    }

    /// Retries that could be made at once.
    pub fn left(&self, settings: Settings) -> f64 {
        self.tokens.clamp(0.0, Self::most(settings))
    }

    fn most(settings: Settings) -> f64 {
        (SAVED * f64::from(settings.free_per_second)).max(1.0)
    }
}

/// The pause before attempt `attempt` (the first retry is 1): between nothing and `first` × 2^(attempt − 1), at most `most`.
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

    /// Attempts for each request when every one fails and would be tried twice more.
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
    fn a_dead_app_gets_a_fifth_more_and_no_more() {
        for per_second in [15, 50, 200, 1000, 10_000] {
            let is = amplification(per_second, 10);
            assert!((1.19..=1.2).contains(&is), "{per_second}: {is}");
        }
        // Where there are few, three a second are free.
        assert!(amplification(2, 10) > 2.0);
    }

    #[test]
    fn good_times_save_for_a_moment_only() {
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
