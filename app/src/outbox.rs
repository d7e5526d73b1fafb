//! Keeps ChromaDB in sync with PostgreSQL, even across crashes.
//!
//! A write marks its document in the `outbox` table, in the same statement, and claims the mark for a few seconds.
//! The request then updates ChromaDB and removes the mark. If that fails, or the process dies, any Machine's worker
//! takes over the mark once the claim expires:
//!
//! ```text
//!            write                    applied, not written since
//!  (no mark) ─────► claimed by request ───────────────────────────► (no mark)
//!                      │ failed, crashed                              ▲
//!                      ▼                                              │ applied, no earlier call pending
//!                   due, unclaimed ────► claimed by a worker ─────────┤
//!                      ▲     failed: retried with exponential backoff │
//!                      └──────────────────────┘                       │
//!                   applied, but an earlier call may still arrive ────┘ applied again after SETTLE
//! ```
//!
//! A mark means *update this document*, not *upsert* or *delete*: the worker reads the document's current state, so a
//! late retry never restores a deleted document. Only the claim's holder writes a document to ChromaDB, and a mark is
//! removed only if the document was not written since ([`Job::generation`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outrigger_metrics::{Declare, Gauge, IntCounterVec, IntGauge};
use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::audit::own::Entry;
use crate::chroma::{Chroma, Record};
use crate::chroma_http::ChromaError;
use crate::deadline::Deadline;
use crate::error::ApiError;
use crate::postgres::Postgres;
use crate::records::{self, column};

/// Maximum time for a request's own attempt.
const INLINE_BUDGET: Duration = Duration::from_secs(2);
/// Like [`INLINE_BUDGET`] while ChromaDB fails: writes stay fast, and the worker catches up.
const INLINE_BUDGET_WHEN_FAILING: Duration = Duration::from_millis(250);
/// Duration of a request's claim. Longer than its attempt and the removal of the mark; after a crash, the worker
/// waits until it expires.
const INLINE_CLAIM: Duration = Duration::from_secs(5);
/// How long a call without a response may still take to arrive.
const SETTLE: Duration = Duration::from_secs(5);
/// Maximum time for a statement outside of requests.
pub const STATEMENT: Duration = Duration::from_secs(5);
/// Maximum time for one of the worker's calls. Determines how long a crashed Machine's documents wait for another
/// one.
const WORKER_CALL: Duration = Duration::from_secs(3);
/// Maximum bytes of content that the worker holds in memory.
const CHUNK_BYTES: usize = 8 << 20;
const CHUNK_ROWS: usize = 64;

/// The exclusive right to write a document to ChromaDB, for a limited time.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub token: Uuid,
    length: Duration,
    /// Taken before PostgreSQL starts counting, so that the claim ends here first.
    since: Instant,
}

impl Claim {
    /// A claim from now on, for `length`.
    pub fn new(length: Duration) -> Self {
        Self { token: Uuid::now_v7(), length, since: Instant::now() }
    }

    /// Its length in seconds, as a parameter for PostgreSQL.
    pub fn seconds(&self) -> f64 {
        self.length.as_secs_f64()
    }

    /// Whether `work` can be completed before the claim expires.
    pub fn leaves_time_for(&self, work: Duration) -> bool {
        self.since.elapsed() + work < self.length
    }
}

/// A claimed document to update in ChromaDB.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub document: Uuid,
    pub claim: Claim,
    /// Number of writes to the document since it was marked.
    pub generation: i64,
}

impl Job {
    /// Reads `document_id` and `generation`.
    ///
    /// # Errors
    /// The table's columns are not the expected ones.
    pub fn from_row(row: &Row, claim: Claim) -> Result<Self, ApiError> {
        Ok(Self { document: column(row, "document_id")?, claim, generation: column(row, "generation")? })
    }
}

/// Result of a request's own attempt.
#[derive(Debug)]
pub enum Applied {
    /// ChromaDB is up to date.
    Now,
    /// The worker will update ChromaDB.
    Later,
    /// ChromaDB rejected the document permanently; the write was undone.
    Refused(ApiError),
}

/// Number and age of waiting documents when last counted.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backlog {
    pub depth: u64,
    pub oldest_age_seconds: f64,
}

/// Metrics of the outbox.
#[derive(Clone, Debug)]
pub struct OutboxMetrics {
    pub depth: IntGauge,
    pub oldest_age: Gauge,
    applied: IntCounterVec,
}

