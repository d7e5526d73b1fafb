//! Subjects: their keys, erasures and holds.

use jiff::{SignedDuration, Timestamp};
use outrigger_policy::audit::Class;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient, Transaction};

use super::batch::{Batch, Refused};
use super::{Lock, Param, StoreError, text_of};
use crate::keys::WrappedKey;

/// Maximum number of erasures per response.
pub const PAGE: i64 = 1000;
/// Allowed clock difference between spool and database. A key created up to this long after an erasure counts as
/// older than it.
const CLOCKS: SignedDuration = SignedDuration::from_hours(1);
/// Maximum length of a key's texts, in bytes; valid ones are far shorter.
const LONGEST: usize = 512;

/// An erasure of a subject, as spools receive it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// Increases in the order in which erasures become visible.
    pub number: i64,
    /// The pseudonym.
    pub subject: String,
    /// Time of the erasure, in the format of entries.
    pub at: String,
}

/// An erasure with all its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// The part that spools receive.
    pub erased: Erased,
    /// The person who requested it.
    pub by: String,
    /// The reason.
    pub reason: Option<String>,
    /// Number of keys destroyed.
    pub keys: i32,
    /// The audit entry that proves it.
    pub receipt: Option<String>,
}

/// A hold: entries kept beyond their retention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its number.
    pub id: i64,
    /// The class that it applies to; `None`: all.
    pub class: Option<Class>,
    /// Pseudonyms of the actors or clients whose entries it applies to; empty: all.
    pub subjects: Vec<String>,
    /// The reason.
    pub reason: String,
    /// The person who requested it.
    pub by: String,
    /// Its start.
    pub since: Timestamp,
    /// Its end, once released.
    pub released: Option<Timestamp>,
}

/// Stores the batch's keys, except those of erased subjects. Returns the invalid ones.
pub(crate) async fn store_keys<'a>(
    transaction: &Transaction<'_>,
    batch: &Batch<'_>,
    now: Timestamp,
) -> Result<Vec<Refused<'a>>, tokio_postgres::Error> {
    // A spool that does not know of an erasure may send a key older than it. A key created after the erasure, but
    // within the allowed clock difference, is lost too.
    const FORGET: &str = "
        INSERT INTO audit_erased_keys (id)
        SELECT sent.id FROM unnest($1, $2, $3) AS sent (id, subject, created)
        WHERE EXISTS (SELECT 1 FROM audit_erasures e
            WHERE e.subject = sent.subject AND e.number > $4 AND e.at + make_interval(secs => $5) >= sent.created)
        ON CONFLICT DO NOTHING";
    const STORE: &str = "
        INSERT INTO audit_keys (id, subject, master, wrapped, created, sealed)
        SELECT sent.* FROM unnest($1, $2, $3, $4, $5, $6) AS sent (id, subject, master, wrapped, created, sealed)
        WHERE NOT EXISTS (SELECT 1 FROM audit_erased_keys e WHERE e.id = sent.id)
        ON CONFLICT (id) DO NOTHING";
    if batch.keys.is_empty() {
        return Ok(Vec::new());
    }
    Lock::Erasures.share(transaction).await?;
    let (keys, bad): (Vec<&WrappedKey>, Vec<&WrappedKey>) = batch.keys.iter().partition(|key| is_storable(key));
    let ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
    let subjects: Vec<&str> = keys.iter().map(|key| key.subject.as_str()).collect();
    let masters: Vec<&str> = keys.iter().map(|key| key.master.as_str()).collect();
    let wrapped: Vec<&str> = keys.iter().map(|key| key.wrapped.as_str()).collect();
    let sealed: Vec<&str> = keys.iter().map(|key| key.sealed.as_str()).collect();
    let created: Vec<Timestamp> = keys.iter().map(|key| key.created.parse().unwrap_or(now)).collect();
    // A key without a valid time counts as older than any erasure.
    let oldest: Vec<Timestamp> = keys.iter().map(|key| key.created.parse().unwrap_or(Timestamp::UNIX_EPOCH)).collect();
    let seconds = CLOCKS.as_secs_f64();
    let forget: [Param<'_>; 5] = [
        (&ids, Type::TEXT_ARRAY),
        (&subjects, Type::TEXT_ARRAY),
        (&oldest, Type::TIMESTAMPTZ_ARRAY),
        (&batch.erasures_seen, Type::INT8),
        (&seconds, Type::FLOAT8),
    ];
    transaction.execute_typed(FORGET, &forget).await?;
    let store: [Param<'_>; 6] = [
        (&ids, Type::TEXT_ARRAY),
        (&subjects, Type::TEXT_ARRAY),
        (&masters, Type::TEXT_ARRAY),
        (&wrapped, Type::TEXT_ARRAY),
        (&created, Type::TIMESTAMPTZ_ARRAY),
        (&sealed, Type::TEXT_ARRAY),
    ];
    transaction.execute_typed(STORE, &store).await?;
    let refused = |key: &WrappedKey| Refused {
        line: serde_json::to_vec(key).unwrap_or_default().into(),
        why: "is not a valid key".to_owned(),
        is_entry: false,
    };
    Ok(bad.into_iter().map(refused).collect())
}

