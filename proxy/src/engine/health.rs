//! The response to health checks when the app cannot give it.

use std::time::Duration;

/// The body of `/health` in the app's format, with the reason and the number of requests that wait for an app that is down.
pub fn unhealthy(uptime: Duration, reason: &str, held: Option<u32>) -> String {
    let mut body = serde_json::json!({
        "ok": false,
        "data": {
            "status": "unhealthy",
            "reason": reason,
            "timestamp": jiff::Timestamp::now().to_string(),
            "uptime": uptime.as_secs(),
            "version": env!("CARGO_PKG_VERSION"),
        },
    });
    if let Some(held) = held {
        body["data"]["requestsHeld"] = held.into();
    }
    format!("{body}\n")
}
