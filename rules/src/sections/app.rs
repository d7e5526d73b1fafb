//! `[app]`: the app behind the proxy.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{AppAddress, MetricsUrl, Span, Text};

const fn seconds(n: u64) -> Text<Span> {
    Text(Span(Duration::from_secs(n)))
}

/// The app behind the proxy.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct App {
    /// `unix:PATH` or `HOST:PORT`. Environment: OUTRIGGER_APP_ADDRESS.
    pub address: Text<AppAddress>,
    /// Connect timeout. Later: 504.
    pub connect_timeout: Text<Span>,
    /// How long a request may take until the response's head arrives, including its time in the queue, and the longest pause
    /// within a response. Later: 504. A route may override it.
    pub timeout: Text<Span>,
    /// How long requests wait for an app that refuses connections, such as one that restarts. "0s": they fail at once.
    pub hold: Text<Span>,
    /// How many requests may wait for it. More get 503 at once, the least important first.
    pub max_held: NonZeroU32,
    /// How long an event stream or a WebSocket may be silent.
    pub stream_timeout: Text<Span>,
    /// How long an idle connection to the app is kept. Keep it below the app's own keep-alive timeout.
    pub idle_timeout: Text<Span>,
    /// Idle connections kept for each worker thread.
    pub max_idle: NonZeroU16,
    /// The address of the app's metrics. Unset: `/metrics` at `address`. On the public port its path gets 404 unless a route
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
