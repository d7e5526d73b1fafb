//! Documents as rows: the queries to PostgreSQL. Every write also marks the document in the outbox, and every
//! operation adds its audit entry, in the same statement ([`crate::audit::own`]).

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::audit::own::Entry;
use crate::chroma::Record;
use crate::deadline::Deadline;
use crate::error::ApiError;
use crate::outbox::{Claim, Job};
use crate::postgres::{Param, Postgres};

/// A document with all its data.
#[derive(Clone, Debug, Serialize)]
pub struct Document {
    pub id: Uuid,
    pub title: Option<String>,
    pub content: String,
    pub embedding: Vec<f32>,
    /// Always a JSON object.
    pub metadata: Value,
    pub created_at: Timestamp,
}

/// A document in a list. Excludes content and embedding, since a page with those could take a hundred megabytes.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub id: Uuid,
    pub title: Option<String>,
    pub content_bytes: i32,
    pub metadata: Value,
    pub created_at: Timestamp,
}

/// Result of a write. `job` is `None` if another task holds the claim for the document.
#[derive(Debug)]
pub struct Written {
    pub created_at: Timestamp,
    pub job: Option<Job>,
}

/// Marks the documents named by the statement before it; `$1` is the claim, `$2` its length in seconds.
///
/// Takes over an expired claim. Its holder died or hangs, so a call of it may still arrive.
macro_rules! mark {
    ($source:literal) => {
        concat!(
            "box AS (
                INSERT INTO outbox AS o (document_id, claim, claimed_until)
                SELECT id, $1, clock_timestamp() + make_interval(secs => $2) FROM ",
            $source,
            " ON CONFLICT (document_id) DO UPDATE SET
                generation = o.generation + 1,
                claim = CASE WHEN o.claimed_until <= clock_timestamp() THEN excluded.claim ELSE o.claim END,
                doubtful = o.doubtful OR (o.claim IS NOT NULL AND o.claimed_until <= clock_timestamp()),
                claimed_until = CASE WHEN o.claimed_until <= clock_timestamp()
                    THEN excluded.claimed_until ELSE o.claimed_until END,
                due_at = clock_timestamp(),
                enqueued_at = CASE WHEN o.applied_at IS NULL THEN o.enqueued_at ELSE clock_timestamp() END,
                applied_at = NULL
                RETURNING document_id, generation, coalesce(claim = $1, false) AS ours
            )"
        )
    };
}

/// Stores a new document, or returns `None` if the id exists.
///
/// # Errors
/// As [`Postgres::query`].
pub async fn insert(
    postgres: &Postgres,
    deadline: Deadline,
    document: &Document,
    claim: Claim,
    trail: Option<&Entry>,
) -> Result<Option<Written>, ApiError> {
    const WRITE: &str = concat!(
        "WITH doc AS (
            INSERT INTO documents (id, title, content, embedding, metadata, created_at)
            VALUES ($3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING RETURNING id, created_at
        ), ",
        mark!("doc")
    );
    let seconds = claim.seconds();
    let mut params: Vec<Param<'_>> = vec![
        (&claim.token, Type::UUID),
        (&seconds, Type::FLOAT8),
        (&document.id, Type::UUID),
        (&document.title, Type::TEXT),
        (&document.content, Type::TEXT),
        (&document.embedding, Type::FLOAT4_ARRAY),
        (&document.metadata, Type::JSONB),
        (&document.created_at, Type::TIMESTAMPTZ),
    ];
    let audited = trail.map_or_else(String::new, |entry| entry.with_any("doc", params.len()));
    params.extend(trail.into_iter().flat_map(Entry::params));
    let statement = format!("{WRITE}{audited} SELECT doc.created_at, box.* FROM doc, box");
    let rows = postgres.query("documents::insert", deadline, &statement, &params).await?;
    rows.first().map(|row| Ok(Written { created_at: column(row, "created_at")?, job: job(row, claim)? })).transpose()
}

