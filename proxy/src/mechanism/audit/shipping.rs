//! Ships events on disk to the app: in order, and with retries.
//!
//! The files are the queue: batches without a response are read again, after a crash of either side as well, and the
//! app identifies events by their id. One batch of each class is in flight at a time, so a slow app limits the rate.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::http::{StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use outrigger_policy::audit::Class;
use outrigger_trail::keys::{MasterKeys, WrappedKey};
use outrigger_trail::layout;
use outrigger_trail::verify::rows::DropRecord;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::engine::state::{Snapshot, State};
use crate::mechanism::audit::upkeep::{self, microseconds};
use crate::mechanism::audit::{Authority, Command, Trail, acts, writer};
use crate::transport::upstream::ConnectError;

/// The maximum number of lines in a batch.
const MOST_LINES: usize = 2000;
/// The maximum size of its lines, in bytes. The longest line is far shorter.
const MOST_BYTES: usize = 1 << 20;
/// The maximum number of bytes read from a file at once: many of the longest lines.
const READ_BYTES: u64 = 4 << 20;
/// How often the backlog is checked while no events are written.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long events are gathered: a batch costs the database about as much as a row.
const GATHER: Duration = Duration::from_millis(100);
/// How often the app is asked for erasures, while there is no event to send.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// The pause after a failure; doubles with each failure up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The timeout of a batch.
const PATIENCE: Duration = Duration::from_secs(30);
/// The maximum size of the response, in bytes.
const ANSWER_BYTES: usize = 1 << 20;

