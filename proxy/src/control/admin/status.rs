//! The summary of everything, as JSON: of this Machine, and of all.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::future::join_all;
use outrigger_identity::clock;
use serde_json::{Value, json};

use crate::control::admin::access::{Endpoints, Needs};
use crate::control::status::gather::Board;
use crate::engine::state::State;
use crate::mechanism::peers::probe::summary_of;

/// How long a peer may take for its summary.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long the summaries of all Machines are shown again.
const FRESH: Duration = Duration::from_secs(1);
/// The most peers that are asked.
const MOST_PEERS: usize = 100;

/// Adds the endpoints.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints.get(Needs::OwnHost, "/status", status).get(Needs::OwnHost, "/status/all", all)
}

async fn status(Extension(board): Extension<Arc<Board>>) -> Response {
    match serde_json::to_vec(&*board.status()) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        // A map with keys that are not text: there is none.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// This Machine and its peers, each with its summary or why there is none. Those who ask within a second share it.
async fn all(Shared(state): Shared<Arc<State>>, Extension(board): Extension<Arc<Board>>) -> Json<Value> {
    let mut latest = board.of_all.lock().await;
    match latest.as_ref() {
        Some((made, shown)) if clock::since(*made) < FRESH => Json(shown.clone()),
        _ => {
            let shown = gathered(&state, &board).await;
            *latest = Some((clock::now(), shown.clone()));
            Json(shown)
        }
    }
}

async fn gathered(state: &State, board: &Board) -> Value {
    let here = board.status();
    let mut machines = vec![json!({ "name": here.machine, "status": &*here })];
    if let Some(peers) = &state.peers {
        let seen = peers.seen();
        let asked = seen.peers.iter().take(MOST_PEERS).map(async |peer| {
            let answer = summary_of(peers, peer, PATIENCE).await.map_err(|e| e.to_string());
            let parsed =
                answer.and_then(|summary| serde_json::from_slice::<Value>(&summary).map_err(|e| e.to_string()));
            match parsed {
                Ok(status) => json!({ "name": *peer.name, "status": status }),
                Err(error) => json!({ "name": *peer.name, "error": error }),
            }
        });
        machines.extend(join_all(asked).await);
    }
    json!({ "machines": machines })
}
