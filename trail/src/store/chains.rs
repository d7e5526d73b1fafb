//! Reads chains in order, a page at a time, for verification.

use jiff::{SignedDuration, Timestamp};
use outrigger_policy::audit::Class;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::drops::{Dropped, read_dropped};
use super::{Param, StoreError};
use crate::entry::Entry;
use crate::keys::Signature;

/// A chain in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its id.
    pub chain: String,
    /// Its class.
    pub class: String,
    /// The Machine that shipped it last.
    pub machine: String,
    /// The number of the last entry ever received.
    pub last: i64,
}

/// An entry's row: its number, its exact line, and the columns that contradict the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Its number.
    pub seq: i64,
    /// The line, without a newline.
    pub line: String,
    /// The columns that differ from the line, which make searches find the entry wrongly or not at all. `None`: the
    /// line is not an entry and cannot be compared.
    pub changed: Option<Vec<&'static str>>,
}

/// The row of a header or checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// `header` or `checkpoint`.
    pub kind: String,
    /// The number of its segment's first entry.
    pub first: i64,
    /// The number of its segment's last entry; of a header, `first - 1`.
    pub last: i64,
    /// The line, without a newline.
    pub line: String,
}

/// A removal and its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its number: the newest removal determines what is kept.
    pub id: i64,
    /// The removal.
    pub dropped: Dropped,
    /// The audit entry that records it, and the signature over [`Dropped::canonical`]; `None` until a proxy has
    /// written it.
    pub recorded: Option<(Uuid, Signature)>,
}

/// All chains ever shipped, including those of which only a header, a checkpoint or a removal is left.
///
/// # Errors
/// The query failed.
pub async fn chains(client: &Client) -> Result<Vec<Chain>, StoreError> {
    const CHAINS: &str = "
        SELECT chain, class, coalesce(max(machine), ''), max(last) FROM (
            SELECT chain, class, machine, last FROM audit_chains
            UNION ALL SELECT chain, class, NULL, 0 FROM audit_checkpoints
            UNION ALL SELECT chain, class, NULL, 0 FROM audit_drops) AS told
        GROUP BY chain, class ORDER BY chain, class";
    let rows = client.query_typed(CHAINS, &[]).await?;
    let chain = |row: &Row| {
        Ok(Chain { chain: row.try_get(0)?, class: row.try_get(1)?, machine: row.try_get(2)?, last: row.try_get(3)? })
    };
    rows.iter().map(chain).collect()
}