/// Why the app has not accepted a batch.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The app is unreachable.
    #[error("the app cannot be reached: {0}")]
    Connect(#[from] ConnectError),
    /// The spool cannot be read.
    #[error("the spool cannot be read: {0}")]
    Spool(std::io::Error),
    /// The app does not speak HTTP, or has closed the connection.
    #[error("the app did not respond: {0}")]
    Http(#[from] hyper::Error),
    /// The request to be sent is invalid.
    #[error("{0}")]
    Request(#[from] axum::http::Error),
    /// The app has no such endpoint.
    #[error("the app does not accept the audit log (404): it needs OUTRIGGER_AUDIT_SECRET too")]
    NotThere,
    /// The secrets differ.
    #[error("the app has another OUTRIGGER_AUDIT_SECRET (401)")]
    Unknown,
    /// Another status.
    #[error("the app responded with {0}")]
    Status(StatusCode),
    /// Timeout.
    #[error("the app did not respond within {} s", PATIENCE.as_secs())]
    Late,
    /// The response cannot be read.
    #[error("the app's response cannot be read")]
    Unreadable,
    /// A deletion could not be logged.
    #[error("the audit log cannot be written")]
    Unwritable,
}

/// The response to a batch.
#[derive(Debug, Deserialize)]
struct Taken {
    stored: u64,
    known: u64,
    refused: u64,
    #[serde(default)]
    erasures: Vec<Erasure>,
    #[serde(default)]
    drops: Vec<DropRecord>,
    /// PostgreSQL has a `HEAD` of this chain that is ahead of the one that was sent.
    #[serde(default)]
    rolled_back: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Erasure {
    number: u64,
    subject: String,
}

/// The progress of one class.
#[derive(Debug, Default)]
struct Cursor {
    /// The last event that the app has.
    through: u64,
    /// Where the next batch begins, if known.
    place: Option<Place>,
    /// The app may not have the checkpoint of the segment.
    is_open: bool,
}

/// A place in the files of a class.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The first event of the segment.
    first: u64,
    /// The offset in its file, in bytes.
    at: u64,
    /// The offset in its file of data keys, in bytes.
    keys_at: u64,
}

/// Lines of one class, as they are on disk.
#[derive(Debug, Default)]
struct Lines {
    text: Vec<u8>,
    last: u64,
    /// Where the next batch begins.
    place: Place,
    /// The data keys that they need.
    keys: Vec<WrappedKey>,
    /// The time of the first event.
    oldest: Option<String>,
}

/// The progress of all classes.
#[derive(Debug, Default)]
struct Progress {
    cursors: [Cursor; Class::ALL.len()],
    /// The last erasure received from the app.
    erasures: u64,
    /// When the app was last asked.
    asked_at: Option<Instant>,
}

impl Progress {
    /// Reads the progress from the directory.
    fn read(directory: &Path) -> Self {
        let text = std::fs::read(directory.join(layout::SHIPPED)).unwrap_or_default();
        // Without a readable file everything is sent again: the app knows which events it has.
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
}

/// Ships events for the life of the process.
pub async fn keep_shipping(state: Arc<State>) {
    let Some(trail) = &state.trail else { return };
    let rules = state.rules.load_full();
    let Some(audit) = &rules.config.audit else { return };
    let directory = audit.directory.clone();
    let ships = audit.secret.is_some();
    if !ships {
        tracing::info!(
            "the audit log stays on this disk: OUTRIGGER_AUDIT_SECRET is not set, so it is not sent to the app"
        );
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
        state.metrics.audit.unshipped.set(i64::try_from(progress.behind(trail)).unwrap_or(i64::MAX));
        if !ships {
            continue;
        }
        tokio::time::sleep(GATHER).await;
        let has_ended = trail.has_ended.load(Ordering::Acquire);
        if has_ended {
            // Every chain has got a checkpoint.
            progress.cursors.iter_mut().for_each(|cursor| cursor.is_open = true);
        }
        let began = Instant::now();
        match round(&state, trail, &directory, &mut progress).await {
            Ok(()) => {
                if trouble.take().is_some() {
                    tracing::info!("the app accepts the audit log again");
                }
                pause = FIRST_PAUSE;
                if has_ended {
                    trail.shipped.notify_one();
                    return;
                }
            }
            Err(e) => {
                state.metrics.audit.batches.with_label_values(&["failed"]).inc();
                let text = e.to_string();
                if trouble.as_ref() != Some(&text) {
                    tracing::warn!("the audit log stays on this disk until the app accepts it: {text}");
                    trouble = Some(text);
                }
                tokio::time::sleep(pause.saturating_sub(began.elapsed())).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        if progress.behind(trail) == 0 {
            state.metrics.audit.lag.set(0.0);
        }
        state.metrics.audit.unshipped.set(i64::try_from(progress.behind(trail)).unwrap_or(i64::MAX));
    }
}

/// Sends a batch of each class in turn, until there is no more to send.
async fn round(state: &Arc<State>, trail: &Trail, directory: &Path, progress: &mut Progress) -> Result<(), ShipError> {
    let mut left: Vec<Class> = Class::ALL.into();
    let mut failed = None;
    // Set when the app is unreachable: the other classes are then only read, because one may have the oldest event.
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
                lag = lag.max((writer::now().0 - at.0) as f64 / 1e6);
            }
            if is_away {
                continue;
            }
            match send(state, class, &lines, progress.erasures).await {
                Ok(taken) => {
                    let cursor = &mut progress.cursors[class as usize];
                    cursor.through = cursor.through.max(lines.last);
                    (cursor.place, cursor.is_open) = (Some(lines.place), true);
                    took(state, trail, &taken, progress).await;
                    trail.command(Command::Shipped(class, progress.cursors[class as usize].through, progress.erasures));
                    left.push(class);
                }
                Err(e) => {
                    // Continue with another class: one that the app cannot store must not block the others.
                    is_away |= !matches!(e, ShipError::Status(_));
                    failed = Some(e);
                }
            }
        }
        state.metrics.audit.lag.set(lag);
    }
    // Erasures must be received even without events to send.
    while failed.is_none() && progress.asked_at.is_none_or(|at| at.elapsed() >= ASK_EVERY) {
        let before = progress.erasures;
        let taken = send(state, Class::Administration, &Lines::default(), before).await?;
        took(state, trail, &taken, progress).await;
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

/// Handles the response of the app.
async fn took(state: &State, trail: &Trail, taken: &Taken, progress: &mut Progress) {
    progress.asked_at = Some(Instant::now());
    progress.erasures = heard(trail, taken, progress.erasures).await;
    if let Some(number) = taken.rolled_back {
        acts::rolled_back(state, number);
    }
    if let Err(e) = upkeep::record(state, &taken.drops).await {
        tracing::warn!("entries that PostgreSQL has removed will be recorded later: {e}");
    }
}

/// Forgets the subjects that the app has erased. Returns the last erasure received.
async fn heard(trail: &Trail, taken: &Taken, before: u64) -> u64 {
    let subjects: Vec<String> = taken.erasures.iter().map(|erasure| erasure.subject.clone()).collect();
    let Some(last) = taken.erasures.iter().map(|erasure| erasure.number).max() else { return before };
    let (answer, forgotten) = oneshot::channel();
    trail.command(Command::Forget(subjects, Authority::Postgres, answer));
    match forgotten.await {
        Ok(Ok(_)) => last.max(before),
        _ => before,
    }
}

async fn send(state: &Arc<State>, class: Class, lines: &Lines, erasures: u64) -> Result<Taken, ShipError> {
    let rules = state.rules.load_full();
    let Some(audit) = &rules.config.audit else { return Err(ShipError::Unwritable) };
    let chain = std::fs::read_to_string(audit.directory.join(layout::CHAIN)).map_err(ShipError::Spool)?;
    // A rollback of the directory does not roll back PostgreSQL.
    let public = state.trail.as_ref().and_then(Trail::keys).map(MasterKeys::public);
    let anchor = public.and_then(|public| layout::newest_head(&audit.directory, &public).ok().flatten());
    let head = json!({
        "chain": chain.trim_end(), "machine": audit.machine, "class": class.name(), "erasures_seen": erasures, "keys": lines.keys,
        "head": anchor.map(|(line, _)| line),
    });
    let mut body = head.to_string().into_bytes();
    body.push(b'\n');
    body.extend_from_slice(&lines.text);
    let answer = ask(&rules, "/internal/audit/batches", "application/x-ndjson", body).await?;
    let taken: Taken = serde_json::from_slice(&answer).map_err(|_| ShipError::Unreadable)?;
    let metrics = &state.metrics.audit;
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

/// Sends a request to the app, with the secret.
///
/// # Errors
/// [`ShipError`]: it was not done, or the outcome is unknown.
pub async fn ask(rules: &Snapshot, path: &str, kind: &str, body: Vec<u8>) -> Result<Bytes, ShipError> {
    let secret = rules.config.audit.as_ref().and_then(|audit| audit.secret.as_ref());
    let Some(secret) = secret else { return Err(ShipError::Unknown) };
    let request = axum::http::Request::post(path)
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "close")
        .header(header::CONTENT_TYPE, kind)
        .header(header::AUTHORIZATION, format!("Bearer {}", secret.expose()))
        .body(Full::new(Bytes::from(body)))?;
    let asked = async { exchange(rules.upstreams.app.connect().await?, request).await };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(ShipError::Late))
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: axum::http::Request<Full<Bytes>>,
) -> Result<Bytes, ShipError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Err(ShipError::NotThere),
        StatusCode::UNAUTHORIZED => return Err(ShipError::Unknown),
        status => return Err(ShipError::Status(status)),
    }
    let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await.map_err(|_| ShipError::Unreadable)?;
    Ok(body.to_bytes())
}

/// Reads the next lines of a class, up to the event `committed`; `None` if there are no more.
fn read(
    directory: &Path,
    class: Class,
    place: Option<Place>,
    through: u64,
    committed: u64,
) -> std::io::Result<Option<Lines>> {
    let mut segments = layout::segments(directory)?;
    segments.retain(|segment| segment.class == class);
    // Start at the segment of the next event, or the last one if that is not written yet. If the event begins its
    // segment, start at the one before: its checkpoint may not have been sent.
    let of_next = segments.iter().rposition(|segment| segment.first <= through + 1).unwrap_or(0);
    let is_first = segments.get(of_next).is_some_and(|segment| segment.first == through + 1);
    let guess = if is_first { of_next.saturating_sub(1) } else { of_next };
    let start =
        place.and_then(|place| segments.iter().position(|segment| segment.first == place.first)).unwrap_or(guess);
    let mut lines = Lines { last: through, ..Lines::default() };
    let mut count = 0;
    for segment in segments.iter().skip(start) {
        let fresh = Place { first: segment.first, ..Place::default() };
        lines.place = place.filter(|place| place.first == segment.first).unwrap_or(fresh);
        // Keys before the events that need them; if there are many keys, a batch has only keys.
        let content = read_from(&segment.keys(), lines.place.keys_at)?;
        for line in content.split_inclusive(|b| *b == b'\n').take_while(|line| line.ends_with(b"\n")) {
            lines.keys.extend(serde_json::from_slice::<WrappedKey>(line));
            lines.place.keys_at += line.len() as u64;
            if lines.keys.len() >= MOST_LINES {
                return Ok(Some(lines));
            }
        }
        loop {
            let content = read_from(&segment.path, lines.place.at)?;
            let goes_on = content.len() as u64 == READ_BYTES;
            for line in content.split_inclusive(|b| *b == b'\n') {
                let number = number_of(line);
                let is_whole = line.ends_with(b"\n");
                if goes_on && !is_whole {
                    if line.len() == content.len() {
                        return Err(std::io::Error::other(format!("{}: a line has no end", segment.path.display())));
                    }
                    break;
                }
                let is_full = count >= MOST_LINES || count > 0 && lines.text.len() + line.len() > MOST_BYTES;
                if is_full || !is_whole || number.is_some_and(|number| number > committed) {
                    return Ok(lines.is_worth_it().then_some(lines));
                }
                lines.place.at += line.len() as u64;
                let is_sent = match number {
                    Some(number) => number <= through,
                    // The header of a segment was sent with its first event. A checkpoint comes after its events.
                    None => line.starts_with(b"{\"segment\"") && segment.first <= through,
                };
                if is_sent {
                    continue;
                }
                if let Some(number) = number {
                    lines.last = number;
                    if lines.oldest.is_none() {
                        lines.oldest = time_of(line);
                    }
                }
                lines.text.extend_from_slice(line);
                count += 1;
            }
            if !goes_on {
                break;
            }
        }
    }
    Ok(lines.is_worth_it().then_some(lines))
}

impl Lines {
    fn is_worth_it(&self) -> bool {
        !self.text.is_empty() || !self.keys.is_empty()
    }
}

/// Reads a file from an offset, at most [`READ_BYTES`]; a missing file is empty.
fn read_from(path: &Path, at: u64) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    match std::fs::File::open(path) {
        Ok(mut file) => {
            file.seek(SeekFrom::Start(at))?;
            file.take(READ_BYTES).read_to_end(&mut content)?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(content)
}

/// Returns the number of an event; `None` for a header or a checkpoint.
fn number_of(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"seq\":")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

fn time_of(line: &[u8]) -> Option<String> {
    let at = memchr::memmem::find(line, b",\"time\":\"")? + 9;
    Some(String::from_utf8_lossy(line.get(at..at + 27)?).into_owned())
}
