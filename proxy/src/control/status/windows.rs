//! Rates and quantiles of the last seconds, from the samples of single seconds.

use std::ops::AddAssign;

use crate::control::status::Rates;
use crate::engine::metrics::BUCKETS;
use crate::mechanism::outcome::Outcome;

/// Observations in each bucket, the last one without a bound.
pub type Buckets = [u32; BUCKETS.len() + 1];

/// Requests that ended within some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Those that Outrigger rejected.
    pub rejected: u64,
}

impl Counts {
    /// `number` requests that ended in this way.
    pub fn of(outcome: Outcome, number: u64) -> Self {
        let is_error = matches!(
            outcome,
            Outcome::ServerError
                | Outcome::BadGateway
                | Outcome::Unavailable
                | Outcome::GatewayTimeout
                | Outcome::Truncated
                | Outcome::Internal
        );
        let if_so = |is_so: bool| if is_so { number } else { 0 };
        Self { requests: number, errors: if_so(is_error), rejected: if_so(outcome == Outcome::Rejected) }
    }

    /// Each second, if they ended within this many.
    pub fn rates(self, seconds: f64, buckets: Option<&Buckets>) -> Rates {
        let each = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let quantile = |share| buckets.and_then(|buckets| quantile_ms(buckets, share));
        Rates {
            requests_per_s: each(self.requests),
            errors_per_s: each(self.errors),
            rejected_per_s: each(self.rejected),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.rejected += other.rejected;
    }
}

/// Adds the observations of `more`.
pub fn add(buckets: &mut Buckets, more: &Buckets) {
    for (count, more) in buckets.iter_mut().zip(more) {
        *count = count.saturating_add(*more);
    }
}

/// The duration that this share of the observations does not exceed, in ms, interpolated within its bucket as Prometheus does.
/// `None`: there are no observations.
pub fn quantile_ms(buckets: &Buckets, share: f64) -> Option<f64> {
    let all: u64 = buckets.iter().map(|count| u64::from(*count)).sum();
    if all == 0 {
        return None;
    }
    let rank = share * all as f64;
    let (mut below, mut lower) = (0.0, 0.0);
    for (count, upper) in buckets.iter().zip(BUCKETS) {
        let count = f64::from(*count);
        if count > 0.0 && below + count >= rank {
            return Some((lower + (upper - lower) * (rank - below) / count) * 1000.0);
        }
        (below, lower) = (below + count, upper);
    }
    // Beyond the last bound, only that is known.
    Some(lower * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_within_a_bucket() {
        let mut buckets = Buckets::default();
        assert_eq!(quantile_ms(&buckets, 0.5), None);
        // 0.025 s to 0.05 s
        buckets[6] = 100;
        let rounded = |share| quantile_ms(&buckets, share).map(f64::round);
        assert_eq!((rounded(0.52), rounded(1.0)), (Some(38.0), Some(50.0)));
        buckets[BUCKETS.len()] = 100;
        assert_eq!(quantile_ms(&buckets, 0.99), Some(120_000.0));
        add(&mut buckets, &[u32::MAX; BUCKETS.len() + 1]);
        assert!(quantile_ms(&buckets, 0.5).is_some());
    }

    #[test]
    fn failures_and_rejections_are_different() {
        let mut counts = Counts::of(Outcome::Success, 7);
        counts += Counts::of(Outcome::GatewayTimeout, 2);
        counts += Counts::of(Outcome::Rejected, 1);
        counts += Counts::of(Outcome::ClientError, 10);
        assert_eq!(counts, Counts { requests: 20, errors: 2, rejected: 1 });
        let rates = counts.rates(10.0, None);
        assert_eq!((rates.requests_per_s, rates.errors_per_s, rates.rejected_per_s), (2.0, 0.2, 0.1));
        assert_eq!(counts.rates(0.0, None).requests_per_s, 0.0);
    }
}
