//! The clock of rate limits, bans and circuit breakers.

use std::time::Instant;

/// A monotonic clock in nanoseconds. It starts long before the process, so a time of 0 is in the past.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// The clock of a process that started at `started`.
    pub fn new(started: Instant) -> Self {
        Self { started }
    }

    /// The time at `at`.
    pub fn nanoseconds(self, at: Instant) -> u64 {
        const BEFORE: u64 = 1 << 50;
        let since = u64::try_from(at.saturating_duration_since(self.started).as_nanos());
        BEFORE.saturating_add(since.unwrap_or(u64::MAX))
    }
}
