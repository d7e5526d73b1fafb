//! `[server]`: where the process listens and how it leaves.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Share, Span, Text};

const fn seconds(n: u64) -> Text<Span> {
    Text(Span(Duration::from_secs(n)))
}

/// The process: where it listens and how it leaves.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// The public HTTP/1.1 port. Environment: OUTRIGGER_LISTEN.
    pub listen: Text<SocketAddr>,
    /// A port that speaks HTTP/2 without TLS (prior knowledge), for edges with `h2_backend`. Unset: none.
    /// Environment: OUTRIGGER_H2C_LISTEN.
    pub h2c_listen: Option<Text<SocketAddr>>,
    /// This Machine's name, for its peers and sessions. Unset: FLY_MACHINE_ID. Environment: OUTRIGGER_MACHINE.
    pub machine: Option<String>,
    /// Worker threads; 0 takes one for each CPU. Environment: OUTRIGGER_THREADS.
    #[schemars(range(max = 256))]
    pub threads: u16,
    /// Client connections at the same time, over all listeners; one more is answered 503 and closed.
    pub max_connections: NonZeroU32,
    /// The share of them that one address may have (IPv6: one /64); networks in `identity.trusted` have no such bound.
    pub max_address_share: Text<Share>,
    /// After SIGTERM: how long health fails first, while traffic is still accepted.
    pub lame_duck: Text<Span>,
    /// After that: how long requests in flight may take before the process leaves without them.
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
            lame_duck: seconds(5),
            drain_timeout: seconds(30),
        }
    }
}
