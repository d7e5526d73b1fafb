//! How requests fared under the good rules, in the last minutes.

use std::collections::VecDeque;

use super::measures::{COLUMNS, Measure, RUNGS_MS};
use super::{Bin, CELLS};

/// Bins that are remembered: five minutes.
const KEPT: usize = 600;
/// With fewer bins that had requests, a change cannot be compared.
const FEWEST: usize = 20;
/// Bins in a row, of those with requests, whose mean is the usual variation.
const WINDOW: usize = 20;
/// Without a comparison, this share is too much.
const BOUND_WITHOUT: f64 = 0.5;
/// No bound is above this.
const BOUND_MOST: f64 = 0.95;
/// A share may grow by this factor.
const FACTOR: f64 = 1.3;
/// At most this share of the requests is slower than the bound of which the next one counts as slow.
const USUAL: f64 = 0.05;
/// Requests that take less than this bound are not slow: 100 ms.
const SLOW_LEAST: usize = 5;

/// The last minutes. Takes about 75 KiB.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// The mean over the clients of each bin; NaN: no requests.
    bins: VecDeque<[f32; COLUMNS]>,
    /// By cell: when it had requests last, in bins since the start, plus one; 0: never.
    last_seen: Box<[u64]>,
    added: u64,
}

impl Default for Baseline {
    fn default() -> Self {
        Self { bins: VecDeque::with_capacity(KEPT), last_seen: vec![0; CELLS].into(), added: 0 }
    }
}

/// The expectation of a measure after a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The column of [`super::measures::Row::columns`].
    pub column: usize,
    /// The mean before, if there was enough traffic.
    pub mean: Option<f64>,
    /// A mean above this is worse.
    pub bound: f64,
}

impl Baseline {
    /// Adds a bin. The oldest one is forgotten.
    pub fn add(&mut self, bin: &Bin) {
        self.added += 1;
        let (mut sums, mut counts) = ([0.0_f32; COLUMNS], [0_u16; COLUMNS]);
        for (cell, row) in &bin.rows {
            self.last_seen[usize::from(*cell)] = self.added;
            for ((sum, count), share) in sums.iter_mut().zip(&mut counts).zip(row.columns()) {
                if !share.is_nan() {
                    (*sum, *count) = (*sum + share, *count + 1);
                }
            }
        }
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum = if count == 0 { f32::NAN } else { *sum / f32::from(count) };
        }
        if self.bins.len() == KEPT {
            self.bins.pop_front();
        }
        self.bins.push_back(sums);
    }

    /// The bins with requests among those that are remembered.
    pub fn learned(&self) -> usize {
        self.bins.iter().filter(|bin| bin.iter().any(|share| !share.is_nan())).count()
    }

    /// The cells with requests in the last minutes.
    pub fn clients(&self) -> Box<[bool]> {
        let oldest = self.added.saturating_sub(KEPT as u64);
        self.last_seen.iter().map(|last| *last > oldest).collect()
    }

    /// The expectation of a measure; `None` if it cannot be compared.
    pub fn expected(&self, measure: Measure) -> Option<Expected> {
        let rung = if measure == Measure::Slow { self.slow()? } else { 0 };
        let column = measure.column(rung);
        let Some((mean, peak)) = self.mean_and_peak(column) else {
            return Some(Expected { column, mean: None, bound: BOUND_WITHOUT });
        };
        let bound = (peak * FACTOR).max(peak + measure.margin()).min(BOUND_MOST);
        Some(Expected { column, mean: Some(mean), bound })
    }

    /// The number of the bound that only slow requests reach.
    fn slow(&self) -> Option<usize> {
        let is_usual =
            |rung: &usize| self.mean_and_peak(Measure::Slow.column(*rung)).is_some_and(|(mean, _)| mean <= USUAL);
        let usual = (0..RUNGS_MS.len()).find(is_usual)?;
        Some((usual + 1).max(SLOW_LEAST)).filter(|rung| *rung < RUNGS_MS.len())
    }

    /// The mean of all bins, and the largest of a window of bins. Absent if too few bins had requests.
    fn mean_and_peak(&self, column: usize) -> Option<(f64, f64)> {
        let mut window = VecDeque::with_capacity(WINDOW);
        let (mut sum, mut of_window, mut count, mut peak) = (0.0, 0.0, 0_usize, 0.0_f64);
        for share in self.bins.iter().map(|bin| bin[column]).filter(|share| !share.is_nan()).map(f64::from) {
            (sum, of_window, count) = (sum + share, of_window + share, count + 1);
            window.push_back(share);
            if window.len() > WINDOW {
                of_window -= window.pop_front().unwrap_or_default();
            }
            if window.len() == WINDOW {
                peak = peak.max(of_window / WINDOW as f64);
            }
        }
        (count >= FEWEST).then(|| (sum / count as f64, peak.min(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probation::measures::{Ending, Row};

    fn of_clients(rows: impl IntoIterator<Item = Row>) -> Bin {
        Bin { rows: (0..).zip(rows).collect() }
    }

    fn client(fine: u32, limited: u32) -> Row {
        let mut row = Row::default();
        row.endings[Ending::Fine as usize] = fine;
        row.endings[Ending::RateLimited as usize] = limited;
        row
    }

    #[test]
    fn a_client_has_one_vote_and_the_worst_seconds_count() {
        let limited = Measure::Ended(Ending::RateLimited);
        let mut baseline = Baseline::default();
        assert_eq!(baseline.expected(limited).unwrap().bound, BOUND_WITHOUT);
        assert_eq!(baseline.expected(Measure::Slow), None);
        for bin in 0..KEPT * 2 {
            let flood = if bin % 100 < 20 { client(0, 1_000_000) } else { client(1, 0) };
            baseline.add(&of_clients([flood, client(1, 0), client(1, 0), client(1, 0)]));
            baseline.add(&Bin::default());
        }
        let expected = baseline.expected(limited).unwrap();
        assert!((expected.mean.unwrap() - 0.05).abs() < 0.001, "{expected:?}");
        assert!((expected.bound - 0.35).abs() < 0.001, "{expected:?}");
        assert_eq!(baseline.clients().iter().filter(|is_there| **is_there).count(), 4);
        assert_eq!(baseline.bins.len(), KEPT);
    }

    #[test]
    fn slow_is_what_hardly_any_request_was() {
        let mut baseline = Baseline::default();
        let mut row = client(100, 0);
        // 90 take 300 ms, 3 take 600 ms.
        (row.rungs[6], row.rungs[7]) = (90, 3);
        (0..40).for_each(|_| baseline.add(&of_clients([row])));
        let expected = baseline.expected(Measure::Slow).unwrap();
        assert_eq!(expected.column, Measure::Slow.column(8));
        assert_eq!((expected.mean, expected.bound), (Some(0.0), 0.2));
        row.rungs = [0; RUNGS_MS.len()];
        (0..KEPT).for_each(|_| baseline.add(&of_clients([row])));
        assert_eq!(baseline.expected(Measure::Slow).unwrap().column, Measure::Slow.column(SLOW_LEAST));
    }
}
