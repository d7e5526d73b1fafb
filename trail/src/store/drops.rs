//! Records of removals by retention: offered to proxies until one has written an audit entry.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient, Transaction};
use uuid::Uuid;

use super::{Param, StoreError, text_of};
use crate::keys::Signature;

/// Maximum number of removals per response.
pub const OFFERED_AT_ONCE: i64 = 1000;
/// Time for a proxy to write the audit entry before the removal is offered to another one.
const TURN: &str = "1 minute";

/// A removal from a chain, as the audit log records it. Its members are signed in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The chain; [`super::APP_CHAIN`]: entries without numbers, removed by time alone.
    pub chain: String,
    /// The class.
    pub class: String,
    /// The number of the last removed entry, counted from the chain's beginning; 0 if entries have no numbers.
    pub through: i64,
    /// Its hash in hex: `prev` of the next entry.
    pub hash: String,
    /// Number of entries removed.
    pub count: i64,
    /// Number of entries up to `through` that are kept by a hold.
    pub kept: i64,
    /// SHA-256 over their hashes, in the order of their numbers.
    pub kept_digest: String,
    /// Time of the removal, in the format of entries.
    pub at: String,
}

impl Dropped {
    /// The text that is signed.
    pub fn canonical(&self) -> String {
        // Serialising strings and numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A removal without an audit entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// Its number.
    pub id: i64,
    /// The removal.
    #[serde(flatten)]
    pub dropped: Dropped,
}

/// A removal and its audit entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The removal's number.
    pub id: i64,
    /// The entry.
    pub entry: Uuid,
    /// The signature over [`Dropped::canonical`], and its key.
    #[serde(flatten)]
    pub signature: Signature,
}

/// Stores removals, in the transaction that removes the entries.
pub(crate) async fn record(transaction: &Transaction<'_>, dropped: &[Dropped]) -> Result<(), StoreError> {
    const RECORD: &str = "
        INSERT INTO audit_drops (chain, class, through, hash, count, kept, kept_digest, at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    for of in dropped {
        let at: Timestamp = of.at.parse().map_err(|e| StoreError::Invalid(format!("{e}: {}", of.at)))?;
        let params: [Param<'_>; 8] = [
            (&of.chain, Type::TEXT),
            (&of.class, Type::TEXT),
            (&of.through, Type::INT8),
            (&of.hash, Type::TEXT),
            (&of.count, Type::INT8),
            (&of.kept, Type::INT8),
            (&of.kept_digest, Type::TEXT),
            (&at, Type::TIMESTAMPTZ),
        ];
        transaction.execute_typed(RECORD, &params).await?;
    }
    Ok(())
}

/// Removals without an audit entry. Each is offered to one proxy at a time, so that it is recorded once.
///
/// # Errors
/// The query failed.
pub async fn offer(client: &impl GenericClient) -> Result<Vec<Offered>, StoreError> {
    let offer = format!(
        "WITH next AS (SELECT id FROM audit_drops WHERE entry IS NULL AND offered < clock_timestamp() - interval '{TURN}'
            ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED),
        told AS (UPDATE audit_drops d SET offered = clock_timestamp() FROM next WHERE d.id = next.id RETURNING d.*)
        SELECT id, chain, class, through, hash, count, kept, kept_digest, at FROM told ORDER BY id"
    );
    let rows = client.query_typed(&offer, &[(&OFFERED_AT_ONCE, Type::INT8)]).await?;
    rows.iter().map(|row| Ok(Offered { id: row.try_get(0)?, dropped: read_dropped(row)? })).collect()
}

/// Reads the columns from the second on.
pub(crate) fn read_dropped(row: &tokio_postgres::Row) -> Result<Dropped, tokio_postgres::Error> {
    Ok(Dropped {
        chain: row.try_get(1)?,
        class: row.try_get(2)?,
        through: row.try_get(3)?,
        hash: row.try_get(4)?,
        count: row.try_get(5)?,
        kept: row.try_get(6)?,
        kept_digest: row.try_get(7)?,
        at: text_of(row.try_get(8)?),
    })
}

/// Notes the audit entries of removals. Returns how many were not noted before.
///
/// # Errors
/// The query failed.
pub async fn note(client: &Client, recorded: &[Recorded]) -> Result<u64, StoreError> {
    const NOTE: &str = "
        UPDATE audit_drops d SET entry = r.entry, key = r.key, signature = r.signature
        FROM unnest($1, $2, $3, $4) AS r (id, entry, key, signature) WHERE d.id = r.id AND d.entry IS NULL";
    let ids: Vec<i64> = recorded.iter().map(|recorded| recorded.id).collect();
    let entries: Vec<Uuid> = recorded.iter().map(|recorded| recorded.entry).collect();
    let keys: Vec<&str> = recorded.iter().map(|recorded| recorded.signature.key.as_str()).collect();
    let signatures: Vec<&str> = recorded.iter().map(|recorded| recorded.signature.signature.as_str()).collect();
    let params: [Param<'_>; 4] = [
        (&ids, Type::INT8_ARRAY),
        (&entries, Type::UUID_ARRAY),
        (&keys, Type::TEXT_ARRAY),
        (&signatures, Type::TEXT_ARRAY),
    ];
    Ok(client.execute_typed(NOTE, &params).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_members_are_in_order() {
        let dropped = Dropped {
            chain: "0123456789abcdef".to_owned(),
            class: "data".to_owned(),
            through: 7,
            hash: "00".to_owned(),
            count: 6,
            kept: 1,
            kept_digest: "11".to_owned(),
            at: "2026-11-24T14:00:00.000000Z".to_owned(),
        };
        let text = r#"{"chain":"0123456789abcdef","class":"data","through":7,"hash":"00","count":6,"kept":1,"kept_digest":"11","at":"2026-11-24T14:00:00.000000Z"}"#;
        assert_eq!(dropped.canonical(), text);
        let offered = Offered { id: 3, dropped };
        assert_eq!(serde_json::to_string(&offered).unwrap(), text.replacen('{', "{\"id\":3,", 1));
    }
}
