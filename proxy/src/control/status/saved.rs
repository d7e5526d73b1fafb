//! Snapshots of the state, in the summary.

use outrigger_identity::clock;
use serde::{Deserialize, Serialize};

use crate::mechanism::saved::Snapshots;

/// Snapshots of the state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SavedState {
    /// Seconds since the last one was written.
    pub age_s: Option<f64>,
    /// Its size.
    pub bytes: usize,
    /// How long it took to make and write it, in ms.
    pub took_ms: f64,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The state that was restored at the start.
    pub restored: String,
}

impl SavedState {
    /// The snapshots as they are now.
    pub fn of(snapshots: &Snapshots) -> Self {
        let standing = snapshots.standing();
        Self {
            age_s: standing.written.map(|at| clock::since(at).as_secs_f64()),
            bytes: standing.bytes,
            took_ms: standing.took.as_secs_f64() * 1000.0,
            error: standing.error,
            restored: standing.restored,
        }
    }
}
