//! Rate limits: the generic cell rate algorithm (GCRA, ITU-T I.371 annex A), in whole nanoseconds.
//!
//! The state of a key is one number: the *theoretical arrival time* `tat`, at which the key's quota is full again. A
//! request of cost `c` moves it `c` intervals ahead, but at most to now + burst.
//!
//! ```text
//!            now                    now + burst
//! ────────────┼───────────────┬──────────┼────────► time
//!             │◄─── taken ───►tat◄─ left ►│
//! ```
//!
//! If `tat` is not in the future, the quota is full and the key's state can be dropped without any effect.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//!
//! use outrigger_policy::limiter::{Exceeded, Quota};
//! use outrigger_policy::tier::Multiplier;
//!
//! const SECOND: u64 = 1_000_000_000;
//! let quota = Quota::new("60/1m".parse().unwrap(), 2, Multiplier::ONE).unwrap();
//! let now = 100 * SECOND;
//!
//! // A burst of 2, then one request per second.
//! let tat = quota.take(0, now, 1).unwrap();
//! let tat = quota.take(tat, now, 1).unwrap();
//! assert_eq!(quota.standing(tat, now).remaining, 0);
//! assert_eq!(quota.take(tat, now, 1), Err(Exceeded { retry_after: Duration::from_secs(1) }));
//! assert!(quota.take(tat, now + SECOND, 1).is_ok());
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::tier::Multiplier;

/// A count per window, such as `"100/1m"`. Units: `s`, `m`, `h`, `d`; `"5/s"` means `"5/1s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    window: Duration,
}

/// The shortest interval of a rate: 1 µs. Rounding shorter ones to nanoseconds would distort the rate.
const SHORTEST_INTERVAL_NS: u128 = 1_000;
/// The longest window: 30 days.
const LONGEST_WINDOW: Duration = Duration::from_secs(30 * 86_400);

impl Rate {
    /// Returns `None` for a count of 0, a window of 0 or above 30 days, or more than one per microsecond.
    pub fn new(count: u32, window: Duration) -> Option<Self> {
        let fits = count > 0 && !window.is_zero() && window <= LONGEST_WINDOW;
        let fits = fits && window.as_nanos() >= u128::from(count) * SHORTEST_INTERVAL_NS;
        fits.then_some(Self { count, window })
    }

    /// Returns the count per window.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Returns the window.
    pub const fn window(self) -> Duration {
        self.window
    }

    /// Returns the interval between two requests when the count is multiplied by `times / of`, to the nearest nanosecond.
    fn interval_ns(self, times: u32, of: u32) -> u64 {
        let count = u128::from(self.count) * u128::from(times);
        let window = self.window.as_nanos() * u128::from(of);
        u64::try_from((window + count / 2) / count.max(1)).unwrap_or(u64::MAX)
    }
}

/// Error: the text is not a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRate;

impl fmt::Display for BadRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a rate: write \"100/1m\", \"5/1s\" or \"1000/1h\"; at least one, at most a million a second")
    }
}

impl std::error::Error for BadRate {}

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let (count, window) = text.split_once('/').ok_or(BadRate)?;
        let digits = window.len() - window.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = window.split_at(digits);
        let number: u64 = if number.is_empty() { 1 } else { number.parse().map_err(|_| BadRate)? };
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(BadRate),
        };
        let window = Duration::from_secs(number.checked_mul(seconds).ok_or(BadRate)?);
        let is_number = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
        let count = if is_number { count.parse().map_err(|_| BadRate)? } else { return Err(BadRate) };
        Self::new(count, window).ok_or(BadRate)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.window.as_secs();
        let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
        match units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}/{}{name}", self.count, seconds / unit),
            None => write!(f, "{}/{seconds}s", self.count),
        }
    }
}

/// A rate and its burst, in the form that the algorithm uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The time after which one more request is allowed.
    interval_ns: u64,
    /// The burst as a time: burst × interval.
    burst_ns: u64,
    burst: u32,
}

/// The remaining part of a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The number of requests of cost 1 that are allowed now.
    pub remaining: u32,
    /// The time until the quota is full.
    pub full_in: Duration,
}

/// Error: the quota is used up for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// A request of this cost is allowed after this time, unless another request takes the quota first. A cost above the
    /// burst is never allowed.
    pub retry_after: Duration,
}

impl Quota {
    /// One request per millisecond, with a burst of 1.
    pub const MILLISECOND: Self = Self { interval_ns: 1_000_000, burst_ns: 1_000_000, burst: 1 };

