//! Guarded reload: whether requests fare worse under changed rules than under the ones before.
//!
//! ```text
//! measures.rs   the measures: how requests end, how long they take, whether clients wait for an answer
//! baseline.rs   the last minutes under the good rules, and what "worse" means after them
//! detector.rs   the sequential test of one measure
//! ```
//!
//! Time is cut into bins of half a second. In each bin a measure is a number from 0 to 1: the mean, over the clients of the bin, of the share
//! of each client's requests that ended badly. So a client has one vote, however many requests it sends. A measure has become worse if its
//! mean exceeds its bound: the highest mean of ten seconds before the change, plus a margin. The clients with the most bad requests so
//! far, a tenth of all and at least two, are left out: no one or two clients can have a change taken back.
//!
//! The test is a betting e-detector: see [`detector`]. With [`Probation`] of any length, the probability that it blames a change under which
//! every measure stays within its bound is at most [`FALSE_ALARM`]: 1 % a day with [`CHANGES_A_DAY`] changes.

pub mod baseline;
pub mod detector;
pub mod measures;

use std::time::Duration;

use self::baseline::Baseline;
use self::detector::Detector;
use self::measures::{Measure, Row};

/// The length of a bin.
pub const BIN: Duration = Duration::from_millis(500);
/// Clients are counted in this many cells, by a hash: two clients of one cell count as one.
pub const CELLS: usize = 512;
/// Changes of the configuration on a busy day.
pub const CHANGES_A_DAY: f64 = 50.0;
/// The largest probability that a change is blamed although no measure exceeds its bound.
pub const FALSE_ALARM: f64 = 0.01 / CHANGES_A_DAY;
/// The share of the clients that are left out: those with the most bad requests.
const LEFT_OUT: f64 = 0.1;
/// At least this many are left out, of three or more.
const LEFT_OUT_LEAST: usize = 2;

/// The requests of a bin: a row for each cell that had any.
#[derive(Clone, Debug, Default)]
pub struct Bin {
    /// The number of the cell, and what happened to its clients.
    pub rows: Vec<(u16, Row)>,
}

/// Which measures a change can affect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// It leads to another app, or connects to it in another way: an app that cannot be reached is its fault.
    pub reaches_elsewhere: bool,
}

/// A measure that has become worse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worse {
    /// The measure.
    pub measure: Measure,
    /// Its mean before the change; `None`: there was too little traffic.
    pub before: Option<f64>,
    /// Its mean since it became worse, without the clients that are left out.
    pub now: f64,
    /// How long it has been worse.
    pub length: Duration,
}

#[derive(Clone, Debug)]
struct Test {
    measure: Measure,
    column: usize,
    before: Option<f64>,
    detector: Detector,
    /// By cell: the sum of its shares so far.
    blame: Box<[f32]>,
}

/// The test of one change, while it is on probation.
#[derive(Clone, Debug)]
pub struct Probation {
    tests: Vec<Test>,
    /// The evidence above which a measure is worse.
    limit: f64,
    /// The cells with requests before the change or since.
    clients: Box<[bool]>,
    /// Those since the change.
    seen: Box<[bool]>,
    bins: u32,
}

impl Probation {
    /// Begins the test of a change that is on probation for `length`.
    pub fn new(baseline: &Baseline, length: Duration, scope: Scope) -> Self {
        let bins = (length.as_secs_f64() / BIN.as_secs_f64()).ceil().max(1.0);
        let tests: Vec<Test> = Measure::ALL
            .into_iter()
            .filter(|measure| scope.reaches_elsewhere || *measure != Measure::UNREACHABLE)
            .filter_map(|measure| {
                let expected = baseline.expected(measure)?;
                let (column, before) = (expected.column, expected.mean);
                let blame = vec![0.0; CELLS].into();
                Some(Test { measure, column, before, detector: Detector::new(expected.bound), blame })
            })
            .collect();
        let limit = Detector::limit(FALSE_ALARM / Measure::ALL.len() as f64, bins);
        Self { tests, limit, clients: baseline.clients(), seen: vec![false; CELLS].into(), bins: 0 }
    }

    /// Looks at the next bin. Returns the measure with the most evidence, if one has become worse.
    pub fn observe(&mut self, bin: &Bin) -> Option<Worse> {
        self.bins += 1;
        let columns: Vec<_> = bin.rows.iter().map(|(cell, row)| (usize::from(*cell), row.columns())).collect();
        let left_out = self.left_out();
        let mut worst: Option<(f64, Worse)> = None;
        for test in &mut self.tests {
            let spared = worst_cells(&test.blame, left_out);
            let (mut sum, mut clients) = (0.0, 0_u32);
            for (cell, columns) in &columns {
                let share = columns[test.column];
                if share.is_nan() {
                    continue;
                }
                if !spared.contains(cell) {
                    sum += f64::from(share);
                    clients += 1;
                }
                test.blame[*cell] += share;
            }
            if clients == 0 {
                continue;
            }
            let evidence = test.detector.observe(sum / f64::from(clients), self.bins);
            if evidence >= self.limit && worst.is_none_or(|(most, _)| evidence > most) {
                let (now, since) = test.detector.run();
                let length = BIN * (self.bins - since + 1);
                worst = Some((evidence, Worse { measure: test.measure, before: test.before, now, length }));
            }
        }
        for (cell, _) in columns {
            (self.clients[cell], self.seen[cell]) = (true, true);
        }
        worst.map(|(_, worse)| worse)
    }

    /// How many cells are left out of the next bin. Where there is one client only, it speaks for itself.
    fn left_out(&self) -> usize {
        let count = |cells: &[bool]| cells.iter().filter(|is_there| **is_there).count();
        match count(&self.clients) {
            0 | 1 => 0,
            2 => 1,
            _ => ((count(&self.seen) as f64 * LEFT_OUT).ceil() as usize).max(LEFT_OUT_LEAST),
        }
    }
}

/// The `most` cells with the largest blame; cells without any do not count.
fn worst_cells(blame: &[f32], most: usize) -> Vec<usize> {
    let mut blamed: Vec<usize> = (0..blame.len()).filter(|cell| blame[*cell] > 0.0).collect();
    if most < blamed.len() {
        // The first `most` are the largest, in any order.
        blamed.select_nth_unstable_by(most, |a, b| blame[*b].total_cmp(&blame[*a]).then(a.cmp(b)));
        blamed.truncate(most);
    }
    blamed
}

#[cfg(test)]
mod tests;
