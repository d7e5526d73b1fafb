//! Removes entries past their retention, and records the removals.
//!
//! Entries are removed only from the beginning of a chain, never from its middle: all before the first entry that is
//! young enough. The rest is still a chain and verifies from the first remaining entry. Entries under a hold are
//! kept; a digest over them proves that they are complete. Retention works in steps: each removal is a transaction of
//! bounded size that adds a row to `audit_drops`, and a proxy is asked to record it in the audit log.

mod sweep;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use outrigger_policy::audit::Class;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use self::sweep::{delete, replace, sweep};
use super::drops::{self, Dropped};
use super::partitions::{self, Partition};
use super::{APP_CHAIN, Lock, Param, StoreError, text_of};

/// Maximum wait for a lock on a class or partition. The next retention tries again.
const LOCK_TIMEOUT: &str = "5s";
/// Maximum number of keys removed per run; the rest is left to the next one.
const KEYS_AT_ONCE: i64 = 20_000;
/// How much longer a key is kept than the shortest retention: entries that use it may not be shipped yet.
const UNSHIPPED: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Retention per class, in seconds. Classes not listed are left alone.
pub type Retention = BTreeMap<Class, u64>;

/// Bounds for one call, so that the caller gets a response soon, however much there is to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Maximum total size in bytes of the partitions dropped as a whole in one transaction, each of which is read
    /// once.
    pub whole_bytes: i64,
    /// Maximum size in bytes of a partition that is only partly old enough, to be cleared in one transaction.
    pub part_bytes: i64,
    /// For larger ones, the maximum number of entries removed per transaction.
    pub rows: i64,
    /// No transaction begins after this time.
    pub budget: Duration,
}

impl Default for Steps {
    fn default() -> Self {
        Self { whole_bytes: 512 << 20, part_bytes: 32 << 20, rows: 50_000, budget: Duration::from_secs(2) }
    }
}

/// Where to continue an unfinished retention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// The class; `None`: only keys are left to check.
    pub class: Option<String>,
    /// Everything older that may be removed is removed.
    pub from: Timestamp,
    /// Whether an earlier class failed.
    pub failed: bool,
}

/// Progress of a retention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The removals.
    pub dropped: Vec<Dropped>,
    /// Where to continue; `None`: it is finished.
    pub resume: Option<Resume>,
}