    /// Creates a quota of `rate` and `burst`, both multiplied for a tier. The burst is rounded down, but at least 1.
    /// Returns `None` for a tier without limits.
    pub fn new(rate: Rate, burst: u32, multiplier: Multiplier) -> Option<Self> {
        let Multiplier::Hundredths(hundredths) = multiplier else { return None };
        let interval_ns = rate.interval_ns(hundredths, 100).max(1);
        let burst = u64::from(burst) * u64::from(hundredths) / 100;
        let burst = u32::try_from(burst).unwrap_or(u32::MAX).max(1);
        Some(Self { interval_ns, burst_ns: interval_ns.saturating_mul(burst.into()), burst })
    }

    /// Returns the number of requests of cost 1 that may arrive at once.
    pub const fn burst(self) -> u32 {
        self.burst
    }

    /// Returns by how much a request of `cost` moves the arrival time, in nanoseconds.
    pub const fn charge_ns(self, cost: u32) -> u64 {
        self.interval_ns.saturating_mul(cost as u64)
    }

    /// Rebuilds a quota from [`Quota::charge_ns`]`(1)` and [`Quota::burst`]. Zeros count as 1.
    pub fn from_parts(interval_ns: u64, burst: u32) -> Self {
        let (interval_ns, burst) = (interval_ns.max(1), burst.max(1));
        Self { interval_ns, burst_ns: interval_ns.saturating_mul(burst.into()), burst }
    }

    /// Returns how far ahead of now the arrival time may be, in nanoseconds.
    pub const fn burst_ns(self) -> u64 {
        self.burst_ns
    }

    /// Returns the part of the quota for one of `sharers` (0 counts as 1), with a burst of at least `cost`.
    ///
    /// Only the amounts are divided, not the times. An arrival time therefore stands for the same fraction of the whole
    /// quota and of the part, and stays valid when a key switches between them.
    #[must_use]
    pub fn share(self, sharers: u32, cost: u32) -> Self {
        let interval_ns = self.interval_ns.saturating_mul(sharers.max(1).into());
        // A request that exceeds the part but not the whole quota must pass; it costs more time instead.
        let burst_ns = self.burst_ns.max(interval_ns.saturating_mul(cost.into()));
        let burst = u32::try_from(burst_ns / interval_ns).unwrap_or(u32::MAX);
        Self { interval_ns, burst_ns, burst }
    }

    /// Takes `cost` at `now` and returns the key's new arrival time.
    ///
    /// An arrival time more than the burst ahead (the limit was lowered, or the clock went back) counts as now + burst, so
    /// a key never waits longer than its current quota requires.
    ///
    /// # Errors
    /// [`Exceeded`] if the quota is used up; the caller keeps the old arrival time, so a rejected request takes nothing.
    #[inline]
    pub fn take(self, tat: u64, now: u64, cost: u32) -> Result<u64, Exceeded> {
        let latest = now.saturating_add(self.burst_ns);
        let after = tat.max(now).min(latest).saturating_add(self.charge_ns(cost));
        if after <= latest { Ok(after) } else { Err(Exceeded { retry_after: Duration::from_nanos(after - latest) }) }
    }

