//! Ships events on disk to PostgreSQL: in order, and with retries.
//!
//! The files are the queue: batches that were not committed are read again, after a crash of either side as well, and
//! the store identifies events by their id. One batch is in flight at a time, so a slow database limits the rate.

mod lines;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outrigger_policy::audit::{Class, EventType, Outcome};
use outrigger_trail::keys::MasterKeys;
use outrigger_trail::layout;
use outrigger_trail::store::batch::Batch;
use outrigger_trail::store::ingest::{Ingested, ingest};
use serde_json::json;
use tokio::sync::oneshot;

use crate::audit::database::{Database, PATIENCE, ShipError};
use crate::audit::shipping::lines::{Lines, Place, read};
use crate::audit::upkeep::{self, microseconds};
use crate::audit::writer::clock;
use crate::audit::{Act, Authority, Command, Trail};

/// How often the backlog is checked while no events are written.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long events are gathered: a batch costs the database about as much as a row.
const GATHER: Duration = Duration::from_millis(100);
/// How often PostgreSQL is asked for erasures, while there is no event to send.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// The pause after a failure; doubles with each failure up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The progress of one class.
#[derive(Debug, Default)]
struct Cursor {
    /// The last event that PostgreSQL has.
    through: u64,
    /// Where the next batch begins, if known.
    place: Option<Place>,
    /// PostgreSQL may not have the checkpoint of the segment.
    is_open: bool,
}

/// The progress of all classes.
#[derive(Debug, Default)]
struct Progress {
    cursors: [Cursor; Class::ALL.len()],
    /// The last erasure received from PostgreSQL.
    erasures: u64,
    /// When it was last asked.
    asked_at: Option<Instant>,
}

impl Progress {
    /// Reads the progress from the directory.
    fn read(directory: &Path) -> Self {
        let text = std::fs::read(directory.join(layout::SHIPPED)).unwrap_or_default();
        // Without a readable file everything is sent again: PostgreSQL knows which events it has.
        let shipped = serde_json::from_slice::<layout::Shipped>(&text).unwrap_or_default();
        let cursor = |class: Class| Cursor {
            through: shipped.through.get(class.name()).copied().unwrap_or(0),
            place: None,
            is_open: true,
        };
        Self { cursors: Class::ALL.map(cursor), erasures: shipped.erasures, asked_at: None }
    }

    fn behind(&self, trail: &Trail) -> u64 {
        let of = |class: Class| trail.committed(class).saturating_sub(self.cursors[class as usize].through);
        Class::ALL.into_iter().map(of).sum()
    }

    fn show(&self, trail: &Trail) {
        trail.metrics.unshipped.set(i64::try_from(self.behind(trail)).unwrap_or(i64::MAX));
    }
}

