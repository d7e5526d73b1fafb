//! The recent latency of a route, from the buckets of a histogram, and the times that follow from it: after how long another
//! upstream is asked as well (a hedged request), and how long an attempt may take.
//!
//! Counts halve every [`HALF_LIFE`]. Hedging after a high percentile is from Dean and Barroso, "The Tail at Scale", CACM 2013: a
//! second request after the 95th percentile or later adds few requests, and cuts the tail.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//!
//! use outrigger_policy::latency::{Recent, attempt_timeout, hedge_delay};
//!
//! let bounds = [0.01, 0.1, 1.0];
//! let mut recent = Recent::default();
//! // 1,000 responses: all within 100 ms, 990 of them within 10 ms.
//! recent.add([990, 1000, 1000], 1000, Duration::from_secs(1));
//! let p99 = recent.quantile(0.99, &bounds).unwrap();
//! assert_eq!(p99, Duration::from_millis(10));
//! assert_eq!(hedge_delay(p99, Duration::from_secs(60)), Some(Duration::from_millis(25)));
//! let least = Duration::from_millis(250);
//! assert_eq!(attempt_timeout(p99, Duration::from_secs(60), least), Some(least));
//! ```

use std::time::Duration;

/// After this time, a response counts half.
pub const HALF_LIFE: Duration = Duration::from_secs(30);
/// With fewer responses, there is no percentile.
pub const FEWEST: f64 = 100.0;
/// The minimum of [`hedge_delay`].
pub const SHORTEST_DELAY: Duration = Duration::from_millis(25);
/// An attempt timeout, as a multiple of the 99th percentile.
pub const MULTIPLE: u32 = 4;

/// Recent observations of a histogram with `N` bounded buckets.
#[derive(Clone, Copy, Debug)]
pub struct Recent<const N: usize> {
    /// The counts at the last call.
    last: ([u64; N], u64),
    /// Observations at most as large as each bound, and all of them, with their weights.
    weighted: ([f64; N], f64),
}

impl<const N: usize> Default for Recent<N> {
    fn default() -> Self {
        Self { last: ([0; N], 0), weighted: ([0.0; N], 0.0) }
    }
}

