//! Metrics of the configuration.

use outrigger_metrics::{Declare, GaugeVec, IntCounter, IntCounterVec, IntGauge, Result};
use outrigger_policy::flags::{Feature, Mode, Switch};
use outrigger_policy::probation::measures::Measure;
use outrigger_rules::config::Config;

use crate::engine::guard::UNCONFIRMED;

/// Metrics of the configuration.
#[derive(Debug)]
pub struct ConfigMetrics {
    /// Applied and rejected.
    reloads: [IntCounter; 2],
    is_good: IntGauge,
    version: IntGauge,
    /// When it came into force, in seconds since 1970.
    loaded: IntGauge,
    flags: GaugeVec,
    rollbacks: IntCounterVec,
    on_probation: IntGauge,
}

impl ConfigMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Configuration");
        let rollbacks = area
            .when("A change has no effect: requests fared worse under it. docs/reload.md explains each measure.")
            .of("measure", Measure::ALL.map(Measure::name).into_iter().chain([UNCONFIRMED]))
            .of("mode", [Mode::Enforce, Mode::Monitor].map(Mode::name))
            .counters(
                "outrigger_config_rollbacks_total",
                "Changes of the configuration that were taken back (enforce), or would be (monitor), by what became worse.",
            )?;
        for measure in Measure::ALL.map(Measure::name).into_iter().chain([UNCONFIRMED]) {
            // All series exist at the start, so that the first one is seen as an increase.
            let _ = rollbacks.with_label_values(&[measure, Mode::Enforce.name()]);
        }
        Ok(Self {
            rollbacks,
            on_probation: area.when("What changed? While it is 1, the last change may still be taken back.").gauge(
                "outrigger_config_on_probation",
                "1 while the configuration in force is on probation or waits to be confirmed, else 0.",
            )?,
            reloads: area.when("What changed? Each increase is a change of the file.").counter_for_each(
                "outrigger_config_reloads_total",
                "Reloads of the configuration, by result.",
                "result",
                ["applied", "refused"],
            )?,
            is_good: area
                .when("A change of the file has no effect: at 0 it was rejected, or taken back.")
                .gauge_at_one(
                    "outrigger_config_last_reload_successful",
                    "1 if the last change of the configuration file was applied, 0 if it was rejected or taken back.",
                )?,
            version: area
                .when("Do all Machines have the latest change?")
                .gauge("outrigger_config_version", "Version of the configuration; increases with each change.")?,
            loaded: area
                .when("What changed? Compare with the time at which trouble began.")
                .gauge("outrigger_config_loaded_timestamp_seconds", "When the current configuration was loaded.")?,
            flags: area
                .when("What changed? It shows which features act on how many clients.")
                .of("feature", Feature::ALL.map(Feature::key))
                .of("mode", [Mode::Enforce, Mode::Monitor, Mode::Off].map(Mode::name))
                .reals("outrigger_feature_flag", "Share of clients for which a feature is in a mode, 0 to 1.")?,
        })
    }

    /// Records a change of the configuration file that was applied or rejected.
    pub fn reloaded(&self, is_taken: bool) {
        self.is_good.set(is_taken.into());
        let [applied, refused] = &self.reloads;
        if is_taken { applied } else { refused }.inc();
    }

    /// Counts a change that was taken back, or would have been.
    pub fn rolled_back(&self, measure: &str, mode: Mode) {
        self.rollbacks.with_label_values(&[measure, mode.name()]).inc();
        if mode == Mode::Enforce {
            self.is_good.set(0);
        }
    }

    /// Shows whether a change is on probation.
    pub fn show_probation(&self, is_on: bool) {
        self.on_probation.set(is_on.into());
    }

    /// When the configuration in force was loaded, in seconds since 1970.
    pub fn loaded_at(&self) -> i64 {
        self.loaded.get()
    }

    /// Shows the version in force. The last step of a change: when the version shows, all of the change is in force.
    pub fn show_version(&self, version: u64) {
        self.version.set(i64::try_from(version).unwrap_or(i64::MAX));
    }

    /// Shows a configuration that came into force at `now`, in seconds since 1970, but for its version.
    pub fn show(&self, config: &Config, now: u64) {
        self.loaded.set(i64::try_from(now).unwrap_or(i64::MAX));
        for feature in Feature::ALL {
            let (enforce, monitor) = match config.flag(feature).switch {
                Switch::On(share) => (f64::from(share.get()) / 100.0, 0.0),
                Switch::Monitor => (0.0, 1.0),
                Switch::Off => (0.0, 0.0),
            };
            for (mode, share) in
                [(Mode::Enforce, enforce), (Mode::Monitor, monitor), (Mode::Off, 1.0 - enforce - monitor)]
            {
                self.flags.with_label_values(&[feature.key(), mode.name()]).set(share);
            }
        }
    }
}
