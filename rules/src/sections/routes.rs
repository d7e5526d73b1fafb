//! `[[routes]]`: one kind of request, and how it is treated.

use std::collections::BTreeMap;

use outrigger_policy::flags::Network;
use outrigger_policy::priority::Priority;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::acting::Acting;
use crate::sections::fallback::Fallback;
use crate::units::{OptionalSize, Span, Text};

/// How important a route is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RoutePriority {
    /// Logins: rejected last.
    Critical,
    /// The core of the API.
    High,
    /// Everything else.
    #[default]
    Medium,
    /// Expensive work that can wait.
    Low,
    /// Very expensive work: rejected first.
    Strict,
}

impl From<RoutePriority> for Priority {
    fn from(priority: RoutePriority) -> Self {
        match priority {
            RoutePriority::Critical => Self::Critical,
            RoutePriority::High => Self::High,
            RoutePriority::Medium => Self::Medium,
            RoutePriority::Low => Self::Low,
            RoutePriority::Strict => Self::Strict,
        }
    }
}

/// One kind of request, and how it is treated.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The label in metrics and logs: lower-case letters, digits, `-` and `_`; at most 64.
    #[schemars(regex(pattern = r"^[a-z0-9_-]{1,64}$"))]
    pub name: String,
    /// `/exact`, `/items/{id}` (one segment), `/files/**` (everything below, and `/files` itself). Case and a trailing slash
    /// are ignored.
    #[serde(default = "everything")]
    #[schemars(regex(pattern = r"^(/(\{[A-Za-z0-9_]+\}|[^/:*{}?# <>\[\]\\\^|][^/*{}?# <>\[\]\\\^|]*))*(/|/\*\*)?$"))]
    pub path: String,
    /// Methods, in capitals. Empty: all.
    #[serde(default)]
    #[schemars(inner(regex(pattern = r"^[!#$%&'+.^_`|~0-9A-Z-]+$")))]
    pub methods: Vec<String>,
    /// Hosts without port, such as `"api.example.com"` or `"*.example.com"`. Empty: all.
    #[serde(default)]
    #[schemars(inner(regex(pattern = r"^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")))]
    pub hosts: Vec<String>,
    /// Headers that a request must have, with their value; `"*"` is any value.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How important these requests are.
    #[serde(default)]
    pub priority: RoutePriority,
    /// Overrides `app.timeout`.
    #[serde(default)]
    pub timeout: Option<Text<Span>>,
    /// Whether a client's `X-Request-Timeout-Ms` may shorten the timeout.
    #[serde(default = "yes")]
    pub client_timeout: bool,
    /// A circuit breaker to share: one of `[[breaker.groups]]`, or that of another route. Unset: its own.
    #[serde(default)]
    pub breaker: Option<String>,
    /// Overrides `retry.attempts`.
    #[serde(default)]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: Option<u8>,
    /// Overrides `retry.statuses`.
    #[serde(default)]
    pub retry_statuses: Option<Vec<u16>>,
    /// The response while its circuit breaker is open or the app is unreachable.
    #[serde(default)]
    pub fallback: Option<Fallback>,
    /// The audit class of its requests: `"off"`, a class (`"authentication"`, `"data"`, `"administration"`, `"deletion"`) or
    /// a type such as `"auth.logout"`. Unset: `audit.default`.
    #[serde(default)]
    pub audit: Option<String>,
    /// Overrides `client.max_body`.
    #[serde(default)]
    pub max_body: Option<Text<OptionalSize>>,
    /// Addresses or networks of the clients that may use it, at most 1000; others get 403. Empty: all.
    #[serde(default)]
    pub allow: Vec<Text<Network>>,
    /// Addresses or networks of clients that may not use it, likewise. Wins over `allow`.
    #[serde(default)]
    pub deny: Vec<Text<Network>>,
    /// Whether `allow` and `deny` reject requests, or only count those that they would.
    #[serde(default)]
    pub address_mode: Acting,
    /// Tokens that a request takes from its rate limits; more than 1 for expensive requests.
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