/// Removes entries older than their class's retention, and keys without entries, in several transactions of bounded
/// size. Stops after [`Steps::budget`] and returns where to continue. An aborted transaction removes nothing.
///
/// `now` is the caller's clock. The earlier of it and the database's clock counts, so a clock that is ahead does not
/// remove entries too early.
///
/// # Errors
/// PostgreSQL failed for at least one class, or a lock was held. Removals from other classes stay, and are recorded.
pub async fn retain(
    client: &mut Client,
    retention: &Retention,
    now: Timestamp,
    resume: Option<Resume>,
    steps: &Steps,
) -> Result<Done, StoreError> {
    let began = Instant::now();
    let clock: Timestamp = client.query_typed_one("SELECT clock_timestamp()", &[]).await?.try_get(0)?;
    let now = now.min(clock);
    let (mut dropped, mut failed) = (Vec::new(), None);
    let had_failed = resume.as_ref().is_some_and(|resume| resume.failed);
    let is_before = |class: Class| match &resume {
        Some(Resume { class: Some(name), .. }) => Class::named(name).is_some_and(|named| class < named),
        Some(Resume { class: None, .. }) => true,
        None => false,
    };
    let is_over = || began.elapsed() >= steps.budget;
    let mut is_first = true;
    for (class, seconds) in retention.iter().filter(|(class, _)| !is_before(**class)) {
        let cutoff = before(now, *seconds)?;
        let is_named = resume.as_ref().is_some_and(|resume| resume.class.as_deref() == Some(class.name()));
        let mut from = resume.as_ref().filter(|_| is_named).map_or(Timestamp::UNIX_EPOCH, |resume| resume.from);
        loop {
            if !is_first && is_over() {
                let failed = had_failed || failed.is_some();
                return Ok(Done {
                    dropped,
                    resume: Some(Resume { class: Some(class.name().to_owned()), from, failed }),
                });
            }
            is_first = false;
            let step = async {
                let step = next_step(client, *class, from, cutoff, steps).await?;
                Ok::<_, StoreError>((retain_class(client, *class, &step, clock).await?, step))
            };
            match step.await {
                Ok((of_class, step)) => {
                    dropped.extend(of_class);
                    from = step.until;
                }
                // A class in use must not block the others.
                Err(error) => {
                    failed = failed.or(Some(error));
                    break;
                }
            }
            if from >= cutoff {
                break;
            }
        }
    }
    if !is_first && is_over() && failed.is_none() {
        let resume = Resume { class: None, from: Timestamp::UNIX_EPOCH, failed: had_failed };
        return Ok(Done { dropped, resume: Some(resume) });
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let spans = Class::ALL.map(|class| retention.get(&class).copied().unwrap_or(class.default_retention_s()));
    let shortest = before(now, spans.into_iter().min().unwrap_or(u64::MAX))?;
    let longest = before(now, spans.into_iter().max().unwrap_or(u64::MAX))?;
    forget_keys(client, shortest.checked_sub(UNSHIPPED).unwrap_or(Timestamp::UNIX_EPOCH), longest).await?;
    if had_failed {
        Err(StoreError::Busy("entries of a class were in use"))
    } else {
        Ok(Done { dropped, resume: None })
    }
}

/// The removal of one transaction.
struct Step {
    /// Removes entries older than this.
    until: Timestamp,
    /// Whether this is a small part of a large partition: a full scan would take longer than the removal.
    is_piece: bool,
}

/// The next part of a class to remove in one transaction: everything older than `cutoff`, or the oldest part of it.
async fn next_step(
    client: &Client,
    class: Class,
    from: Timestamp,
    cutoff: Timestamp,
    steps: &Steps,
) -> Result<Step, StoreError> {
    const NTH: &str =
        "SELECT time FROM audit_events WHERE class = $1 AND time >= $2 AND time < $3 ORDER BY time OFFSET $4 LIMIT 1";
    let mut bytes = 0;
    for (partition, size) in partitions::sizes(client, class).await? {
        let (start, end) = (partition.month.start(), partition.month.end());
        if end <= from || start >= cutoff {
            continue;
        }
        bytes += size;
        if bytes <= if end <= cutoff { steps.whole_bytes } else { steps.part_bytes } {
            continue;
        }
        if bytes > size {
            return Ok(Step { until: start, is_piece: false });
        }
        let (name, first, end) = (class.name(), start.max(from), end.min(cutoff));
        let params: [Param<'_>; 4] =
            [(&name, Type::TEXT), (&first, Type::TIMESTAMPTZ), (&end, Type::TIMESTAMPTZ), (&steps.rows, Type::INT8)];
        let nth = client.query_typed_opt(NTH, &params).await?;
        let nth: Option<Timestamp> = nth.map(|row| row.try_get(0)).transpose()?;
        // Many entries may have the same time: one more microsecond guarantees progress.
        let until = nth.map(|nth| nth.checked_add(SignedDuration::from_micros(1)).unwrap_or(end).min(end));
        return Ok(Step { until: until.unwrap_or(end), is_piece: until.is_some_and(|until| until < end) });
    }
    Ok(Step { until: cutoff, is_piece: false })
}

fn before(now: Timestamp, seconds: u64) -> Result<Timestamp, StoreError> {
    let span = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(SignedDuration::from_secs);
    let span =
        span.ok_or_else(|| StoreError::Invalid(format!("needs a retention of more than zero, got {seconds}")))?;
    // A retention longer than the range of times keeps everything.
    Ok(now.checked_sub(span).unwrap_or(Timestamp::MIN).max(Timestamp::UNIX_EPOCH))
}

/// The selection of entries to remove.
struct Expiry {
    class: Class,
    /// Entries older than this may be removed.
    cutoff: Timestamp,
    /// Chains with entries that old.
    chains: Vec<String>,
    /// For each chain, the number of the first entry to keep.
    floors: Vec<i64>,
    /// Pseudonyms whose entries are kept.
    held: Vec<String>,
}

impl Expiry {
    /// `TRUE` for entries that are old enough and before their chain's first entry to keep: `$1` to `$4`.
    const IN_BEGINNING: &str = "(e.class = $1 AND e.time < $2 AND EXISTS (
        SELECT 1 FROM unnest($3, $4) AS floors (chain, seq)
        WHERE floors.chain = e.chain AND (e.seq IS NULL OR e.seq < floors.seq)))";
    /// `TRUE` for entries under a hold: `$5`.
    const HELD: &str = "(e.actor = ANY($5) OR coalesce(e.client = ANY($5), FALSE))";

    fn params<'a>(&'a self, class: &'a &'static str) -> [Param<'a>; 5] {
        [
            (class, Type::TEXT),
            (&self.cutoff, Type::TIMESTAMPTZ),
            (&self.chains, Type::TEXT_ARRAY),
            (&self.floors, Type::INT8_ARRAY),
            (&self.held, Type::TEXT_ARRAY),
        ]
    }
}

