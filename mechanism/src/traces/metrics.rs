//! Metrics of traces.

use outrigger_metrics::{Declare, IntCounter, Result};

/// Why spans were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The queue was full.
    QueueFull,
    /// The collector could not be reached, or rejected them.
    NotSent,
}

/// Metrics of traces.
#[derive(Clone, Debug)]
pub struct TraceMetrics {
    /// Spans that the collector has accepted.
    pub sent: IntCounter,
    lost: [IntCounter; 2],
}

impl TraceMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Traces");
        Ok(Self {
            sent: area
                .when("It stands still under load: no request is recorded, or the collector cannot be reached.")
                .counter("outrigger_trace_spans_sent_total", "Spans that the collector has accepted.")?,
            lost: area.when("Traces have holes: is the collector slow, or cannot be reached?").counter_for_each(
                "outrigger_trace_spans_dropped_total",
                "Spans that were dropped: the queue was full, or they could not be sent.",
                "reason",
                ["queue_full", "not_sent"],
            )?,
        })
    }

    /// Counts dropped spans.
    pub fn lost(&self, why: Loss, spans: u64) {
        self.lost[why as usize].inc_by(spans);
    }

    /// The dropped spans.
    pub fn losses(&self, why: Loss) -> u64 {
        self.lost[why as usize].get()
    }
}
