//! Receipts of requests, for `outrigger why` and the page.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use outrigger_policy::audit::{EventType, Outcome as Recorded};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::admin::access::{Endpoints, Needs};
use crate::control::admin::audit;
use crate::engine::state::State;
use crate::mechanism::audit::Act;
use crate::mechanism::outcome::Outcome;

/// The most receipts in one response.
const MOST: usize = 500;

/// Adds the endpoints.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints
        .get(Needs::OwnHost, "/requests", recent)
        .get(Needs::OwnHost, "/requests/{id}", one)
        .post("/requests/{id}/reveal", reveal)
}

/// Why there is no receipt.
#[derive(Debug, thiserror::Error)]
enum NotShown {
    #[error("{0}; write ?limit=50, ?refused=true, ?route=NAME or ?client=PSEUDONYM")]
    Query(#[from] QueryRejection),
    #[error(
        "there is no receipt of request {id:?}: it was ordinary and not in the sample (receipts.sample), is older than receipts.keep \
         ({keep_s} s), came to another Machine, or was pushed out (receipts.max: {max}); the audit log may have it: outrigger audit search \
         --request-id"
    )]
    Unknown { id: String, keep_s: u64, max: usize },
}

impl IntoResponse for NotShown {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Query(_) => StatusCode::BAD_REQUEST,
            Self::Unknown { .. } => StatusCode::NOT_FOUND,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    limit: usize,
    refused: bool,
    route: Option<String>,
    client: Option<String>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { limit: 50, refused: false, route: None, client: None }
    }
}

async fn recent(
    Shared(state): Shared<Arc<State>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Value>, NotShown> {
    let Query(Wanted { limit, refused, route, client }) = wanted?;
    let keep = state.rules.load().config.receipts.keep;
    // Another text than that of a pseudonym is nobody's.
    let client = client.map(|client| u64::from_str_radix(&client, 16).unwrap_or_default());
    let found = state.receipts.recent(limit.min(MOST), keep, |receipt| {
        (!refused || receipt.outcome == Outcome::Rejected)
            && route.as_deref().is_none_or(|route| receipt.route.as_deref() == Some(route))
            && client.is_none_or(|client| receipt.client.id == client)
    });
    let shown: Vec<Value> = found.iter().map(|receipt| receipt.shown(false)).collect();
    Ok(Json(json!({ "receipts": shown, "in_memory": state.receipts.len() })))
}

fn found(state: &State, id: String, reveal: bool) -> Result<Json<Value>, NotShown> {
    let rules = state.rules.load();
    let rules = &rules.config.receipts;
    let found = state.receipts.of(&id, rules.keep);
    if found.is_empty() {
        return Err(NotShown::Unknown { id, keep_s: rules.keep.as_secs(), max: rules.max });
    }
    let shown: Vec<Value> = found.iter().map(|receipt| receipt.shown(reveal)).collect();
    Ok(Json(json!({ "receipts": shown })))
}

async fn one(Shared(state): Shared<Arc<State>>, Path(id): Path<String>) -> Result<Json<Value>, NotShown> {
    found(&state, id, false)
}

/// The operator who looks at a person's data, and why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct By {
    by: String,
    reason: Option<String>,
}

impl Default for By {
    fn default() -> Self {
        Self { by: audit::default_operator(), reason: None }
    }
}

/// With subject, address and path. If there is an audit log, that is on disk first: what cannot be recorded is not shown.
async fn reveal(
    Shared(state): Shared<Arc<State>>,
    Path(id): Path<String>,
    body: Option<Json<By>>,
) -> Result<Json<Value>, Response> {
    let shown = found(&state, id.clone(), true).map_err(NotShown::into_response)?;
    if state.trail.is_some() {
        let By { by, reason } = body.map(|Json(by)| by).unwrap_or_default();
        let details = json!({ "request_id": id, "by": by }).to_string();
        let act = Act::new(EventType::AdminAction, "receipt.reveal", Recorded::Success);
        let act = Act { is_operator: true, reason, details: Some(details), ..act };
        audit::record_entry(&state, act).await.map_err(IntoResponse::into_response)?;
    }
    Ok(shown)
}
