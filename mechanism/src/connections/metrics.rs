//! Metrics of client connections.

use outrigger_metrics::{Declare, IntCounter, IntGauge, Result};

/// Metrics of client connections.
#[derive(Debug)]
pub struct ConnectionMetrics {
    /// Open ones.
    pub open: IntGauge,
    /// Accepted ones.
    pub accepted: IntCounter,
    /// Those closed to make room for others.
    pub closed_for_others: IntCounter,
}

impl ConnectionMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        Ok(Self {
            open: declare.gauge("outrigger_open_connections", "Open client connections.")?,
            accepted: declare.counter("outrigger_connections_total", "Client connections accepted.")?,
            closed_for_others: declare.counter(
                "outrigger_connections_evicted_total",
                "Idle client connections closed to make room for new ones, at max_connections or an address's share.",
            )?,
        })
    }
}
