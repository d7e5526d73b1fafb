//! Whether decisions count.

use outrigger_policy::flags::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether decisions count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Acting {
    /// They do.
    #[default]
    Enforce,
    /// They are counted and logged, and change nothing.
    Monitor,
    /// None are made.
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
