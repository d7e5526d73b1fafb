//! The rules in force, as types that cannot be wrong. Nothing that gets them asks again whether a value makes sense.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use outrigger_identity::credentials::Credentials;
use outrigger_identity::this::This;
use outrigger_policy::flags::{Feature, Flag, Mode};
use outrigger_wire::client_address::Edge;

use crate::sections::abuse::BanRules;
use crate::sections::admission::Gate;
use crate::sections::affinity::AffinityRules;
use crate::sections::audit::{AtStart, AuditRules};
use crate::sections::breaker::BreakerRules;
use crate::sections::faults::FaultRule;
use crate::sections::headers::Headers;
use crate::sections::limits::Limits;
use crate::sections::log::Log;
use crate::sections::peers::PeerRules;
use crate::sections::retry::RetryRules;
use crate::sections::route_table::RouteTable;
use crate::units::AppAddress;

/// Everything the proxy was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens and how it leaves.
    pub server: Server,
    /// What a client may send, and how slowly.
    pub client: ClientLimits,
    /// The app.
    pub app: App,
    /// The operators' listener.
    pub admin: AdminRules,
    /// Whose word about the client is believed.
    pub edge: Edge,
    /// Keys and tokens that count.
    pub credentials: Arc<Credentials>,
    /// Which fields are added.
    pub headers: Headers,
    /// Headers that the rules look at, whose other spellings (`X_Api_Key`) the app does not get.
    pub read_headers: Box<[HeaderName]>,
    /// Logs.
    pub log: Log,
    /// Feature flags, the environment included, in the order of [`Feature::ALL`].
    pub flags: [Flag; 5],
    /// Compiled routes.
    pub routes: RouteTable,
    /// How often a client may ask.
    pub limits: Limits,
    /// Limits are in `monitor` only because nothing in the file or the environment speaks of rate limits.
    pub limits_unset: bool,
    /// How many keys of limits are counted at the same time.
    pub max_limit_keys: usize,
    /// How many requests the app gets at a time.
    pub gate: Gate,
    /// Who is shut out.
    pub abuse: BanRules,
    /// Breakers; routes name them by number.
    pub breakers: Vec<BreakerRules>,
    /// When a request is sent again.
    pub retry: RetryRules,
    /// Faults on purpose.
    pub faults: Vec<FaultRule>,
    /// This Machine, if it has a name and keys.
    pub this: Option<This>,
    /// Sessions that keep their Machine; `None` when nothing can be done for them.
    pub affinity: Option<AffinityRules>,
    /// The other Machines; `None` when this one is alone.
    pub peers: Option<PeerRules>,
    /// The audit trail; `None` when there is none.
    pub audit: Option<AuditRules>,
    /// Sessions keep no Machine on Fly only because there are no keys.
    pub lacks_affinity_keys: bool,
    /// What works, and is probably not what was meant: each with its place and what to do.
    pub warnings: Vec<String>,
}

/// Where the proxy listens and how it leaves; fixed for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The public HTTP/1.1 port.
    pub listen: SocketAddr,
    /// The h2c port.
    pub h2c_listen: Option<SocketAddr>,
    /// Worker threads, at least one.
    pub threads: usize,
    /// Client connections at the same time.
    pub max_connections: usize,
    /// Those of one address.
    pub max_address_connections: usize,
    /// How long health fails before listeners close.
    pub lame_duck: Duration,
    /// How long requests in flight may take after that.
    pub drain_timeout: Duration,
}

/// What a client may send, and how slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// First byte to the end of the head.
    pub head_timeout: Duration,
    /// The largest head in bytes.
    pub max_head_bytes: usize,
    /// The most fields.
    pub max_fields: usize,
    /// What unfinished heads may hold together, in bytes.
    pub max_unfinished_head_bytes: usize,
    /// The largest body in bytes.
    pub max_body_bytes: u64,
    /// Rest between requests.
    pub idle_timeout: Duration,
    /// Pause within a body.
    pub body_timeout: Duration,
    /// Memory for bodies that are kept, in bytes.
    pub body_memory: usize,
    /// How long a client may take no byte.
    pub write_timeout: Duration,
}

/// The app.
#[derive(Clone, Debug)]
pub struct App {
    /// Where it listens.
    pub address: AppAddress,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a request may take until the head of its answer is there, and how long an answer may pause.
    pub timeout: Duration,
    /// How long requests wait for an app that refuses connections; zero: not at all.
    pub hold: Duration,
    /// How long a stream may be silent.
    pub stream_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Unused connections kept for each worker.
    pub max_idle: usize,
    /// Where its metrics are, if not at `address`.
    pub metrics_address: Option<AppAddress>,
    /// Their path.
    pub metrics_path: String,
}

/// The operators' listener, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRules {
    /// Its address.
    pub listen: SocketAddr,
    /// More names that `Host` may have.
    pub hosts: Vec<Box<str>>,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Names under `.internal` are this Machine's or another one's of the same organisation.
    pub is_on_fly: bool,
}

impl Config {
    /// What a feature does for everybody, as text for `explain` and health.
    pub fn flag(&self, feature: Feature) -> &Flag {
        &self.flags[feature as usize]
    }

    fn machine(&self) -> Option<&str> {
        self.this.as_ref().map(|this| &*this.name)
    }

    fn peers_at_start(&self) -> Option<PeerRules> {
        self.peers.clone().map(|rules| PeerRules { failover: Mode::Off, ..rules })
    }

    fn audit_at_start(&self) -> Option<AtStart<'_>> {
        self.audit.as_ref().map(AuditRules::at_start)
    }

    /// Keys that differ from `next` and cannot change while the process runs.
    pub fn needs_restart(&self, next: &Self) -> Vec<&'static str> {
        let (a, b) = (&self.server, &next.server);
        let changes = [
            (a.listen != b.listen, "server.listen"),
            (a.h2c_listen != b.h2c_listen, "server.h2c_listen"),
            (a.threads != b.threads, "server.threads"),
            (self.admin.listen != next.admin.listen, "admin.listen"),
            (self.app.max_idle != next.app.max_idle, "app.max_idle"),
            (self.log.format != next.log.format, "log.format"),
            (self.max_limit_keys != next.max_limit_keys, "rate_limits.max_keys"),
            (self.machine() != next.machine(), "server.machine"),
            (self.peers_at_start() != next.peers_at_start(), "peers"),
            (self.audit_at_start() != next.audit_at_start(), "audit"),
        ];
        changes.into_iter().filter(|(changed, _)| *changed).map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests;
