//! Stores a batch in one transaction, and each entry once, however often it is sent.
//!
//! Entries that the database rejects are found by bisecting the batch and kept unchanged: one such entry must not
//! block all later ones.

use std::collections::BTreeSet;
use std::ops::Range;

use jiff::{SignedDuration, Timestamp};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::anchors;
use super::batch::{Batch, Line, Refused};
use super::drops::{self, Offered};
use super::partitions::{self, Month};
use super::subjects::{self, Erased};
use super::{Lock, Param, StoreError};

/// Lower bound for times. Without it, a clock that was never set would create a partition for each of its months.
const EARLIEST: &str = "2000-01-01T00:00:00Z";
/// How far a Machine's clock may be ahead of the database's.
const AHEAD: SignedDuration = SignedDuration::from_hours(31 * 24);
/// Maximum length of a stored reason for a rejected line, in characters.
const LONGEST_WHY: usize = 500;

/// Result of storing a batch. Everything that it counts is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingested {
    /// New entries.
    pub stored: u64,
    /// Entries that were stored before, or removed by retention since. An entry that merely has the number of a
    /// removed one is rejected.
    pub known: u64,
    /// Lines stored in `audit_refused`.
    pub refused: u64,
    /// Erasures unknown to the spool, in order; at most [`subjects::PAGE`].
    pub erasures: Vec<Erased>,
    /// Removals without an audit entry.
    pub drops: Vec<Offered>,
    /// The number of this chain's previous `HEAD`, if it is ahead of the received one although that was signed later.
    #[serde(default)]
    pub rolled_back: Option<i64>,
}

/// Stores a batch.
///
/// # Errors
/// PostgreSQL is unreachable or returned an error, or retention is removing entries of this class: nothing is stored.
pub async fn ingest(client: &mut Client, batch: &Batch<'_>) -> Result<Ingested, StoreError> {
    let transaction = client.transaction().await?;
    if !Lock::Class(batch.class).try_share(&transaction).await? {
        return Err(StoreError::Busy("retention removes entries of this class"));
    }
    let (now, dropped) = look(&transaction, batch).await?;
    let may_be_removed = |line: &Line<'_>| (1..=dropped).contains(&line.seq);
    let removed_before = match batch.entries.iter().any(may_be_removed) {
        true => removed_before(&transaction, batch, dropped).await?,
        false => Timestamp::MIN,
    };
    let mut refused = batch.refused.clone();
    refused.extend(subjects::store_keys(&transaction, batch, now).await?);
    let all = batch.entries.len() as u64;
    let mut lines: Vec<&Line<'_>> = Vec::with_capacity(batch.entries.len());
    for line in &batch.entries {
        match check_time(line.time, now) {
            Err(why) => refused.push(refusal(line, why)),
            Ok(()) if !may_be_removed(line) => lines.push(line),
            // Stored earlier, and removed since.
            Ok(()) if line.time < removed_before => {}
            Ok(()) => refused.push(refusal(line, began_anew(dropped, removed_before))),
        }
    }
    let months: BTreeSet<Month> = lines.iter().map(|line| Month::of(line.time)).collect();
    partitions::make(&transaction, batch.class, &months).await?;
    let (stored, by_database) = store(&transaction, batch, &lines).await?;
    refused.extend(by_database);
    mark(&transaction, batch).await?;
    keep_refused(&transaction, batch, &refused).await?;
    let entries_refused = refused.iter().filter(|refused| refused.is_entry).count() as u64;
    let erasures = subjects::erasures_after(&transaction, batch.erasures_seen).await?;
    let drops = drops::offer(&transaction).await?;
    let rolled_back = anchors::keep(&transaction, batch).await?;
    transaction.commit().await?;
    Ok(Ingested {
        stored,
        known: all.saturating_sub(stored + entries_refused),
        refused: refused.len() as u64,
        erasures,
        drops,
        rolled_back,
    })
}

