//! Metrics of the traffic record.

use outrigger_metrics::{Declare, IntCounter, IntGauge, Result};

/// Why a request is not in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The queue was full.
    QueueFull,
    /// It could not be written.
    NotWritten,
    /// The file had no room for another kind of request.
    TooManyShapes,
}

/// Metrics of the traffic record.
#[derive(Clone, Debug)]
pub struct TrafficMetrics {
    /// Requests that are written.
    pub recorded: IntCounter,
    /// The size of all files.
    pub bytes: IntGauge,
    lost: [IntCounter; 3],
}

impl TrafficMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Traffic record");
        Ok(Self {
            recorded: area
                .when("Before `outrigger backtest`: is traffic recorded?")
                .counter("outrigger_traffic_recorded_total", "Requests written to the traffic record.")?,
            bytes: area
                .when("It stays at `traffic.max_bytes`: older traffic is deleted earlier than `traffic.keep` says.")
                .gauge("outrigger_traffic_bytes", "Size of all files of the traffic record.")?,
            lost: area.when("A backtest lacks requests: is the disk full, or slow?").counter_for_each(
                "outrigger_traffic_lost_total",
                "Requests that are not in the traffic record: the queue was full, they could not be written, or \
                 the file had too many kinds of requests.",
                "reason",
                ["queue_full", "not_written", "too_many_shapes"],
            )?,
        })
    }

    /// Counts requests that are not in the record.
    pub fn lost(&self, why: Loss, requests: u64) {
        self.lost[why as usize].inc_by(requests);
    }

    /// The number of requests that are not in the record.
    pub fn losses(&self, why: Loss) -> u64 {
        self.lost[why as usize].get()
    }
}
