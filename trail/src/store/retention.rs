//! What goes when its time is over, and what is said of it.
//!
//! Of a chain only a beginning goes, never something out of the middle: everything before the first entry that is young enough. So
//! what is left is a chain still, and verifies from the entry after the last that went. What is under a hold stays where it is; a
//! digest over it tells that it is still all there. Each removal leaves a row in `audit_drops`, in the same transaction, and a proxy
//! is asked to enter it into the trail.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use outrigger_policy::audit::Class;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient, Transaction};
use uuid::Uuid;

use super::partitions::{self, Partition};
use super::{APP_CHAIN, Lock, Param, StoreError, text_of};
use crate::keys::Signature;

/// The most removals in one answer.
pub const OFFERED_AT_ONCE: i64 = 1000;
/// How long whoever was told of a removal has to enter it into the trail, before somebody else is told.
const TURN: &str = "1 minute";
/// Longest wait for a partition that somebody uses. It is tried again with the next retention.
const LOCK_TIMEOUT: &str = "5s";
/// Keys that are looked at in one retention: each is looked for in every partition.
const KEYS_AT_ONCE: i64 = 10_000;

/// What was removed of a chain, as the trail says it: its members in the order in which they are signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The chain; [`APP_CHAIN`]: entries without numbers, by their time alone.
    pub chain: String,
    /// The class.
    pub class: String,
    /// The number of the last entry of the removed beginning; 0 where there are no numbers.
    pub through: i64,
    /// Its hash, in hexadecimal: what the next entry has for `prev`.
    pub hash: String,
    /// How many entries went.
    pub count: i64,
    /// How many of that beginning are still here, under a hold.
    pub kept: i64,
    /// SHA-256 over their hashes, in the order of their numbers.
    pub kept_digest: String,
    /// When, as entries have it.
    pub at: String,
}

impl Dropped {
    /// The text that is signed.
    pub fn canonical(&self) -> String {
        // Texts and numbers: writing them as JSON does not fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A removal that nobody has entered into the trail yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// Its number.
    pub id: i64,
    /// What was removed.
    #[serde(flatten)]
    pub dropped: Dropped,
}

/// A removal and the entry of the trail that says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The removal's number.
    pub id: i64,
    /// The entry.
    pub entry: Uuid,
    /// Who has signed [`Dropped::canonical`], and the signature.
    #[serde(flatten)]
    pub signature: Signature,
}

/// For how many seconds each class is kept. A class that is not named is left alone.
pub type Retention = BTreeMap<Class, u64>;

/// Removes what is older than its class is kept, and keys that nothing sealed is left of: what went. One transaction for each class.
///
/// `now` is the asker's clock. A clock that is ahead removes nothing too early: the database's counts where it is behind.
///
/// # Errors
/// PostgreSQL failed; what was removed before stays removed, and is recorded. [`StoreError::Busy`] when somebody else is at it.
pub async fn retain(client: &mut Client, retention: &Retention, now: Timestamp) -> Result<Vec<Dropped>, StoreError> {
    let clock: Timestamp = client.query_typed_one("SELECT clock_timestamp()", &[]).await?.try_get(0)?;
    let now = now.min(clock);
    let mut dropped = Vec::new();
    for (class, seconds) in retention {
        let cutoff = before(now, *seconds)?;
        dropped.extend(retain_class(client, *class, cutoff, clock).await?);
    }
    let longest = Class::ALL.map(|class| retention.get(&class).copied().unwrap_or(class.default_retention_s()));
    let longest = longest.into_iter().max().unwrap_or(u64::MAX);
    forget_keys(client, before(now, longest)?).await?;
    Ok(dropped)
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
    cutoff: Timestamp,
    at: Timestamp,
) -> Result<Vec<Dropped>, StoreError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")).await?;
    Lock::Holds.share(&transaction).await?;
    if !Lock::Class(class).try_take(&transaction).await? {
        return Err(StoreError::Busy("entries of this class are being stored"));
    }
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
    let mut empty = Vec::new();
    for partition in &whole {
        let (gone, stay) = sweep(&transaction, &expiry, partition).await?;
        removed += gone;
        if stay == 0 {
            empty.push(partition.name());
        }
    }
    let said: i64 = dropped.iter().map(|dropped| dropped.count).sum();
    if removed != said {
        return Err(StoreError::Busy("entries appeared while they were counted"));
    }
    record(&transaction, &dropped).await?;
    tidy(&transaction, &dropped, class, cutoff).await?;
    // Last: from here to the end of the transaction, nobody else can use the class's table.
    for name in &empty {
        transaction.batch_execute(&format!("DROP TABLE {name}")).await?;
    }
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

