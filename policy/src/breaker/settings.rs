//! The settings of a breaker.

use std::time::Duration;

/// The sliding window over which rates are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The last calls, this many; clamped to 1..=[`MOST_CALLS`].
    Calls(u32),
    /// The calls that ended within this time, in steps of a tenth.
    Time(Duration),
}

/// The maximum number of calls in a window.
pub const MOST_CALLS: u32 = 10_000;

/// The conditions under which a breaker opens and closes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Opens after this many failures in a row; 0 disables the condition.
    pub consecutive: u32,
    /// The window for the two rates.
    pub window: Span,
    /// The minimum number of calls in the window for either rate; 0 counts as 1.
    pub minimum: u32,
    /// Opens if at least this fraction of calls failed, 0 to 1; `None` disables the condition.
    pub failure_rate: Option<f64>,
    /// A call that takes at least this long is slow; `None`: no call is.
    pub slow_after: Option<Duration>,
    /// Opens if at least this fraction of calls was slow, 0 to 1; `None` disables the condition.
    pub slow_rate: Option<f64>,
    /// How long the breaker stays open after the first trip.
    pub open_for: Duration,
    /// Each further trip in a row doubles the time, up to this.
    pub max_open_for: Duration,
    /// From the second trip in a row on, a random time of up to this fraction is added, so that breakers do not all probe
    /// at the same time.
    pub jitter: f64,
    /// Maximum number of concurrent probes while half-open; 0 counts as 1.
    pub probes: u32,
    /// The number of successful probes that close the breaker; 0 counts as 1.
    pub successes: u32,
    /// How long traffic ramps up, from a tenth to all, after the breaker closes; zero: no ramp.
    pub ramp: Duration,
    /// How many clients must see failures that a single client could cause; with 1, any client opens the breaker for all.
    pub min_clients: u32,
    /// Unrelated places share the breaker ([`Caller::place`](super::Caller::place)). Each place then has a breaker of its own, and this one opens
    /// only if connections fail, or if several places give no response and no other place gives one.
    pub is_shared: bool,
}