impl OutboxMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> outrigger_metrics::Result<Self> {
        let area = declare.area("Outbox");
        Ok(Self {
            depth: area.when("It grows: searches do not find new documents.").gauge(
                "app_outbox_depth",
                "Documents whose latest change ChromaDB does not have yet, of all Machines.",
            )?,
            oldest_age: area.when("How old are the results of a search at worst?").real(
                "app_outbox_oldest_age_seconds",
                "Age of the oldest change that ChromaDB does not have yet, or 0.",
            )?,
            applied: area
                .when("The depth grows: why does ChromaDB not take documents?")
                .of("by", ["request", "worker"])
                .of("result", ["ok", "not_asked", "no_answer", "refused", "failed"])
                .counters("app_outbox_applied_total", "Attempts to bring a document up to date in ChromaDB.")?,
        })
    }
}

/// The outbox, which all Machines share.
#[derive(Debug)]
pub struct Outbox {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) chroma: Arc<Chroma>,
    pub(crate) metrics: OutboxMetrics,
    pub(crate) wake: Notify,
    pub(crate) depth: AtomicU64,
    pub(crate) oldest_age_ms: AtomicU64,
    pub(crate) bound: u64,
    /// The collection known to contain every document, or to have marks for them.
    pub(crate) collection: Mutex<Option<String>>,
    /// Documents per call of the worker.
    pub(crate) chunk: usize,
    /// Maximum time for one call of the worker.
    pub(crate) call: Duration,
}

