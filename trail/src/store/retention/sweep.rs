//! Removes the expired entries of a partition: one by one, or with the partition.

use jiff::Timestamp;
use outrigger_policy::audit::Class;
use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;

use super::Expiry;
use crate::store::StoreError;
use crate::store::partitions::{self, Partition};

/// Like [`LOCK_TIMEOUT`](super::LOCK_TIMEOUT), for a lock that blocks all others while waiting.
const LOCK_OUT_TIMEOUT: &str = "200ms";
const TRIES: usize = 60;

/// Deletes expired entries from a partition that also has younger ones.
pub(super) async fn delete(
    transaction: &Transaction<'_>,
    expiry: &Expiry,
    partition: &Partition,
) -> Result<i64, tokio_postgres::Error> {
    let (beginning, held, class) = (Expiry::IN_BEGINNING, Expiry::HELD, expiry.class.name());
    let statement = format!("DELETE FROM {} e WHERE {beginning} AND NOT {held}", partition.name());
    let gone = transaction.execute_typed(&statement, &expiry.params(&class)).await?;
    Ok(i64::try_from(gone).unwrap_or(i64::MAX))
}

/// The plan for a partition whose entries are all old enough.
pub(super) struct Swept {
    name: String,
    pub(super) gone: i64,
    /// The table that replaces it; `None`: all or none of its entries are removed.
    kept: Option<Kept>,
    is_empty: bool,
}

/// A table with the entries to keep, not attached yet.
struct Kept {
    name: String,
    from: Timestamp,
    to: Timestamp,
}

/// Copies the entries to keep, usually none or few of a partition; dropping the rest is cheap.
pub(super) async fn sweep(
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

/// Drops empty partitions, and replaces others by the tables with their kept entries. Blocks all other use of the
/// class's table until the transaction ends, so all slow work is done before.
pub(super) async fn replace(transaction: &Transaction<'_>, class: Class, swept: &[Swept]) -> Result<(), StoreError> {
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

/// Locks a table exclusively, with short attempts: while this waits for a long search, new queries wait behind it.
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
