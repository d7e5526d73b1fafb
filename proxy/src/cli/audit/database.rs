//! PostgreSQL, for the commands: one connection, and the queries of verification.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use outrigger_policy::audit::{Class, Hash};
use outrigger_rules::environment::AUDIT_DATABASE_URL;
use outrigger_trail::keys::PublicKeys;
use outrigger_trail::store::address::{self, Address, AddressError};
use outrigger_trail::store::{APP_CHAIN, StoreError, chains};
use outrigger_trail::verify::Findings;
use outrigger_trail::verify::rows::{self, Beside, DropRecord, Dropped, Head, Rows};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::AuditError;

pub(super) use outrigger_trail::store::address::describe;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows per query.
const PAGE: i64 = 10_000;
/// The most refused lines that are checked; each has its place in a chain.
const MOST_REFUSED: i64 = 100_000;

/// The URL of a database, with its password.
#[derive(Clone)]
pub struct Url(String);

impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Url(…)")
    }
}

impl FromStr for Url {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

/// A connection to PostgreSQL.
pub(super) struct Database {
    pub(super) client: Client,
}

impl Database {
    pub(super) async fn connect(url: &Url) -> Result<Self, AuditError> {
        let from = |name: &str| std::env::var(name).ok().filter(|url| !url.trim().is_empty());
        let (what, given) = match url.0.as_str() {
            "" => match from(AUDIT_DATABASE_URL) {
                Some(given) => (AUDIT_DATABASE_URL, given),
                None => ("DATABASE_URL", from("DATABASE_URL").unwrap_or_default()),
            },
            given => ("--database", given.to_owned()),
        };
        let bad = |problem: AddressError| AuditError::Url(format!("{what}: {problem}; {}", address::HINT));
        let address = Address::parse(&given).map_err(bad)?;
        let (config, tls) = (address.config("outrigger-audit", CONNECT_TIMEOUT), address.tls().map_err(bad)?);
        let unreachable = |problem: String| {
            AuditError::Database(format!("{problem}; is it up, and is {what} the one that entries are shipped to?"))
        };
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(tls));
        let (client, connection) = connecting
            .await
            .map_err(|_| unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))?
            .map_err(|e| unreachable(describe(&e)))?;
        // Ends with the client, which reports any error.
        tokio::spawn(connection);
        Ok(Self { client })
    }

    /// Verifies all chains in the database. `shipped` has the chain of a spool and the entries that it knows to be stored.
    pub(super) async fn verify(
        &self,
        keys: &PublicKeys,
        shipped: Option<&(String, BTreeMap<String, u64>)>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Findings>, AuditError> {
        // One snapshot for all queries: retention and the app continue meanwhile.
        self.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(StoreError::from)?;
        // By chain and class: the last entry that the database has recorded.
        let mut known: BTreeMap<String, BTreeMap<Class, u64>> = BTreeMap::new();
        for chain in chains::chains(&self.client).await?.into_iter().filter(|chain| chain.chain != APP_CHAIN) {
            let Some(class) = Class::named(&chain.class) else { continue };
            known.entry(chain.chain).or_default().insert(class, u64::try_from(chain.last).unwrap_or_default());
        }
        if let Some((chain, told)) = shipped {
            // A class that is missing entirely is a problem, too.
            for class in Class::ALL.into_iter().filter(|class| told.get(class.name()).is_some_and(|last| *last > 0)) {
                known.entry(chain.clone()).or_default().entry(class).or_default();
            }
        }
        let (mut found, mut entries) = (Vec::new(), 0);
        for (id, lasts) in known {
            let told = shipped.filter(|(chain, _)| *chain == id).map(|(_, told)| told);
            let mut of_class = BTreeMap::new();
            for (class, last) in lasts {
                let shipped = told.and_then(|told| told.get(class.name())).copied().unwrap_or_default().max(last);
                let frames = self.frames(&id, class).await?;
                of_class.insert(class, Beside { frames, shipped: Some(shipped), ..Beside::default() });
            }
            for (class, head) in heads(&id, &of_class, told, keys) {
                of_class.entry(class).or_default().heads.push(head);
            }
            for (class, beside) in of_class {
                found.push(self.verify_chain(&id, class, beside, keys, &mut entries, progress).await?);
            }
        }
        self.client.batch_execute("COMMIT").await.map_err(StoreError::from)?;
        Ok(found)
    }

    /// The headers and checkpoints of a class.
    async fn frames(&self, chain: &str, class: Class) -> Result<Vec<Vec<u8>>, AuditError> {
        let mut frames = Vec::new();
        let mut after = i64::MIN;
        loop {
            let page = chains::signed(&self.client, chain, class, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(frames) };
            after = last.last;
            frames.extend(page.into_iter().map(|signed| signed.line.into_bytes()));
        }
    }

    async fn verify_chain(
        &self,
        id: &str,
        class: Class,
        mut beside: Beside,
        keys: &PublicKeys,
        entries: &mut u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Findings, AuditError> {
        let client = &self.client;
        let removals = chains::removals(client, id, class).await?;
        let dropped = removals.into_iter().map(|removal| {
            let number = |value: i64| u64::try_from(value).unwrap_or_default();
            let record = DropRecord {
                id: removal.id,
                chain: removal.dropped.chain,
                class: removal.dropped.class,
                through: number(removal.dropped.through),
                hash: removal.dropped.hash,
                count: number(removal.dropped.count),
                kept: number(removal.dropped.kept),
                kept_digest: removal.dropped.kept_digest,
                at: removal.dropped.at,
            };
            Dropped { record, signature: removal.recorded.map(|(_, signature)| signature) }
        });
        beside.drops = dropped.collect();
        let floor = beside.drops.iter().map(|dropped| dropped.record.through).max().unwrap_or_default();
        let mut refused = self.refused(id, class).await?;
        refused.retain(|seq, _| *seq > floor);
        let mut rows = Rows::new(id, class, beside, keys, Timestamp::now());
        let mut after = 0;
        loop {
            let page = chains::entries(client, id, class, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.seq;
            for row in &page {
                let seq = u64::try_from(row.seq).unwrap_or_default();
                while let Some(entry) = refused.first_entry().filter(|entry| *entry.key() < seq) {
                    let (seq, line) = entry.remove_entry();
                    rows.row(seq, &line);
                }
                rows.row(seq, row.line.as_bytes());
                rows.columns(seq, row.changed.as_deref());
            }
            *entries += page.len() as u64;
            progress(*entries);
        }
        for (seq, line) in refused {
            rows.row(seq, &line);
        }
        Ok(rows.finish())
    }

    /// Entries that the database could not store as rows. They are kept as received, and have their place in the chain.
    async fn refused(&self, chain: &str, class: Class) -> Result<BTreeMap<u64, Vec<u8>>, AuditError> {
        const REFUSED: &str = "SELECT line FROM audit_refused WHERE chain = $1 AND class = $2 ORDER BY id LIMIT $3";
        let class = class.name();
        let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
            [(&chain, Type::TEXT), (&class, Type::TEXT), (&MOST_REFUSED, Type::INT8)];
        let rows = self.client.query_typed(REFUSED, &params).await.map_err(StoreError::from)?;
        let mut lines = BTreeMap::new();
        for row in rows {
            let line: Vec<u8> = row.try_get(0).map_err(StoreError::from)?;
            if let Some(seq) = seq_of(&line) {
                lines.insert(seq, line);
            }
        }
        Ok(lines)
    }

    /// The hash of an entry, if it exists.
    pub(super) async fn hash_of(&self, chain: &str, class: Class, seq: u64) -> Result<Option<Hash>, AuditError> {
        let after = i64::try_from(seq).unwrap_or(i64::MAX) - 1;
        let found = chains::entries(&self.client, chain, class, after, 1).await?;
        let found = found.into_iter().find(|row| row.seq == after + 1);
        Ok(found.map(|row| outrigger_trail::spool::sha256(row.line.as_bytes())))
    }
}

/// The ends of each class according to the checkpoints of a chain's other classes. `told`: the entries that its spool, if it
/// is here, knows to be stored; the spool's own verification covers those that it has not shipped yet.
fn heads(
    chain: &str,
    of_class: &BTreeMap<Class, Beside>,
    told: Option<&BTreeMap<String, u64>>,
    keys: &PublicKeys,
) -> Vec<(Class, Head)> {
    let frames = of_class.values().flat_map(|beside| &beside.frames).map(Vec::as_slice);
    let mut heads = rows::heads(chain, frames, keys);
    heads.retain(|(class, head)| {
        let stored = told.map(|told| told.get(class.name()).copied().unwrap_or_default());
        head.claim.seq > 0 && stored.is_none_or(|stored| head.claim.seq <= stored)
    });
    heads
}

fn seq_of(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"seq\":")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}
