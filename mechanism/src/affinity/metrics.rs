//! Metrics of sticky sessions.

use outrigger_metrics::{Declare, IntCounter, Result};

/// How Outrigger handled a request's sticky session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The request gets a new session.
    New,
    /// This Machine is its home.
    Pinned,
    /// The edge replays the request to its home.
    Replayed,
    /// The request is forwarded to its home over the private network.
    Forwarded,
    /// Its home is gone, so it gets a new one.
    Rehomed,
    /// The request is served here, because its home on another Machine cannot be reached.
    Visiting,
    /// It has expired.
    Expired,
    /// Its cookie, or the state of a replay, has no valid signature.
    Forged,
}

impl Event {
    const ALL: [Self; 8] = [
        Self::New,
        Self::Pinned,
        Self::Replayed,
        Self::Forwarded,
        Self::Rehomed,
        Self::Visiting,
        Self::Expired,
        Self::Forged,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pinned => "pinned",
            Self::Replayed => "replayed",
            Self::Forwarded => "forwarded",
            Self::Rehomed => "rehomed",
            Self::Visiting => "visiting",
            Self::Expired => "expired",
            Self::Forged => "forged",
        }
    }
}

/// Metrics of sticky sessions.
#[derive(Debug)]
pub struct AffinityMetrics {
    events: [IntCounter; Event::ALL.len()],
}

impl AffinityMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Machines and sessions");
        Ok(Self {
            events: area
                .when("`rehomed` and `visiting` rise: session homes are gone or cannot be reached.")
                .counter_for_each(
                    "outrigger_affinity_total",
                    "Requests by how their sticky session was handled: see docs/machines.md.",
                    "event",
                    Event::ALL.map(Event::name),
                )?,
        })
    }

    /// Counts how a request's session was handled.
    pub fn count(&self, event: Event) {
        self.events[event as usize].inc();
    }
}
