//! Processes the outbox: marks left by requests that failed, by crashes and by other Machines.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::chroma::Record;
use crate::chroma_http::ChromaError;
use crate::deadline::Deadline;
use crate::error::ApiError;
use crate::outbox::{Claim, Job, Outbox, STATEMENT};
use crate::records::{self, column};

/// How often the worker looks for marks left by other Machines.
const TICK: Duration = Duration::from_secs(1);
/// Rows that it claims at a time.
const BATCH: usize = 64;

impl Outbox {
    /// Processes due marks until the process ends.
    pub async fn work(self: Arc<Self>) {
        let mut told = String::new();
        loop {
            let full_batch = match self.round().await {
                Ok(done) => {
                    told.clear();
                    done == BATCH
                }
                Err(ApiError::Internal(error)) => {
                    // Logged once per outage, not every second.
                    if told != error {
                        tracing::error!(error, "the outbox cannot be processed: {error}");
                        told = error;
                    }
                    false
                }
                // The pool logs, once, that a database is down.
                Err(error) => {
                    tracing::debug!(error = %error, "the outbox cannot be processed yet: {error}");
                    false
                }
            };
            if !full_batch {
                let _ = tokio::time::timeout(TICK, self.wake.notified()).await;
            }
        }
    }

    /// Processes one batch of due marks and returns its size.
    async fn round(&self) -> Result<usize, ApiError> {
        let due = self.look().await?;
        // Before any claim: while ChromaDB is down, marks keep their order and are not backed off.
        let collection = self.chroma.collection_id(Deadline::after(STATEMENT)).await?;
        let marked = self.notice(&collection).await?;
        if due == 0 && marked == 0 {
            return Ok(0);
        }
        let jobs = self.claim().await?;
        for chunk in jobs.chunks(self.chunk) {
            self.bring_up_to_date(chunk).await?;
        }
        Ok(jobs.len())
    }

