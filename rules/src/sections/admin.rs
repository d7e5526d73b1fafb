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
    /// The address of `/metrics`, `/metrics/all` and `/healthz`. Environment: OUTRIGGER_ADMIN_LISTEN.
    pub listen: Text<SocketAddr>,
    /// Additional names and addresses that `Host` may have; without scheme and port.
    pub hosts: Vec<String>,
    /// Maximum connections. At the limit, those that have been idle longest are closed.
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