async fn retain_class(
    client: &mut Client,
    class: Class,
    step: &Step,
    at: Timestamp,
) -> Result<Vec<Dropped>, StoreError> {
    let cutoff = step.until;
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")).await?;
    if step.is_piece {
        transaction.batch_execute("SET LOCAL enable_seqscan = off").await?;
    }
    Lock::Holds.share(&transaction).await?;
    // Batches for this class are rejected as busy meanwhile, so this need not wait for a pause in shipping.
    Lock::Class(class).take(&transaction).await?;
    let Some(held) = held(&transaction, class).await? else { return Ok(Vec::new()) };
    let all = partitions::of_class(&transaction, class).await?;
    let (whole, rest): (Vec<Partition>, Vec<Partition>) =
        all.into_iter().filter(|p| p.month.start() < cutoff).partition(|p| p.month.end() <= cutoff);
    for partition in &whole {
        // The app inserts its own entries without the class's lock: none may be added between counting and dropping.
        let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", partition.name());
        transaction.batch_execute(&lock).await?;
    }
    let (chains, floors) = floors(&transaction, class, cutoff).await?;
    let expiry = Expiry { class, cutoff, chains, floors, held };
    let dropped = measure(&transaction, &expiry, at).await?;
    let mut removed = 0;
    for partition in &rest {
        removed += delete(&transaction, &expiry, partition).await?;
    }
    let mut swept = Vec::new();
    for partition in &whole {
        let sweep = sweep(&transaction, &expiry, partition).await?;
        removed += sweep.gone;
        swept.push(sweep);
    }
    let said: i64 = dropped.iter().map(|dropped| dropped.count).sum();
    if removed != said {
        return Err(StoreError::Busy("entries appeared while they were counted"));
    }
    drops::record(&transaction, &dropped).await?;
    tidy(&transaction, &dropped, class, cutoff).await?;
    replace(&transaction, class, &swept).await?;
    transaction.commit().await?;
    Ok(dropped)
}

/// The pseudonyms whose entries of this class are held; `None`: the whole class is held.
async fn held(transaction: &Transaction<'_>, class: Class) -> Result<Option<Vec<String>>, tokio_postgres::Error> {
    const HELD: &str = "
        SELECT coalesce(bool_or(subjects IS NULL), FALSE), coalesce(array_agg(subject) FILTER (WHERE subject IS NOT NULL), '{}')
        FROM audit_holds LEFT JOIN LATERAL unnest(subjects) AS subject ON TRUE
        WHERE released IS NULL AND (class IS NULL OR class = $1)";
    let class = class.name();
    let row = transaction.query_typed_one(HELD, &[(&class, Type::TEXT)]).await?;
    let everything: bool = row.try_get(0)?;
    Ok(if everything { None } else { Some(row.try_get(1)?) })
}

/// The chains with entries older than `cutoff`, and the number of each one's first younger entry.
async fn floors(
    transaction: &Transaction<'_>,
    class: Class,
    cutoff: Timestamp,
) -> Result<(Vec<String>, Vec<i64>), tokio_postgres::Error> {
    const CHAINS: &str = "SELECT DISTINCT chain FROM audit_events WHERE class = $1 AND time < $2 ORDER BY chain";
    const FLOOR: &str = "
        SELECT seq FROM audit_events WHERE class = $1 AND time >= $2 AND chain = $3 AND seq IS NOT NULL
        ORDER BY seq LIMIT 1";
    let class = class.name();
    let (class, cutoff) = ((&class as _, Type::TEXT), (&cutoff as _, Type::TIMESTAMPTZ));
    let rows = transaction.query_typed(CHAINS, &[class.clone(), cutoff.clone()]).await?;
    let mut found = (Vec::new(), Vec::new());
    for row in rows {
        let chain: String = row.try_get(0)?;
        let floor = transaction.query_typed_opt(FLOOR, &[class.clone(), cutoff.clone(), (&chain, Type::TEXT)]).await?;
        found.1.push(floor.map_or(Ok(i64::MAX), |row| row.try_get(0))?);
        found.0.push(chain);
    }
    Ok(found)
}

