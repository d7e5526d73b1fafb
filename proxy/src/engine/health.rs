//! The responses to health checks that Outrigger gives itself.

use std::time::Duration;

/// The body of `/health` in the app's format, with the reason and the number of requests that wait for an app that is down.
pub fn unhealthy(uptime: Duration, reason: &str, held: Option<u32>) -> String {
    let mut body = status(false, uptime);
    body["data"]["reason"] = reason.into();
    if let Some(held) = held {
        body["data"]["requestsHeld"] = held.into();
    }
    format!("{body}\n")
}

/// The body of `/health` for an app that has no such endpoint, and is healthy.
pub fn healthy(uptime: Duration) -> String {
    format!("{}\n", status(true, uptime))
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
