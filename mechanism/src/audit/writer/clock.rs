//! The time of day.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrigger_policy::audit::Time;

/// Converts an instant to the time of day.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// An instant.
    pub instant: Instant,
    /// The time of day then.
    pub time: Time,
}

impl Clock {
    /// Reads both.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), time: Time(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)) }
    }

    /// Returns the time of day at `at`.
    pub fn of(self, at: Instant) -> Time {
        let us = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        match at.checked_duration_since(self.instant) {
            Some(after) => Time(self.time.0.saturating_add(us(after))),
            None => Time(self.time.0.saturating_sub(us(self.instant.duration_since(at)))),
        }
    }
}

/// Returns the time of day.
pub fn now() -> Time {
    Clock::now().time
}
