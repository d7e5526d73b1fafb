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
use outrigger_trail::verify::rows::DropRecord;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;

use crate::audit::shipping::ask::{ShipError, ask};
use crate::audit::{Act, Command, Trail, shown_id, writer};
use outrigger_transport::upstream::Upstream;

/// How often expired events are deleted.
const DAILY: Duration = Duration::from_secs(86_400);
/// The pause after a failure.
const SOON: Duration = Duration::from_secs(60);
/// The delay after the start, when other work is more urgent.
const SETTLED: Duration = Duration::from_secs(5);
/// The pause between two steps of retention in PostgreSQL.
const BETWEEN_STEPS: Duration = Duration::from_millis(100);
/// The timeout of the writer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The file with the flags of the previous process.
const FLAGS: &str = "FLAGS";

/// Deletes expired events for the life of the process. `app` returns the upstream in force.
pub async fn keep_up(trail: Arc<Trail>, app: impl Fn() -> Arc<Upstream>) {
    tokio::time::sleep(SETTLED).await;
    loop {
        trail.command(Command::Expire);
        let wait = match in_postgres(&trail, &app).await {
            Ok(()) => DAILY,
            Err(e) => {
                tracing::warn!("expired entries of the audit log stay in PostgreSQL for now: {e}");
                SOON
            }
        };
        tokio::time::sleep(wait).await;
    }
}

#[derive(Debug, Default, Deserialize)]
struct Dropped {
    #[serde(default)]
    drops: Vec<DropRecord>,
    /// There is more to delete: what to send with the next request.
    #[serde(default)]
    more: Option<serde_json::Value>,
}

/// Makes PostgreSQL delete expired events, in steps that each take some seconds.
async fn in_postgres(trail: &Trail, app: &impl Fn() -> Arc<Upstream>) -> Result<(), ShipError> {
    let basis = trail.basis();
    let audit = &basis.audit;
    if audit.secret.is_none() {
        return Ok(());
    }
    let app_now = app();
    let retention: BTreeMap<&str, u64> =
        Class::ALL.into_iter().map(|class| (class.name(), audit.retention[class as usize].as_secs())).collect();
    let now = writer::clock::now();
    let mut more = None;
    loop {
        let body = json!({ "retention": retention, "now": now.to_string(), "resume": more }).to_string();
        let answer = ask(audit, &app_now, "/internal/audit/retention", "application/json", body.into_bytes()).await?;
        let dropped: Dropped = serde_json::from_slice(&answer).map_err(|_| ShipError::Unreadable)?;
        record(trail, app, &dropped.drops).await?;
        more = dropped.more;
        if more.is_none() {
            return Ok(());
        }
        // Batches of a class cannot be stored during its deletion: give them time.
        tokio::time::sleep(BETWEEN_STEPS).await;
    }
}

/// Logs what was deleted, and confirms it to the app, which reports it again until then.
///
/// # Errors
/// [`ShipError`]: an event could not be logged or confirmed. It is tried again.
pub async fn record(trail: &Trail, app: &impl Fn() -> Arc<Upstream>, drops: &[DropRecord]) -> Result<(), ShipError> {
    let (basis, app) = (trail.basis(), app());
    // A closed audit log accepts no events: the app will report to the next process.
    let Some(keys) = trail.keys.get().filter(|_| !trail.is_closed.load(Ordering::Acquire)) else { return Ok(()) };
    let mut recorded = Vec::new();
    for dropped in drops {
        let signature = keys.sign(&dropped.message());
        let details = json!({ "where": "postgres", "dropped": dropped });
        let (done, receipt) = oneshot::channel();
        let act = Act {
            details: Some(details.to_string()),
            done: Some(done),
            ..Act::new(EventType::AdminAction, "audit.retention", Outcome::Success)
        };
        trail.enter(act);
        let receipt = tokio::time::timeout(PATIENCE, receipt).await.map_err(|_| ShipError::Unwritable)?;
        let receipt = receipt.map_err(|_| ShipError::Unwritable)?;
        recorded.push(json!({
            "id": dropped.id, "entry": shown_id(receipt.id), "key": signature.key, "signature": signature.signature,
        }));
        if let Some(class) = Class::named(&dropped.class) {
            trail.metrics.dropped(class, "postgres", dropped.count);
        }
    }
    if recorded.is_empty() {
        return Ok(());
    }
    let body = json!({ "recorded": recorded }).to_string();
    ask(&basis.audit, &app, "/internal/audit/drops", "application/json", body.into_bytes()).await.map(drop)
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
