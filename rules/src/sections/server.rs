//! `[server]`: listeners and shutdown.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use outrigger_policy::flags::Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Share, Span, Text};

const fn seconds(n: u64) -> Text<Span> {
    Text(Span(Duration::from_secs(n)))
}

/// Listeners and shutdown.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// The public HTTP/1.1 port. Environment: OUTRIGGER_LISTEN.
    pub listen: Text<SocketAddr>,
    /// A port for HTTP/2 without TLS (prior knowledge), for edges with `h2_backend`. Unset: none. Environment:
    /// OUTRIGGER_H2C_LISTEN.
    pub h2c_listen: Option<Text<SocketAddr>>,
    /// This Machine's name, for peers and sticky sessions. Unset: FLY_MACHINE_ID. Environment: OUTRIGGER_MACHINE.
    pub machine: Option<String>,
    /// Worker threads; 0: one per CPU. Environment: OUTRIGGER_THREADS.
    #[schemars(range(max = 256))]
    pub threads: u16,
    /// Maximum client connections over all listeners; further ones get 503 and are closed.
    pub max_connections: NonZeroU32,
    /// The share of them that one address may have (IPv6: one /64); networks in `identity.trusted` are exempt.
    pub max_address_share: Text<Share>,
    /// Addresses or networks that may connect to the public listeners, at most 1000; others are closed before a byte is read. Empty:
    /// all. Behind a proxy in `identity.trusted`, the client's address counts, for each request: 403.
    pub allow: Vec<Text<Network>>,
    /// Addresses or networks that may not connect, likewise. Wins over `allow`.
    pub deny: Vec<Text<Network>>,
    /// After SIGTERM: how long health checks fail while traffic is still accepted.
    pub lame_duck: Text<Span>,
    /// After that: how long requests in flight may take before the process exits anyway.
    pub drain_timeout: Text<Span>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: Text(SocketAddr::from(([127, 0, 0, 1], 8080))),
            h2c_listen: None,
            machine: None,
            threads: 0,
            max_connections: NonZeroU32::new(20_000).unwrap_or(NonZeroU32::MIN),
            max_address_share: Text(Share(0.25)),
            allow: Vec::new(),
            deny: Vec::new(),
            lame_duck: seconds(5),
            drain_timeout: seconds(30),
        }
    }
}
