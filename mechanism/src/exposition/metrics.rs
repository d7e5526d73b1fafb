//! Metrics of the merged page.

use outrigger_metrics::{Declare, IntCounter, Result};

use crate::exposition::{Dropped, DroppedLines};

/// Metrics of the merged page.
#[derive(Debug)]
pub struct ExpositionMetrics {
    dropped: [IntCounter; Dropped::ALL.len()],
}

impl ExpositionMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Logs and metrics");
        Ok(Self {
            dropped: area.when("A metric of the app is missing on `/metrics/all`.").counter_for_each(
                "outrigger_app_metrics_lines_dropped_total",
                "Lines of the app's metrics that /metrics/all drops because they are invalid or \
                 contradict others.",
                "reason",
                Dropped::ALL.map(Dropped::name),
            )?,
        })
    }

    /// Counts lines of the app's page that were left out.
    pub fn dropped(&self, lines: &DroppedLines) {
        self.dropped.iter().zip(lines.0).for_each(|(counter, lines)| counter.inc_by(lines));
    }
}
