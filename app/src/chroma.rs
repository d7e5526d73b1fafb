//! ChromaDB: the few calls of its v2 API that the app needs, through a pool whose health check is the heartbeat.
//!
//! The collection is created when missing. Its id is cached until ChromaDB responds that it is gone.
//! Writes are upserts: `add` with an existing id responds 201 and changes nothing.

use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::chroma_http::{ChromaBackend, ChromaError, bad_url, describe_http, send};
use crate::config::{ChromaSettings, ConfigError};
use crate::deadline::Deadline;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::pool::{Checkout, Pool, PoolSettings};

/// Client for ChromaDB.
#[derive(Debug)]
pub struct Chroma {
    pool: Pool<ChromaBackend>,
    backend: ChromaBackend,
    prober: reqwest::Client,
    name: String,
    timeout: Duration,
    dimension: u32,
    collection: RwLock<Option<String>>,
    /// Serialises lookups of the collection; waiting tasks use the result.
    lookup: tokio::sync::Mutex<()>,
}

/// A document as stored in ChromaDB.
#[derive(Clone, Debug)]
pub struct Record {
    pub id: Uuid,
    pub embedding: Vec<f32>,
    pub content: String,
    pub metadata: Value,
}

/// A search result.
#[derive(Clone, Debug)]
pub struct Neighbour {
    pub id: Uuid,
    /// Cosine distance, 0 (same direction) to 2 (opposite).
    pub distance: f64,
    pub content: Option<String>,
    pub metadata: Value,
}

impl Chroma {
    /// Checks the address and starts the pool. The server may be down.
    ///
    /// # Errors
    /// `CHROMA_URL` cannot be used; the error contains a hint.
    pub fn start(
        settings: &ChromaSettings,
        dimension: u32,
        pool: PoolSettings,
        metrics: Metrics,
    ) -> Result<Self, ConfigError> {
        let backend = ChromaBackend::new(settings)?;
        let prober = backend.http_client().map_err(|e| bad_url(e.to_string()))?;
        Ok(Self {
            pool: Pool::start(backend.clone(), pool, metrics),
            backend,
            prober,
            name: settings.chroma_collection.clone(),
            timeout: settings.chroma_timeout.get(),
            dimension,
            collection: RwLock::new(None),
            lookup: tokio::sync::Mutex::new(()),
        })
    }

    /// Writes these records, replacing those with the same ids.
    ///
    /// # Errors
    /// If [`ChromaError::is_doubtful`], none, some or all records may have been written.
    pub async fn upsert(&self, deadline: Deadline, records: &[Record]) -> Result<(), ChromaError> {
        let body = Columns {
            ids: records.iter().map(|r| r.id).collect(),
            embeddings: records.iter().map(|r| r.embedding.as_slice()).collect(),
            documents: records.iter().map(|r| r.content.as_str()).collect(),
            metadatas: records.iter().map(|r| &r.metadata).collect(),
        };
        self.on_collection("chroma::upsert", deadline, "upsert", &body).await.map(|_: Value| ())
    }

    /// Removes these ids; missing ones are not an error.
    ///
    /// # Errors
    /// As [`Self::upsert`].
    pub async fn delete(&self, deadline: Deadline, ids: &[Uuid]) -> Result<(), ChromaError> {
        let body = json!({ "ids": ids });
        self.on_collection("chroma::delete", deadline, "delete", &body).await.map(|_: Value| ())
    }

    /// The `limit` records nearest to `embedding`, nearest first.
    ///
    /// # Errors
    /// ChromaDB is unreachable, returns an error, or does not respond in time.
    pub async fn nearest(
        &self,
        deadline: Deadline,
        embedding: &[f32],
        limit: usize,
    ) -> Result<Vec<Neighbour>, ChromaError> {
        let body = json!({
            "query_embeddings": [embedding],
            "n_results": limit,
            "include": ["documents", "metadatas", "distances"],
        });
        let found: Found = self.on_collection("chroma::nearest", deadline, "query", &body).await?;
        Ok(found.into_neighbours())
    }

