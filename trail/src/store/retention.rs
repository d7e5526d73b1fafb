//! What goes when its time is over, and what is said of it.
//!
//! Of a chain only a beginning goes, never something out of the middle: everything before the first entry that is young enough. So
//! what is left is a chain still, and verifies from the entry after the last that went. What is under a hold stays where it is; a
//! digest over it tells that it is still all there. It goes in steps: each removal is a transaction of bounded size, and leaves a row in `audit_drops`, in the same transaction, and a proxy
//! is asked to enter it into the trail.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use outrigger_policy::audit::Class;
use serde::{Deserialize, Serialize};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use super::drops::{self, Dropped};
use super::partitions::{self, Partition};
use super::{APP_CHAIN, Lock, Param, StoreError, text_of};

/// Longest wait for a class or a partition that somebody uses. It is tried again with the next retention.
const LOCK_TIMEOUT: &str = "5s";
/// The same where everybody else has to wait behind us.
const LOCK_OUT_TIMEOUT: &str = "200ms";
const TRIES: usize = 60;
/// Keys that are forgotten in one retention: the rest has time until the next one.
const KEYS_AT_ONCE: i64 = 20_000;
/// How much longer a key is kept than the class that is kept shortest: entries that need it may not be shipped yet.
const UNSHIPPED: SignedDuration = SignedDuration::from_hours(7 * 24);

/// For how many seconds each class is kept. A class that is not named is left alone.
pub type Retention = BTreeMap<Class, u64>;

/// How much of a retention is done at a time, so that whoever asks for it gets an answer soon, however much there is to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Partitions that are dropped whole in one transaction have together at most so many bytes: all of them are read once.
    pub whole_bytes: i64,
    /// A partition of which only a part is old enough, and that has at most so many bytes, is cleared in one transaction.
    pub part_bytes: i64,
    /// Of larger ones so many entries are removed in one transaction.
    pub rows: i64,
    /// No further transaction is begun after this time.
    pub budget: Duration,
}

impl Default for Steps {
    fn default() -> Self {
        Self { whole_bytes: 512 << 20, part_bytes: 32 << 20, rows: 50_000, budget: Duration::from_secs(2) }
    }
}

/// Where a retention goes on that is not finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// The class; `None`: only keys are left to look at.
    pub class: Option<String>,
    /// Everything before this that may go has gone.
    pub from: Timestamp,
    /// A class before this one could not be done.
    pub failed: bool,
}

/// What was done of a retention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What went.
    pub dropped: Vec<Dropped>,
    /// Where to go on; `None`: it is finished.
    pub resume: Option<Resume>,
}

/// Removes what is older than its class is kept, and keys that nothing sealed is left of, in several transactions of bounded size. Ends
/// once [`Steps::budget`] is over, and says where to go on. Each transaction may be killed: it then has done nothing.
///
/// `now` is the asker's clock. A clock that is ahead removes nothing too early: the database's counts where it is behind.
///
/// # Errors
/// PostgreSQL failed for one class at least, or somebody had it locked; what was removed of others stays removed, and is recorded.
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
                // One that is in use must not keep the others.
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

/// What is removed in one transaction.
struct Step {
    /// Everything older that may go.
    until: Timestamp,
    /// It is a small part of a large partition: reading all of that would take longer than removing the part.
    is_piece: bool,
}

/// As much of a class as one transaction should remove: what is older than `cutoff`, or a beginning of it.
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
        // Many may be of one time: one more microsecond is a step in any case.
        let until = nth.map(|nth| nth.checked_add(SignedDuration::from_micros(1)).unwrap_or(end).min(end));
        return Ok(Step { until: until.unwrap_or(end), is_piece: until.is_some_and(|until| until < end) });
    }
    Ok(Step { until: cutoff, is_piece: false })
}

fn before(now: Timestamp, seconds: u64) -> Result<Timestamp, StoreError> {
    let span = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(SignedDuration::from_secs);
    let span =
        span.ok_or_else(|| StoreError::Invalid(format!("needs a retention of more than zero, got {seconds}")))?;
    // Longer than time itself is for ever.
    Ok(now.checked_sub(span).unwrap_or(Timestamp::MIN).max(Timestamp::UNIX_EPOCH))
}

/// What of a class is to go.
struct Expiry {
    class: Class,
    /// What is older may go.
    cutoff: Timestamp,
    /// Chains that have something that old.
    chains: Vec<String>,
    /// Of each, the number of the first entry that stays.
    floors: Vec<i64>,
    /// Whose entries stay.
    held: Vec<String>,
}

