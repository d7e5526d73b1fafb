//! `GET /status`: one summary of this process, for the page, the terminal and scripts.
//!
//! ```text
//! sampler.rs    samples counters and histograms once a second, in bounded rings
//! windows.rs    rates and quantiles of the last seconds
//! gather.rs     the summary; configuration.rs: its part about the configuration
//! saved.rs      snapshots of the state
//! headline.rs   one sentence: the worst problem, or that there is none
//! ```
//!
//! It names no client: clients have pseudonyms.

pub mod configuration;
pub mod gather;
pub mod headline;
pub mod sampler;
pub mod saved;
mod windows;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::configuration::{Configuration, Probation, Refused, Undone};
use self::saved::SavedState;
pub use crate::engine::history::{BreakerChange, Event, EventKind, ReloadProblem};

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// There is no problem.
    #[default]
    Ok,
    /// A person should look at it, soon.
    Warn,
    /// Clients get errors.
    Bad,
}

/// The sentence on top.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headline {
    /// How bad it is.
    pub level: Level,
    /// One sentence: the worst problem.
    pub text: String,
    /// The other problems, the worst first.
    pub others: Vec<String>,
}

/// The summary.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// When it was made.
    pub at: Timestamp,
    /// This version of Outrigger.
    pub version: String,
    /// This Machine's name, if it has one.
    pub machine: Option<String>,
    /// Seconds since this process started.
    pub uptime_s: u64,
    /// `serving`, `lame_duck` or `closing`.
    pub phase: String,
    /// The worst problem.
    pub headline: Headline,
    /// Requests.
    pub traffic: Traffic,
    /// The concurrency limit and its queue.
    pub concurrency: Concurrency,
    /// Rate limits.
    pub limits: Limits,
    /// Circuit breakers.
    pub breakers: Breakers,
    /// The Machines.
    pub machines: Machines,
    /// Bans.
    pub bans: Bans,
    /// The app, requests that wait for it, and retries.
    pub app: App,
    /// The pause that an operator has ordered.
    pub pause: Option<Pause>,
    /// Maintenance, if requests are refused for it.
    pub maintenance: Option<Maintenance>,
    /// Snapshots of the state, if there are any.
    pub saved: Option<SavedState>,
    /// The audit log, if there is one.
    pub audit: Option<Audit>,
    /// The configuration.
    pub config: Configuration,
    /// The latest events, the newest first, at most 100.
    pub events: Vec<Event>,
}

/// Requests of some seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Requests that ended, each second.
    pub requests_per_s: f64,
    /// Failures each second: 5xx of the app, 502, 503 for an unreachable app, 504, responses cut off.
    pub errors_per_s: f64,
    /// Rejections each second: limits, bans, overload, circuit breakers, malformed requests.
    pub rejected_per_s: f64,
    /// The median duration in ms, without rejections and streams. `None`: no requests.
    pub p50_ms: Option<f64>,
    /// The 99th percentile in ms.
    pub p99_ms: Option<f64>,
}

/// The last 10 and 60 seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Windows {
    /// The last 10 seconds.
    pub last_10_s: Rates,
    /// The last 60 seconds.
    pub last_60_s: Rates,
}

/// Requests.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// All requests.
    pub all: Windows,
    /// Requests between their head and the end of their response.
    pub in_flight: u64,
    /// Open connections of clients and peers.
    pub connections: u64,
    /// By priority, the most important first; without durations.
    pub priorities: Vec<PriorityTraffic>,
    /// The 50 routes with the most requests in the last 60 seconds.
    pub routes: Vec<RouteTraffic>,
    /// The other routes that had requests.
    pub other_routes: OtherRoutes,
    /// Rejections of the last 60 seconds by reason, the most frequent first; reasons without any are left out.
    pub rejections: Vec<Reason>,
    /// Failures of the app in the last 60 seconds by reason, likewise.
    pub failures: Vec<Reason>,
    /// The last 5 minutes, a point every 5 seconds, the oldest first.
    pub history: Vec<Point>,
}

/// Requests of a priority.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PriorityTraffic {
    /// Its name.
    pub priority: String,
    /// Its requests; without durations.
    pub windows: Windows,
    /// Waiting requests.
    pub queued: u32,
    /// The share of its requests in the last 10 seconds that was rejected to protect the app, 0 to 1.
    pub shed_share: f64,
    /// Since when requests of this priority are rejected for that; `None`: they are not.
    pub shed_since: Option<Timestamp>,
}

/// Requests of a route.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RouteTraffic {
    /// Its name.
    pub route: String,
    /// Its priority.
    pub priority: String,
    /// Its requests.
    pub windows: Windows,
}

/// Requests of the routes that are not shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OtherRoutes {
    /// The number of other routes.
    pub routes: usize,
    /// Their requests; without durations.
    pub windows: Windows,
}

/// A reason, and how often it occurred.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// The label in metrics.
    pub reason: String,
    /// How often each second, in the last 60 seconds.
    pub per_s: f64,
    /// How often since the process started.
    pub total: u64,
}

/// Some seconds of all requests.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Point {
    /// Requests each second.
    pub requests_per_s: f64,
    /// Failures each second.
    pub errors_per_s: f64,
    /// Rejections each second.
    pub rejected_per_s: f64,
    /// The 99th percentile in ms.
    pub p99_ms: Option<f64>,
}

