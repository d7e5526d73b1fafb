//! The app's process for operators, if `outrigger run -- COMMAND` started it: its state, and a restart.

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use outrigger_identity::clock;
use serde_json::{Value, json};

use crate::control::admin::access::{Endpoints, Needs};
use crate::engine::notices;
use crate::engine::state::State;
use crate::run::{GivenUp, Handle};

/// Adds the endpoints.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints.get(Needs::OwnHost, "/app", shown).post("/app/restart", restart)
}

/// Why the app was not restarted.
#[derive(Debug, thiserror::Error)]
enum NotRestarted {
    #[error("this proxy has not started the app; start it with `outrigger run -- COMMAND`")]
    NoCommand,
    #[error(transparent)]
    GivenUp(#[from] GivenUp),
}

impl IntoResponse for NotRestarted {
    fn into_response(self) -> Response {
        let status = match self {
            Self::NoCommand => StatusCode::CONFLICT,
            Self::GivenUp(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

async fn shown(Shared(state): Shared<Arc<State>>, Extension(app): Extension<Option<Handle>>) -> Json<Value> {
    let process = app.map(|app| {
        let shown = app.shown();
        json!({
            "state": shown.phase.map(|phase| phase.name()),
            "pid": shown.pid,
            "starts": shown.starts,
            "last_exit_code": shown.last_exit.map(|code| code.0),
            "last_restart": shown.last_reason,
        })
    });
    let address = state.rules.load().config.app.address.to_string();
    Json(json!({ "address": address, "reachable": !state.reach.is_away(), "process": process }))
}

/// Records that an operator restarts the app.
pub fn note_restart(state: &State) {
    tracing::warn!(event = "app_restart", "an operator restarts the app");
    notices::app_restarted(state);
}

async fn restart(
    Shared(state): Shared<Arc<State>>,
    Extension(app): Extension<Option<Handle>>,
) -> Result<Json<Value>, NotRestarted> {
    let app = app.ok_or(NotRestarted::NoCommand)?;
    note_restart(&state);
    let (before, began, held) = (app.shown(), clock::now(), state.metrics.held.get());
    app.restart().await?;
    let after = app.shown();
    Ok(Json(json!({
        "restarted": true,
        "took_ms": u64::try_from(clock::since(began).as_millis()).unwrap_or(u64::MAX),
        "pid_before": before.pid,
        "pid": after.pid,
        "held_requests": state.metrics.held.get().saturating_sub(held),
    })))
}
