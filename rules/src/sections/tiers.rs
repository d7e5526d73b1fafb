//! `[tiers]`: the factor of each tier for its clients' rate limits.

use outrigger_policy::tier::{Multiplier, Tier};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Text;

/// The factor of each tier for its clients' rate limits.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tiers {
    /// Clients without a verified credential.
    pub anonymous: Text<Multiplier>,
    /// Known clients who do not pay.
    pub free: Text<Multiplier>,
    /// Paying clients.
    pub pro: Text<Multiplier>,
    /// Clients with a contract.
    pub enterprise: Text<Multiplier>,
    /// Our own services.
    pub internal: Text<Multiplier>,
}

impl Default for Tiers {
    fn default() -> Self {
        let times = |n: u32| Text(Multiplier::Hundredths(n * 100));
        Self {
            anonymous: times(1),
            free: times(1),
            pro: times(5),
            enterprise: times(20),
            internal: Text(Multiplier::Unlimited),
        }
    }
}

impl Tiers {
    /// In the order of [`Tier::ALL`].
    pub fn multipliers(&self) -> [Multiplier; Tier::ALL.len()] {
        [&self.anonymous, &self.free, &self.pro, &self.enterprise, &self.internal].map(|tier| tier.0)
    }
}
