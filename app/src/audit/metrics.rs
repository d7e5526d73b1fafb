//! Metrics of the audit log.

use outrigger_metrics::{Declare, Histogram, IntCounterVec, IntGauge, Result};

/// Metrics of the audit log.
#[derive(Clone, Debug)]
pub struct AuditMetrics {
    pub rows: IntCounterVec,
    pub batches: IntCounterVec,
    pub ingest: Histogram,
    pub partitions: IntGauge,
    pub events: IntCounterVec,
}

impl AuditMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        Ok(Self {
            rows: declare.counters(
                "app_audit_rows_total",
                "Audit entries received from proxies, by result.",
                &["result"],
            )?,
            batches: declare.counters(
                "app_audit_batches_total",
                "Batches of audit entries received from proxies, by result.",
                &["result"],
            )?,
            ingest: declare.histogram(
                "app_audit_ingest_duration_seconds",
                "Time to store a batch of audit entries, after it was read.",
            )?,
            partitions: declare.gauge("app_audit_partitions", "Monthly partitions of the audit log, all classes.")?,
            events: declare.counters(
                "app_audit_events_total",
                "Operations on documents that the app records if they succeed, or would (mode=monitor).",
                &["type", "mode"],
            )?,
        })
    }
}
