//! PostgreSQL, for the commands: one connection, and the queries of verification.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use outrigger_policy::audit::{Class, Hash};
use outrigger_trail::keys::PublicKeys;
use outrigger_trail::store::{APP_CHAIN, StoreError, chains};
use outrigger_trail::verify::Findings;
use outrigger_trail::verify::rows::{self, Beside, DropRecord, Dropped, Head, Rows};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::AuditError;

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

/// An error with its causes, on one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// A connection to PostgreSQL.
pub(super) struct Database {
    pub(super) client: Client,
}

impl Database {
    pub(super) async fn connect(url: &Url) -> Result<Self, AuditError> {
        let given = if url.0.is_empty() { std::env::var("DATABASE_URL").unwrap_or_default() } else { url.0.clone() };
        let bad = |problem: String| {
            let what = if url.0.is_empty() { "DATABASE_URL" } else { "--database" };
            AuditError::Url(format!("{what}: {problem}; write postgres://USER:PASSWORD@HOST:PORT/DATABASE"))
        };
        // The certificate is always verified, so libpq's stricter names mean what `require` means here.
        let given =
            given.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
        let mut config: Config = given.parse().map_err(|e: tokio_postgres::Error| bad(describe(&e)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(bad("names no host".to_owned()));
        }
        if config.get_ssl_mode() == SslMode::Prefer && config.get_hosts().iter().all(is_local) {
            config.ssl_mode(SslMode::Disable);
        }
        let mut roots = rustls::RootCertStore::empty();
        if config.get_ssl_mode() != SslMode::Disable {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(bad(
                    "no CA certificates on this machine; install ca-certificates or set SSL_CERT_FILE".to_owned()
                ));
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.map_err(|e| bad(e.to_string()))?.with_root_certificates(roots).with_no_client_auth();
        config.application_name("outrigger-audit").connect_timeout(CONNECT_TIMEOUT);
        let unreachable = |problem: String| {
            AuditError::Database(format!("{problem}; is it up, and is DATABASE_URL the one that the app has?"))
        };
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(MakeRustlsConnect::new(tls)));
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

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}
