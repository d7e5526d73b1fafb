//! `[admission]`: the concurrency limit of the app, and its queue.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use outrigger_policy::flags::Mode;
use outrigger_policy::{admission, concurrency};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::acting::Acting;
use crate::complaints::Builder;
use crate::tree::Step;
use crate::units::{Span, Text};

/// A request that got its permit at the last moment still gets its response within a second from a usual app.
const MAX_WAIT: Duration = Duration::from_millis(850);

/// How many requests the app handles concurrently. You configure no capacity: the limit adapts to the app's latency.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// Whether requests beyond the limit wait or are rejected.
    pub mode: Acting,
    /// Minimum of the limit.
    pub min: NonZeroU16,
    /// Maximum of the limit.
    pub max: NonZeroU16,
    /// Initial limit.
    pub initial: NonZeroU16,
    /// How long a request may wait for a permit. Later: 503.
    pub max_wait: Text<Span>,
    /// Maximum length of the queue in a burst. A standing queue is shorter: as many requests as the app completes in four
    /// fifths of `max_wait`.
    pub max_queue: NonZeroU16,
}

impl Default for Admission {
    fn default() -> Self {
        let n = |n| NonZeroU16::new(n).unwrap_or(NonZeroU16::MIN);
        Self {
            mode: Acting::Enforce,
            min: n(1),
            max: n(1000),
            initial: n(20),
            max_wait: Text(Span(MAX_WAIT)),
            max_queue: n(2000),
        }
    }
}

/// The concurrency limit and its queue, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Whether requests beyond the limit wait or are rejected.
    pub mode: Mode,
    /// The bounds.
    pub settings: admission::Settings,
}

impl Builder<'_> {
    /// Checks the section.
    pub fn gate(&mut self, written: &Admission, max_held: NonZeroU32) -> Gate {
        let (min, max, initial) = (written.min.get(), written.max.get(), written.initial.get());
        if min > max {
            let path = [Step::Key("admission"), Step::Key("min")];
            self.complain(
                &path,
                format!("`min` is {min} and `max` {max}"),
                "the limit moves between the two: min <= max",
            );
        }
        let concurrency = concurrency::Settings {
            min: min.into(),
            max: max.into(),
            initial: initial.clamp(min.min(max), max).into(),
        };
        let settings = admission::Settings {
            concurrency,
            max_wait: written.max_wait.0.0,
            max_queue: written.max_queue.get().into(),
            max_held: max_held.get(),
        };
        Gate { mode: written.mode.into(), settings }
    }
}