/// The database's clock, and the number up to which retention has removed this chain.
async fn look(transaction: &Transaction<'_>, batch: &Batch<'_>) -> Result<(Timestamp, i64), tokio_postgres::Error> {
    const LOOK: &str = "
        SELECT clock_timestamp(), coalesce(max(through), 0) FROM audit_drops WHERE chain = $1 AND class = $2";
    let class = batch.class.name();
    let row = transaction.query_typed_one(LOOK, &[(&batch.chain, Type::TEXT), (&class, Type::TEXT)]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Upper bound for the times of entries that retention has removed up to number `dropped`: the last removal and the
/// first remaining entry are later.
async fn removed_before(
    transaction: &Transaction<'_>,
    batch: &Batch<'_>,
    dropped: i64,
) -> Result<Timestamp, tokio_postgres::Error> {
    const BEFORE: &str = "
        SELECT least(
            (SELECT max(at) FROM audit_drops WHERE chain = $1 AND class = $2),
            (SELECT time FROM audit_events WHERE chain = $1 AND class = $2 AND seq > $3 ORDER BY seq LIMIT 1))";
    let class = batch.class.name();
    let params: [Param<'_>; 3] = [(&batch.chain, Type::TEXT), (&class, Type::TEXT), (&dropped, Type::INT8)];
    transaction.query_typed_one(BEFORE, &params).await?.try_get(0)
}

fn began_anew(dropped: i64, removed_before: Timestamp) -> String {
    format!(
        "has a number that was removed, up to {dropped}, but was made after {removed_before}: the chain was restarted under its old id"
    )
}

fn check_time(time: Timestamp, now: Timestamp) -> Result<(), String> {
    let earliest: Timestamp = EARLIEST.parse().unwrap_or(Timestamp::UNIX_EPOCH);
    if time < earliest || now.checked_add(AHEAD).is_ok_and(|latest| time > latest) {
        return Err(format!("has an impossible time: {time}"));
    }
    Ok(())
}

fn refusal<'a>(line: &Line<'a>, why: String) -> Refused<'a> {
    Refused { line: line.text.as_bytes().into(), why, is_entry: true }
}

/// Stores lines. Returns how many are new, and the lines that the database rejects.
async fn store<'a>(
    transaction: &Transaction<'_>,
    batch: &Batch<'_>,
    lines: &[&Line<'a>],
) -> Result<(u64, Vec<Refused<'a>>), StoreError> {
    let (mut stored, mut refused) = (0, Vec::new());
    // A stack: the last range is stored next.
    let mut ranges: Vec<Range<usize>> = Vec::new();
    ranges.push(0..lines.len());
    while let Some(range) = ranges.pop() {
        let Some(part) = lines.get(range.clone()).filter(|part| !part.is_empty()) else { continue };
        transaction.batch_execute("SAVEPOINT part").await?;
        match insert(transaction, batch, part).await {
            Ok(new) => {
                transaction.batch_execute("RELEASE SAVEPOINT part").await?;
                stored += new;
                if new < part.len() as u64 {
                    refused.extend(impostors(transaction, batch, part).await?);
                }
            }
            Err(error) if is_about_the_rows(&error) => {
                transaction.batch_execute("ROLLBACK TO SAVEPOINT part").await?;
                let middle = range.start + range.len() / 2;
                match part {
                    [line] => refused.push(refusal(line, reason(&error))),
                    _ => ranges.extend([middle..range.end, range.start..middle]),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((stored, refused))
}

async fn insert(
    transaction: &Transaction<'_>,
    batch: &Batch<'_>,
    lines: &[&Line<'_>],
) -> Result<u64, tokio_postgres::Error> {
    const INSERT: &str = "
        INSERT INTO audit_events (class, chain, time, id, seq, machine, type, action, outcome, status, actor, client,
            request_id, route, entry)
        SELECT $1, $2, row.* FROM unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) AS row
        ON CONFLICT (class, time, id) DO NOTHING";
    fn column<'l, T>(lines: &[&'l Line<'_>], of: impl Fn(&'l Line<'_>) -> T) -> Vec<T> {
        lines.iter().map(|line| of(line)).collect()
    }
    let class = batch.class.name();
    let times = column(lines, |line| line.time);
    let ids = column(lines, |line| line.id);
    let numbers = column(lines, |line| line.seq);
    let machines = column(lines, |line| line.entry.machine.as_ref());
    let types = column(lines, |line| line.entry.event);
    let actions = column(lines, |line| line.entry.action.as_ref());
    let outcomes = column(lines, |line| line.entry.outcome);
    let statuses = column(lines, |line| line.entry.status.map(i32::from));
    let actors = column(lines, |line| line.entry.actor.id);
    let clients = column(lines, |line| line.entry.client);
    let requests = column(lines, |line| line.entry.request_id.as_deref());
    let routes = column(lines, |line| line.entry.route.as_deref());
    let texts = column(lines, |line| line.text);
    let params: [Param<'_>; 15] = [
        (&class, Type::TEXT),
        (&batch.chain, Type::TEXT),
        (&times, Type::TIMESTAMPTZ_ARRAY),
        (&ids, Type::UUID_ARRAY),
        (&numbers, Type::INT8_ARRAY),
        (&machines, Type::TEXT_ARRAY),
        (&types, Type::TEXT_ARRAY),
        (&actions, Type::TEXT_ARRAY),
        (&outcomes, Type::TEXT_ARRAY),
        (&statuses, Type::INT4_ARRAY),
        (&actors, Type::TEXT_ARRAY),
        (&clients, Type::TEXT_ARRAY),
        (&requests, Type::TEXT_ARRAY),
        (&routes, Type::TEXT_ARRAY),
        (&texts, Type::TEXT_ARRAY),
    ];
    transaction.execute_typed(INSERT, &params).await
}

/// Lines with the time and id of a different stored entry. For entries stored before, the line is identical.
async fn impostors<'a>(
    transaction: &Transaction<'_>,
    batch: &Batch<'_>,
    lines: &[&Line<'a>],
) -> Result<Vec<Refused<'a>>, tokio_postgres::Error> {
    const IMPOSTORS: &str = "
        SELECT sent.number FROM unnest($2, $3, $4) WITH ORDINALITY AS sent (time, id, entry, number)
        JOIN audit_events e ON e.class = $1 AND e.time = sent.time AND e.id = sent.id
        WHERE e.entry <> sent.entry OR e.chain <> $5";
    let class = batch.class.name();
    let times: Vec<Timestamp> = lines.iter().map(|line| line.time).collect();
    let ids: Vec<Uuid> = lines.iter().map(|line| line.id).collect();
    let texts: Vec<&str> = lines.iter().map(|line| line.text).collect();
    let params: [Param<'_>; 5] = [
        (&class, Type::TEXT),
        (&times, Type::TIMESTAMPTZ_ARRAY),
        (&ids, Type::UUID_ARRAY),
        (&texts, Type::TEXT_ARRAY),
        (&batch.chain, Type::TEXT),
    ];
    let mut found = Vec::new();
    for row in transaction.query_typed(IMPOSTORS, &params).await? {
        let number: i64 = row.try_get(0)?;
        let line = usize::try_from(number - 1).ok().and_then(|at| lines.get(at));
        found.extend(line.map(|line| refusal(line, "another entry has its time and id".to_owned())));
    }
    Ok(found)
}

/// Whether the rows caused the error: data, constraints, program limits. Any other error may be gone on retry.
fn is_about_the_rows(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else { return false };
    if *code == SqlState::CHECK_VIOLATION && error.as_db_error().is_some_and(|e| e.constraint().is_none()) {
        // A missing partition is not caused by the rows.
        return false;
    }
    matches!(code.code().get(..2), Some("22" | "23" | "54"))
}

fn reason(error: &tokio_postgres::Error) -> String {
    let text = error.as_db_error().map_or_else(|| error.to_string(), |e| format!("PostgreSQL: {}", e.message()));
    text.chars().take(LONGEST_WHY).collect()
}

/// Stores the signed lines, and the chain's last number.
async fn mark(transaction: &Transaction<'_>, batch: &Batch<'_>) -> Result<(), tokio_postgres::Error> {
    const MARKS: &str = "
        INSERT INTO audit_checkpoints (chain, class, kind, first, last, hash, line)
        SELECT $1, $2, mark.* FROM unnest($3, $4, $5, $6, $7) AS mark ON CONFLICT DO NOTHING";
    const CHAIN: &str = "
        INSERT INTO audit_chains AS c (chain, class, machine, last) VALUES ($1, $2, $3, $4)
        ON CONFLICT (chain, class) DO UPDATE SET last = greatest(c.last, excluded.last), machine = excluded.machine,
            seen = clock_timestamp()";
    let class = batch.class.name();
    if !batch.marks.is_empty() {
        let kinds: Vec<&str> = batch.marks.iter().map(|mark| mark.kind).collect();
        let firsts: Vec<i64> = batch.marks.iter().map(|mark| mark.first).collect();
        let lasts: Vec<i64> = batch.marks.iter().map(|mark| mark.last).collect();
        let hashes: Vec<Vec<u8>> = batch.marks.iter().map(|mark| hash(mark.text.as_bytes())).collect();
        let texts: Vec<&str> = batch.marks.iter().map(|mark| mark.text).collect();
        let params: [Param<'_>; 7] = [
            (&batch.chain, Type::TEXT),
            (&class, Type::TEXT),
            (&kinds, Type::TEXT_ARRAY),
            (&firsts, Type::INT8_ARRAY),
            (&lasts, Type::INT8_ARRAY),
            (&hashes, Type::BYTEA_ARRAY),
            (&texts, Type::TEXT_ARRAY),
        ];
        transaction.execute_typed(MARKS, &params).await?;
    }
    let last = batch.entries.iter().map(|line| line.seq).max().unwrap_or(0);
    let params: [Param<'_>; 4] =
        [(&batch.chain, Type::TEXT), (&class, Type::TEXT), (&batch.machine, Type::TEXT), (&last, Type::INT8)];
    transaction.execute_typed(CHAIN, &params).await.map(drop)
}

async fn keep_refused(
    transaction: &Transaction<'_>,
    batch: &Batch<'_>,
    refused: &[Refused<'_>],
) -> Result<(), tokio_postgres::Error> {
    const REFUSED: &str = "
        INSERT INTO audit_refused (chain, class, machine, hash, line, why)
        SELECT $1, $2, $3, line.* FROM unnest($4, $5, $6) AS line ON CONFLICT (chain, class, hash) DO NOTHING";
    if refused.is_empty() {
        return Ok(());
    }
    let class = batch.class.name();
    let hashes: Vec<Vec<u8>> = refused.iter().map(|refused| hash(&refused.line)).collect();
    let lines: Vec<&[u8]> = refused.iter().map(|refused| refused.line.as_ref()).collect();
    // The reason may quote the sender's text, including NUL, which PostgreSQL rejects.
    let whys: Vec<String> = refused
        .iter()
        .map(|refused| refused.why.replace('\0', "\u{fffd}").chars().take(LONGEST_WHY).collect())
        .collect();
    let params: [Param<'_>; 6] = [
        (&batch.chain, Type::TEXT),
        (&class, Type::TEXT),
        (&batch.machine, Type::TEXT),
        (&hashes, Type::BYTEA_ARRAY),
        (&lines, Type::BYTEA_ARRAY),
        (&whys, Type::TEXT_ARRAY),
    ];
    transaction.execute_typed(REFUSED, &params).await.map(drop)
}

fn hash(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impossible_time_is_rejected() {
        let now: Timestamp = "2026-11-24T14:00:00Z".parse().unwrap();
        let check = |text: &str| check_time(text.parse().unwrap(), now);
        assert_eq!(check("2026-11-24T14:00:00Z"), Ok(()));
        assert_eq!(check("2023-11-24T14:00:00Z"), Ok(()));
        assert_eq!(check("2026-12-01T14:00:00Z"), Ok(()), "a clock that is ahead");
        for bad in ["1970-01-01T00:00:00Z", "2027-01-01T00:00:00Z", "9999-01-01T00:00:00Z"] {
            assert!(check(bad).unwrap_err().contains("impossible time"), "{bad}");
        }
    }
}