impl Outbox {
    /// `bound`: number of rows at which writes are rejected. `call`: maximum time for one call to ChromaDB.
    pub fn new(
        postgres: Arc<Postgres>,
        chroma: Arc<Chroma>,
        metrics: OutboxMetrics,
        bound: u64,
        call: Duration,
        max_document_bytes: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            postgres,
            chroma,
            metrics,
            wake: Notify::new(),
            depth: AtomicU64::new(0),
            oldest_age_ms: AtomicU64::new(0),
            bound,
            collection: Mutex::new(None),
            chunk: (CHUNK_BYTES / max_document_bytes.max(1)).clamp(1, CHUNK_ROWS),
            call: call.min(WORKER_CALL),
        })
    }

    /// A claim for the next write.
    ///
    /// # Errors
    /// [`ApiError::OutboxFull`] if too many writes are waiting.
    pub fn admit(&self) -> Result<Claim, ApiError> {
        if self.depth.load(Ordering::Relaxed) >= self.bound {
            return Err(ApiError::OutboxFull);
        }
        Ok(Claim::new(INLINE_CLAIM))
    }

    /// Number and age of waiting documents when last counted, about a second ago at most.
    pub fn backlog(&self) -> Backlog {
        let oldest_age_ms = self.oldest_age_ms.load(Ordering::Relaxed);
        Backlog { depth: self.depth.load(Ordering::Relaxed), oldest_age_seconds: oldest_age_ms as f64 / 1000.0 }
    }

    /// Updates ChromaDB right after a write: `record` is the document, `None` if it was deleted. Returns by the
    /// deadline; the attempt itself continues in the background if necessary. `undo` is the audit entry to write if
    /// the document must be removed again.
    pub async fn apply(
        self: &Arc<Self>,
        deadline: Deadline,
        job: Option<Job>,
        record: Option<Record>,
        undo: Option<Entry>,
    ) -> Applied {
        let Some(job) = job else {
            // Another task is writing an older state; as it will find a new generation, the mark stays and the worker
            // continues.
            self.wake.notify_one();
            return Applied::Later;
        };
        let this = Arc::clone(self);
        let attempt = tokio::spawn(async move { this.attempt(job, record, undo).await });
        match deadline.run(attempt).await {
            Ok(Ok(applied)) => applied,
            Ok(Err(panicked)) => {
                tracing::error!(error = %panicked, "a write to ChromaDB panicked");
                Applied::Later
            }
            Err(_) => Applied::Later,
        }
    }

    async fn attempt(&self, job: Job, record: Option<Record>, undo: Option<Entry>) -> Applied {
        let failing = self.chroma.pool().failures() > 0;
        let budget = if failing { INLINE_BUDGET_WHEN_FAILING } else { INLINE_BUDGET };
        if !job.claim.leaves_time_for(budget) {
            return Applied::Later;
        }
        let outcome = match &record {
            Some(record) => self.chroma.upsert(Deadline::after(budget), std::slice::from_ref(record)).await,
            None => self.chroma.delete(Deadline::after(budget), &[job.document]).await,
        };
        self.count("request", &outcome, 1);
        match outcome {
            Ok(()) => {
                self.finish(&[job]).await;
                Applied::Now
            }
            Err(refusal @ (ChromaError::Refused { .. } | ChromaError::Misfit(_))) if record.is_some() => {
                if let Err(error) = records::undo(&self.postgres, Deadline::after(STATEMENT), &job, undo.as_ref()).await
                {
                    tracing::warn!(document = %job.document, error = %error, "cannot undo a document that ChromaDB rejected");
                    return Applied::Later;
                }
                self.wake.notify_one();
                Applied::Refused(match refusal {
                    ChromaError::Refused { message, .. } => {
                        ApiError::Invalid(format!("ChromaDB does not take this document: {message}"))
                    }
                    misfit => misfit.into(),
                })
            }
            Err(error) => {
                self.postpone(&[job], &error).await;
                Applied::Later
            }
        }
    }

    /// Removes the marks of applied documents. Keeps a mark if its document was written since, or if an earlier call
    /// may still arrive.
    pub(crate) async fn finish(&self, jobs: &[Job]) {
        const REMOVE: &str = "
            DELETE FROM outbox o USING unnest($1, $2) AS done (document_id, generation)
            WHERE o.document_id = done.document_id AND o.generation = done.generation AND o.claim = $3
                AND NOT o.doubtful
            RETURNING o.document_id";
        // A separate statement: after a crash in between, the claim expires and the document is applied again, which
        // is harmless.
        const RELEASE: &str = "
            UPDATE outbox o SET claim = NULL, claimed_until = '-infinity', attempts = 0, last_error = NULL,
                doubtful = o.doubtful AND o.generation <> done.generation,
                applied_at = CASE WHEN o.generation = done.generation THEN clock_timestamp() END,
                due_at = clock_timestamp()
                    + CASE WHEN o.generation = done.generation THEN make_interval(secs => $4) ELSE make_interval() END
            FROM unnest($1, $2) AS done (document_id, generation)
            WHERE o.document_id = done.document_id AND o.claim = $3";
        let Some(claim) = jobs.first().map(|job| job.claim) else { return };
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.document).collect();
        let generations: Vec<i64> = jobs.iter().map(|job| job.generation).collect();
        let settle = SETTLE.as_secs_f64();
        let params = [
            (&ids as _, Type::UUID_ARRAY),
            (&generations as _, Type::INT8_ARRAY),
            (&claim.token as _, Type::UUID),
            (&settle as _, Type::FLOAT8),
        ];
        let removed = self.postgres.query("outbox::remove", Deadline::after(STATEMENT), REMOVE, &params[..3]).await;
        let released = match removed {
            Ok(rows) if rows.len() == jobs.len() => return,
            Ok(_) => self.postgres.query("outbox::release", Deadline::after(STATEMENT), RELEASE, &params).await,
            Err(error) => Err(error),
        };
        if let Err(error) = released {
            tracing::debug!(error = %error, "outbox rows stay until their claim expires: {error}");
        }
        self.wake.notify_one();
    }

    /// Postpones the marks: half a second at first, doubling each time, up to 5 minutes.
    pub(crate) async fn postpone(&self, jobs: &[Job], why: &ChromaError) {
        const POSTPONE: &str = "
            UPDATE outbox SET claim = NULL, claimed_until = '-infinity', attempts = attempts + 1,
                doubtful = doubtful OR $3, last_error = left($4, 500),
                due_at = clock_timestamp()
                    + make_interval(secs => least(300, 0.5 * 2 ^ least(attempts, 10)) * (0.5 + random() / 2))
            WHERE document_id = ANY($1) AND claim = $2";
        let Some(claim) = jobs.first().map(|job| job.claim) else { return };
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.document).collect();
        let (doubtful, why) = (why.is_doubtful(), why.to_string());
        let params = [
            (&ids as _, Type::UUID_ARRAY),
            (&claim.token as _, Type::UUID),
            (&doubtful as _, Type::BOOL),
            (&why as _, Type::TEXT),
        ];
        let done = self.postgres.query("outbox::postpone", Deadline::after(STATEMENT), POSTPONE, &params).await;
        if let Err(error) = done {
            tracing::debug!(error = %error, "outbox rows stay until their claim expires: {error}");
        }
    }

    /// Marks documents that exist in ChromaDB but not in PostgreSQL, so that the worker deletes them.
    ///
    /// # Errors
    /// As [`Postgres::query`].
    pub async fn repair(&self, ids: &[Uuid]) -> Result<(), ApiError> {
        const REPAIR: &str = "INSERT INTO outbox (document_id) SELECT unnest($1) ON CONFLICT (document_id) DO NOTHING";
        let params = [(&ids as _, Type::UUID_ARRAY)];
        self.postgres.query("outbox::repair", Deadline::after(STATEMENT), REPAIR, &params).await?;
        self.wake.notify_one();
        Ok(())
    }

    pub(crate) fn count(&self, by: &str, outcome: &Result<(), ChromaError>, documents: usize) {
        let result = match outcome {
            Ok(()) => "ok",
            Err(ChromaError::NotAsked(_)) => "not_asked",
            Err(ChromaError::NoAnswer(_) | ChromaError::Silence(_)) => "no_answer",
            Err(ChromaError::Refused { .. } | ChromaError::Misfit(_)) => "refused",
            Err(ChromaError::Failed { .. }) => "failed",
        };
        self.metrics.applied.with_label_values(&[by, result]).inc_by(documents as u64);
    }
}
