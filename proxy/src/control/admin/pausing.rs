//! Pause and maintenance, for operators.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use outrigger_rules::units::Span;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::admin::access::Endpoints;
use crate::engine::pause::{self, End, LONGEST, USUAL};
use crate::engine::state::State;

/// Adds the endpoints.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints.post("/pause", begin).post("/resume", resume).post("/maintenance", maintain)
}

/// Why an order was rejected.
#[derive(Debug, thiserror::Error)]
pub enum NotDone {
    /// A body that is not as described.
    #[error("{0}; send {{\"for\": \"30s\"}}, or nothing")]
    Pause(serde_json::Error),
    /// Not a length of a pause.
    #[error("{0:?} is not a length: write \"30s\", \"2m\", at most \"10m\"")]
    Length(String),
    /// There is no pause.
    #[error("requests are not paused")]
    NotPaused,
    /// A body that is not as described.
    #[error("{0}; send {{\"on\": true}} or {{\"on\": false}}")]
    Maintenance(serde_json::Error),
    /// The file orders it.
    #[error("the file has maintenance.enabled = true: change that")]
    InFile,
}

impl IntoResponse for NotDone {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Pause(_) | Self::Length(_) | Self::Maintenance(_) => StatusCode::BAD_REQUEST,
            Self::NotPaused | Self::InFile => StatusCode::CONFLICT,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(rename = "for")]
    length: Option<String>,
}

async fn begin(Shared(state): Shared<Arc<State>>, body: Bytes) -> Result<Json<Value>, NotDone> {
    let wanted = if body.is_empty() { Ok(Wanted::default()) } else { serde_json::from_slice(&body) };
    let length = match wanted.map_err(NotDone::Pause)?.length {
        Some(text) => match text.parse::<Span>() {
            Ok(Span(length)) if length > Duration::ZERO && length <= LONGEST => length,
            _ => return Err(NotDone::Length(text)),
        },
        None => USUAL,
    };
    let pause = pause::pause(&state, length);
    Ok(Json(json!({
        "paused": true,
        "for_s": length.as_secs_f64(),
        "since": pause.since.to_string(),
        "ends": pause.ends.to_string(),
    })))
}

async fn resume(Shared(state): Shared<Arc<State>>) -> Result<Json<Value>, NotDone> {
    let resumed = pause::resume(&state, End::Operator).ok_or(NotDone::NotPaused)?;
    Ok(Json(json!({
        "resumed": true,
        "paused_ms": u64::try_from(resumed.paused.as_millis()).unwrap_or(u64::MAX),
        "held_requests": resumed.held,
    })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    on: bool,
}

async fn maintain(Shared(state): Shared<Arc<State>>, body: Bytes) -> Result<Json<Value>, NotDone> {
    let Order { on } = serde_json::from_slice(&body).map_err(NotDone::Maintenance)?;
    let has_changed = set_maintenance(&state, on)?;
    Ok(Json(json!({ "maintenance": on, "changed": has_changed })))
}

/// Begins or ends maintenance. Returns false if it was so already.
///
/// # Errors
/// The file orders it, so that it does not end here.
pub fn set_maintenance(state: &State, is_on: bool) -> Result<bool, NotDone> {
    let has_changed = pause::set_maintenance(state, is_on);
    if !is_on && pause::is_maintenance(state) { Err(NotDone::InFile) } else { Ok(has_changed) }
}
