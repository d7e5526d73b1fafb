//! Whether a feature's decisions take effect.

use outrigger_policy::flags::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a feature's decisions take effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Acting {
    /// Decisions take effect.
    #[default]
    Enforce,
    /// Decisions are counted and logged, without effect (shadow mode).
    Monitor,
    /// The feature does not run.
    Off,
}

impl From<Acting> for Mode {
    fn from(acting: Acting) -> Self {
        match acting {
            Acting::Enforce => Self::Enforce,
            Acting::Monitor => Self::Monitor,
            Acting::Off => Self::Off,
        }
    }
}
