//! The file as written: every key, its default, and the words that editors show for it.
//!
//! `outrigger schema` is generated from these types, and the checker in [`super::check`] walks the file along that
//! schema; so a key exists, has a default and a documentation in this one place.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use outrigger_policy::flags::{Network, Percentage, Switch};
use outrigger_wire::forwarding;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::admission::{Abuse, Admission, RateLimits, Tiers};
use super::audit::Audit;
pub use super::identity::Identity;
use super::machines::{Affinity, Peers};
use super::resilience::{Breaker, Fallback, Fault, Retry};
use super::units::{AppAddress, MetricsUrl, OptionalSize, OrOff, Share, Size, Span, Text};

const fn seconds(n: u64) -> Text<Span> {
    Text(Span(Duration::from_secs(n)))
}

const fn bytes(n: u64) -> Text<Size> {
    Text(Size(n))
}

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

/// What a client may send, and how slowly.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// From a request's first byte (or a new connection's start) to the end of its head. Later: 408 and close.
    pub head_timeout: Text<Span>,
    /// The largest head, request line and fields together. Larger: 431 and close. At most 1MiB.
    pub max_head: Text<Size>,
    /// The most fields in a head. More: 431 and close.
    #[schemars(range(min = 1, max = 256))]
    pub max_fields: u16,
    /// The memory that unfinished heads may hold together; one address may hold a quarter of it. At least 1MiB.
    pub max_unfinished_heads: Text<Size>,
    /// The largest body, or `"off"` for no bound. Larger: 413. A route may say otherwise.
    pub max_body: Text<OptionalSize>,
    /// How long a connection may rest between two requests.
    pub idle_timeout: Text<Span>,
    /// How long a request's body may pause, and, with a second more for each 500 bytes, how long one that says that it is no longer
    /// than 64 KiB may take in all. Longer: 408 and close.
    pub body_timeout: Text<Span>,
    /// Memory for request bodies that have not arrived whole or wait for their turn, of all clients together. An address gets at
    /// most half of what is free. More: 503. At least 1MiB.
    pub body_memory: Text<Size>,
    /// How long a client may take no byte of an answer.
    pub write_timeout: Text<Span>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            head_timeout: seconds(10),
            max_head: bytes(32 << 10),
            max_fields: 100,
            max_unfinished_heads: bytes(64 << 20),
            max_body: Text(OrOff(Some(bytes(2 << 30).0))),
            idle_timeout: seconds(75),
            body_timeout: seconds(30),
            body_memory: bytes(64 << 20),
            write_timeout: seconds(60),
        }
    }
}

/// The app behind the proxy.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct App {
    /// `unix:PATH` or `HOST:PORT`. Environment: OUTRIGGER_APP_ADDRESS.
    pub address: Text<AppAddress>,
    /// How long connecting may take. Later: 504.
    pub connect_timeout: Text<Span>,
    /// How long a request may take until the head of its answer is there, the wait for its turn included, and how long an
    /// answer may pause. Later: 504. A route may say otherwise.
    pub timeout: Text<Span>,
    /// How long requests wait for an app that refuses connections, as one that restarts does. "0s": they fail at once.
    pub hold: Text<Span>,
    /// How many may wait for it. More are answered 503 at once, the least important first.
    pub max_held: NonZeroU32,
    /// How long an event stream or a WebSocket may be silent.
    pub stream_timeout: Text<Span>,
    /// How long an unused connection to the app is kept. Keep it below the app's own keep-alive timeout.
    pub idle_timeout: Text<Span>,
    /// Unused connections kept for each worker thread.
    pub max_idle: NonZeroU16,
    /// Where the app shows its metrics. Unset: `/metrics` at `address`. On the public port its path gets 404 unless a route
    /// names it. Environment: OUTRIGGER_APP_METRICS.
    pub metrics: Option<Text<MetricsUrl>>,
}

impl Default for App {
    fn default() -> Self {
        Self {
            address: Text(AppAddress::Tcp("127.0.0.1:8081".to_owned())),
            connect_timeout: seconds(1),
            timeout: seconds(60),
            hold: seconds(5),
            max_held: NonZeroU32::new(10_000).unwrap_or(NonZeroU32::MIN),
            stream_timeout: seconds(3600),
            idle_timeout: seconds(4),
            max_idle: NonZeroU16::new(128).unwrap_or(NonZeroU16::MIN),
            metrics: None,
        }
    }
}

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

/// Which fields tell the app about the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedStyle {
    /// `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` (RFC 7239).
    #[default]
    Both,
    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Rfc7239,
    /// None of them.
    Off,
}

impl From<ForwardedStyle> for forwarding::ForwardedStyle {
    fn from(style: ForwardedStyle) -> Self {
        match style {
            ForwardedStyle::Both => Self::Both,
            ForwardedStyle::XForwarded => Self::XForwarded,
            ForwardedStyle::Rfc7239 => Self::Rfc7239,
            ForwardedStyle::Off => Self::Off,
        }
    }
}

