//! Metrics of bans.

use outrigger_metrics::{Declare, IntCounterVec, IntGauge, Result};
use outrigger_policy::abuse::Offence;
use outrigger_policy::flags::Mode;

/// Metrics of bans.
#[derive(Debug)]
pub struct BanMetrics {
    bans: IntCounterVec,
    /// Bans in force.
    pub banned: IntGauge,
}

impl BanMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        Ok(Self {
            bans: declare.counters("outrigger_bans_total", "Bans, by reason.", &["reason", "mode"])?,
            banned: declare.gauge("outrigger_banned_clients", "Banned clients.")?,
        })
    }

    /// Counts a ban, or one that `enforce` would have imposed.
    pub fn count(&self, offence: Offence, mode: Mode) {
        self.bans.with_label_values(&[offence.name(), mode.name()]).inc();
    }
}
