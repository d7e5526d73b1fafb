//! `POST /api/v1/documents/search`: returns the documents nearest to a vector.
//!
//! ChromaDB finds the nearest ids; PostgreSQL has the documents. If PostgreSQL is unavailable, the response uses
//! ChromaDB's copies and is marked `degraded`: it may then contain a document deleted seconds before. There are no
//! degraded responses if searches are audited, since the audit log is in PostgreSQL too.

use std::collections::HashMap;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::App;
use crate::audit::own::{Act, Asker};
use crate::body;
use crate::chroma::Neighbour;
use crate::deadline::Deadline;
use crate::error::ApiError;
use crate::records::{self, Document};

const LIMIT_DEFAULT: usize = 10;
const LIMIT_MAX: usize = 100;
/// Additional results to request, since ChromaDB may still have deleted documents.
const SPARE: usize = 16;
/// Maximum time for the join with PostgreSQL, before falling back to ChromaDB's copies.
const JOIN: Duration = Duration::from_millis(1000);
/// Like [`JOIN`] while PostgreSQL fails.
const JOIN_WHEN_FAILING: Duration = Duration::from_millis(250);
/// Reserved from the deadline to write the response.
const ANSWER: Duration = Duration::from_millis(20);

/// The body of a search request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    embedding: Vec<f64>,
    limit: Option<usize>,
}

/// The nearest documents, nearest first.
#[derive(Debug, Serialize)]
pub struct Results {
    documents: Vec<Hit>,
    /// PostgreSQL was unavailable: the contents are ChromaDB's copies.
    degraded: bool,
}

/// A document and its distance.
#[derive(Debug, Serialize)]
struct Hit {
    id: Uuid,
    /// Cosine distance, 0 (same direction) to 2 (opposite).
    distance: f64,
    title: Option<String>,
    content: Option<String>,
    metadata: Value,
    created_at: Option<Timestamp>,
}

/// Handles a search: 1 to 100 documents, 10 by default.
pub async fn search(
    State(app): State<App>,
    Extension(deadline): Extension<Deadline>,
    asker: Asker,
    body::Json(search): body::Json<Search>,
) -> Result<Json<Results>, ApiError> {
    let limit = search.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::Invalid(format!("limit needs to be from 1 to {LIMIT_MAX}, got {limit}")));
    }
    let embedding = app.limits.embedding(&search.embedding)?;
    let neighbours = app.chroma.nearest(deadline, &embedding, limit + SPARE).await?;
    let ids: Vec<Uuid> = neighbours.iter().map(|n| n.id).collect();
    if let Some(entry) = app.audit.entry(&app.metrics.audit, &asker, Act::Search) {
        // Without an audit entry no document may be shown, so there is no fallback to ChromaDB's copies.
        let found = records::show(&app.postgres, deadline.reserving(ANSWER), &ids, limit, &entry).await;
        let mut hits = join(&app, neighbours, found.map_err(|error| app.audit.blame(error))?);
        hits.truncate(limit);
        return Ok(Json(Results { documents: hits, degraded: false }));
    }
    let patience = if app.postgres.pool().failures() > 0 { JOIN_WHEN_FAILING } else { JOIN };
    let join_by = deadline.reserving(ANSWER).within(patience);
    let mut degraded = false;
    let mut hits = match records::by_ids(&app.postgres, join_by, &ids).await {
        Ok(documents) => join(&app, neighbours, documents),
        // An exhausted pool means load, not an outage: the client should retry.
        Err(error @ (ApiError::PoolExhausted(_) | ApiError::Internal(_))) => return Err(error),
        Err(error) => {
            tracing::debug!(error = %error, "a search is served from ChromaDB alone: {error}");
            app.metrics.searches_degraded.inc();
            degraded = true;
            neighbours.into_iter().map(Hit::from_copy).collect()
        }
    };
    hits.truncate(limit);
    Ok(Json(Results { documents: hits, degraded }))
}

/// Keeps the documents that PostgreSQL has. Marks the others for removal from ChromaDB.
fn join(app: &App, neighbours: Vec<Neighbour>, documents: Vec<Document>) -> Vec<Hit> {
    let mut documents: HashMap<Uuid, Document> = documents.into_iter().map(|d| (d.id, d)).collect();
    let mut ghosts = Vec::new();
    let hits = neighbours
        .into_iter()
        .filter_map(|near| match documents.remove(&near.id) {
            Some(document) => Some(Hit::from_document(document, near.distance)),
            None => {
                ghosts.push(near.id);
                None
            }
        })
        .collect();
    if !ghosts.is_empty() {
        let outbox = std::sync::Arc::clone(&app.outbox);
        // In the background: the client need not wait for it.
        tokio::spawn(async move {
            if let Err(error) = outbox.repair(&ghosts).await {
                tracing::debug!(error = %error, "deleted documents stay in ChromaDB for now: {error}");
            }
        });
    }
    hits
}

impl Hit {
    fn from_document(document: Document, distance: f64) -> Self {
        let Document { id, title, content, metadata, created_at, .. } = document;
        Self { id, distance, title, content: Some(content), metadata, created_at: Some(created_at) }
    }

    /// Reads the copy that [`Document::into_record`] wrote, as far as it is complete.
    fn from_copy(near: Neighbour) -> Self {
        let text = |key: &str| near.metadata.get(key).and_then(Value::as_str);
        Self {
            id: near.id,
            distance: near.distance,
            title: text("title").map(str::to_owned),
            metadata: text("metadata").and_then(|json| serde_json::from_str(json).ok()).unwrap_or(Value::Null),
            created_at: text("created_at").and_then(|time| time.parse().ok()),
            content: near.content,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_from_the_copy_equals_the_document() {
        let document = Document {
            id: Uuid::from_u128(7),
            title: Some("Title".to_owned()),
            content: "text".to_owned(),
            embedding: vec![1.0],
            metadata: serde_json::json!({"a": [1, 2]}),
            created_at: "2026-01-02T03:04:05.000006Z".parse().unwrap(),
        };
        let record = document.clone().into_record();
        let near = Neighbour { id: record.id, distance: 0.5, content: Some(record.content), metadata: record.metadata };
        let copy = serde_json::to_value(Hit::from_copy(near)).unwrap();
        assert_eq!(copy, serde_json::to_value(Hit::from_document(document, 0.5)).unwrap());
    }
}
