//! The file as written: every key, its default, and the description that editors show.
//!
//! `outrigger schema` is generated from these types, and the checker in [`crate::check`] validates the file with that
//! schema; so each key, its default and its documentation are defined only here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sections::abuse::Abuse;
use crate::sections::admin::Admin;
use crate::sections::admission::Admission;
use crate::sections::affinity::Affinity;
use crate::sections::app::App;
use crate::sections::audit::Audit;
use crate::sections::breaker::Breaker;
use crate::sections::client::Client;
use crate::sections::faults::Fault;
use crate::sections::flags::Flags;
use crate::sections::headers::Headers;
use crate::sections::health::Health;
use crate::sections::identity::Identity;
use crate::sections::limits::RateLimits;
use crate::sections::log::Log;
use crate::sections::maintenance::Maintenance;
use crate::sections::pages::Pages;
use crate::sections::peers::Peers;
use crate::sections::receipts::Receipts;
use crate::sections::reload::Reload;
use crate::sections::retry::Retry;
use crate::sections::routes::Route;
use crate::sections::run::Run;
use crate::sections::server::Server;
use crate::sections::state::SavedState;
use crate::sections::tiers::Tiers;
use crate::sections::traces::Traces;
use crate::sections::traffic::Traffic;

/// The configuration of an Outrigger proxy.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// More files, relative to this one: `"rules.d/*.toml"`. Their tables are merged, and their `[[routes]]` and other lists of tables follow
    /// those of this file, in the order of the names.
    pub include: Vec<String>,
    /// Listeners and shutdown. Changes need a restart.
    pub server: Server,
    /// Bounds on what clients send.
    pub client: Client,
    /// The app behind the proxy.
    pub app: App,
    /// The app's health check.
    pub health: Health,
    /// The app as a process of Outrigger: `outrigger run -- COMMAND`.
    pub run: Run,
    /// The operators' listener. Changes need a restart.
    pub admin: Admin,
    /// How clients are identified: the proxies, keys and tokens to trust.
    pub identity: Identity,
    /// Which headers the proxy adds.
    pub headers: Headers,
    /// Logs. Changes of `level` and `access` are live; `format` needs a restart.
    pub log: Log,
    /// Feature flags; the environment (`FF_ENABLE_…`) wins over these.
    pub flags: Flags,
    /// Rate limits: how many requests each client may send.
    pub rate_limits: RateLimits,
    /// The factor of each tier for its clients' rate limits.
    pub tiers: Tiers,
    /// How many requests the app handles concurrently.
    pub admission: Admission,
    /// Bans of clients.
    pub abuse: Abuse,
    /// Circuit breakers: stop requests to an app that fails.
    pub breaker: Breaker,
    /// Retries of requests.
    pub retry: Retry,
    /// Sticky sessions.
    pub affinity: Affinity,
    /// The other Machines of the same app.
    pub peers: Peers,
    /// Snapshots of what Outrigger has learned. Changes need a restart.
    pub state: SavedState,
    /// The audit log.
    pub audit: Audit,
    /// Receipts of requests, for `outrigger why`.
    pub receipts: Receipts,
    /// OpenTelemetry traces. Changes of `sample` and `follow_parent` are live; the others need a restart.
    pub traces: Traces,
    /// The traffic record, for `outrigger backtest`.
    pub traffic: Traffic,
    /// Outrigger's own responses for browsers.
    pub pages: Pages,
    /// Maintenance mode: requests are refused.
    pub maintenance: Maintenance,
    /// Guarded reload: a harmful change is taken back.
    pub reload: Reload,
    /// Fault injection, for game days; rejected without OUTRIGGER_ALLOW_FAULTS=1 in the environment.
    pub faults: Vec<Fault>,
    /// Routes, tried from top to bottom; the first that matches wins.
    pub routes: Vec<Route>,
}

/// The JSON Schema of the file, draft 7, which editors understand best.
pub fn schema() -> serde_json::Value {
    let generator = schemars::generate::SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<Raw>().to_value()
}
