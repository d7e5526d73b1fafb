//! `[admin]`: the operators' listener.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Text;

/// The operators' listener.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where `/metrics`, `/metrics/all` and `/healthz` answer. Environment: OUTRIGGER_ADMIN_LISTEN.
    pub listen: Text<SocketAddr>,
    /// More names and addresses that `Host` may have; without scheme and port.
    pub hosts: Vec<String>,
    /// Connections at the same time. At the bound, those that rest longest make room.
    pub max_connections: NonZeroU32,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: Text(SocketAddr::from(([127, 0, 0, 1], 9091))),
            hosts: Vec::new(),
            max_connections: NonZeroU32::MIN.saturating_add(63),
        }
    }
}
