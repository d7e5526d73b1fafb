//! Anchors: the newest signed `HEAD` of each proxy's chains, stored outside of the directory that it describes.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use super::batch::Batch;
use super::{Param, StoreError};
use crate::layout::Heads;

/// Maximum number of anchors per chain. Each but the first stems from a directory that was restored to an earlier
/// state.
const MOST: i64 = 16;

/// Stores the `HEAD` of a batch. If it was signed later than the stored one and yet describes an earlier state,
/// returns the stored one's number: the directory was restored to an earlier state.
pub(crate) async fn keep(
    transaction: &Transaction<'_>,
    batch: &Batch<'_>,
) -> Result<Option<i64>, tokio_postgres::Error> {
    const NEWEST: &str =
        "SELECT number, line FROM audit_anchors WHERE chain = $1 ORDER BY at DESC, number DESC LIMIT 1 FOR UPDATE";
    const REPLACE: &str = "DELETE FROM audit_anchors WHERE chain = $1 AND number = $2";
    const KEEP: &str = "
        INSERT INTO audit_anchors (chain, number, machine, line)
        SELECT $1, $2, $3, $4 WHERE (SELECT count(*) FROM audit_anchors WHERE chain = $1) < $5
        ON CONFLICT (chain, number) DO NOTHING";
    let Some((line, new)) = &batch.head else { return Ok(None) };
    let Ok(number) = i64::try_from(new.number) else { return Ok(None) };
    let chain = (&batch.chain as _, Type::TEXT);
    let newest = transaction.query_typed_opt(NEWEST, std::slice::from_ref(&chain)).await?;
    let mut behind = None;
    if let Some(row) = newest {
        let (before, text): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        // An unreadable one is replaced.
        if let Ok(old) = serde_json::from_str::<Heads>(&text) {
            if new.signed_at() <= old.signed_at() {
                // The same `HEAD`, or a delayed older one.
                return Ok(None);
            }
            if !new.is_ahead_of(&old) {
                behind = Some(before);
            }
        }
        if behind.is_none() {
            transaction.execute_typed(REPLACE, &[chain.clone(), (&before, Type::INT8)]).await?;
        }
    }
    let keep: [Param<'_>; 5] =
        [chain, (&number, Type::INT8), (&batch.machine, Type::TEXT), (line, Type::TEXT), (&MOST, Type::INT8)];
    transaction.execute_typed(KEEP, &keep).await?;
    Ok(behind)
}

/// All anchors, as signed lines.
///
/// # Errors
/// The query failed.
pub async fn all(client: &Client) -> Result<Vec<String>, StoreError> {
    const IS_THERE: &str = "SELECT to_regclass('audit_anchors') IS NOT NULL";
    const ALL: &str = "SELECT line FROM audit_anchors ORDER BY chain, number";
    // The database was not migrated by an app of this version yet.
    if !client.query_typed_one(IS_THERE, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(Vec::new());
    }
    let rows = client.query_typed(ALL, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
