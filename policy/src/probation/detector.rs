//! The sequential test of one measure: a betting e-detector.
//!
//! A bin's share `x` is a number from 0 to 1. While the measure is within its bound `m`, that is, while the mean of `x` given all bins before
//! is at most `m`, a bet of the share `λ ≤ 1/m` of one's money on "more than `m`" multiplies it by `1 + λ(x − m)`, which is at most 1 on
//! average: a large sum of money is evidence that the mean is larger. No distribution of `x` is assumed, nor that bins are independent
//! (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", Journal of the Royal Statistical Society B, 2024).
//!
//! A change may show its effect late, when early bets have lost. So a new bet begins with each bin, with an equal part of the money for each
//! of the bins of the probation (Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2023).
//! By Ville's inequality, the probability that the sum ever exceeds the initial money `1/α` times is at most `α`.

/// The bets: shares of the largest possible one, `1/m`. The money is divided among them, since the best one depends on how bad it is.
const BETS: [f64; 5] = [0.1, 0.2, 0.4, 0.6, 0.9];

/// Evidence below this is no evidence: the rest that is left of the bets while all is well is about 3.
const NONE: f64 = 4.0;

/// The test of one measure.
#[derive(Clone, Debug)]
pub struct Detector {
    bound: f64,
    money: [f64; BETS.len()],
    /// Since there was no evidence last: the sum of the shares, their number, and the first bin.
    sum: f64,
    count: u32,
    since: u32,
}

impl Detector {
    /// A test whether the mean exceeds `bound`, which is more than 0 and less than 1.
    pub const fn new(bound: f64) -> Self {
        Self { bound, money: [0.0; BETS.len()], sum: 0.0, count: 0, since: 0 }
    }

    /// The evidence that is exceeded with a probability of at most `probability` in this many bins.
    pub fn limit(probability: f64, bins: f64) -> f64 {
        bins / probability
    }

    /// Adds a bin's share; returns the evidence.
    pub fn observe(&mut self, share: f64, bin: u32) -> f64 {
        for (money, bet) in self.money.iter_mut().zip(BETS) {
            // Capped far above any limit, so that a long wait does not overflow.
            *money = ((*money + 1.0) * (1.0 + bet * (share / self.bound - 1.0))).min(1e100);
        }
        let evidence = self.money.iter().sum::<f64>() / BETS.len() as f64;
        if self.count == 0 {
            self.since = bin;
        }
        (self.sum, self.count) = (self.sum + share, self.count + 1);
        if evidence < NONE && share <= self.bound {
            (self.sum, self.count) = (0.0, 0);
        }
        evidence
    }

    /// The mean since there was no evidence last, and the first bin of that time.
    pub fn run(&self) -> (f64, u32) {
        (self.sum / f64::from(self.count.max(1)), self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probation::tests::Dice;

    /// The share of runs in which shares with the mean `mean` are found to exceed `bound`.
    fn alarms(bound: f64, probability: f64, mut next: impl FnMut(&mut Dice) -> f64) -> f64 {
        let (runs, bins) = (2000, 120);
        let mut dice = Dice(7);
        let alarms = (0..runs).filter(|_| {
            let mut detector = Detector::new(bound);
            (1..=bins)
                .any(|bin| detector.observe(next(&mut dice), bin) >= Detector::limit(probability, f64::from(bins)))
        });
        alarms.count() as f64 / f64::from(runs)
    }

    #[test]
    fn at_the_bound_an_alarm_is_as_rare_as_promised() {
        for bound in [0.1, 0.3, 0.7] {
            for probability in [0.3, 0.05] {
                // A share of 0 or 1 in each bin is the largest variance.
                let found = alarms(bound, probability, |dice| f64::from(u8::from(dice.share() < bound)));
                assert!(found <= probability, "{bound} {probability}: {found}");
                let found = alarms(bound, probability, |dice| 2.0 * bound.min(0.5) * dice.share());
                assert!(found <= probability, "{bound} {probability}: {found}");
            }
        }
    }

    #[test]
    fn above_the_bound_it_is_found_soon_and_also_late() {
        let limit = Detector::limit(1e-5, 120.0);
        let found_after = |bound: f64, good_bins: u32, share: f64| {
            let mut detector = Detector::new(bound);
            (1..=good_bins).for_each(|bin| assert!(detector.observe(0.0, bin) < limit));
            let found = (1..=120).find(|bin| detector.observe(share, good_bins + bin) >= limit).unwrap();
            assert_eq!(detector.run().1, good_bins + 1);
            assert!((detector.run().0 - share).abs() < 1e-9);
            found
        };
        assert!(found_after(0.1, 0, 1.0) <= 9);
        assert!(found_after(0.1, 100, 1.0) <= 9);
        assert!(found_after(0.1, 50, 0.3) <= 40);
        assert!(found_after(0.5, 0, 1.0) <= 35);
    }
}
