//! Chains as rows, in their order, a piece at a time: for who verifies them.

use outrigger_policy::audit::Class;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::retention::{Dropped, read_dropped};
use super::{Param, StoreError};
use crate::keys::Signature;

/// A chain that the database knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its id.
    pub chain: String,
    /// Its class.
    pub class: String,
    /// Who shipped it last.
    pub machine: String,
    /// The number of the last entry that ever came.
    pub last: i64,
}

/// An entry as a row: its number and its exact line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Its number.
    pub seq: i64,
    /// The line, without a newline.
    pub line: String,
}

/// A header or checkpoint as a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// `header` or `checkpoint`.
    pub kind: String,
    /// The number of its segment's first entry.
    pub first: i64,
    /// The number of its segment's last entry; of a header, one less than `first`.
    pub last: i64,
    /// The line, without a newline.
    pub line: String,
}

/// A removal, and what proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its number: the newest counts for what is kept.
    pub id: i64,
    /// What was removed.
    pub dropped: Dropped,
    /// The entry of the trail that says so, and the signature over [`Dropped::canonical`]; `None` until a proxy has written it.
    pub recorded: Option<(Uuid, Signature)>,
}

/// All chains that ever shipped something.
///
/// # Errors
/// PostgreSQL did not tell.
pub async fn chains(client: &Client) -> Result<Vec<Chain>, StoreError> {
    const CHAINS: &str = "SELECT chain, class, machine, last FROM audit_chains ORDER BY chain, class";
    let rows = client.query_typed(CHAINS, &[]).await?;
    let chain = |row: &tokio_postgres::Row| {
        Ok(Chain { chain: row.try_get(0)?, class: row.try_get(1)?, machine: row.try_get(2)?, last: row.try_get(3)? })
    };
    rows.iter().map(chain).collect()
}

/// The next entries of a chain after number `after`, at most `limit`, in order: ask again with the last one's number until there is
/// none. Two entries with one number both come.
///
/// # Errors
/// PostgreSQL did not tell.
pub async fn entries(
    client: &Client,
    chain: &str,
    class: Class,
    after: i64,
    limit: i64,
) -> Result<Vec<Numbered>, StoreError> {
    // With ties: a number that is there twice must not be cut in two.
    const ENTRIES: &str = "
        SELECT seq, entry FROM audit_events WHERE class = $1 AND chain = $2 AND seq > $3
        ORDER BY seq FETCH FIRST $4 ROWS WITH TIES";
    let class = class.name();
    let params: [Param<'_>; 4] =
        [(&class, Type::TEXT), (&chain, Type::TEXT), (&after, Type::INT8), (&limit, Type::INT8)];
    let rows = client.query_typed(ENTRIES, &params).await?;
    rows.iter().map(|row| Ok(Numbered { seq: row.try_get(0)?, line: row.try_get(1)? })).collect()
}

/// The signed lines of a chain's segments that end after number `after`, in order, at most `limit`.
///
/// # Errors
/// PostgreSQL did not tell.
pub async fn signed(
    client: &Client,
    chain: &str,
    class: Class,
    after: i64,
    limit: i64,
) -> Result<Vec<Signed>, StoreError> {
    const SIGNED: &str = "
        SELECT kind, first, last, line FROM audit_checkpoints WHERE chain = $1 AND class = $2 AND last > $3
        ORDER BY last, first, kind FETCH FIRST $4 ROWS WITH TIES";
    let class = class.name();
    let params: [Param<'_>; 4] =
        [(&chain, Type::TEXT), (&class, Type::TEXT), (&after, Type::INT8), (&limit, Type::INT8)];
    let rows = client.query_typed(SIGNED, &params).await?;
    let signed = |row: &tokio_postgres::Row| {
        Ok(Signed { kind: row.try_get(0)?, first: row.try_get(1)?, last: row.try_get(2)?, line: row.try_get(3)? })
    };
    rows.iter().map(signed).collect()
}

/// What retention has removed of a chain, oldest first.
///
/// # Errors
/// PostgreSQL did not tell.
pub async fn removals(client: &Client, chain: &str, class: Class) -> Result<Vec<Removal>, StoreError> {
    const REMOVALS: &str = "
        SELECT id, chain, class, through, hash, count, kept, kept_digest, at, entry, key, signature FROM audit_drops
        WHERE chain = $1 AND class = $2 ORDER BY id";
    let class = class.name();
    let rows = client.query_typed(REMOVALS, &[(&chain, Type::TEXT), (&class, Type::TEXT)]).await?;
    let removal = |row: &tokio_postgres::Row| {
        let (entry, key, signature): (Option<Uuid>, Option<String>, Option<String>) =
            (row.try_get(9)?, row.try_get(10)?, row.try_get(11)?);
        let signature = key.zip(signature).map(|(key, signature)| Signature { key, signature });
        Ok(Removal { id: row.try_get(0)?, dropped: read_dropped(row)?, recorded: entry.zip(signature) })
    };
    rows.iter().map(removal).collect()
}

/// How many lines of a chain were refused: each leaves a hole in what [`entries`] gives.
///
/// # Errors
/// PostgreSQL did not tell.
pub async fn refused(client: &Client, chain: &str, class: Class) -> Result<i64, StoreError> {
    let class = class.name();
    let statement = "SELECT count(*) FROM audit_refused WHERE chain = $1 AND class = $2";
    Ok(client.query_typed_one(statement, &[(&chain, Type::TEXT), (&class, Type::TEXT)]).await?.try_get(0)?)
}
