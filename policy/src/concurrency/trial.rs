//! Trials of a lower limit: they show whether latency comes from a queue.

use super::window::Point;
use super::{CONFIRM, Concurrency, DIP, DIPS_COST, EVEN, FEWEST, KEPT, MOST, NEWS, SOON, STEEPEST_CUT, SURE, USED};

/// A trial of a lower limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) before: Point,
    is_dip: bool,
}

impl Concurrency {
    /// Lowers the limit to the value that the stretch implies. A cut by more than a tenth is a trial, one step at a time.
    pub(super) fn cut(&mut self, before: Point, now: u64) {
        let lower = before.wanted().max(before.in_flight * STEEPEST_CUT);
        let is_far = lower.round() < 0.9 * before.in_flight;
        self.trial = is_far.then_some(Trial { before, is_dip: false });
        self.move_to(lower, now);
    }

    /// Lowers the limit to a fraction of the requests in flight, until the effect on throughput is known.
    pub(super) fn dip(&mut self, before: Point, share: f64, now: u64) {
        let lower = (share * before.in_flight).round().min(before.in_flight.round() - 1.0);
        if lower < f64::from(self.settings.min) {
            self.until_dip = MOST;
            self.reset(now);
            return;
        }
        self.calm = 0;
        self.trial = Some(Trial { before, is_dip: true });
        self.move_to(lower, now);
    }

    /// Returns the remaining fraction of throughput after a trial, and the threshold below which the app had no queue.
    fn throughput(before: Point, after: Point) -> (f64, f64) {
        let fewer = after.in_flight / before.in_flight;
        (fewer * before.stretch / after.stretch, 1.0 - KEPT * (1.0 - fewer))
    }

    pub(super) fn is_clear(before: Point, after: Point) -> bool {
        let (left, bar) = Self::throughput(before, after);
        (left - bar).abs() > SURE * left * before.error.hypot(after.error)
    }

    pub(super) fn judge(&mut self, trial: Trial, after: Point, now: u64) {
        let Trial { before, is_dip } = trial;
        let samples = self.window.samples;
        self.trial = None;
        let (left, bar) = Self::throughput(before, after);
        if after.in_flight > 0.95 * before.in_flight || after.in_flight < USED * self.limit.round() {
            // Too little load to decide.
            return self.move_to(if is_dip { before.in_flight } else { self.limit }, now);
        }
        if left >= bar {
            // Same throughput with fewer requests in flight: the rest were queued.
            if after.stretch < 1.0 {
                self.baseline *= after.stretch;
            }
            let stretch = after.stretch.max(1.0);
            if is_dip {
                // The queue is at least as long as the reduction, and may be much longer.
                let share = if left >= 1.0 && self.noise < EVEN { STEEPEST_CUT } else { DIP };
                return self.dip(Point { stretch, ..after }, share, now);
            }
            self.until_dip = self.until_dip.min(SOON * after.in_flight.max(FEWEST));
            return self.cut(Point { stretch, ..after }, now);
        }
        // Lower throughput: all requests were being handled, so this latency is the baseline.
        self.baseline *= after.stretch;
        let lost = (1.0 - left).clamp(0.05, 1.0);
        if is_dip {
            // The round trips after each move cost throughput as well.
            self.until_dip = (samples + 3.0 * before.in_flight) * lost / DIPS_COST;
            // A large change of the baseline may be an error: another dip confirms it soon.
            if !(1.0 - NEWS..=1.0 + NEWS).contains(&after.stretch) {
                self.until_dip = self.until_dip.min(CONFIRM * before.in_flight.max(FEWEST));
            }
            self.move_to(before.in_flight * after.target * (after.stretch / before.stretch).min(1.0), now);
        } else {
            self.until_dip = self.until_dip.min(SOON * before.in_flight.max(FEWEST));
            self.move_to(before.in_flight, now);
        }
    }
}