/// Returns the entries of a chain after number `after`, at most `limit`, in order. To read all, repeat with the last
/// entry's number until the result is empty. Includes both of two entries with the same number.
///
/// # Errors
/// The query failed.
pub async fn entries(
    client: &Client,
    chain: &str,
    class: Class,
    after: i64,
    limit: i64,
) -> Result<Vec<Numbered>, StoreError> {
    // With ties: entries with the same number must be on the same page.
    const ENTRIES: &str = "
        SELECT seq, entry, time, id, machine, type, action, outcome, status, actor, client, request_id, route
        FROM audit_events WHERE class = $1 AND chain = $2 AND seq > $3
        ORDER BY seq FETCH FIRST $4 ROWS WITH TIES";
    let class = class.name();
    let params: [Param<'_>; 4] =
        [(&class, Type::TEXT), (&chain, Type::TEXT), (&after, Type::INT8), (&limit, Type::INT8)];
    let rows = client.query_typed(ENTRIES, &params).await?;
    let numbered = |row: &Row| {
        let (seq, line): (i64, String) = (row.try_get("seq")?, row.try_get("entry")?);
        let changed = Entry::parse(line.as_bytes()).ok().map(|entry| changed(row, &entry));
        Ok(Numbered { seq, line, changed })
    };
    rows.iter().map(numbered).collect()
}

/// The columns that differ from what [`super::ingest`] writes. Compared here because the database's `jsonb` rejects
/// valid lines, such as those with `\u0000` in a member without a column.
fn changed(row: &Row, entry: &Entry<'_>) -> Vec<&'static str> {
    let time: Option<Timestamp> = entry.time.parse().ok();
    // Columns store microseconds.
    let is_then =
        |at: Timestamp| time.is_some_and(|time| at.duration_since(time).abs() < SignedDuration::from_micros(1));
    let columns = [
        ("time", row.try_get("time").is_ok_and(is_then)),
        ("id", says(row, "id", entry.id.parse::<Uuid>().ok())),
        ("machine", says(row, "machine", Some(entry.machine.as_ref()))),
        ("type", says(row, "type", Some(entry.event))),
        ("action", says(row, "action", Some(entry.action.as_ref()))),
        ("outcome", says(row, "outcome", Some(entry.outcome))),
        ("status", says(row, "status", entry.status.map(i32::from))),
        ("actor", says(row, "actor", Some(entry.actor.id))),
        ("client", says(row, "client", entry.client)),
        ("request_id", says(row, "request_id", entry.request_id.as_deref())),
        ("route", says(row, "route", entry.route.as_deref())),
    ];
    columns.into_iter().filter(|(_, is_same)| !is_same).map(|(column, _)| column).collect()
}

/// Whether a column can be read and has this value; `None` is NULL.
fn says<'r, T: FromSql<'r> + PartialEq>(row: &'r Row, column: &str, expected: Option<T>) -> bool {
    row.try_get(column).ok() == Some(expected)
}

/// Returns the headers and checkpoints of a chain's segments that end after number `after`, in order, at most
/// `limit`.
///
/// # Errors
/// The query failed.
pub async fn signed(
    client: &Client,
    chain: &str,
    class: Class,
    after: i64,
    limit: i64,
) -> Result<Vec<Signed>, StoreError> {
    const SIGNED: &str = "
        SELECT * FROM (
            SELECT kind, first, last, line FROM audit_checkpoints WHERE chain = $1 AND class = $2 AND last > $3
            ORDER BY last FETCH FIRST $4 ROWS WITH TIES) AS page
        ORDER BY last, first, kind";
    let class = class.name();
    let params: [Param<'_>; 4] =
        [(&chain, Type::TEXT), (&class, Type::TEXT), (&after, Type::INT8), (&limit, Type::INT8)];
    let rows = client.query_typed(SIGNED, &params).await?;
    let signed = |row: &Row| {
        Ok(Signed { kind: row.try_get(0)?, first: row.try_get(1)?, last: row.try_get(2)?, line: row.try_get(3)? })
    };
    rows.iter().map(signed).collect()
}

/// The removals from a chain, oldest first.
///
/// # Errors
/// The query failed.
pub async fn removals(client: &Client, chain: &str, class: Class) -> Result<Vec<Removal>, StoreError> {
    const REMOVALS: &str = "
        SELECT id, chain, class, through, hash, count, kept, kept_digest, at, entry, key, signature FROM audit_drops
        WHERE chain = $1 AND class = $2 ORDER BY id";
    let class = class.name();
    let rows = client.query_typed(REMOVALS, &[(&chain, Type::TEXT), (&class, Type::TEXT)]).await?;
    let removal = |row: &Row| {
        let (entry, key, signature): (Option<Uuid>, Option<String>, Option<String>) =
            (row.try_get(9)?, row.try_get(10)?, row.try_get(11)?);
        let signature = key.zip(signature).map(|(key, signature)| Signature { key, signature });
        Ok(Removal { id: row.try_get(0)?, dropped: read_dropped(row)?, recorded: entry.zip(signature) })
    };
    rows.iter().map(removal).collect()
}

/// Number of rejected lines of a chain; each leaves a gap in the result of [`entries`].
///
/// # Errors
/// The query failed.
pub async fn refused(client: &Client, chain: &str, class: Class) -> Result<i64, StoreError> {
    let class = class.name();
    let statement = "SELECT count(*) FROM audit_refused WHERE chain = $1 AND class = $2";
    Ok(client.query_typed_one(statement, &[(&chain, Type::TEXT), (&class, Type::TEXT)]).await?.try_get(0)?)
}
