//! The configuration in force, without secrets: for operators, and for `outrigger diff`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State as Shared};
use serde::Deserialize;
use serde_json::Value;

use crate::control::admin::access::{Endpoints, Needs};
use crate::engine::state::State;

/// The endpoint.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints.get(Needs::Operator, "/config", config)
}

/// The query of the endpoint.
#[derive(Debug, Deserialize)]
struct Wanted {
    /// Without defaults.
    #[serde(default)]
    changed: bool,
}

/// As `outrigger config --json` prints it.
async fn config(Shared(state): Shared<Arc<State>>, Query(wanted): Query<Wanted>) -> Json<Value> {
    let rules = state.rules.load_full();
    Json(rules.config.effective.as_ref().map_or(Value::Null, |effective| effective.to_json(wanted.changed)))
}