    /// Checks within `limit` that ChromaDB responds and has a usable collection. Does not use a connection of the
    /// pool.
    ///
    /// # Errors
    /// The reason, for the health report.
    pub async fn probe(&self, limit: Duration) -> Result<(), String> {
        let deadline = Deadline::after(limit);
        let asked = deadline.run(self.prober.get(self.backend.url(&["healthcheck"])).send()).await;
        let outcome = match asked {
            Err(_) => Err(format!("no response within {} ms", limit.as_millis())),
            Ok(Err(error)) => Err(describe_http(error)),
            Ok(Ok(answer)) if !answer.status().is_success() => {
                Err(format!("its health check has status {}", answer.status()))
            }
            Ok(Ok(_)) => match self.collection(deadline, &self.prober).await {
                // The lookup's lock or the connect failed: not counted against ChromaDB here.
                Ok(_) | Err(ChromaError::NotAsked(_)) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
        };
        self.pool.probed(&outcome);
        outcome
    }

    /// The collection's id, from the cache or from ChromaDB. Also proves that a connection is available, before work
    /// is claimed that needs one.
    ///
    /// # Errors
    /// ChromaDB is unreachable, returns an error, or does not respond in time.
    pub async fn collection_id(&self, deadline: Deadline) -> Result<String, ChromaError> {
        let session = self.pool.checkout("chroma::collection", deadline).await.map_err(ChromaError::NotAsked)?;
        let asked = Instant::now();
        let outcome = match self.known_collection() {
            Some(id) => {
                session.put_back();
                return Ok(id);
            }
            None => self.collection(deadline, session.client()).await,
        };
        self.judge(session, asked, &outcome);
        outcome
    }

    /// The collection's name.
    pub fn collection_name(&self) -> &str {
        &self.name
    }

    /// The pool, for its statistics.
    pub fn pool(&self) -> &Pool<ChromaBackend> {
        &self.pool
    }

    /// Posts `body` to the collection's `action`. If the collection is gone, looks it up or creates it, and tries
    /// once more.
    async fn on_collection<T: DeserializeOwned>(
        &self,
        what: &'static str,
        deadline: Deadline,
        action: &str,
        body: &impl Serialize,
    ) -> Result<T, ChromaError> {
        let deadline = deadline.within(self.timeout);
        let session = self.pool.checkout(what, deadline).await.map_err(ChromaError::NotAsked)?;
        let asked = Instant::now();
        let mut first = true;
        let outcome = loop {
            let id = match self.collection(deadline, session.client()).await {
                Ok(id) => id,
                Err(error) => break Err(error),
            };
            let url = self.backend.collection_url(&[&id, action]);
            match send(session.client(), deadline, url, body).await {
                Err(ChromaError::Refused { status: 404, .. }) if first => {
                    first = false;
                    self.forget(&id);
                }
                outcome => break outcome,
            }
        };
        self.judge(session, asked, &outcome);
        outcome
    }

    /// Reports a call's outcome to the circuit breaker and decides whether the connection is kept.
    fn judge<T>(&self, session: Checkout<ChromaBackend>, asked: Instant, outcome: &Result<T, ChromaError>) {
        match outcome {
            // ChromaDB sent a complete response, so the connection can be reused.
            Ok(_) | Err(ChromaError::Refused { .. } | ChromaError::Misfit(_)) => session.release(),
            Err(error) if error.is_busy() => session.release(),
            // The deadline passed before anything was sent: not a failure of ChromaDB.
            Err(ChromaError::NotAsked(ApiError::DeadlineExceeded)) => {}
            // Too short a deadline: not a failure of ChromaDB either.
            Err(ChromaError::Silence(_)) if asked.elapsed() < self.pool.silence() => {}
            Err(error) => session.fail(&error.to_string()),
        }
    }

    fn known_collection(&self) -> Option<String> {
        self.collection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forget(&self, id: &str) {
        let mut known = self.collection.write().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() == Some(id) {
            *known = None;
            tracing::warn!(collection = self.name, "ChromaDB lost collection {}; looking it up again", self.name);
        }
    }

    /// The collection's id; creates the collection when missing.
    async fn collection(&self, deadline: Deadline, client: &reqwest::Client) -> Result<String, ChromaError> {
        if let Some(id) = self.known_collection() {
            return Ok(id);
        }
        let _one_at_a_time = deadline.run(self.lookup.lock()).await.map_err(|e| ChromaError::NotAsked(e.into()))?;
        if let Some(id) = self.known_collection() {
            return Ok(id);
        }
        let body = json!({
            "name": self.name,
            "get_or_create": true,
            "configuration": { "hnsw": { "space": "cosine" } },
        });
        let found: Collection = send(client, deadline, self.backend.collection_url(&[]), &body).await?;
        if let Some(other) = found.dimension.filter(|d| *d != self.dimension) {
            let message = format!(
                "collection {} holds vectors of {other} numbers and APP_VECTOR_DIMENSION is {}",
                self.name, self.dimension
            );
            return Err(ChromaError::Misfit(message));
        }
        *self.collection.write().unwrap_or_else(PoisonError::into_inner) = Some(found.id.clone());
        tracing::info!(collection = self.name, id = found.id, "ChromaDB has collection {}", self.name);
        Ok(found.id)
    }
}

/// Records in ChromaDB's format: columns of equal length.
#[derive(Serialize)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    embeddings: Vec<&'a [f32]>,
    documents: Vec<&'a str>,
    metadatas: Vec<&'a Value>,
}

#[derive(serde::Deserialize)]
struct Collection {
    id: String,
    dimension: Option<u32>,
}

/// ChromaDB's response to a query: columns of lists, one list per queried vector.
#[derive(Debug, Default, serde::Deserialize)]
struct Found {
    ids: Vec<Vec<String>>,
    distances: Option<Vec<Vec<Option<f64>>>>,
    documents: Option<Vec<Vec<Option<String>>>>,
    metadatas: Option<Vec<Vec<Option<Value>>>>,
}

impl Found {
    fn into_neighbours(self) -> Vec<Neighbour> {
        fn column<T>(lists: Option<Vec<Vec<Option<T>>>>) -> impl Iterator<Item = Option<T>> {
            let list = lists.and_then(|lists| lists.into_iter().next()).unwrap_or_default();
            list.into_iter().chain(std::iter::repeat_with(|| None))
        }
        let ids = self.ids.into_iter().next().unwrap_or_default();
        let columns = column(self.distances).zip(column(self.documents)).zip(column(self.metadatas));
        ids.into_iter()
            .zip(columns)
            .filter_map(|(id, ((distance, content), metadata))| {
                // Skips records with ids that are not UUIDs: the app did not write them.
                let id = id.parse().ok()?;
                let metadata = metadata.unwrap_or(Value::Null);
                Some(Neighbour { id, distance: distance?, content, metadata })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_query_response_of_chroma() {
        let id = "0193b0a0-0000-7000-8000-000000000001";
        let text = format!(
            r#"{{"ids":[["{id}","not-ours"]],"distances":[[0.25,0.5]],"documents":[["x",null]],
                "metadatas":[[{{"title":"t"}},null]],"embeddings":null,"uris":null,"include":["documents"]}}"#
        );
        let neighbours = serde_json::from_str::<Found>(&text).unwrap().into_neighbours();
        assert_eq!(neighbours.len(), 1);
        assert_eq!(neighbours[0].id.to_string(), id);
        assert_eq!(neighbours[0].content.as_deref(), Some("x"));
        assert_eq!(neighbours[0].metadata["title"], "t");
    }

    #[test]
    fn an_empty_collection_returns_no_results() {
        let text = r#"{"ids":[[]],"distances":[[]],"documents":[[]],"metadatas":[[]]}"#;
        assert!(serde_json::from_str::<Found>(text).unwrap().into_neighbours().is_empty());
    }
}