/// Computes the removal of each chain.
async fn measure(
    transaction: &Transaction<'_>,
    expiry: &Expiry,
    at: Timestamp,
) -> Result<Vec<Dropped>, tokio_postgres::Error> {
    // The last entry's hash is queried separately: it is one per chain, and the lines are long.
    let (beginning, held) = (Expiry::IN_BEGINNING, Expiry::HELD);
    let measure = format!(
        "SELECT e.chain, count(*) FILTER (WHERE NOT {held}), count(*) FILTER (WHERE {held}), coalesce(max(e.seq), 0),
            encode(sha256(coalesce(string_agg(sha256(convert_to(e.entry, 'UTF8')), ''::bytea ORDER BY e.seq, e.time, e.id)
                FILTER (WHERE {held}), ''::bytea)), 'hex')
        FROM audit_events e WHERE {beginning} GROUP BY e.chain ORDER BY e.chain"
    );
    const BEFORE: &str = "
        SELECT through, hash FROM audit_drops WHERE chain = $1 AND class = $2 ORDER BY through DESC, id DESC LIMIT 1";
    const HASH: &str = "
        SELECT encode(sha256(convert_to(entry, 'UTF8')), 'hex') FROM audit_events
        WHERE chain = $1 AND class = $2 AND seq = $3 ORDER BY time, id LIMIT 1";
    let class = expiry.class.name();
    let mut all = Vec::new();
    for row in transaction.query_typed(&measure, &expiry.params(&class)).await? {
        let (chain, count): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        if count == 0 {
            continue;
        }
        let last: i64 = row.try_get(3)?;
        let of_chain: [Param<'_>; 3] = [(&chain, Type::TEXT), (&class, Type::TEXT), (&last, Type::INT8)];
        // Entries released from a hold may precede the end of an earlier removal.
        let earlier = transaction.query_typed_opt(BEFORE, &of_chain[..2]).await?;
        let earlier: Option<(i64, String)> =
            earlier.map(|row| Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?))).transpose()?;
        let (through, hash) = match earlier {
            _ if chain == APP_CHAIN => (0, "0".repeat(64)),
            Some((through, hash)) if through >= last => (through, hash),
            _ => (last, transaction.query_typed_one(HASH, &of_chain).await?.try_get(0)?),
        };
        let (kept, kept_digest) = (row.try_get(2)?, row.try_get(4)?);
        let class = class.to_owned();
        all.push(Dropped { chain, class, through, hash, count, kept, kept_digest, at: text_of(at) });
    }
    Ok(all)
}

/// Removes the signed lines of segments without remaining entries, and equally old rejected lines.
async fn tidy(
    transaction: &Transaction<'_>,
    dropped: &[Dropped],
    class: Class,
    cutoff: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    // Keeps the lines of the segment in or after which the chain now begins, and the checkpoint before it, which
    // signs the hash that the chain now begins with.
    const MARKS: &str = "
        WITH begins AS (SELECT max(first) AS first FROM audit_checkpoints
            WHERE chain = $1 AND class = $2 AND kind = 'header' AND first <= $3 + 1)
        DELETE FROM audit_checkpoints USING begins WHERE chain = $1 AND class = $2
            AND CASE kind WHEN 'header' THEN audit_checkpoints.first < begins.first ELSE last < begins.first - 1 END";
    for of in dropped {
        let params: [Param<'_>; 3] = [(&of.chain, Type::TEXT), (&of.class, Type::TEXT), (&of.through, Type::INT8)];
        transaction.execute_typed(MARKS, &params).await?;
    }
    let class = class.name();
    let refused = "DELETE FROM audit_refused WHERE class = $1 AND at < $2";
    transaction.execute_typed(refused, &[(&class, Type::TEXT), (&cutoff, Type::TIMESTAMPTZ)]).await?;
    Ok(())
}

/// Removes keys created before `cutoff` that no entry needs: a name must not be kept longer than the entries that use
/// it. Held entries keep their keys. Also removes records of key erasures older than `erased`: no batch can bring
/// such a key back.
async fn forget_keys(client: &mut Client, cutoff: Timestamp, erased: Timestamp) -> Result<u64, StoreError> {
    const KEYS: &str = "
        DELETE FROM audit_keys WHERE id IN (
            SELECT id FROM audit_keys old WHERE created < $1
                AND NOT EXISTS (SELECT 1 FROM audit_events e WHERE e.actor = old.subject)
            LIMIT $2)";
    const ERASED: &str = "DELETE FROM audit_erased_keys WHERE at < $1";
    let transaction = client.transaction().await?;
    Lock::Holds.share(&transaction).await?;
    let keys: [Param<'_>; 2] = [(&cutoff, Type::TIMESTAMPTZ), (&KEYS_AT_ONCE, Type::INT8)];
    let gone = transaction.execute_typed(KEYS, &keys).await?;
    transaction.execute_typed(ERASED, &[(&erased, Type::TIMESTAMPTZ)]).await?;
    transaction.commit().await?;
    Ok(gone)
}

#[cfg(test)]
mod tests;
