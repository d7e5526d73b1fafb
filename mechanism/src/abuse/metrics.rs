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
        let area = declare.area("Bans");
        Ok(Self {
            bans: area
                .when("Who is refused? A rise is an attack, or a client with a bug.")
                .of("reason", Offence::ALL.map(Offence::name))
                .of("mode", [Mode::Enforce, Mode::Monitor].map(Mode::name))
                .counters("outrigger_bans_total", "Bans, by reason.")?,
            banned: area
                .when("Who is refused? `GET /bans` lists them.")
                .gauge("outrigger_banned_clients", "Banned clients.")?,
        })
    }

    /// Counts a ban, or one that `enforce` would have imposed.
    pub fn count(&self, offence: Offence, mode: Mode) {
        self.bans.with_label_values(&[offence.name(), mode.name()]).inc();
    }
}
