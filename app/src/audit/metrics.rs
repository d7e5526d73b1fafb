//! Metrics of the audit log.

use outrigger_metrics::{Declare, IntCounterVec, IntGauge, Result};

/// Metrics of the audit log.
#[derive(Clone, Debug)]
pub struct AuditMetrics {
    pub partitions: IntGauge,
    pub events: IntCounterVec,
}

impl AuditMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        Ok(Self {
            partitions: declare.gauge("app_audit_partitions", "Monthly partitions of the audit log, all classes.")?,
            events: declare.counters(
                "app_audit_events_total",
                "Operations on documents that the app records if they succeed, or would (mode=monitor).",
                &["type", "mode"],
            )?,
        })
    }
}
