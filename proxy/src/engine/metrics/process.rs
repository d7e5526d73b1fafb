//! Metrics of the app's process, with `outrigger run -- COMMAND`.

use outrigger_metrics::{Declare, IntCounter, IntGaugeVec, Result};
use outrigger_policy::supervisor::{Reason, State};

/// Metrics of the app's process.
#[derive(Debug)]
pub struct ProcessMetrics {
    states: IntGaugeVec,
    restarts: [IntCounter; Reason::RESTARTS.len()],
    /// Processes without a parent that ended.
    pub orphans: IntCounter,
}

impl ProcessMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("The app's process");
        let states = area
            .when("With `outrigger run`: does the app run, start, or wait before its next start?")
            .of("state", State::ALL.map(State::name))
            .gauges(
                "outrigger_app_process_state",
                "1 for the state of the process that `outrigger run -- COMMAND` started; all 0 \
                 without a command.",
            )?;
        for state in State::ALL {
            states.with_label_values(&[state.name()]).set(0);
        }
        Ok(Self {
            states,
            restarts: area.when("What changed? Each one is a crash, a failed probe or a command.").counter_for_each(
                "outrigger_app_restarts_total",
                "Restarts of that process, by reason.",
                "reason",
                Reason::RESTARTS.map(Reason::name),
            )?,
            orphans: area.when("It rises fast: the app starts processes and does not wait for them.").counter(
                "outrigger_orphans_reaped_total",
                "Processes that ended after their parents, and were reaped; the app or its \
                 children started them.",
            )?,
        })
    }

    /// Shows the state.
    pub fn show(&self, now: State) {
        for state in State::ALL {
            self.states.with_label_values(&[state.name()]).set((state == now).into());
        }
    }

    /// Counts a restart.
    pub fn restarted(&self, reason: Reason) {
        let restarts = Reason::RESTARTS.iter().zip(&self.restarts).find(|(counted, _)| **counted == reason);
        restarts.into_iter().for_each(|(_, counter)| counter.inc());
    }
}
