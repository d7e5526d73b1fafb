//! The configuration in force, as types that cannot hold invalid values. Its users need not check values again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use outrigger_identity::credentials::Credentials;
use outrigger_identity::this::This;
use outrigger_policy::flags::{Feature, Flag, Mode};
use outrigger_policy::networks::AddressList;
use outrigger_wire::client_address::Edge;

use crate::effective::Effective;
use crate::finding::Finding;
use crate::inputs::Inputs;
use crate::sections::abuse::BanRules;
use crate::sections::admission::Gate;
use crate::sections::affinity::AffinityRules;
use crate::sections::audit::{AtStart, AuditRules};
use crate::sections::breaker::BreakerRules;
use crate::sections::faults::FaultRule;
use crate::sections::headers::Headers;
use crate::sections::health::HealthRules;
use crate::sections::limits::Limits;
use crate::sections::log::Log;
use crate::sections::maintenance::MaintenanceRules;
use crate::sections::pages::PageRules;
use crate::sections::peers::PeerRules;
use crate::sections::receipts::ReceiptRules;
use crate::sections::reload::ReloadRules;
use crate::sections::retry::RetryRules;
use crate::sections::route_table::RouteTable;
use crate::sections::run::RunRules;
use crate::sections::state::StateRules;
use crate::sections::traces::{Export, TraceRules};
use crate::sections::traffic::TrafficRules;
use crate::units::AppAddress;

/// The checked configuration of the proxy.
#[derive(Clone, Debug)]
pub struct Config {
    /// Listeners and shutdown.
    pub server: Server,
    /// Bounds on what clients send.
    pub client: ClientLimits,
    /// The app.
    pub app: App,
    /// How the app's health is checked.
    pub health: HealthRules,
    /// The app's process, if Outrigger starts it.
    pub run: RunRules,
    /// The operators' listener.
    pub admin: AdminRules,
    /// Which senders may name the client.
    pub edge: Edge,
    /// Accepted keys and tokens.
    pub credentials: Arc<Credentials>,
    /// Which headers the proxy adds.
    pub headers: Headers,
    /// Headers that the configuration reads. The app does not get their other spellings (`X_Api_Key`).
    pub read_headers: Box<[HeaderName]>,
    /// Logs.
    pub log: Log,
    /// Feature flags, the environment included, in the order of [`Feature::ALL`].
    pub flags: [Flag; 5],
    /// Compiled routes.
    pub routes: RouteTable,
    /// Rate limits.
    pub limits: Limits,
    /// Rate limits are in `monitor` only because neither the file nor the environment configures them.
    pub limits_unset: bool,
    /// Maximum number of rate-limit keys.
    pub max_limit_keys: usize,
    /// The concurrency limit and its queue.
    pub gate: Gate,
    /// Bans.
    pub abuse: BanRules,
    /// Circuit breakers; routes refer to them by number.
    pub breakers: Vec<BreakerRules>,
    /// Retries.
    pub retry: RetryRules,
    /// Receipts.
    pub receipts: ReceiptRules,
    /// Traces; `None` without a collector.
    pub traces: Option<TraceRules>,
    /// The traffic record.
    pub traffic: TrafficRules,
    /// Outrigger's own responses for browsers.
    pub pages: PageRules,
    /// Maintenance mode.
    pub maintenance: MaintenanceRules,
    /// Guarded reload.
    pub reload: ReloadRules,
    /// Fault injection.
    pub faults: Vec<FaultRule>,
    /// This Machine, if it has a name and keys.
    pub this: Option<This>,
    /// Sticky sessions; `None` when the feature is unavailable.
    pub affinity: Option<AffinityRules>,
    /// Other Machines; `None` without peers.
    pub peers: Option<PeerRules>,
    /// Snapshots of the state; `None` without them.
    pub state: Option<StateRules>,
    /// The audit log; `None` when it is off.
    pub audit: Option<AuditRules>,
    /// Sticky sessions are off on Fly only because there are no keys.
    pub lacks_affinity_keys: bool,
    /// Warnings: valid values that are probably not intended, each with its place and a remedy.
    pub warnings: Vec<Finding>,
    /// The files that it was read from.
    pub inputs: Inputs,
    /// The values as written, and where they are from.
    pub effective: Option<Arc<Effective>>,
}

