//! Protection against replayed hops: each hop is accepted once.
//!
//! As in IPsec (RFC 4303 section 3.4.3), senders number their hops, and for each run of a sender the receiver keeps the
//! highest number and a bitmap of those below it. So the memory of a sender is fixed, and no sender can make the
//! receiver forget the hops of another one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::peers::discovery::MOST_PEERS;
use crate::peers::hop::{Nonce, SKEW_SECONDS};

/// How many numbers below the highest are remembered: 8 KiB for each run of a sender. A hop that is overtaken by more
/// than this is rejected, and its sender serves the request itself.
const WINDOW: u64 = 65_536;
const BITS: u64 = u64::BITS as u64;
/// After this time, a hop that was accepted now is too old to be accepted again, whichever way the clocks differ.
const REMEMBERED_SECONDS: u32 = 2 * SKEW_SECONDS;
/// The maximum number of runs of one sender within that time. Hops of a process that restarts more often are rejected.
const MOST_RUNS: usize = 4;

/// The hops that have been used, by sender.
#[derive(Debug, Default)]
pub struct UsedHops(Mutex<HashMap<Box<str>, Vec<Window>>>);

#[derive(Debug)]
struct Window {
    run: u64,
    highest: u64,
    /// In seconds since 1970.
    used_at: u32,
    /// A ring: bit `count % WINDOW`.
    bits: Box<[u64]>,
}

impl UsedHops {
    /// Returns whether this hop, whose signature was verified, is used for the first time, and marks it as used.
    pub fn accepts(&self, from: &str, nonce: Nonce, now: u32) -> bool {
        let mut senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = senders.get_mut(from).and_then(|runs| runs.iter_mut().find(|run| run.run == nonce.run)) {
            window.used_at = now;
            return window.accepts(nonce.count);
        }
        // A new run of a process: rare enough to go through all senders.
        senders.retain(|_, runs| {
            runs.retain(|run| now.abs_diff(run.used_at) <= REMEMBERED_SECONDS);
            !runs.is_empty()
        });
        if senders.len() >= MOST_PEERS && !senders.contains_key(from) {
            return false;
        }
        let runs = senders.entry(from.into()).or_default();
        if runs.len() >= MOST_RUNS {
            return false;
        }
        let mut window = Window::new(nonce.run, now);
        let is_first = window.accepts(nonce.count);
        runs.push(window);
        is_first
    }
}

impl Window {
    fn new(run: u64, now: u32) -> Self {
        let words = usize::try_from(WINDOW / BITS).unwrap_or_default();
        Self { run, highest: 0, used_at: now, bits: vec![0; words].into_boxed_slice() }
    }

    fn accepts(&mut self, count: u64) -> bool {
        if count > self.highest {
            if count - self.highest >= WINDOW {
                self.bits.fill(0);
            } else {
                (self.highest + 1..=count).for_each(|skipped| self.set(skipped, false));
            }
            self.highest = count;
        } else if self.highest - count >= WINDOW || self.is_set(count) {
            return false;
        }
        self.set(count, true);
        true
    }

    fn place(count: u64) -> (usize, u64) {
        // Smaller than the number of words.
        (usize::try_from(count % WINDOW / BITS).unwrap_or_default(), 1 << (count % BITS))
    }

    fn is_set(&self, count: u64) -> bool {
        let (word, bit) = Self::place(count);
        self.bits.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn set(&mut self, count: u64, is_used: bool) {
        let (word, bit) = Self::place(count);
        if let Some(bits) = self.bits.get_mut(word) {
            if is_used { *bits |= bit } else { *bits &= !bit }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    const NOW: u32 = 1_800_000_000;

    fn nonce(run: u64, count: u64) -> Nonce {
        Nonce { run, count }
    }

    #[test]
    fn one_sender_cannot_make_the_hops_of_another_usable_again() {
        let used = UsedHops::default();
        assert!(used.accepts("a", nonce(1, 7), NOW));
        (1..3 * WINDOW).for_each(|count| assert!(used.accepts("b", nonce(1, count), NOW)));
        let runs = (2..40).filter(|run| used.accepts("b", nonce(*run, 1), NOW)).count();
        assert_eq!(runs, MOST_RUNS - 1);
        assert!(!used.accepts("a", nonce(1, 7), NOW));
        assert!(used.accepts("a", nonce(1, 6), NOW));
    }

    #[test]
    fn a_sender_that_restarts_is_accepted_and_its_earlier_hops_stay_used() {
        let used = UsedHops::default();
        for run in 1..=MOST_RUNS as u64 {
            assert!(used.accepts("a", nonce(run, 1), NOW));
        }
        assert!(!used.accepts("a", nonce(1, 1), NOW));
        assert!(!used.accepts("a", nonce(9, 1), NOW), "too many runs in two minutes");
        assert!(used.accepts("a", nonce(9, 1), NOW + REMEMBERED_SECONDS + 1), "the others are too old by now");
    }

    #[test]
    fn senders_are_bounded_and_inactive_ones_are_evicted() {
        let used = UsedHops::default();
        for name in 0..MOST_PEERS {
            assert!(used.accepts(&name.to_string(), nonce(1, 1), NOW));
        }
        assert!(!used.accepts("another", nonce(1, 1), NOW));
        assert!(used.accepts("another", nonce(1, 1), NOW + REMEMBERED_SECONDS + 1));
    }

    proptest! {
        #[test]
        fn each_recent_number_is_accepted_exactly_once(
            counts in proptest::collection::vec(prop_oneof![0..200_u64, 65_400..65_700_u64, 131_000..131_200_u64, any::<u64>()], 1..200),
        ) {
            let (mut window, mut seen, mut highest) = (Window::new(1, NOW), HashSet::new(), 0);
            for count in counts {
                highest = highest.max(count);
                let is_new = seen.insert(count);
                let is_recent = highest - count < WINDOW;
                prop_assert_eq!(window.accepts(count), is_new && is_recent, "{}", count);
            }
        }
    }
}