/// Deletes a document, or returns `None` if it does not exist. The job is `None` if another task holds the claim for
/// the document.
///
/// # Errors
/// As [`Postgres::query`].
pub async fn delete(
    postgres: &Postgres,
    deadline: Deadline,
    id: Uuid,
    claim: Claim,
    trail: Option<&Entry>,
) -> Result<Option<Option<Job>>, ApiError> {
    const DELETE: &str = concat!("WITH doc AS (DELETE FROM documents WHERE id = $3 RETURNING id), ", mark!("doc"));
    let seconds = claim.seconds();
    let mut params: Vec<Param<'_>> = vec![(&claim.token, Type::UUID), (&seconds, Type::FLOAT8), (&id, Type::UUID)];
    let audited = trail.map_or_else(String::new, |entry| entry.with_any("doc", params.len()));
    params.extend(trail.into_iter().flat_map(Entry::params));
    let statement = format!("{DELETE}{audited} SELECT * FROM box");
    let rows = postgres.query("documents::delete", deadline, &statement, &params).await?;
    rows.first().map(|row| job(row, claim)).transpose()
}

/// Deletes a document that ChromaDB rejected permanently, unless it was written again since.
///
/// # Errors
/// As [`Postgres::query`].
pub async fn undo(postgres: &Postgres, deadline: Deadline, job: &Job, trail: Option<&Entry>) -> Result<(), ApiError> {
    const UNDO: &str = "
        WITH box AS (
            UPDATE outbox SET generation = generation + 1, claim = NULL, claimed_until = '-infinity',
                due_at = clock_timestamp()
            WHERE document_id = $1 AND claim = $2 AND generation = $3 RETURNING document_id
        ), gone AS (DELETE FROM documents USING box WHERE documents.id = box.document_id RETURNING documents.id)";
    let mut params: Vec<Param<'_>> =
        vec![(&job.document, Type::UUID), (&job.claim.token, Type::UUID), (&job.generation, Type::INT8)];
    let audited = trail.map_or_else(String::new, |entry| entry.with_any("gone", params.len()));
    params.extend(trail.into_iter().flat_map(Entry::params));
    let statement = format!("{UNDO}{audited} SELECT id FROM gone");
    postgres.query("documents::undo", deadline, &statement, &params).await.map(drop)
}

const BY_IDS: &str =
    "WITH found AS (SELECT id, title, content, embedding, metadata, created_at FROM documents WHERE id = ANY($1))";

/// Returns these documents, unordered; missing ones are left out.
///
/// # Errors
/// As [`Postgres::query`].
pub async fn by_ids(postgres: &Postgres, deadline: Deadline, ids: &[Uuid]) -> Result<Vec<Document>, ApiError> {
    let statement = format!("{BY_IDS} SELECT * FROM found");
    let rows = postgres.query("documents::by_ids", deadline, &statement, &[(&ids, Type::UUID_ARRAY)]).await?;
    rows.iter().map(document).collect()
}

/// Like [`by_ids`], with an audit entry for the documents that the client will see: the first `shown` that exist, in
/// the order of `ids`.
///
/// # Errors
/// As [`Postgres::query`].
pub async fn show(
    postgres: &Postgres,
    deadline: Deadline,
    ids: &[Uuid],
    shown: usize,
    entry: &Entry,
) -> Result<Vec<Document>, ApiError> {
    let shown = i64::try_from(shown).unwrap_or(i64::MAX);
    let mut params: Vec<Param<'_>> = vec![(&ids, Type::UUID_ARRAY), (&shown, Type::INT8)];
    let audited = entry.with_all("SELECT id FROM found ORDER BY array_position($1, id) LIMIT $2", params.len());
    params.extend(entry.params());
    let statement = format!("{BY_IDS}{audited} SELECT * FROM found");
    let rows = postgres.query("documents::show", deadline, &statement, &params).await?;
    rows.iter().map(document).collect()
}

