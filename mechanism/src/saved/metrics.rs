//! Metrics of snapshots.

use outrigger_identity::clock;
use outrigger_metrics::{Declare, Gauge, IntCounter, IntCounterVec, IntGauge, Result};
use outrigger_policy::saved::{LeftOut, Unusable};

use crate::saved::SnapshotStanding;

/// There was no snapshot.
pub const NONE: &str = "none";
/// The snapshot was restored.
pub const FILE: &str = "file";
/// The state of peers was restored.
pub const PEERS: &str = "peers";
/// The file cannot be read.
pub const UNREADABLE: &str = "unreadable";

/// Metrics of snapshots.
#[derive(Debug)]
pub struct SavedMetrics {
    /// Snapshots that were written.
    pub written: IntCounter,
    /// Snapshots that could not be written.
    pub failed: IntCounter,
    restores: IntCounterVec,
    left_out: [IntCounter; 3],
    age: Gauge,
    bytes: IntGauge,
    duration: Gauge,
}

impl SavedMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("State");
        let [written, failed] = area
            .when("`failed` rises: a restart would begin with old state. Is the disk full, or the directory read-only?")
            .counter_for_each(
                "outrigger_state_snapshots_total",
                "Snapshots of the state.",
                "result",
                ["written", "failed"],
            )?;
        let ignored = Unusable::KINDS.into_iter().chain([UNREADABLE]);
        Ok(Self {
            written,
            failed,
            restores: area
                .when("After a restart: did it begin with the state from before? Other than `file`, the log says why.")
                .of("result", [FILE, PEERS, NONE].into_iter().chain(ignored))
                .counters(
                    "outrigger_state_restores_total",
                    "Starts, by what was restored, or why the snapshot was ignored.",
                )?,
            left_out: area.when("It rises: raise `state.max_size`.").counter_for_each(
                "outrigger_state_left_out_total",
                "Entries that did not fit into a snapshot.",
                "kind",
                ["limits", "bans", "breakers"],
            )?,
            age: area.when("It stays above a minute: see outrigger_state_snapshots_total.").real(
                "outrigger_state_snapshot_age_seconds",
                "Time since the last snapshot was written; 0 without one.",
            )?,
            bytes: area
                .when("How close is it to `state.max_size`?")
                .gauge("outrigger_state_snapshot_size_bytes", "Size of the last snapshot.")?,
            duration: area.when("Above 0.1 s, bans reach the disk later: is the disk slow?").real(
                "outrigger_state_snapshot_duration_seconds",
                "How long the last snapshot took to make and write.",
            )?,
        })
    }

    /// Counts a start.
    pub fn restored(&self, result: &str) {
        self.restores.with_label_values(&[result]).inc();
    }

    /// Counts what did not fit.
    pub fn left_out(&self, left_out: LeftOut) {
        let LeftOut { limits, bans, breakers } = left_out;
        for (counter, number) in self.left_out.iter().zip([limits, bans, breakers]) {
            counter.inc_by(number);
        }
    }

    /// Shows the last snapshot.
    pub fn show(&self, standing: &SnapshotStanding) {
        self.age.set(standing.written.map_or(0.0, |at| clock::since(at).as_secs_f64()));
        self.bytes.set(i64::try_from(standing.bytes).unwrap_or(i64::MAX));
        self.duration.set(standing.took.as_secs_f64());
    }
}
