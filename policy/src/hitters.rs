//! The keys that occur most often, in constant memory: Space-Saving (Metwally, Agrawal, El Abbadi, "Efficient Computation of
//! Frequent and Top-k Elements in Data Streams", 2005).
//!
//! Each of [`COUNTERS`] counters belongs to a key. A key without one takes over the smallest counter, with its count as the error.
//! So a key with more than a [`COUNTERS`]th of all occurrences has a counter, and a count is too high by at most that share.

/// The number of counters: keys that are kept.
pub const COUNTERS: usize = 16;

/// A key and how often it occurred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hitter {
    /// The key.
    pub key: u64,
    /// At most how often.
    pub count: u64,
    /// By how much `count` may be too high.
    pub error: u64,
}

/// The keys that occur most often.
#[derive(Clone, Copy, Debug, Default)]
struct SpaceSaving {
    counters: [Hitter; COUNTERS],
    used: usize,
}

impl SpaceSaving {
    fn add(&mut self, key: u64) {
        let used = &mut self.counters[..self.used];
        if let Some(known) = used.iter_mut().find(|known| known.key == key) {
            known.count += 1;
        } else if self.used < COUNTERS {
            self.counters[self.used] = Hitter { key, count: 1, error: 0 };
            self.used += 1;
        } else if let Some(least) = used.iter_mut().min_by_key(|known| known.count) {
            *least = Hitter { key, count: least.count + 1, error: least.count };
        }
    }

    fn known(&self) -> &[Hitter] {
        &self.counters[..self.used]
    }
}

/// The keys that occurred most often lately: in the current span of time, and in the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecentHitters {
    now: SpaceSaving,
    before: SpaceSaving,
    /// When the current span began, in nanoseconds.
    began: u64,
}

impl RecentHitters {
    /// The length of a span, in nanoseconds.
    pub const SPAN_NS: u64 = 60_000_000_000;

    fn turn(&mut self, now: u64) {
        let age = now.saturating_sub(self.began);
        if age >= Self::SPAN_NS {
            let last = std::mem::take(&mut self.now);
            self.before = if age < 2 * Self::SPAN_NS { last } else { SpaceSaving::default() };
            self.began = now;
        }
    }

    /// Counts an occurrence at `now`, in nanoseconds.
    pub fn add(&mut self, key: u64, now: u64) {
        self.turn(now);
        self.now.add(key);
    }

    /// How often a key occurred in the last one to two spans, at most, and how often all of them did.
    pub fn share(&mut self, key: u64, now: u64) -> (u64, u64) {
        self.turn(now);
        let known = || self.now.known().iter().chain(self.before.known());
        // Each occurrence is in one counter.
        let all = known().map(|hitter| hitter.count).sum();
        (known().filter(|hitter| hitter.key == key).map(|hitter| hitter.count).sum(), all)
    }

    /// The keys that occurred in the last one to two spans, the most frequent first.
    pub fn top(&mut self, now: u64) -> Vec<Hitter> {
        self.turn(now);
        let mut all: Vec<Hitter> = self.now.known().to_vec();
        for old in self.before.known() {
            match all.iter_mut().find(|new| new.key == old.key) {
                Some(new) => (new.count, new.error) = (new.count + old.count, new.error + old.error),
                None => all.push(*old),
            }
        }
        all.sort_by_key(|hitter| (std::cmp::Reverse(hitter.count), hitter.key));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_frequent_ones_are_known_and_errors_are_bounded(keys in proptest::collection::vec(0_u64..60, 1..2000)) {
            let mut hitters = RecentHitters::default();
            let mut exact: HashMap<u64, u64> = HashMap::new();
            for key in &keys {
                hitters.add(*key, 0);
                *exact.entry(*key).or_default() += 1;
            }
            let top = hitters.top(0);
            prop_assert!(top.len() <= COUNTERS && top.is_sorted_by(|a, b| a.count >= b.count));
            let bound = keys.len() as u64 / COUNTERS as u64;
            for hitter in &top {
                prop_assert_eq!(hitters.share(hitter.key, 0), (hitter.count, keys.len() as u64));
            }
            for hitter in &top {
                let really = exact.get(&hitter.key).copied().unwrap_or_default();
                prop_assert!(hitter.count - hitter.error <= really && really <= hitter.count && hitter.error <= bound);
            }
            for (key, count) in exact {
                prop_assert!(count <= bound || top.iter().any(|hitter| hitter.key == key));
            }
        }
    }

    #[test]
    fn old_occurrences_are_forgotten() {
        let mut hitters = RecentHitters::default();
        hitters.add(1, 0);
        hitters.add(1, RecentHitters::SPAN_NS);
        assert_eq!(hitters.top(RecentHitters::SPAN_NS), [Hitter { key: 1, count: 2, error: 0 }]);
        assert_eq!(hitters.top(2 * RecentHitters::SPAN_NS), [Hitter { key: 1, count: 1, error: 0 }]);
        assert_eq!(hitters.top(4 * RecentHitters::SPAN_NS), []);
    }
}