impl Expiry {
    /// `TRUE` for what is old enough and before its chain's first entry that stays: `$1` to `$4`.
    const IN_BEGINNING: &str = "(e.class = $1 AND e.time < $2 AND EXISTS (
        SELECT 1 FROM unnest($3, $4) AS floors (chain, seq)
        WHERE floors.chain = e.chain AND (e.seq IS NULL OR e.seq < floors.seq)))";
    /// `TRUE` for what is under a hold: `$5`.
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
    // Whoever ships to this class meanwhile is told to come back; so this does not wait for a moment when nobody does.
    Lock::Class(class).take(&transaction).await?;
    let Some(held) = held(&transaction, class).await? else { return Ok(Vec::new()) };
    let all = partitions::of_class(&transaction, class).await?;
    let (whole, rest): (Vec<Partition>, Vec<Partition>) =
        all.into_iter().filter(|p| p.month.start() < cutoff).partition(|p| p.month.end() <= cutoff);
    for partition in &whole {
        // The app's own entries come without asking: nothing may be added between the count and the end.
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

/// The pseudonyms whose entries of this class stay; `None`: all of it stays.
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

/// The chains with something older than `cutoff`, and of each the number of its first entry that is not.
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

/// What will be gone of each chain.
async fn measure(
    transaction: &Transaction<'_>,
    expiry: &Expiry,
    at: Timestamp,
) -> Result<Vec<Dropped>, tokio_postgres::Error> {
    // Of the last entry of the beginning the hash is asked for afterwards: it is one for each chain, and the lines are long.
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
        // What was held until now may lie before the end of an earlier removal.
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

/// Deletes what goes of a partition that has younger entries too.
async fn delete(
    transaction: &Transaction<'_>,
    expiry: &Expiry,
    partition: &Partition,
) -> Result<i64, tokio_postgres::Error> {
    let (beginning, held, class) = (Expiry::IN_BEGINNING, Expiry::HELD, expiry.class.name());
    let statement = format!("DELETE FROM {} e WHERE {beginning} AND NOT {held}", partition.name());
    let gone = transaction.execute_typed(&statement, &expiry.params(&class)).await?;
    Ok(i64::try_from(gone).unwrap_or(i64::MAX))
}

/// What is done to a partition of which everything is old enough.
struct Swept {
    name: String,
    gone: i64,
    /// The table that takes its place; `None`: nothing stays, or nothing goes.
    kept: Option<Kept>,
    is_empty: bool,
}

/// A table with what stays, not yet in its place.
struct Kept {
    name: String,
    from: Timestamp,
    to: Timestamp,
}

/// Copies what stays of a partition. As a rule that is nothing or a small part of it; the rest costs nothing to remove.
async fn sweep(
    transaction: &Transaction<'_>,
    expiry: &Expiry,
    partition: &Partition,
) -> Result<Swept, tokio_postgres::Error> {
    let (beginning, held, class, name) = (Expiry::IN_BEGINNING, Expiry::HELD, expiry.class.name(), partition.name());
    let count = format!("SELECT count(*) FILTER (WHERE {beginning} AND NOT {held}), count(*) FROM {name} e");
    let row = transaction.query_typed_one(&count, &expiry.params(&class)).await?;
    let (gone, all): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let mut swept = Swept { gone, kept: None, is_empty: gone == all, name };
    if gone > 0 && gone < all {
        let (name, kept) = (&swept.name, format!("{}_kept", swept.name));
        transaction.batch_execute(&format!("CREATE TABLE {kept} (LIKE {name} INCLUDING ALL)")).await?;
        let copy = format!("INSERT INTO {kept} SELECT e.* FROM {name} e WHERE NOT ({beginning} AND NOT {held})");
        transaction.execute_typed(&copy, &expiry.params(&class)).await?;
        swept.kept = Some(Kept { name: kept, from: partition.month.start(), to: partition.month.end() });
    }
    Ok(swept)
}

/// Takes away what is empty, and puts what stays in the place of what it was copied from. From here to the end of the transaction
/// nobody else can use the class's table, so all that takes long is done before.
async fn replace(transaction: &Transaction<'_>, class: Class, swept: &[Swept]) -> Result<(), StoreError> {
    if !swept.iter().any(|swept| swept.is_empty || swept.kept.is_some()) {
        return Ok(());
    }
    let parent = partitions::parent(class);
    lock_out(transaction, &parent).await?;
    for Swept { name, kept, is_empty, .. } in swept {
        if *is_empty || kept.is_some() {
            transaction.batch_execute(&format!("DROP TABLE {name}")).await?;
        }
        if let Some(Kept { name: kept, from, to }) = kept {
            let statements = format!(
                "ALTER TABLE {kept} RENAME TO {name};
                 ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}')"
            );
            transaction.batch_execute(&statements).await?;
        }
    }
    Ok(())
}

/// Locks everybody out of a table, in short tries: whoever comes while we wait behind a long search has to wait behind us.
async fn lock_out(transaction: &Transaction<'_>, table: &str) -> Result<(), StoreError> {
    for _ in 0..TRIES {
        let statements = format!(
            "SAVEPOINT lock_out; SET LOCAL lock_timeout = '{LOCK_OUT_TIMEOUT}'; LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE"
        );
        match transaction.batch_execute(&statements).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                transaction.batch_execute("ROLLBACK TO SAVEPOINT lock_out; SELECT pg_sleep(0.5)").await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Busy("entries of this class are being read"))
}

/// Removes the signed lines of segments of which nothing is left, and refused lines that are as old.
async fn tidy(
    transaction: &Transaction<'_>,
    dropped: &[Dropped],
    class: Class,
    cutoff: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    // The segment that the chain now begins in or after keeps its lines; so does the checkpoint before it, which vouches for the hash
    // that the chain now begins with.
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

/// Forgets keys that were made before `cutoff` and that no entry needs: a name must not stay longer than what it is the name in. What a
/// hold has kept still needs its own. That a key was erased is forgotten when it was before `erased`: no batch can bring it back then.
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
mod tests {
    use super::*;

    #[test]
    fn no_retention_is_zero_and_none_is_too_long() {
        let now: Timestamp = "2026-11-24T14:00:00Z".parse().unwrap();
        assert!(before(now, 0).is_err());
        assert_eq!(before(now, 86_400).unwrap().to_string(), "2026-11-23T14:00:00Z");
        assert_eq!(before(now, i64::MAX as u64).unwrap(), Timestamp::UNIX_EPOCH);
    }
}
