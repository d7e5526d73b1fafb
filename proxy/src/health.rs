//! What health says when the app cannot say it itself.

use std::time::Duration;

/// The body of `/health` in the app's own shape, with the reason.
pub fn unhealthy(uptime: Duration, reason: &str) -> String {
    let body = serde_json::json!({
        "ok": false,
        "data": {
            "status": "unhealthy",
            "reason": reason,
            "timestamp": jiff::Timestamp::now().to_string(),
            "uptime": uptime.as_secs(),
            "version": env!("CARGO_PKG_VERSION"),
        },
    });
    format!("{body}\n")
}