    /// Makes ChromaDB's copies match PostgreSQL: upserts existing documents, deletes the others.
    async fn bring_up_to_date(&self, jobs: &[Job]) -> Result<(), ApiError> {
        if !jobs.first().is_some_and(|job| job.claim.leaves_time_for(self.call * 2)) {
            self.postpone(jobs, &ChromaError::NotAsked(ApiError::DeadlineExceeded)).await;
            return Ok(());
        }
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.document).collect();
        let documents = records::by_ids(&self.postgres, Deadline::after(STATEMENT), &ids).await?;
        let mut records: HashMap<Uuid, Record> = documents.into_iter().map(|d| (d.id, d.into_record())).collect();
        let (kept, deleted): (Vec<Job>, Vec<Job>) = jobs.iter().partition(|job| records.contains_key(&job.document));
        if !deleted.is_empty() {
            let ids: Vec<Uuid> = deleted.iter().map(|job| job.document).collect();
            let outcome = self.chroma.delete(Deadline::after(self.call), &ids).await;
            self.settle(&deleted, outcome).await;
        }
        if !kept.is_empty() {
            let batch: Vec<Record> = kept.iter().filter_map(|job| records.remove(&job.document)).collect();
            self.upsert(&kept, &batch).await;
        }
        Ok(())
    }

    /// Upserts all documents at once, or one by one if ChromaDB rejects the batch: one bad document must not block
    /// the others.
    async fn upsert(&self, jobs: &[Job], batch: &[Record]) {
        let outcome = self.chroma.upsert(Deadline::after(self.call), batch).await;
        if jobs.len() == 1 || !matches!(outcome, Err(ChromaError::Refused { .. })) {
            return self.settle(jobs, outcome).await;
        }
        for (job, record) in jobs.iter().zip(batch) {
            let outcome = if job.claim.leaves_time_for(self.call) {
                self.chroma.upsert(Deadline::after(self.call), std::slice::from_ref(record)).await
            } else {
                Err(ChromaError::NotAsked(ApiError::DeadlineExceeded))
            };
            self.settle(std::slice::from_ref(job), outcome).await;
        }
    }

    async fn settle(&self, jobs: &[Job], outcome: Result<(), ChromaError>) {
        self.count("worker", &outcome, jobs.len());
        match outcome {
            Ok(()) => self.finish(jobs).await,
            Err(error) => {
                tracing::warn!(documents = jobs.len(), error = %error, "{} documents are postponed: {error}", jobs.len());
                self.postpone(jobs, &error).await;
            }
        }
    }

    /// Marks every document if `id` differs from the collection that held their copies, as the new one is empty.
    /// Refills a ChromaDB that lost its data or was replaced.
    async fn notice(&self, id: &str) -> Result<i64, ApiError> {
        const NOTICE: &str = "
            WITH changed AS (
                INSERT INTO collections AS c (name, id) VALUES ($1, $2)
                ON CONFLICT (name) DO UPDATE SET id = excluded.id WHERE c.id <> excluded.id
                RETURNING id
            ), marked AS (
                INSERT INTO outbox (document_id) SELECT documents.id FROM documents, changed
                ON CONFLICT (document_id) DO NOTHING RETURNING document_id
            )
            SELECT count(*) AS marked FROM marked";
        if self.collection.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(id) {
            return Ok(0);
        }
        let name = self.chroma.collection_name();
        let params = [(&name as _, Type::TEXT), (&id as _, Type::TEXT)];
        let rows = self.postgres.query("outbox::notice", Deadline::after(STATEMENT), NOTICE, &params).await?;
        let marked: i64 = rows.first().map_or(Ok(0), |row| column(row, "marked"))?;
        if marked > 0 {
            tracing::warn!(
                collection = name,
                marked,
                "collection {name} was created again: {marked} documents will be written to it"
            );
        }
        *self.collection.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.to_owned());
        Ok(marked)
    }

    /// Counts waiting marks, for the bound and the gauges. Returns how many are due and not claimed.
    async fn look(&self) -> Result<i64, ApiError> {
        const LOOK: &str = "
            SELECT count(*) FILTER (WHERE applied_at IS NULL) AS depth,
                coalesce(extract(epoch FROM clock_timestamp() - min(enqueued_at) FILTER (WHERE applied_at IS NULL)), 0)
                    ::float8 AS age,
                count(*) FILTER (WHERE due_at <= clock_timestamp() AND claimed_until <= clock_timestamp()) AS due
            FROM (SELECT applied_at, enqueued_at, due_at, claimed_until FROM outbox LIMIT $1) AS bounded";
        // Beyond the bound the exact number makes no difference.
        let most = i64::try_from(self.bound).unwrap_or(i64::MAX).saturating_add(1);
        let rows =
            self.postgres.query("outbox::look", Deadline::after(STATEMENT), LOOK, &[(&most, Type::INT8)]).await?;
        let row = rows.first().ok_or_else(|| ApiError::Internal("a count without a row".to_owned()))?;
        let (depth, age): (i64, f64) = (column(row, "depth")?, column(row, "age")?);
        self.depth.store(u64::try_from(depth).unwrap_or(0), Ordering::Relaxed);
        self.oldest_age_ms.store((age.max(0.0) * 1000.0) as u64, Ordering::Relaxed);
        self.metrics.depth.set(depth);
        self.metrics.oldest_age.set(age.max(0.0));
        column(row, "due")
    }

    async fn claim(&self) -> Result<Vec<Job>, ApiError> {
        const CLAIM: &str = "
            UPDATE outbox SET doubtful = doubtful OR claim IS NOT NULL, claim = $1,
                claimed_until = clock_timestamp() + make_interval(secs => $2)
            WHERE document_id IN (
                SELECT document_id FROM outbox
                WHERE due_at <= clock_timestamp() AND claimed_until <= clock_timestamp()
                ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED)
            RETURNING document_id, generation";
        // Time for one delete, one upsert, and the statements around them.
        let claim = Claim::new(self.call * 2 + Duration::from_secs(2));
        let most = BATCH as i64;
        let params = [(&claim.token as _, Type::UUID), (&claim.seconds() as _, Type::FLOAT8), (&most as _, Type::INT8)];
        let rows = self.postgres.query("outbox::claim", Deadline::after(STATEMENT), CLAIM, &params).await?;
        rows.iter().map(|row| Job::from_row(row, claim)).collect()
    }
}
