//! `[flags]`: feature flags.

use outrigger_policy::flags::{Flag, Network, Percentage, Switch};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Text;

/// A switch: `true`, `false`, `"monitor"`, `"10%"`, or a table with allow-lists.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum FlagValue {
    /// On or off for all clients.
    Whole(bool),
    /// `"monitor"` or a share of clients, such as `"10%"`.
    Share(Text<Switch>),
    /// With allow-lists.
    Listed(ListedFlag),
}

/// A switch with allow-lists.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListedFlag {
    /// `"true"`, `"false"`, `"monitor"` or a share of clients, such as `"10%"`.
    pub switch: Text<Switch>,
    /// Verified users who always get the feature, unless the switch is `"false"`.
    #[serde(default)]
    pub users: Vec<String>,
    /// Likewise for addresses and networks.
    #[serde(default)]
    pub networks: Vec<Text<Network>>,
}

impl Default for FlagValue {
    fn default() -> Self {
        Self::Whole(true)
    }
}

impl FlagValue {
    /// Converts the flag to the policy's type.
    pub fn to_flag(&self) -> Flag {
        let (switch, users, networks) = match self {
            Self::Whole(true) => (Switch::On(Percentage::ALL), Vec::new(), Vec::new()),
            Self::Whole(false) => (Switch::Off, Vec::new(), Vec::new()),
            Self::Share(switch) => (switch.0, Vec::new(), Vec::new()),
            Self::Listed(flag) => {
                (flag.switch.0, flag.users.clone(), flag.networks.iter().map(|network| network.0).collect())
            }
        };
        Flag { switch, users, networks }
    }
}

/// Feature flags. With all `false`, Outrigger is a plain proxy.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// Circuit breakers. Environment: FF_ENABLE_CIRCUIT_BREAKER.
    pub circuit_breaker: FlagValue,
    /// Connection pools in the app that are warmed up, jittered and monitored. Environment: FF_ENABLE_ENHANCED_POOLING.
    pub enhanced_pooling: FlagValue,
    /// Rate limits by priority. Environment: FF_ENABLE_PRIORITIZED_RATE_LIMIT.
    pub prioritized_rate_limit: FlagValue,
    /// The audit log. Environment: FF_ENABLE_AUDIT_TRAIL.
    pub audit_trail: FlagValue,
    /// Sticky sessions. Environment: FF_ENABLE_SESSION_AFFINITY.
    pub session_affinity: FlagValue,
}