/// Empties a partition of which everything is old enough, but for what stays: how many go, and how many stay.
async fn sweep(
    transaction: &Transaction<'_>,
    expiry: &Expiry,
    partition: &Partition,
) -> Result<(i64, i64), tokio_postgres::Error> {
    let (beginning, held, class, name) = (Expiry::IN_BEGINNING, Expiry::HELD, expiry.class.name(), partition.name());
    let count = format!("SELECT count(*) FILTER (WHERE {beginning} AND NOT {held}), count(*) FROM {name} e");
    let row = transaction.query_typed_one(&count, &expiry.params(&class)).await?;
    let (gone, all): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    if gone > 0 && gone < all {
        // What stays is a small part of it, as a rule: copied out and in again, the rest costs nothing to remove.
        let statements = [
            format!("CREATE TEMPORARY TABLE audit_stays (LIKE {name}) ON COMMIT DROP"),
            format!("TRUNCATE {name}"),
            format!("INSERT INTO {name} SELECT * FROM audit_stays"),
            "DROP TABLE audit_stays".to_owned(),
        ];
        let [create, truncate, put_back, drop] = &statements;
        transaction.batch_execute(create).await?;
        let copy = format!("INSERT INTO audit_stays SELECT e.* FROM {name} e WHERE NOT ({beginning} AND NOT {held})");
        transaction.execute_typed(&copy, &expiry.params(&class)).await?;
        for statement in [truncate, put_back, drop] {
            transaction.batch_execute(statement).await?;
        }
    }
    Ok((gone, all - gone))
}

async fn record(transaction: &Transaction<'_>, dropped: &[Dropped]) -> Result<(), StoreError> {
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

/// Forgets keys that are older than anything is kept, and that no entry needs: what a hold has kept still needs its own.
async fn forget_keys(client: &mut Client, cutoff: Timestamp) -> Result<u64, StoreError> {
    const KEYS: &str = "
        DELETE FROM audit_keys WHERE id IN (
            SELECT id FROM (SELECT id, subject FROM audit_keys WHERE created < $1 ORDER BY created LIMIT $2) AS old
            WHERE NOT EXISTS (SELECT 1 FROM audit_events e WHERE e.actor = old.subject))";
    const ERASED: &str = "DELETE FROM audit_erased_keys WHERE at < $1";
    let cutoff = (&cutoff as _, Type::TIMESTAMPTZ);
    let transaction = client.transaction().await?;
    Lock::Holds.share(&transaction).await?;
    let gone = transaction.execute_typed(KEYS, &[cutoff.clone(), (&KEYS_AT_ONCE, Type::INT8)]).await?;
    transaction.execute_typed(ERASED, &[cutoff]).await?;
    transaction.commit().await?;
    Ok(gone)
}

/// What was removed and is not entered into the trail: told to one at a time, so that it is not entered by everybody.
///
/// # Errors
/// PostgreSQL failed.
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

/// Notes the entries that say what was removed: how many were not noted before.
///
/// # Errors
/// PostgreSQL failed.
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
    fn what_is_signed_has_its_members_in_order() {
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

    #[test]
    fn no_retention_is_zero_and_none_is_too_long() {
        let now: Timestamp = "2026-11-24T14:00:00Z".parse().unwrap();
        assert!(before(now, 0).is_err());
        assert_eq!(before(now, 86_400).unwrap().to_string(), "2026-11-23T14:00:00Z");
        assert_eq!(before(now, i64::MAX as u64).unwrap(), Timestamp::UNIX_EPOCH);
    }
}
