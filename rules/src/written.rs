//! The file as written: every key, its default, and the words that editors show for it.
//!
//! `outrigger schema` is generated from these types, and the checker in [`crate::check`] walks the file along that
//! schema; so a key exists, has a default and a documentation in this one place.

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
use crate::sections::identity::Identity;
use crate::sections::limits::RateLimits;
use crate::sections::log::Log;
use crate::sections::peers::Peers;
use crate::sections::retry::Retry;
use crate::sections::routes::Route;
use crate::sections::server::Server;
use crate::sections::tiers::Tiers;

/// The rules of an Outrigger proxy.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    /// The process: where it listens and how it leaves. Changes need a restart.
    pub server: Server,
    /// What a client may send, and how slowly.
    pub client: Client,
    /// The app behind the proxy.
    pub app: App,
    /// The operators' listener. Changes need a restart.
    pub admin: Admin,
    /// Whom to believe about who asks.
    pub identity: Identity,
    /// Which fields the proxy adds.
    pub headers: Headers,
    /// Logs. Changes of `level` and `access` are live; `format` needs a restart.
    pub log: Log,
    /// Feature flags; the environment (`FF_ENABLE_…`) wins over these.
    pub flags: Flags,
    /// How often a client may ask.
    pub rate_limits: RateLimits,
    /// By how much a tier multiplies its clients' limits.
    pub tiers: Tiers,
    /// How many requests the app gets at a time.
    pub admission: Admission,
    /// Who is shut out.
    pub abuse: Abuse,
    /// When to stop asking an app that fails.
    pub breaker: Breaker,
    /// When a request is sent again.
    pub retry: Retry,
    /// Sessions that keep their Machine.
    pub affinity: Affinity,
    /// The other Machines of the same app.
    pub peers: Peers,
    /// The audit trail.
    pub audit: Audit,
    /// Faults on purpose, for game days; refused without OUTRIGGER_ALLOW_FAULTS=1 in the environment.
    pub faults: Vec<Fault>,
    /// Routes, tried from top to bottom; the first that matches wins.
    pub routes: Vec<Route>,
}

/// The JSON Schema of the file, draft 7, which editors understand best.
pub fn schema() -> serde_json::Value {
    let generator = schemars::generate::SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<Raw>().to_value()
}
