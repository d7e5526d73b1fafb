//! Requests in the order in which they began. A record has them in the order in which they ended.
//!
//! A request waits until no other one can have begun before it: for [`HORIZON_NS`] after the newest end. The few that take longer than that
//! are known from the first reading, and are merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter::Peekable;
use std::vec::IntoIter;

use crate::past::Past;

/// How long requests wait for others that began earlier.
const HORIZON_NS: u64 = 20_000_000_000;
/// A request that takes longer is taken from the list of long ones. The rest of the horizon is for the writer, whose queues are not in order.
const LONG_US: u32 = 15_000_000;
/// Maximum number of requests that wait; beyond, the earliest goes on.
const MOST_WAITING: usize = 1 << 20;
/// Maximum number of long requests. Those beyond begin when they end.
pub const MOST_LONG: usize = 200_000;

/// Whether it is one of the long requests.
pub fn is_long(past: &Past) -> bool {
    past.total_us > LONG_US
}

/// A request, ordered by its beginning.
#[derive(Debug)]
struct Waiting {
    past: Past,
    number: u64,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.past.at_ns, self.number).cmp(&(other.past.at_ns, other.number))
    }
}

/// Puts requests in order.
#[derive(Debug)]
pub struct Order {
    waiting: BinaryHeap<Reverse<Waiting>>,
    long: Peekable<IntoIter<Past>>,
    has_all_long: bool,
    newest_end: u64,
    number: u64,
}

impl Order {
    /// `long`: the long requests. `has_all_long`: there were no more of them.
    pub fn new(mut long: Vec<Past>, has_all_long: bool) -> Self {
        long.sort_by_key(|past| past.at_ns);
        let long = long.into_iter().peekable();
        Self { waiting: BinaryHeap::new(), long, has_all_long, newest_end: 0, number: 0 }
    }

    /// Takes a request, and emits those that are due.
    #[inline]
    pub fn push(&mut self, past: &Past, emit: &mut impl FnMut(&Past)) {
        self.newest_end = self.newest_end.max(past.ended_ns());
        if is_long(past) && self.has_all_long {
            return;
        }
        self.number += 1;
        self.waiting.push(Reverse(Waiting { past: *past, number: self.number }));
        let due = self.newest_end.saturating_sub(HORIZON_NS);
        while let Some(Reverse(next)) = self.waiting.peek()
            && (next.past.at_ns <= due || self.waiting.len() > MOST_WAITING)
        {
            self.emit_next(emit);
        }
    }

    /// Emits the rest.
    pub fn finish(mut self, emit: &mut impl FnMut(&Past)) {
        while !self.waiting.is_empty() {
            self.emit_next(emit);
        }
        self.long.for_each(|past| emit(&past));
    }

    #[inline]
    fn emit_next(&mut self, emit: &mut impl FnMut(&Past)) {
        let Some(Reverse(next)) = self.waiting.pop() else { return };
        while let Some(long) = self.long.next_if(|long| long.at_ns <= next.past.at_ns) {
            emit(&long);
        }
        emit(&next.past);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(at_s: u64, total_ms: u32) -> Past {
        Past { at_ns: at_s * 1_000_000_000, total_us: total_ms * 1000, ..Past::BLANK }
    }

    #[test]
    fn requests_come_in_the_order_in_which_they_began() {
        // One a second, each of 1 ms to 12 s; each seventh takes a minute.
        let mut all: Vec<Past> =
            (0..200).map(|n| past(n, if n % 7 == 0 { 60_000 } else { (n as u32 * 37) % 12 * 1000 + 1 })).collect();
        let long: Vec<Past> = all.iter().filter(|past| is_long(past)).copied().collect();
        assert!(long.len() > 20);
        all.sort_by_key(Past::ended_ns);
        let mut seen = Vec::new();
        let mut order = Order::new(long, true);
        let mut most = 0;
        for past in &all {
            order.push(past, &mut |past: &Past| seen.push(past.at_ns));
            most = most.max(order.waiting.len());
        }
        order.finish(&mut |past: &Past| seen.push(past.at_ns));
        assert_eq!(seen, (0..200).map(|n| n * 1_000_000_000).collect::<Vec<_>>());
        assert!(most <= 40, "memory follows the horizon: {most}");
    }
}
