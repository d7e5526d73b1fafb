//! `[reload]`: a changed configuration is on probation, and is taken back if requests fare worse.

use std::time::Duration;

use outrigger_policy::flags::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::acting::Acting;
use crate::complaints::Builder;
use crate::tree::Step;
use crate::units::{Span, Text, span};

/// The shortest probation: the test needs a few seconds of traffic.
const SHORTEST: Duration = Duration::from_secs(5);
/// The longest.
const LONGEST: Duration = Duration::from_secs(3600);

/// Guarded reload: a saved change is in force at once, and taken back if requests fare worse than before. A file's own section decides
/// about its change.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// `enforce` takes a harmful change back, `monitor` only says that it would, `off` does not look.
    pub mode: Acting,
    /// How long a change is on probation, 5s to 1h.
    pub probation: Text<Span>,
    /// With peers: whether one Machine tries a change first, and the others once it has passed its probation there.
    pub one_first: bool,
}

impl Default for Reload {
    fn default() -> Self {
        Self { mode: Acting::Enforce, probation: span(60), one_first: true }
    }
}

/// Guarded reload, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReloadRules {
    /// Whether a harmful change is taken back.
    pub mode: Mode,
    /// How long a change is on probation.
    pub probation: Duration,
    /// Whether one Machine tries a change first.
    pub one_first: bool,
}

impl Builder<'_> {
    /// Checks the section.
    pub fn reload(&mut self, written: &Reload) -> ReloadRules {
        let probation = written.probation.0.0;
        if !(SHORTEST..=LONGEST).contains(&probation) {
            self.complain(
                &[Step::Key("reload"), Step::Key("probation")],
                format!("`probation` is 5s to 1h, got {:?}", written.probation.0.to_string()),
                "write \"60s\"; to switch it off, write mode = \"off\"",
            );
        }
        ReloadRules { mode: written.mode.into(), probation, one_first: written.one_first }
    }
}
