//! `[[routes]]`: one kind of request, and how it is treated.

use std::collections::BTreeMap;

use outrigger_policy::priority::Priority;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sections::fallback::Fallback;
use crate::units::{OptionalSize, Span, Text};

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
