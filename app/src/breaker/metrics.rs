//! Metrics of the databases' circuit breakers.

use outrigger_metrics::{Declare, IntCounterVec, IntGaugeVec, Result};

/// Metrics of the databases' circuit breakers.
#[derive(Clone, Debug)]
pub struct BreakerMetrics {
    pub state: IntGaugeVec,
    pub transitions: IntCounterVec,
    pub refusals: IntCounterVec,
}

impl BreakerMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        Ok(Self {
            state: declare.gauges(
                "app_breaker_state",
                "1 for the current state of a database's circuit breaker, 0 for the others.",
                &["dependency", "state"],
            )?,
            transitions: declare.counters(
                "app_breaker_transitions_total",
                "State changes of a database's circuit breaker, by new state.",
                &["dependency", "to"],
            )?,
            refusals: declare.counters(
                "app_breaker_refusals_total",
                "Calls that an open circuit breaker rejected, or would have (mode=monitor).",
                &["dependency", "mode"],
            )?,
        })
    }
}