/// Which fields the proxy adds.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Headers {
    /// Which fields tell the app about the client.
    pub forwarded: ForwardedStyle,
    /// `X-Request-Id`, to the app and in the answer.
    pub request_id: bool,
    /// `Via` (RFC 9110 section 7.6.3), to the app. Off: requests carry `CDN-Loop` (RFC 8586) instead, so that a loop is found.
    pub via: bool,
}

impl Default for Headers {
    fn default() -> Self {
        Self { forwarded: ForwardedStyle::Both, request_id: true, via: true }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Which log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what may become one.
    Warn,
    /// And what changes.
    #[default]
    Info,
    /// And why.
    Debug,
}

/// Logs, to standard output.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How lines look. Environment: OUTRIGGER_LOG_FORMAT.
    pub format: LogFormat,
    /// Which lines are written. Environment: OUTRIGGER_LOG_LEVEL.
    pub level: LogLevel,
    /// One line a request, written beside the request's path; what does not fit the queue is counted and dropped.
    pub access: bool,
}

/// A switch: `true`, `false`, `"monitor"`, `"10%"`, or a table with allow-lists.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum FlagValue {
    /// For everybody or nobody.
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
    /// The same for addresses and networks.
    #[serde(default)]
    pub networks: Vec<Text<Network>>,
}

impl Default for FlagValue {
    fn default() -> Self {
        Self::Whole(true)
    }
}

impl FlagValue {
    /// The flag as the policy knows it.
    pub fn to_flag(&self) -> outrigger_policy::flags::Flag {
        let (switch, users, networks) = match self {
            Self::Whole(true) => (Switch::On(Percentage::ALL), Vec::new(), Vec::new()),
            Self::Whole(false) => (Switch::Off, Vec::new(), Vec::new()),
            Self::Share(switch) => (switch.0, Vec::new(), Vec::new()),
            Self::Listed(flag) => {
                (flag.switch.0, flag.users.clone(), flag.networks.iter().map(|network| network.0).collect())
            }
        };
        outrigger_policy::flags::Flag { switch, users, networks }
    }
}

/// Feature flags. All `false` is a plain proxy.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// Circuit breakers. Environment: FF_ENABLE_CIRCUIT_BREAKER.
    pub circuit_breaker: FlagValue,
    /// Pools in the app that are warm, jittered and watched. Environment: FF_ENABLE_ENHANCED_POOLING.
    pub enhanced_pooling: FlagValue,
    /// Rate limits by priority. Environment: FF_ENABLE_PRIORITIZED_RATE_LIMIT.
    pub prioritized_rate_limit: FlagValue,
    /// The audit trail. Environment: FF_ENABLE_AUDIT_TRAIL.
    pub audit_trail: FlagValue,
    /// Sticky sessions. Environment: FF_ENABLE_SESSION_AFFINITY.
    pub session_affinity: FlagValue,
}

/// How important a route is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RoutePriority {
    /// Logins: the last to be refused.
    Critical,
    /// The core of the API.
    High,
    /// Everything else.
    #[default]
    Medium,
    /// Expensive work that can wait.
    Low,
    /// Very expensive work: the first to be refused.
    Strict,
}

/// One kind of request, and how it is treated.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The label in metrics and logs: lower-case letters, digits, `-` and `_`; at most 64.
    #[schemars(regex(pattern = r"^[a-z0-9_-]{1,64}$"))]
    pub name: String,
    /// `/exact`, `/items/{id}` (one segment), `/files/**` (everything below, and `/files` itself). Capital letters and a slash at
    /// the end make no difference.
    #[serde(default = "everything")]
    pub path: String,
    /// Methods, in capitals. Empty: all.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Hosts without port, such as `"api.example.com"` or `"*.example.com"`. Empty: all.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Fields that must be there, with their value; `"*"` is any value.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How important these requests are.
    #[serde(default)]
    pub priority: RoutePriority,
    /// Instead of `app.timeout`.
    #[serde(default)]
    pub timeout: Option<Text<Span>>,
    /// Whether a client's `X-Request-Timeout-Ms` makes it shorter.
    #[serde(default = "yes")]
    pub client_timeout: bool,
    /// The breaker that it shares with others: a `[[breaker.groups]]`, or that of another route. Unset: its own.
    #[serde(default)]
    pub breaker: Option<String>,
    /// Instead of `retry.attempts`.
    #[serde(default)]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: Option<u8>,
    /// Instead of `retry.statuses`.
    #[serde(default)]
    pub retry_statuses: Option<Vec<u16>>,
    /// What is said while its breaker is open or the app cannot be reached.
    #[serde(default)]
    pub fallback: Option<Fallback>,
    /// What its requests are to the audit trail: `"off"`, a class (`"authentication"`, `"data"`, `"administration"`, `"deletion"`) or a
    /// type such as `"auth.logout"`. Unset: `audit.default`.
    #[serde(default)]
    pub audit: Option<String>,
    /// Instead of `client.max_body`.
    #[serde(default)]
    pub max_body: Option<Text<OptionalSize>>,
    /// What a request takes from its limits, for those that are more expensive than others.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub cost: u32,
}

const fn yes() -> bool {
    true
}

const fn one() -> u32 {
    1
}

fn everything() -> String {
    "/**".to_owned()
}
