//! The condition of this Machine, as it tells its peers.

use crate::engine::pause;
use crate::engine::state::{Phase, State};
use crate::mechanism::health;
use crate::mechanism::peers::answer::Condition;
use crate::mechanism::peers::local::Local;

/// Returns the condition that this Machine reports.
pub fn condition(state: &State, local: &Local) -> Condition {
    if state.drain.phase() != Phase::Serving {
        Condition::Leaving
    } else if state.reach.is_away() || is_closed(state) || !is_healthy(state, local) {
        Condition::Unready
    } else if state.gate.standing().waiting.iter().any(|waiting| *waiting > 0) {
        Condition::Busy
    } else {
        Condition::Ready
    }
}

/// Whether requests are paused or refused here: peers keep theirs.
fn is_closed(state: &State) -> bool {
    state.reach.is_paused() || pause::is_maintenance(state)
}

/// Checks the app's own health check if the file names one, otherwise `/health/ready`.
fn is_healthy(state: &State, local: &Local) -> bool {
    if state.rules.load().config.health.check.is_some() {
        state.health.condition() == health::Condition::Healthy
    } else {
        !local.is_unready()
    }
}
