//! Upkeep of the audit log: deletes expired events at the start and once a day, and logs flags that have changed while
//! the process was not running.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_policy::audit::{Class, EventType, Outcome, Time};
use outrigger_policy::flags::Feature;
use outrigger_rules::config::Config;
use outrigger_rules::sections::audit::AuditRules;
use outrigger_trail::store::drops::{self, Offered, Recorded};
use outrigger_trail::store::retention::{self, Retention, Steps};
use serde_json::json;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::audit::database::{Database, PATIENCE, ShipError};
use crate::audit::{Act, Command, Trail, writer};

/// How often expired events are deleted.
const DAILY: Duration = Duration::from_secs(86_400);
/// The pause after a failure.
const SOON: Duration = Duration::from_secs(60);
/// The delay after the start, when other work is more urgent.
const SETTLED: Duration = Duration::from_secs(5);
/// The pause between two steps of retention in PostgreSQL.
const BETWEEN_STEPS: Duration = Duration::from_millis(100);
/// The timeout of a step, most of which take seconds.
const LONGEST_STEP: Duration = Duration::from_secs(3600);
/// The timeout of the writer.
const WRITTEN: Duration = Duration::from_secs(10);
/// The file with the flags of the previous process.
const FLAGS: &str = "FLAGS";

/// Deletes expired events for the life of the process, on this disk and in the database.
pub async fn keep_up(trail: Arc<Trail>, database: Option<Arc<Database>>) {
    tokio::time::sleep(SETTLED).await;
    loop {
        trail.command(Command::Expire);
        let removed = match &database {
            Some(database) => in_postgres(&trail, database).await,
            None => Ok(()),
        };
        let wait = match removed {
            Ok(()) => DAILY,
            Err(e) => {
                tracing::warn!("expired entries of the audit log stay in PostgreSQL for now: {e}");
                SOON
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Deletes expired events in PostgreSQL, in steps that each take some seconds.
async fn in_postgres(trail: &Trail, database: &Database) -> Result<(), ShipError> {
    let basis = trail.basis();
    let of = |class: Class| (class, basis.audit.retention[class as usize].as_secs());
    let retention: Retention = Class::ALL.map(of).into();
    let now = jiff::Timestamp::from_microsecond(writer::clock::now().0).unwrap_or_else(|_| jiff::Timestamp::now());
    let (steps, mut resume) = (Steps::default(), None);
    loop {
        let mut lent = database.lend().await?;
        let removal = retention::retain(lent.client(), &retention, now, resume, &steps);
        let done = tokio::time::timeout(LONGEST_STEP, removal).await;
        let done = lent.settle(done)?;
        for of in &done.dropped {
            let (count, class, chain, kept) = (of.count, &of.class, &of.chain, of.kept);
            tracing::info!(count, class, chain, kept, "removed {count} expired entries of {class}, chain {chain}");
        }
        let mut lent = database.lend().await?;
        let offer = tokio::time::timeout(PATIENCE, drops::offer(lent.client())).await;
        record(trail, database, &lent.settle(offer)?).await?;
        resume = done.resume;
        if resume.is_none() {
            return Ok(());
        }
        // Batches of a class cannot be stored during its deletion: give them time.
        tokio::time::sleep(BETWEEN_STEPS).await;
    }
}

/// Logs what was deleted, and notes that in PostgreSQL, which reports it again until then.
///
/// # Errors
/// [`ShipError`]: an event could not be logged or noted. It is tried again.
pub async fn record(trail: &Trail, database: &Database, drops: &[Offered]) -> Result<(), ShipError> {
    // A closed audit log accepts no events: the next process will be told.
    let Some(keys) = trail.keys.get().filter(|_| !trail.is_closed.load(Ordering::Acquire)) else { return Ok(()) };
    let mut recorded = Vec::new();
    for Offered { id, dropped } in drops {
        let details = json!({ "where": "postgres", "dropped": dropped });
        let (done, receipt) = oneshot::channel();
        let act = Act {
            details: Some(details.to_string()),
            done: Some(done),
            ..Act::new(EventType::AdminAction, "audit.retention", Outcome::Success)
        };
        trail.enter(act);
        let receipt = tokio::time::timeout(WRITTEN, receipt).await.map_err(|_| ShipError::Unwritable)?;
        let receipt = receipt.map_err(|_| ShipError::Unwritable)?;
        let signature = keys.sign(dropped.canonical().as_bytes());
        recorded.push(Recorded { id: *id, entry: Uuid::from_u128(receipt.id), signature });
        if let Some(class) = Class::named(&dropped.class) {
            trail.metrics.dropped(class, "postgres", u64::try_from(dropped.count).unwrap_or_default());
        }
    }
    if recorded.is_empty() {
        return Ok(());
    }
    let mut lent = database.lend().await?;
    let noted = tokio::time::timeout(PATIENCE, drops::note(lent.client(), &recorded)).await;
    lent.settle(noted).map(drop)
}

/// Returns the flags of this configuration, by name.
pub fn flags(config: &Config) -> [(String, String); Feature::ALL.len()] {
    Feature::ALL.map(|feature| (feature.key().to_owned(), config.flag(feature).switch.to_string()))
}

/// Reads the flags that the previous process had at its end.
pub fn flags_before(rules: &AuditRules) -> Option<BTreeMap<String, String>> {
    let text = std::fs::read(rules.directory.join(FLAGS)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Stores the current flags for the next process, which logs the differences.
pub fn keep_flags(config: &Config) {
    let Some(audit) = &config.audit else { return };
    let flags: BTreeMap<_, _> = flags(config).into();
    // Only text: serialization cannot fail.
    let text = serde_json::to_vec(&flags).unwrap_or_default();
    if let Err(e) = outrigger_trail::spool::write_private(&audit.directory.join(FLAGS), &text) {
        tracing::warn!("a change of flags while the process is down will not be recorded in the audit log: {e}");
    }
}

/// Returns the time of an event, in microseconds since 1970.
pub fn microseconds(text: &str) -> Option<Time> {
    text.parse::<jiff::Timestamp>().ok().map(|time| Time(time.as_microsecond()))
}
