//! Metrics of the audit log.

use outrigger_metrics::{Declare, IntCounterVec, IntGauge, Result};
use outrigger_policy::flags::Mode;

/// Metrics of the audit log.
#[derive(Clone, Debug)]
pub struct AuditMetrics {
    pub partitions: IntGauge,
    pub events: IntCounterVec,
}

impl AuditMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Audit log");
        Ok(Self {
            partitions: area
                .when("It falls or stands still at the end of a month: upkeep does not run.")
                .gauge("app_audit_partitions", "Monthly partitions of the audit log, all classes.")?,
            events: area
                .when("Is every operation recorded?")
                .named("type", "a type of audit event, such as `data.read`")
                .of("mode", [Mode::Enforce, Mode::Monitor].map(Mode::name))
                .counters(
                    "app_audit_events_total",
                    "Operations on documents that the app records if they succeed, or would \
                     (mode=monitor).",
                )?,
        })
    }
}