    /// Returns the remaining quota at `now`.
    #[inline]
    pub fn standing(self, tat: u64, now: u64) -> Standing {
        let latest = now.saturating_add(self.burst_ns);
        let from = tat.max(now).min(latest);
        let remaining = (latest - from) / self.interval_ns;
        Standing { remaining: u32::try_from(remaining).unwrap_or(u32::MAX), full_in: Duration::from_nanos(from - now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saved::Shift;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn quota(rate: &str, burst: u32) -> Quota {
        Quota::new(rate.parse().unwrap(), burst, Multiplier::ONE).unwrap()
    }

    #[test]
    fn reads_rates_and_rejects_invalid_ones() {
        for text in ["100/1m", "5/1s", "1000/1h", "10/2d", "1000000/1s", "7/90s"] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string().parse(), Ok(rate), "{text}");
        }
        assert_eq!("5/s".parse::<Rate>(), "5/1s".parse());
        for text in ["0/1m", "-1/1m", "1/0s", "100", "100/", "/1m", "1.5/1m", "1000001/1s", "1/1w", "1/31d", "+1/1s"] {
            assert_eq!(text.parse::<Rate>(), Err(BadRate), "{text}");
        }
    }

    #[test]
    fn admits_a_burst_at_once_and_then_the_rate() {
        let quota = quota("60/1m", 3);
        let mut tat = 0;
        for left in [2, 1, 0] {
            tat = quota.take(tat, SECOND, 1).unwrap();
            assert_eq!(quota.standing(tat, SECOND).remaining, left);
        }
        assert_eq!(quota.take(tat, SECOND, 1), Err(Exceeded { retry_after: Duration::from_secs(1) }));
        assert_eq!(quota.standing(tat, SECOND).full_in, Duration::from_secs(3));
        assert!(quota.take(tat, 2 * SECOND, 1).is_ok());
        assert_eq!(quota.standing(tat, 4 * SECOND), Standing { remaining: 3, full_in: Duration::ZERO });
    }

    #[test]
    fn a_tier_multiplies_both_the_rate_and_the_burst() {
        let rate = "60/1m".parse().unwrap();
        let pro = Quota::new(rate, 10, Multiplier::Hundredths(500)).unwrap();
        assert_eq!((pro.burst(), pro.charge_ns(1)), (50, SECOND / 5));
        let half = Quota::new(rate, 1, Multiplier::Hundredths(50)).unwrap();
        assert_eq!((half.burst(), half.charge_ns(1)), (1, 2 * SECOND));
        assert_eq!(Quota::new(rate, 10, Multiplier::Unlimited), None);
    }

    #[test]
    fn after_a_lowered_limit_or_clock_the_wait_is_at_most_one_burst() {
        let quota = quota("60/1m", 2);
        let far = 1_000_000 * SECOND;
        assert_eq!(quota.take(far, SECOND, 1).unwrap_err().retry_after, Duration::from_secs(1));
        assert_eq!(quota.standing(far, SECOND), Standing { remaining: 0, full_in: Duration::from_secs(2) });
    }

    fn quotas() -> impl Strategy<Value = Quota> {
        (1..5000_u32, 1..100_000_u64, 1..200_u32)
            .prop_map(|(count, ms, burst)| (Rate::new(count, Duration::from_millis(ms)), burst))
            .prop_filter_map("more than one a microsecond", |(rate, burst)| Quota::new(rate?, burst, Multiplier::ONE))
    }

    proptest! {
        #[test]
        fn a_restored_key_stands_as_one_that_waited(quota in quotas(), taken in 0..200_u32, age in 0..1000 * SECOND) {
            let (then, now) = (1 << 50, (1 << 50) + 7);
            let mut tat = 0;
            for _ in 0..taken {
                tat = quota.take(tat, then, 1).unwrap_or(tat);
            }
            let restored = Shift { was: then, now, age }.moved(tat);
            prop_assert_eq!(quota.standing(restored, now), quota.standing(tat, then + age));
        }

        #[test]
        fn a_client_that_obeys_retry_after_is_admitted(
            quota in quotas(),
            gaps in prop::collection::vec(0..2 * SECOND, 1..60),
            cost in 1..5_u32,
        ) {
            let cost = cost.min(quota.burst());
            let (mut tat, mut now) = (0, 5 * SECOND);
            for gap in gaps {
                now += gap;
                match quota.take(tat, now, cost) {
                    Ok(next) => tat = next,
                    Err(Exceeded { retry_after }) => {
                        let wait = u64::try_from(retry_after.as_nanos()).unwrap();
                        prop_assert!(wait > 0);
                        prop_assert!(quota.take(tat, now + wait - 1, cost).is_err(), "told to wait too long");
                        now += wait;
                        tat = quota.take(tat, now, cost).expect("it waited as told");
                    }
                }
            }
        }

        #[test]
        fn a_client_that_never_waits_gets_exactly_the_burst_and_the_rate(
            quota in quotas(),
            step in 1..50_000_000_u64,
        ) {
            let (start, steps) = (SECOND, 3000);
            let (mut tat, mut admitted) = (0, 0_u64);
            for n in 0..steps {
                if let Ok(next) = quota.take(tat, start + n * step, 1) {
                    (tat, admitted) = (next, admitted + 1);
                }
            }
            let elapsed = (steps - 1) * step;
            let allowed = u64::from(quota.burst()) + elapsed / quota.charge_ns(1);
            prop_assert!(admitted <= allowed, "{admitted} of {allowed}");
            // One request per step, so at most the quota that refills between two steps goes unused.
            let missed = (elapsed / quota.charge_ns(1)) * step / quota.charge_ns(1).max(step) + 1;
            prop_assert!(admitted + missed >= allowed.min(steps), "{admitted} of {allowed}");
        }

        #[test]
        fn no_number_makes_it_panic(quota in quotas(), tat: u64, now: u64, cost: u32) {
            let _ = quota.take(tat, now, cost);
            let standing = quota.standing(tat, now);
            prop_assert!(standing.remaining <= quota.burst());
            prop_assert!(quota.take(tat, now, standing.remaining.max(1)).is_ok() == (standing.remaining > 0));
        }
    }
}
