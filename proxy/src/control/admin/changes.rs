//! Orders about changes of the configuration: reload, apply, confirm.

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
use crate::engine::guard::{NotObeyed, Obeyed, Order};
use crate::engine::state::State;

/// The shortest and the longest time in which a change must be confirmed.
const CONFIRM: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Adds the endpoints.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints.post("/config/reload", reload).post("/config/apply", apply).post("/config/confirm", confirm)
}

/// Why an order was rejected.
#[derive(Debug, thiserror::Error)]
pub enum NotDone {
    /// A body that is not as described.
    #[error("{0}; send {{\"force\": true}}, or nothing")]
    Reload(serde_json::Error),
    /// A body that is not as described.
    #[error("{0}; send {{\"text\": \"the configuration\", \"confirm\": \"120s\"}}")]
    Apply(serde_json::Error),
    /// Not a time for a confirmation.
    #[error("{0:?} is not a time to confirm it: write \"120s\", from \"1s\" to \"1d\"")]
    Confirm(String),
    /// It has no effect.
    #[error(transparent)]
    NotObeyed(#[from] NotObeyed),
}

impl IntoResponse for NotDone {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Reload(_) | Self::Apply(_) | Self::Confirm(_) => StatusCode::BAD_REQUEST,
            Self::NotObeyed(NotObeyed::Invalid(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NotObeyed(NotObeyed::Busy) => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotObeyed(_) => StatusCode::CONFLICT,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Reload {
    force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Apply {
    text: String,
    #[serde(default)]
    confirm: Option<String>,
    #[serde(default)]
    force: bool,
}

async fn reload(Shared(state): Shared<Arc<State>>, body: Bytes) -> Result<Json<Value>, NotDone> {
    let wanted = if body.is_empty() { Ok(Reload::default()) } else { serde_json::from_slice(&body) };
    let is_forced = wanted.map_err(NotDone::Reload)?.force;
    Ok(told(state.guard.order(Order::Reload { is_forced }).await?))
}

async fn apply(Shared(state): Shared<Arc<State>>, body: Bytes) -> Result<Json<Value>, NotDone> {
    let Apply { text, confirm, force } = serde_json::from_slice(&body).map_err(NotDone::Apply)?;
    let time = |text: String| match text.parse::<Span>() {
        Ok(Span(time)) if CONFIRM.contains(&time) => Ok(time),
        _ => Err(NotDone::Confirm(text)),
    };
    let confirm = confirm.map(time).transpose()?;
    Ok(told(state.guard.order(Order::Apply { text, confirm, is_forced: force }).await?))
}

async fn confirm(Shared(state): Shared<Arc<State>>) -> Result<Json<Value>, NotDone> {
    Ok(told(state.guard.order(Order::Confirm).await?))
}

fn told(Obeyed { version, probation, confirm }: Obeyed) -> Json<Value> {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    Json(json!({ "version": version, "probation_s": seconds(probation), "confirm_s": seconds(confirm) }))
}
