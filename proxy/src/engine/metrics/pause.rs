//! Metrics of pauses and maintenance.

use outrigger_metrics::{Declare, IntGauge, Result};

/// Metrics of what operators order for all requests.
#[derive(Debug)]
pub struct PauseMetrics {
    paused: IntGauge,
    maintenance: IntGauge,
}

impl PauseMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("The app");
        Ok(Self {
            paused: area
                .when("Requests wait, and the app is idle: does an operator pause them?")
                .gauge("outrigger_paused", "1 while an operator pauses requests, else 0.")?,
            maintenance: area
                .when("All requests get 503: is it maintenance?")
                .gauge("outrigger_maintenance", "1 in maintenance mode, else 0.")?,
        })
    }

    /// Shows what is in force.
    pub fn show(&self, is_paused: bool, is_maintenance: bool) {
        self.paused.set(i64::from(is_paused));
        self.maintenance.set(i64::from(is_maintenance));
    }
}