impl<const N: usize> Recent<N> {
    /// Adds what was observed since the last call, which was `passed` ago. `counts` are all observations so far at most as large as
    /// each bound, and `all` how many there are. A histogram that begins anew is taken as new.
    pub fn add(&mut self, counts: [u64; N], all: u64, passed: Duration) {
        let halved = (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        let (before, all_before) = if all < self.last.1 { ([0; N], 0) } else { self.last };
        for ((weight, count), before) in self.weighted.0.iter_mut().zip(counts).zip(before) {
            *weight = *weight * halved + count.saturating_sub(before) as f64;
        }
        self.weighted.1 = self.weighted.1 * halved + all.saturating_sub(all_before) as f64;
        self.last = (counts, all);
    }

    /// The quantile `share` (0 to 1), linear within a bucket; `None` for fewer than [`FEWEST`] observations, or if it is beyond
    /// the last bound. `bounds` are the upper bounds of the buckets, in seconds.
    pub fn quantile(&self, share: f64, bounds: &[f64; N]) -> Option<Duration> {
        let (counts, all) = &self.weighted;
        if *all < FEWEST {
            return None;
        }
        let wanted = all * share;
        // Rounding must not move a quantile into the next bucket.
        let bucket = counts.iter().position(|count| *count >= wanted * (1.0 - 1e-9))?;
        let (below, from) = if bucket == 0 { (0.0, 0.0) } else { (counts[bucket - 1], bounds[bucket - 1]) };
        let within = ((wanted - below) / (counts[bucket] - below)).clamp(0.0, 1.0);
        Duration::try_from_secs_f64(from + (bounds[bucket] - from) * within).ok()
    }
}

/// After how long another upstream is asked as well, on a route with this 99th percentile and timeout; `None`: never.
pub fn hedge_delay(p99: Duration, timeout: Duration) -> Option<Duration> {
    Some(p99.max(SHORTEST_DELAY)).filter(|delay| *delay <= timeout / 2)
}

/// How long an attempt may take, on a route with this 99th percentile and timeout, and at least: a multiple of the percentile, and at
/// most half of the timeout. `None`: as long as the request may, since that is less than one and a half times the percentile.
pub fn attempt_timeout(p99: Duration, timeout: Duration, least: Duration) -> Option<Duration> {
    let most = timeout / 2;
    Some((p99 * MULTIPLE).clamp(least.min(most), most)).filter(|time| *time >= least && *time >= p99 + p99 / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: [f64; 4] = [0.01, 0.1, 1.0, 10.0];
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn old_responses_count_less() {
        let mut recent = Recent::default();
        recent.add([1000; 4], 1000, SECOND);
        assert!(recent.quantile(0.99, &BOUNDS).unwrap() <= Duration::from_millis(10));
        // The app becomes slow; ten half-lives later, only that counts.
        recent.add([1000, 1000, 2000, 2000], 2000, 10 * HALF_LIFE);
        let p50 = recent.quantile(0.5, &BOUNDS).unwrap();
        assert!((Duration::from_millis(500)..=Duration::from_millis(600)).contains(&p50), "{p50:?}");
    }

    #[test]
    fn few_responses_and_slow_ones_give_no_percentile() {
        let mut recent = Recent::default();
        recent.add([99; 4], 99, SECOND);
        assert_eq!(recent.quantile(0.99, &BOUNDS), None);
        let mut slow = Recent::default();
        slow.add([0; 4], 1000, SECOND);
        assert_eq!(slow.quantile(0.99, &BOUNDS), None);
    }

    #[test]
    fn a_histogram_that_begins_anew_is_taken_as_new() {
        let mut recent = Recent::default();
        recent.add([1000; 4], 1000, SECOND);
        recent.add([500; 4], 500, SECOND);
        assert!((1400.0..1500.0).contains(&recent.weighted.1), "{recent:?}");
    }

    #[test]
    fn a_long_poll_has_no_attempt_timeout() {
        let timeout = Duration::from_secs(60);
        let least = Duration::from_millis(250);
        assert_eq!(attempt_timeout(Duration::from_secs(30), timeout, least), None);
        assert_eq!(attempt_timeout(Duration::from_secs(1), timeout, least), Some(Duration::from_secs(4)));
        assert_eq!(attempt_timeout(Duration::from_millis(1), timeout, least), Some(least));
        assert_eq!(attempt_timeout(Duration::from_secs(10), timeout, least), Some(Duration::from_secs(30)));
        assert_eq!(attempt_timeout(Duration::from_secs(21), timeout, least), None);
        assert_eq!(attempt_timeout(Duration::from_millis(1), Duration::from_millis(400), least), None);
        assert_eq!(hedge_delay(Duration::from_secs(31), timeout), None);
        assert_eq!(hedge_delay(Duration::from_secs(1), Duration::from_millis(40)), None);
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_the_bounds(adds in proptest::collection::vec((proptest::array::uniform4(0_u64..1000), 0_u64..10, 0_u64..100), 1..20)) {
            let (mut recent, mut counts, mut all) = (Recent::default(), [0_u64; 4], 0);
            for (in_buckets, beyond, passed) in adds {
                let mut sum = 0;
                for (count, more) in counts.iter_mut().zip(in_buckets) {
                    sum += more;
                    *count += sum;
                }
                all += sum + beyond;
                recent.add(counts, all, Duration::from_secs(passed));
                let quantiles = [0.5, 0.9, 0.99].map(|share| recent.quantile(share, &BOUNDS));
                let known: Vec<Duration> = quantiles.iter().flatten().copied().collect();
                prop_assert!(known.is_sorted() && known.iter().all(|q| *q <= Duration::from_secs(10)), "{:?}", quantiles);
            }
        }
    }
}
