//! Metrics of circuit breakers.

use outrigger_metrics::{Declare, IntCounterVec, IntGaugeVec, Result};
use outrigger_policy::breaker::State as Position;

/// The label `breaker`.
const BREAKER: &str = "a circuit breaker's name: that of its route or group";

/// Metrics of circuit breakers.
#[derive(Debug)]
pub struct BreakerMetrics {
    states: IntGaugeVec,
    transitions: IntCounterVec,
    clients: IntCounterVec,
}

impl BreakerMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Circuit breakers");
        Ok(Self {
            states: area
                .when("Clients get 503 `breaker-open`: for which route?")
                .named("breaker", BREAKER)
                .of("state", Position::ALL.map(Position::name))
                .gauges("outrigger_breaker_state", "1 for the current state of a circuit breaker, 0 for the others.")?,
            transitions: area
                .when("What changed? A breaker that opens often has an unstable app behind it.")
                .named("breaker", BREAKER)
                .of("state", Position::ALL.map(Position::name))
                .counters("outrigger_breaker_transitions_total", "State changes of a circuit breaker, by new state.")?,
            clients: area.when("One client reports 503 and others do not.").named("breaker", BREAKER).counters(
                "outrigger_breaker_clients_refused_total",
                "Times that a circuit breaker began to reject a single client, for failures that \
                 only that client received.",
            )?,
        })
    }

    /// Counts a change of a circuit breaker's state.
    pub fn changed(&self, breaker: &str, to: Position) {
        self.transitions.with_label_values(&[breaker, to.name()]).inc();
    }

    /// Counts that a circuit breaker starts to reject a single client.
    pub fn refuses_one(&self, breaker: &str) {
        self.clients.with_label_values(&[breaker]).inc();
    }

    /// Shows the state of a circuit breaker.
    pub fn show(&self, breaker: &str, position: Position) {
        for state in Position::ALL {
            self.states.with_label_values(&[breaker, state.name()]).set((state == position).into());
        }
    }

    /// Removes the series of a circuit breaker that the configuration no longer has.
    pub fn forget(&self, breaker: &str) {
        for state in Position::ALL {
            // Removing a series that was never created is an error, and harmless.
            let _ = self.states.remove_label_values(&[breaker, state.name()]);
            let _ = self.transitions.remove_label_values(&[breaker, state.name()]);
        }
        let _ = self.clients.remove_label_values(&[breaker]);
    }
}
