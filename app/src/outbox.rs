//! Keeps ChromaDB in step with PostgreSQL, whatever dies in between.
//!
//! A write marks its document in the `outbox` table, in the same statement, and claims the mark for a few seconds. Its
//! request then brings ChromaDB up to date and removes the mark. When that fails, or nobody is left to do it, any
//! Machine's worker takes the mark once the claim ran out:
//!
//! ```text
//!            write                    applied, nothing written since
//!  (no mark) ─────► claimed by request ───────────────────────────► (no mark)
//!                      │ failed, crashed                              ▲
//!                      ▼                                              │ applied without doubt
//!                   due, nobody's ─────► claimed by a worker ─────────┤
//!                      ▲     failed: later, twice as long each time   │
//!                      └──────────────────────┘                       │
//!                   applied, but an earlier call may still arrive ────┘ once more, after SETTLE
//! ```
//!
//! A mark says *bring this document up to date*, not *upsert* or *delete*: whoever works on it reads the document as it
//! is then, so a late retry never brings a deleted document back. Only the claim's holder talks to ChromaDB about a
//! document, and a mark is removed only if the document was not written since ([`Job::generation`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::audit::own::Entry;
use crate::chroma::{Chroma, Record};
use crate::chroma_http::ChromaError;
use crate::deadline::Deadline;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::postgres::Postgres;
use crate::records::{self, column};

/// How long a request's own attempt may take.
const INLINE_BUDGET: Duration = Duration::from_secs(2);
/// The same while ChromaDB fails: writes go on at nearly full speed, the worker catches up.
const INLINE_BUDGET_WHEN_FAILING: Duration = Duration::from_millis(250);
/// A request's claim. Longer than its attempt and the removal of the mark; after a crash, the worker waits for its end.
const INLINE_CLAIM: Duration = Duration::from_secs(5);
/// How long a call that got no answer may still take to arrive.
const SETTLE: Duration = Duration::from_secs(5);
/// Longest time for a statement of our own, outside any request.
pub const STATEMENT: Duration = Duration::from_secs(5);
/// Longest time for one of the worker's calls: it decides how long a crashed Machine's documents wait for another one.
const WORKER_CALL: Duration = Duration::from_secs(3);
/// Most bytes of content that it holds at a time.
const CHUNK_BYTES: usize = 8 << 20;
const CHUNK_ROWS: usize = 64;

/// The sole right to talk to ChromaDB about a document, for a while.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub token: Uuid,
    length: Duration,
    /// Before PostgreSQL started counting, so that we stop first.
    since: Instant,
}

impl Claim {
    /// From now on, for `length`.
    pub fn new(length: Duration) -> Self {
        Self { token: Uuid::now_v7(), length, since: Instant::now() }
    }

    /// Its length as PostgreSQL takes it.
    pub fn seconds(&self) -> f64 {
        self.length.as_secs_f64()
    }

    /// What is left, less the time that a call of `work` would need.
    pub fn leaves_time_for(&self, work: Duration) -> bool {
        self.since.elapsed() + work < self.length
    }
}

/// A document to bring up to date, claimed.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub document: Uuid,
    pub claim: Claim,
    /// Counts the writes to the document since it was marked.
    pub generation: i64,
}

impl Job {
    /// Reads `document_id` and `generation`.
    ///
    /// # Errors
    /// The table is not as we made it.
    pub fn from_row(row: &Row, claim: Claim) -> Result<Self, ApiError> {
        Ok(Self { document: column(row, "document_id")?, claim, generation: column(row, "generation")? })
    }
}

/// How a request's own attempt ended.
#[derive(Debug)]
pub enum Applied {
    /// ChromaDB has it.
    Now,
    /// The worker will see to it.
    Later,
    /// ChromaDB will never take it; the write was undone.
    Refused(ApiError),
}

/// What is waiting, as of the last look.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backlog {
    pub depth: u64,
    pub oldest_age_seconds: f64,
}

/// The outbox of all Machines, seen from this one.
#[derive(Debug)]
pub struct Outbox {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) chroma: Arc<Chroma>,
    pub(crate) metrics: Metrics,
    pub(crate) wake: Notify,
    pub(crate) depth: AtomicU64,
    pub(crate) oldest_age_ms: AtomicU64,
    pub(crate) bound: u64,
    /// The collection that is known to hold, or to get, every document.
    pub(crate) collection: Mutex<Option<String>>,
    /// Documents in one call of the worker.
    pub(crate) chunk: usize,
    /// Longest time for one call of the worker.
    pub(crate) call: Duration,
}

impl Outbox {
    /// `bound`: rows at which writes are refused. `call`: longest time for one call to ChromaDB.
    pub fn new(
        postgres: Arc<Postgres>,
        chroma: Arc<Chroma>,
        metrics: Metrics,
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

    /// A claim for a write that is about to be made.
    ///
    /// # Errors
    /// [`ApiError::OutboxFull`] when too many writes wait already.
    pub fn admit(&self) -> Result<Claim, ApiError> {
        if self.depth.load(Ordering::Relaxed) >= self.bound {
            return Err(ApiError::OutboxFull);
        }
        Ok(Claim::new(INLINE_CLAIM))
    }

    /// What is waiting, as of the last look, at most a second or so ago.
    pub fn backlog(&self) -> Backlog {
        let oldest_age_ms = self.oldest_age_ms.load(Ordering::Relaxed);
        Backlog { depth: self.depth.load(Ordering::Relaxed), oldest_age_seconds: oldest_age_ms as f64 / 1000.0 }
    }

    /// Brings ChromaDB up to date right after a write: `record` is the document, `None` when it was deleted. Answers by
    /// the deadline; the attempt itself goes on without the request if it must.
    /// `undo` is the trail's row for a document that has to be taken back.
    pub async fn apply(
        self: &Arc<Self>,
        deadline: Deadline,
        job: Option<Job>,
        record: Option<Record>,
        undo: Option<Entry>,
    ) -> Applied {
        let Some(job) = job else {
            // Somebody is at it with an older state; when they see the new generation, the worker's turn comes.
            self.wake.notify_one();
            return Applied::Later;
        };
        let this = Arc::clone(self);
        let attempt = tokio::spawn(async move { this.attempt(job, record, undo).await });
        match deadline.run(attempt).await {
            Ok(Ok(applied)) => applied,
            Ok(Err(panicked)) => {
                tracing::error!(error = %panicked, "an attempt on ChromaDB panicked");
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
                    tracing::warn!(document = %job.document, error = %error, "a refused document could not be undone");
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

    /// Removes the marks of what was applied. A mark whose document was written since, or that is in doubt, stays.
    pub(crate) async fn finish(&self, jobs: &[Job]) {
        const REMOVE: &str = "
            DELETE FROM outbox o USING unnest($1, $2) AS done (document_id, generation)
            WHERE o.document_id = done.document_id AND o.generation = done.generation AND o.claim = $3
                AND NOT o.doubtful
            RETURNING o.document_id";
        // A second statement, so a crash in between leaves a claim that runs out: applied once more, and no harm done.
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
            tracing::debug!(error = %error, "marks stay until their claim runs out: {error}");
        }
        self.wake.notify_one();
    }

    /// Lets the marks go until later: half a second at first, then twice as long each time, 5 minutes at most.
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
            tracing::debug!(error = %error, "marks stay until their claim runs out: {error}");
        }
    }

    /// Marks documents that ChromaDB has and PostgreSQL has not, so that the worker removes them there.
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
        self.metrics.outbox_applied.with_label_values(&[by, result]).inc_by(documents as u64);
    }
}