fn is_storable(key: &WrappedKey) -> bool {
    let good = |text: &str| (1..=LONGEST).contains(&text.len()) && !text.contains('\0');
    let is_sealed = key.sealed.len() <= LONGEST && !key.sealed.contains('\0');
    is_sealed && [&key.id, &key.subject, &key.master, &key.wrapped].into_iter().all(|text| good(text))
}

/// The keys of these subjects.
///
/// # Errors
/// The query failed.
pub async fn keys_of(client: &Client, subjects: &[String]) -> Result<Vec<WrappedKey>, StoreError> {
    const KEYS: &str =
        "SELECT id, subject, master, wrapped, created, sealed FROM audit_keys WHERE subject = ANY($1) ORDER BY created";
    let rows = client.query_typed(KEYS, &[(&subjects, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(|row| Ok(wrapped_key(row)?)).collect()
}

/// The keys with these ids.
///
/// # Errors
/// The query failed.
pub async fn keys_named(client: &Client, ids: &[String]) -> Result<Vec<WrappedKey>, StoreError> {
    const KEYS: &str = "SELECT id, subject, master, wrapped, created, sealed FROM audit_keys WHERE id = ANY($1)";
    let rows = client.query_typed(KEYS, &[(&ids, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(|row| Ok(wrapped_key(row)?)).collect()
}

fn wrapped_key(row: &tokio_postgres::Row) -> Result<WrappedKey, tokio_postgres::Error> {
    let created: Timestamp = row.try_get(4)?;
    Ok(WrappedKey {
        id: row.try_get(0)?,
        subject: row.try_get(1)?,
        master: row.try_get(2)?,
        wrapped: row.try_get(3)?,
        created: text_of(created),
        sealed: row.try_get(5)?,
    })
}

/// Destroys the keys of these pseudonyms and adds one erasure for each, which every spool receives. Also does so for
/// pseudonyms without keys, since a spool may have a key that is not shipped yet.
///
/// # Errors
/// [`StoreError::Held`] if a hold applies to one of them, or the query failed.
pub async fn erase(
    client: &mut Client,
    subjects: &[String],
    by: &str,
    reason: Option<&str>,
) -> Result<Vec<Erasure>, StoreError> {
    const HELD: &str = "SELECT min(id) FROM audit_holds WHERE released IS NULL AND subjects && $1";
    const ERASE: &str = "
        WITH gone AS (DELETE FROM audit_keys WHERE subject = ANY($1) RETURNING id, subject),
        never AS (INSERT INTO audit_erased_keys (id) SELECT id FROM gone ON CONFLICT DO NOTHING)
        INSERT INTO audit_erasures (subject, by, reason, keys)
        SELECT name, $2, $3, (SELECT count(*) FROM gone WHERE gone.subject = name) FROM unnest($1) AS name
        RETURNING number, subject, at, by, reason, keys, receipt";
    let transaction = client.transaction().await?;
    Lock::Holds.share(&transaction).await?;
    Lock::Erasures.take(&transaction).await?;
    let row = transaction.query_typed_one(HELD, &[(&subjects, Type::TEXT_ARRAY)]).await?;
    if let Some(id) = row.try_get(0)? {
        return Err(StoreError::Held(id));
    }
    let params: [Param<'_>; 3] = [(&subjects, Type::TEXT_ARRAY), (&by, Type::TEXT), (&reason, Type::TEXT)];
    let rows = transaction.query_typed(ERASE, &params).await?;
    let erasures: Result<Vec<Erasure>, tokio_postgres::Error> = rows.iter().map(erasure).collect();
    let erasures = erasures?;
    transaction.commit().await?;
    Ok(erasures)
}

/// Notes the audit entry that proves these erasures.
///
/// # Errors
/// The query failed.
pub async fn set_receipt(client: &Client, numbers: &[i64], receipt: &str) -> Result<(), StoreError> {
    const NOTE: &str = "UPDATE audit_erasures SET receipt = $2 WHERE number = ANY($1)";
    client.execute_typed(NOTE, &[(&numbers, Type::INT8_ARRAY), (&receipt, Type::TEXT)]).await?;
    Ok(())
}

/// The erasures of these pseudonyms, in order; all erasures if `subjects` is empty.
///
/// # Errors
/// The query failed.
pub async fn erasures_of(client: &Client, subjects: &[String]) -> Result<Vec<Erasure>, StoreError> {
    const OF: &str = "
        SELECT number, subject, at, by, reason, keys, receipt FROM audit_erasures
        WHERE cardinality($1) = 0 OR subject = ANY($1) ORDER BY number";
    let rows = client.query_typed(OF, &[(&subjects, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(|row| Ok(erasure(row)?)).collect()
}

fn erasure(row: &tokio_postgres::Row) -> Result<Erasure, tokio_postgres::Error> {
    Ok(Erasure {
        erased: Erased { number: row.try_get(0)?, subject: row.try_get(1)?, at: text_of(row.try_get(2)?) },
        by: row.try_get(3)?,
        reason: row.try_get(4)?,
        keys: row.try_get(5)?,
        receipt: row.try_get(6)?,
    })
}

/// The erasures after `number`, in order, at most [`PAGE`].
///
/// # Errors
/// The query failed.
pub async fn erasures_after(client: &impl GenericClient, number: i64) -> Result<Vec<Erased>, StoreError> {
    const AFTER: &str = "SELECT number, subject, at FROM audit_erasures WHERE number > $1 ORDER BY number LIMIT $2";
    let rows = client.query_typed(AFTER, &[(&number, Type::INT8), (&PAGE, Type::INT8)]).await?;
    let erased = |row: &tokio_postgres::Row| {
        Ok(Erased { number: row.try_get(0)?, subject: row.try_get(1)?, at: text_of(row.try_get(2)?) })
    };
    rows.iter().map(erased).collect()
}

/// Begins a hold on entries of `class`, on entries about `subjects` (pseudonyms), or on those that match both. Waits
/// for a running retention.
///
/// # Errors
/// Both are missing, or the query failed.
pub async fn hold(
    client: &mut Client,
    class: Option<Class>,
    subjects: &[String],
    reason: &str,
    by: &str,
) -> Result<Hold, StoreError> {
    const HOLD: &str = "
        INSERT INTO audit_holds (class, subjects, reason, by) VALUES ($1, nullif($2, '{}'), $3, $4)
        RETURNING id, class, subjects, reason, by, since, released";
    if class.is_none() && subjects.is_empty() {
        return Err(StoreError::Invalid("a hold needs a class or a subject".to_owned()));
    }
    let transaction = client.transaction().await?;
    Lock::Holds.take(&transaction).await?;
    let class = class.map(Class::name);
    let params: [Param<'_>; 4] =
        [(&class, Type::TEXT), (&subjects, Type::TEXT_ARRAY), (&reason, Type::TEXT), (&by, Type::TEXT)];
    let row = transaction.query_typed_one(HOLD, &params).await?;
    let hold = read_hold(&row)?;
    transaction.commit().await?;
    Ok(hold)
}

/// Releases a hold. Returns `None` unless there is an active hold with this number.
///
/// # Errors
/// The query failed.
pub async fn release(client: &Client, id: i64) -> Result<Option<Hold>, StoreError> {
    const RELEASE: &str = "
        UPDATE audit_holds SET released = clock_timestamp() WHERE id = $1 AND released IS NULL
        RETURNING id, class, subjects, reason, by, since, released";
    let row = client.query_typed_opt(RELEASE, &[(&id, Type::INT8)]).await?;
    Ok(row.as_ref().map(read_hold).transpose()?)
}

/// All holds, including released ones, oldest first.
///
/// # Errors
/// The query failed.
pub async fn holds(client: &Client) -> Result<Vec<Hold>, StoreError> {
    const HOLDS: &str = "SELECT id, class, subjects, reason, by, since, released FROM audit_holds ORDER BY id";
    let rows = client.query_typed(HOLDS, &[]).await?;
    rows.iter().map(|row| Ok(read_hold(row)?)).collect()
}

fn read_hold(row: &tokio_postgres::Row) -> Result<Hold, tokio_postgres::Error> {
    let class: Option<String> = row.try_get(1)?;
    let subjects: Option<Vec<String>> = row.try_get(2)?;
    Ok(Hold {
        id: row.try_get(0)?,
        class: class.as_deref().and_then(Class::named),
        subjects: subjects.unwrap_or_default(),
        reason: row.try_get(3)?,
        by: row.try_get(4)?,
        since: row.try_get(5)?,
        released: row.try_get(6)?,
    })
}
