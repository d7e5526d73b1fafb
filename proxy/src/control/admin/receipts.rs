//! Receipts of requests, for `outrigger why` and the page.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::admin::access::{Endpoints, Needs};
use crate::engine::notices;
use crate::engine::state::State;
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
    let found = state.receipts.recent(limit.min(MOST), keep, |receipt| {
        (!refused || receipt.outcome == Outcome::Rejected)
            && route.as_deref().is_none_or(|route| receipt.route.as_deref() == Some(route))
            && client.as_deref().is_none_or(|client| receipt.pseudonym() == client)
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

/// With subject, address and path: an operator looks at a person's data, so the audit log has it.
async fn reveal(Shared(state): Shared<Arc<State>>, Path(id): Path<String>) -> Result<Json<Value>, NotShown> {
    let shown = found(&state, id.clone(), true)?;
    notices::receipt_revealed(&state, &id);
    Ok(shown)
}
