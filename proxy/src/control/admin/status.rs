//! The summary of everything, as JSON.

use std::sync::Arc;

use axum::Extension;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::control::admin::access::{Endpoints, Needs};
use crate::control::status::gather::Board;

/// Adds the endpoint.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints.get(Needs::OwnHost, "/status", status)
}

async fn status(Extension(board): Extension<Arc<Board>>) -> Response {
    match serde_json::to_vec(&*board.status()) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        // A map with keys that are not text: there is none.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
