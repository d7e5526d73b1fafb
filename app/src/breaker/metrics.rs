//! Metrics of the databases' circuit breakers.

use outrigger_metrics::{Declare, IntCounterVec, IntGaugeVec, Result};
use outrigger_policy::breaker::State;
use outrigger_policy::flags::Mode;

use crate::error::Dependency;

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
        let area = declare.area("Databases");
        Ok(Self {
            state: area
                .when("Routes get 503: which database is not asked?")
                .of("dependency", Dependency::ALL.map(Dependency::name))
                .of("state", State::ALL.map(State::name))
                .gauges(
                    "app_breaker_state",
                    "1 for the current state of a database's circuit breaker, 0 for the others.",
                )?,
            transitions: area
                .when("What changed? One that opens often has an unstable database behind it.")
                .of("dependency", Dependency::ALL.map(Dependency::name))
                .of("to", State::ALL.map(State::name))
                .counters(
                    "app_breaker_transitions_total",
                    "State changes of a database's circuit breaker, by new state.",
                )?,
            refusals: area
                .when("Routes get 503: which database is not asked?")
                .of("dependency", Dependency::ALL.map(Dependency::name))
                .of("mode", [Mode::Enforce, Mode::Monitor].map(Mode::name))
                .counters(
                    "app_breaker_refusals_total",
                    "Calls that an open circuit breaker rejected, or would have (mode=monitor).",
                )?,
        })
    }
}