/// Returns one document, if it exists.
///
/// # Errors
/// As [`Postgres::query`].
pub async fn read(
    postgres: &Postgres,
    deadline: Deadline,
    id: Uuid,
    trail: Option<&Entry>,
) -> Result<Option<Document>, ApiError> {
    let ids = [id];
    let ids = ids.as_slice();
    let mut params: Vec<Param<'_>> = vec![(&ids, Type::UUID_ARRAY)];
    let audited = trail.map_or_else(String::new, |entry| entry.with_any("found", params.len()));
    params.extend(trail.into_iter().flat_map(Entry::params));
    let statement = format!("{BY_IDS}{audited} SELECT * FROM found");
    let rows = postgres.query("documents::read", deadline, &statement, &params).await?;
    rows.first().map(document).transpose()
}

/// Returns up to `limit` documents, newest first, older than `after`. `limit` is one more than the page shows.
///
/// # Errors
/// As [`Postgres::query`].
pub async fn page(
    postgres: &Postgres,
    deadline: Deadline,
    after: Option<(Timestamp, Uuid)>,
    limit: i64,
    trail: Option<&Entry>,
) -> Result<Vec<Summary>, ApiError> {
    const PAGE: &str = "
        WITH found AS (
            SELECT id, title, octet_length(content) AS content_bytes, metadata, created_at FROM documents
            WHERE (created_at, id) < (coalesce($1, 'infinity'), coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
            ORDER BY created_at DESC, id DESC LIMIT $3
        )";
    const NEWEST_FIRST: &str = "FROM found ORDER BY created_at DESC, id DESC";
    let (created_at, id) = after.unzip();
    let mut params: Vec<Param<'_>> = vec![(&created_at, Type::TIMESTAMPTZ), (&id, Type::UUID), (&limit, Type::INT8)];
    // The last row of a full page only tells that there is another page.
    let shown = format!("SELECT id {NEWEST_FIRST} LIMIT $3 - 1");
    let audited = trail.map_or_else(String::new, |entry| entry.with_all(&shown, params.len()));
    params.extend(trail.into_iter().flat_map(Entry::params));
    let statement = format!("{PAGE}{audited} SELECT * {NEWEST_FIRST}");
    let rows = postgres.query("documents::page", deadline, &statement, &params).await?;
    rows.iter()
        .map(|row| {
            Ok(Summary {
                id: column(row, "id")?,
                title: column(row, "title")?,
                content_bytes: column(row, "content_bytes")?,
                metadata: column(row, "metadata")?,
                created_at: column(row, "created_at")?,
            })
        })
        .collect()
}

impl Document {
    /// Its copy for ChromaDB, sufficient to respond to a search from there alone.
    pub fn into_record(self) -> Record {
        let metadata = serde_json::json!({
            // ChromaDB does not store objects, and drops keys whose value is null.
            "title": self.title,
            "metadata": self.metadata.to_string(),
            "created_at": self.created_at.to_string(),
        });
        Record { id: self.id, embedding: self.embedding, content: self.content, metadata }
    }
}

fn document(row: &Row) -> Result<Document, ApiError> {
    Ok(Document {
        id: column(row, "id")?,
        title: column(row, "title")?,
        content: column(row, "content")?,
        embedding: column(row, "embedding")?,
        metadata: column(row, "metadata")?,
        created_at: column(row, "created_at")?,
    })
}

fn job(row: &Row, claim: Claim) -> Result<Option<Job>, ApiError> {
    let ours: bool = column(row, "ours")?;
    ours.then(|| Job::from_row(row, claim)).transpose()
}

/// Reads one column. A schema changed by hand results in an error, not a panic.
pub fn column<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, name: &str) -> Result<T, ApiError> {
    row.try_get(name).map_err(|e| ApiError::Internal(format!("column {name}: {}", crate::postgres::describe(&e))))
}
