//! Distinguishes a burst (the queue drains) from an overload (the queue stands). The criterion is not the length of the
//! queue but whether requests have had long waits continuously (CoDel: Nichols, Jacobson 2012).

/// A wait of the interval divided by this is a sign of pressure.
const TARGET: u64 = 10;
/// The longest interval, in nanoseconds.
const LONGEST_NS: u64 = 1_000_000_000;

/// The signs of pressure; see the module documentation. Times are nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pressure {
    /// The first and the last sign of the current pressure: consecutive signs are at most one interval apart.
    signs: Option<(u64, u64)>,
    /// Permits granted from the queue in the current and the previous interval, and the start of the current one.
    granted: u32,
    granted_before: u32,
    began: u64,
}

impl Pressure {
    /// Returns how long pressure must last before the queue counts as standing: half of `max_wait`, at most 1 s.
    pub fn interval(max_wait: u64) -> u64 {
        (max_wait / 2).clamp(1, LONGEST_NS)
    }

    /// Returns the wait of a request that is a sign of pressure: a tenth of the interval.
    pub fn target(interval: u64) -> u64 {
        interval / TARGET
    }

    /// Records a sign of pressure.
    pub fn sign(&mut self, now: u64, interval: u64) {
        let first =
            self.signs.filter(|(_, last)| now.saturating_sub(*last) <= interval).map_or(now, |(first, _)| first);
        self.signs = Some((first, now));
    }

    /// Returns whether pressure has lasted for an interval, and the last sign is at most an interval old.
    pub fn stands(&self, now: u64, interval: u64) -> bool {
        self.signs
            .is_some_and(|(first, last)| now.saturating_sub(last) <= interval && now.saturating_sub(first) >= interval)
    }

    /// Returns whether there was a sign within the last `span`.
    pub fn is_felt(&self, now: u64, span: u64) -> bool {
        self.signs.is_some_and(|(_, last)| now.saturating_sub(last) <= span)
    }

    /// Counts a permit granted to a queued request.
    pub fn granted(&mut self, now: u64, interval: u64) {
        if now.saturating_sub(self.began) >= interval {
            (self.granted_before, self.granted) = (self.drained(now, interval), 0);
            self.began = now;
        }
        self.granted += 1;
    }

    /// Returns the permits granted to queued requests in the current interval or the previous one, whichever is more.
    pub fn drained(&self, now: u64, interval: u64) -> u32 {
        match now.saturating_sub(self.began) {
            age if age < interval => self.granted.max(self.granted_before),
            age if age < interval.saturating_mul(2) => self.granted,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_stands_when_there_were_signs_for_an_interval_and_no_longer_than_that_after_the_last() {
        let mut pressure = Pressure::default();
        assert!(!pressure.stands(5_000, 1_000));
        for now in (0..=900).step_by(300) {
            pressure.sign(now, 1_000);
            assert!(!pressure.stands(now, 1_000), "{now}");
        }
        pressure.sign(1_000, 1_000);
        assert!(pressure.stands(1_000, 1_000) && pressure.stands(2_000, 1_000));
        assert!(!pressure.stands(2_001, 1_000));
        pressure.sign(2_002, 1_000);
        assert!(!pressure.stands(2_900, 1_000), "that was another burst");
    }

    #[test]
    fn grants_are_counted_by_interval() {
        let mut pressure = Pressure::default();
        (0..10).for_each(|n| pressure.granted(1_000 + n, 100));
        assert_eq!(pressure.drained(1_050, 100), 10);
        assert_eq!(pressure.drained(1_150, 100), 10, "the interval before");
        assert_eq!(pressure.drained(1_400, 100), 0);
    }
}