/// Listeners and shutdown; fixed for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The public HTTP/1.1 port.
    pub listen: SocketAddr,
    /// The h2c port.
    pub h2c_listen: Option<SocketAddr>,
    /// Worker threads, at least one.
    pub threads: usize,
    /// Maximum client connections.
    pub max_connections: usize,
    /// Maximum client connections of one address.
    pub max_address_connections: usize,
    /// The addresses that may connect; `None`: all.
    pub addresses: Option<AddressList>,
    /// After SIGTERM: how long health checks fail before listeners close.
    pub lame_duck: Duration,
    /// How long requests in flight may take after that.
    pub drain_timeout: Duration,
}

/// Bounds on what clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// From the first byte to the end of the head.
    pub head_timeout: Duration,
    /// Maximum bytes of a head.
    pub max_head_bytes: usize,
    /// Maximum number of headers.
    pub max_fields: usize,
    /// Maximum bytes of all unfinished heads together.
    pub max_unfinished_head_bytes: usize,
    /// Maximum bytes of a body.
    pub max_body_bytes: u64,
    /// How long a connection may be idle between requests.
    pub idle_timeout: Duration,
    /// Longest pause within a body.
    pub body_timeout: Duration,
    /// Memory for buffered bodies, in bytes.
    pub body_memory: usize,
    /// How long a client may accept no byte of a response.
    pub write_timeout: Duration,
}

/// The app.
#[derive(Clone, Debug)]
pub struct App {
    /// The address on which it listens.
    pub address: AppAddress,
    /// Connect timeout.
    pub connect_timeout: Duration,
    /// How long a request may take until the response's head arrives, and the longest pause within a response.
    pub timeout: Duration,
    /// How long requests wait for an app that refuses connections; zero: they fail at once.
    pub hold: Duration,
    /// How long a stream may be silent.
    pub stream_timeout: Duration,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Idle connections kept for each worker.
    pub max_idle: usize,
    /// Where its metrics are, if not at `address`.
    pub metrics_address: Option<AppAddress>,
    /// The path of its metrics.
    pub metrics_path: String,
}

/// The operators' listener, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRules {
    /// The address on which it listens.
    pub listen: SocketAddr,
    /// Additional names that `Host` may have.
    pub hosts: Vec<Box<str>>,
    /// Maximum connections.
    pub max_connections: usize,
    /// Names under `.internal` belong to this Machine or to another one of the same organisation.
    pub is_on_fly: bool,
}

impl Config {
    /// A feature's flag; its text is for `explain` and health.
    pub fn flag(&self, feature: Feature) -> &Flag {
        &self.flags[feature as usize]
    }

    /// The name of this Machine.
    pub fn machine(&self) -> Option<&str> {
        self.this.as_ref().map(|this| &*this.name)
    }

    /// The variables to which the files refer.
    pub fn variables(&self) -> Vec<&str> {
        self.effective.as_ref().map_or_else(Vec::new, |effective| effective.variables())
    }

    fn peers_at_start(&self) -> Option<PeerRules> {
        self.peers.clone().map(|rules| PeerRules { failover: Mode::Off, ..rules })
    }

    fn audit_at_start(&self) -> Option<AtStart<'_>> {
        self.audit.as_ref().map(AuditRules::at_start)
    }

    fn trace_export(&self) -> Option<&Export> {
        self.traces.as_ref().map(|traces| &traces.export)
    }

    /// Keys that differ in `next` and cannot change while the process runs.
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
            (self.state != next.state, "state"),
            (self.audit_at_start() != next.audit_at_start(), "audit"),
            (self.trace_export() != next.trace_export(), "traces"),
        ];
        changes.into_iter().filter(|(changed, _)| *changed).map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
pub mod testing {
    use std::path::Path;

    use super::Config;

    /// Loads a configuration as the file `proxy.toml` with these variables.
    pub fn load(source: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let lookup = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Config::parse(Path::new("proxy.toml"), source, &lookup).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests;
