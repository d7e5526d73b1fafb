//! The responses to health checks that Outrigger gives itself.

use std::time::Duration;

use crate::engine::pause;
use crate::engine::state::State;

/// Pause and maintenance, as health checks show them.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// When the pause ends by itself, and the number of requests that wait for it.
    pub pause: Option<(jiff::Timestamp, u32)>,
    /// Requests are refused.
    pub is_maintenance: bool,
}

impl Orders {
    /// Those in force.
    pub fn of(state: &State) -> Self {
        let waiting = || state.gate.standing().waiting.iter().sum();
        Self {
            pause: state.pause.shown().map(|pause| (pause.ends, waiting())),
            is_maintenance: pause::is_maintenance(state),
        }
    }
}

/// The body of `/health` in the app's format, with the reason and the number of requests that wait for an app that is down.
pub fn unhealthy(uptime: Duration, reason: &str, held: Option<u32>) -> String {
    let mut body = status(false, uptime);
    body["data"]["reason"] = reason.into();
    if let Some(held) = held {
        body["data"]["requestsHeld"] = held.into();
    }
    format!("{body}\n")
}

/// The body of `/health` that Outrigger gives for the app: it has no such endpoint and is healthy, or an operator pauses requests
/// or has them refused.
pub fn healthy(uptime: Duration, orders: &Orders) -> String {
    let mut body = status(true, uptime);
    if let Some((ends, held)) = orders.pause {
        body["data"]["pausedUntil"] = ends.to_string().into();
        body["data"]["requestsHeld"] = held.into();
    }
    if orders.is_maintenance {
        body["data"]["maintenance"] = true.into();
    }
    format!("{body}\n")
}

fn status(is_healthy: bool, uptime: Duration) -> serde_json::Value {
    serde_json::json!({
        "ok": is_healthy,
        "data": {
            "status": if is_healthy { "healthy" } else { "unhealthy" },
            "timestamp": jiff::Timestamp::now().to_string(),
            "uptime": uptime.as_secs(),
            "version": env!("CARGO_PKG_VERSION"),
        },
    })
}