/// Ships events for the life of the process; without a database it only counts them.
pub async fn keep_shipping(trail: Arc<Trail>, database: Option<Arc<Database>>) {
    let trail = &*trail;
    let directory = trail.basis().audit.directory.clone();
    if database.is_none() {
        tracing::info!("the audit log stays on this disk: audit.database is not set (OUTRIGGER_AUDIT_DATABASE_URL)");
    }
    let mut openings = trail.openings.load(Ordering::Acquire);
    let mut progress = Progress::read(&directory);
    let mut pause = FIRST_PAUSE;
    let mut trouble: Option<String> = None;
    loop {
        let _ = tokio::time::timeout(LOOK_EVERY, trail.progress.notified()).await;
        let now = trail.openings.load(Ordering::Acquire);
        if now != openings {
            // It may be another chain.
            openings = now;
            progress = Progress::read(&directory);
        }
        progress.show(trail);
        let Some(database) = &database else { continue };
        tokio::time::sleep(GATHER).await;
        let has_ended = trail.has_ended.load(Ordering::Acquire);
        if has_ended {
            // Every chain has got a checkpoint.
            progress.cursors.iter_mut().for_each(|cursor| cursor.is_open = true);
        }
        let began = Instant::now();
        match round(trail, database, &directory, &mut progress).await {
            Ok(()) => {
                if trouble.take().is_some() {
                    tracing::info!("PostgreSQL accepts the audit log again");
                }
                pause = FIRST_PAUSE;
                if has_ended {
                    trail.shipped.notify_one();
                    return;
                }
            }
            Err(e) => {
                trail.metrics.batches.with_label_values(&["failed"]).inc();
                let text = e.to_string();
                if trouble.as_ref() != Some(&text) {
                    tracing::warn!("the audit log stays on this disk until PostgreSQL accepts it: {text}");
                    trouble = Some(text);
                }
                if !has_ended {
                    // Ends with the audit log: the last entries get one more chance.
                    let until = began + pause;
                    while Instant::now() < until && !trail.has_ended.load(Ordering::Acquire) {
                        tokio::time::sleep(GATHER).await;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        if progress.behind(trail) == 0 {
            trail.metrics.lag.set(0.0);
        }
        progress.show(trail);
    }
}

/// Sends a batch of each class in turn, until there is no more to send.
async fn round(trail: &Trail, database: &Database, directory: &Path, progress: &mut Progress) -> Result<(), ShipError> {
    let opening = trail.openings.load(Ordering::Acquire);
    let mut left: Vec<Class> = Class::ALL.into();
    let mut failed = None;
    // Set when PostgreSQL is unreachable: the other classes are then only read, because one may have the oldest event.
    let mut is_away = false;
    while !left.is_empty() {
        let mut lag: f64 = 0.0;
        for class in std::mem::take(&mut left) {
            let lines = match next(trail, directory, class, &mut progress.cursors[class as usize]).await {
                Ok(Some(lines)) => lines,
                Ok(None) => continue,
                Err(e) => {
                    failed = Some(e);
                    continue;
                }
            };
            if let Some(at) = lines.oldest.as_deref().and_then(microseconds) {
                lag = lag.max((clock::now().0 - at.0) as f64 / 1e6);
            }
            if is_away {
                continue;
            }
            let (last, place) = (lines.last, lines.place);
            let sent = send(trail, database, class, lines, progress.erasures).await;
            if trail.openings.load(Ordering::Acquire) != opening {
                // The numbers of another chain mean nothing here.
                return Ok(());
            }
            match sent {
                Ok(taken) => {
                    let cursor = &mut progress.cursors[class as usize];
                    cursor.through = cursor.through.max(last);
                    (cursor.place, cursor.is_open) = (Some(place), true);
                    took(trail, database, &taken, progress).await;
                    trail.command(Command::Shipped(class, progress.cursors[class as usize].through, progress.erasures));
                    left.push(class);
                    // A long backlog takes minutes: its progress can be watched.
                    progress.show(trail);
                }
                Err(e) => {
                    // Continue with another class: one that cannot be stored must not block the others.
                    is_away |= e.is_away();
                    failed = Some(e);
                }
            }
        }
        trail.metrics.lag.set(lag);
    }
    // Erasures must be received even without events to send.
    while failed.is_none() && progress.asked_at.is_none_or(|at| at.elapsed() >= ASK_EVERY) {
        let before = progress.erasures;
        let taken = send(trail, database, Class::Administration, Lines::default(), before).await?;
        took(trail, database, &taken, progress).await;
        if progress.erasures > before {
            progress.asked_at = None;
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Returns what a class has to send next; `None` if there is no more.
async fn next(trail: &Trail, directory: &Path, class: Class, cursor: &mut Cursor) -> Result<Option<Lines>, ShipError> {
    let committed = trail.committed(class);
    if cursor.through >= committed && !cursor.is_open {
        return Ok(None);
    }
    let (directory, place, through) = (directory.to_owned(), cursor.place, cursor.through);
    let read = tokio::task::spawn_blocking(move || read(&directory, class, place, through, committed)).await;
    match read {
        Ok(Ok(Some(lines))) => Ok(Some(lines)),
        Ok(Ok(None)) => {
            cursor.is_open = false;
            Ok(None)
        }
        // The segment has just been deleted, or the disk cannot be read: search again.
        Ok(Err(e)) => {
            cursor.place = None;
            Err(ShipError::Spool(e))
        }
        Err(_) => Ok(None),
    }
}

/// Handles what comes back with a batch.
async fn took(trail: &Trail, database: &Database, taken: &Ingested, progress: &mut Progress) {
    progress.asked_at = Some(Instant::now());
    progress.erasures = heard(trail, taken, progress.erasures).await;
    if let Some(number) = taken.rolled_back {
        rolled_back(trail, number);
    }
    if let Err(e) = upkeep::record(trail, database, &taken.drops).await {
        tracing::warn!("entries that PostgreSQL has removed will be recorded later: {e}");
    }
}

/// Logs that PostgreSQL has a `HEAD` of this directory ahead of the local one: the directory was rolled back.
fn rolled_back(trail: &Trail, number: i64) {
    let problem =
        "PostgreSQL has a HEAD of this directory that is ahead of the one here: an earlier state was put back";
    tracing::error!(
        finding = "audit.rolled_back",
        number,
        "the audit log was changed while no process wrote to it: {problem}"
    );
    trail.metrics.alarm("audit.rolled_back");
    let details = json!({ "head_in_postgres": number, "problem": problem }).to_string();
    for event in [EventType::Forged, EventType::AdminAction] {
        trail.enter(Act { details: Some(details.clone()), ..Act::new(event, "audit.rolled_back", Outcome::Error) });
    }
}

/// Forgets the subjects that were erased in PostgreSQL. Returns the last erasure received.
async fn heard(trail: &Trail, taken: &Ingested, before: u64) -> u64 {
    let subjects: Vec<String> = taken.erasures.iter().map(|erasure| erasure.subject.clone()).collect();
    let Some(last) = taken.erasures.iter().filter_map(|erasure| u64::try_from(erasure.number).ok()).max() else {
        return before;
    };
    let (answer, forgotten) = oneshot::channel();
    trail.command(Command::Forget(subjects, Authority::Postgres, answer));
    match forgotten.await {
        Ok(Ok(_)) => last.max(before),
        _ => before,
    }
}

async fn send(
    trail: &Trail,
    database: &Database,
    class: Class,
    lines: Lines,
    erasures: u64,
) -> Result<Ingested, ShipError> {
    let basis = trail.basis();
    let audit = &basis.audit;
    let chain = std::fs::read_to_string(audit.directory.join(layout::CHAIN)).map_err(ShipError::Spool)?;
    // A rollback of the directory does not roll back PostgreSQL.
    let public = trail.keys().map(MasterKeys::public);
    let head = public.and_then(|public| layout::newest_head(&audit.directory, &public).ok().flatten());
    let batch = Batch {
        erasures_seen: i64::try_from(erasures).unwrap_or(i64::MAX),
        keys: lines.keys,
        head: head.filter(|(_, heads)| heads.chain == chain.trim_end()),
        ..Batch::new(chain.trim_end(), &audit.machine, class)
    };
    let batch = batch.with_lines(&lines.text);
    let mut lent = database.lend().await?;
    let outcome = tokio::time::timeout(PATIENCE, ingest(lent.client(), &batch)).await;
    let taken = lent.settle(outcome)?;
    let metrics = &trail.metrics;
    metrics.batches.with_label_values(&["ok"]).inc();
    for (result, count) in [("stored", taken.stored), ("known", taken.known), ("refused", taken.refused)] {
        metrics.shipped.with_label_values(&[result]).inc_by(count);
    }
    if taken.refused > 0 {
        tracing::error!(
            count = taken.refused,
            class = class.name(),
            "PostgreSQL rejects entries of the audit log: they are in audit_refused"
        );
    }
    Ok(taken)
}