/// The concurrency limit and its queue.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Concurrency {
    /// `enforce`, `monitor` or `off`.
    pub mode: String,
    /// The limit.
    pub limit: u32,
    /// Permits in use.
    pub in_flight: u32,
    /// Waiting requests, of all priorities.
    pub queued: u32,
    /// The most that may wait.
    pub queue_limit: u32,
    /// The app's latency, up to the head of its response.
    pub latency_ms: Option<f64>,
}

/// Rate limits.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// At most 50, those with the most rejections first.
    pub limits: Vec<Limit>,
    /// The number of other limits.
    pub other_limits: usize,
    /// Keys that are in use.
    pub keys_used: usize,
    /// Keys that fit.
    pub keys_room: usize,
    /// `off`, `shared` or `degraded`.
    pub sharing: String,
    /// Why Redis is unavailable.
    pub sharing_reason: Option<String>,
    /// For how long it has been so.
    pub sharing_since_s: u64,
    /// The Machines among which shared quotas are divided.
    pub sharing_machines: u32,
}

/// A rate limit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Limit {
    /// Its name.
    pub name: String,
    /// `enforce`, `monitor` or `off`.
    pub mode: String,
    /// Whether Machines share it.
    pub is_shared: bool,
    /// Rejections each second, in the last 60 seconds.
    pub refused_per_s: f64,
    /// Rejections since the process started.
    pub refused_total: u64,
    /// Requests that `enforce` would have rejected.
    pub monitored_total: u64,
    /// The clients that it rejected most often in the last one to two minutes, at most 5.
    #[serde(default)]
    pub top_clients: Vec<TopClient>,
}

/// A client that a limit rejects often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopClient {
    /// Its pseudonym, as in receipts.
    pub client: String,
    /// At most how often.
    pub refused: u64,
    /// By how much that may be too high.
    pub error: u64,
}

/// Circuit breakers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Breakers {
    /// At most 50 of those in use: those that are not closed first, then by failed calls.
    pub breakers: Vec<Breaker>,
    /// The number of others in use.
    pub other_breakers: usize,
    /// The last 50 changes, the newest first.
    pub changes: Vec<BreakerChange>,
}

/// A circuit breaker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Breaker {
    /// Its name.
    pub name: String,
    /// `closed`, `open`, `half_open` or `ramp`.
    pub state: String,
    /// An operator has forced it.
    pub is_forced: bool,
    /// Since when; `None` if it never had another state.
    pub since: Option<Timestamp>,
    /// Why it opened last.
    pub reason: Option<String>,
    /// How long it stays open.
    pub open_for_s: Option<f64>,
    /// Calls in its window.
    pub calls: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that were slow.
    pub slow: u32,
    /// Clients that are rejected for failures that only they saw.
    pub clients_refused: usize,
}

/// The Machines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machines {
    /// The state of this Machine as peers see it, if it has peers.
    pub state: Option<String>,
    /// Sticky sessions: `off`, `monitor` or `enforce`.
    pub sessions: Option<String>,
    /// How requests get to their Machine: `replay` or `proxy`.
    pub sessions_via: Option<String>,
    /// The other Machines, at most 100.
    pub peers: Vec<Peer>,
    /// Known Machines, this one included.
    pub known: u32,
    /// Machines that take requests.
    pub ready: u32,
    /// Machines that appeared since the process started.
    pub scaled_up: u64,
    /// Machines that disappeared.
    pub scaled_down: u64,
}

/// Another Machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// `ready`, `busy`, `unready`, `leaving` or `silent`.
    pub state: String,
}

/// Bans.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bans {
    /// `enforce`, `monitor` or `off`.
    pub mode: String,
    /// Bans in force.
    pub count: usize,
}

/// The app.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct App {
    /// Its address.
    pub address: String,
    /// Whether it accepts connections.
    pub is_reachable: bool,
    /// Since when it does not.
    pub away_since: Option<Timestamp>,
    /// Requests that wait for it while it is away.
    pub held: u32,
    /// How long each may wait; 0: they fail at once.
    pub hold_s: f64,
    /// Requests that waited, and then reached it.
    pub held_total: u64,
    /// Retries each second, in the last 60 seconds.
    pub retries_per_s: f64,
    /// Retries that the budget did not allow, each second.
    pub retries_denied_per_s: f64,
    /// Retries that the budget allows now.
    pub retry_budget: f64,
    /// Its process, if `outrigger run -- COMMAND` started it.
    pub process: Option<Process>,
}

/// The app's process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Process {
    /// Its state; `None` before the first start.
    pub state: Option<String>,
    /// Its process id, while it runs.
    pub pid: Option<i32>,
    /// How often it was started.
    pub starts: u64,
    /// How it ended last.
    pub last_exit_code: Option<u8>,
    /// Why it was restarted last.
    pub last_restart: Option<String>,
}

/// A pause: requests wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself.
    pub ends: Timestamp,
    /// Requests that wait.
    pub waiting: u32,
}

/// Maintenance: requests are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// Since when an operator has ordered it; `None`: only the file does.
    pub since: Option<Timestamp>,
    /// The file orders it, too.
    pub is_in_file: bool,
}

/// The audit log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Audit {
    /// `enforce`, `monitor` or `off`, for most clients.
    pub mode: String,
    /// Whether events of all classes get to disk.
    pub is_writable: bool,
    /// Events that wait to be written.
    pub queued: usize,
    /// Events on disk that PostgreSQL does not have yet.
    pub unshipped: i64,
    /// Age of the oldest of them.
    pub lag_s: f64,
    /// Bytes on disk.
    pub bytes: i64,
    /// Events that could not be written.
    pub lost: u64,
    /// Signs that it was changed or rolled back.
    pub alarms: u64,
}
