//! The state from before the start, and its snapshots while the process runs.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use outrigger_policy::saved::Saved;
use outrigger_rules::config::Config;
use outrigger_rules::sections::state::StateRules;
use tokio::runtime::Runtime;

use crate::engine::history::EventKind;
use crate::engine::saved::{Restored, restore, restore_from_peers, snapshot};
use crate::engine::state::State;
use crate::mechanism::peers::state::states_of;
use crate::mechanism::saved::{self, metrics};

/// How long a start without a usable snapshot waits for its peers.
const PEERS_PATIENCE: Duration = Duration::from_secs(1);
/// How often the thread looks whether something must not wait.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A snapshot without changes is still written this often, so that its age says how long the process is gone.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// How long the end of the process waits for the last snapshot.
const LAST_PATIENCE: Duration = Duration::from_millis(500);
/// Snapshots take at most this part of the thread's time: a slow disk, or many keys, make them rarer.
const PAUSE_TIMES: u32 = 9;

/// The state that was found.
#[derive(Debug)]
pub(super) struct Found {
    own: Option<Saved>,
    peers: Vec<Saved>,
    /// The metric label.
    result: &'static str,
}

/// Reads the snapshot, or asks the peers without a usable one. Call it before the listeners are bound. `None`: there are no snapshots.
pub(super) fn find(config: &Config, runtime: &Runtime) -> Option<Found> {
    let rules = config.state.as_ref()?;
    let mut found = Found { own: None, peers: Vec::new(), result: metrics::NONE };
    match saved::read(rules, saved::unix_ns()) {
        Ok(Some(own)) => return Some(Found { own: Some(own), result: metrics::FILE, ..found }),
        Ok(None) => {}
        Err(e) => {
            let file = saved::path(rules);
            tracing::warn!(
                event = "state_ignored",
                file = %file.display(),
                reason = e.kind(),
                "the snapshot {} is ignored: {e}",
                file.display()
            );
            found.result = e.kind();
        }
    }
    if let (true, Some(peers), Some(this)) = (rules.asks_peers, &config.peers, &config.this) {
        let answers = runtime.block_on(states_of(peers, this, rules.max_bytes, PEERS_PATIENCE));
        for bytes in answers {
            match Saved::decode(&bytes) {
                Ok(saved) => found.peers.push(saved),
                Err(e) => tracing::warn!(event = "state_ignored", "the snapshot of a peer is ignored: {e}"),
            }
        }
    }
    Some(found)
}

/// Restores what was found, and starts the thread that writes snapshots, if there are any. Call it before requests are accepted.
pub(super) fn begin(state: &Arc<State>, found: Option<Found>) -> io::Result<Option<Saver>> {
    let Some(found) = found else { return Ok(None) };
    apply(state, found);
    Saver::start(state)
}

fn apply(state: &State, Found { own, peers, mut result }: Found) {
    let now = saved::unix_ns();
    let (source, age, restored) = match &own {
        // A clock that was set back since it was read makes it no older.
        Some(own) => {
            let age = own.age(now).unwrap_or_default();
            (format!("the snapshot of {} s ago", age.as_secs()), age, restore(state, own, age))
        }
        None => {
            let usable = |saved: Saved| match saved.age(now) {
                Ok(age) => Some((saved, age)),
                Err(e) => {
                    tracing::warn!(event = "state_ignored", "the snapshot of peer {} is ignored: {e}", saved.machine);
                    None
                }
            };
            let peers: Vec<_> = peers.into_iter().filter_map(usable).collect();
            if peers.is_empty() {
                state.metrics.saved.restored(result);
                state.snapshots.note(|standing| standing.restored = "nothing: the start was without state".to_owned());
                return;
            }
            result = metrics::PEERS;
            let age = peers.iter().map(|(_, age)| *age).min().unwrap_or_default();
            (format!("the state of {} peers", peers.len()), age, restore_from_peers(state, &peers))
        }
    };
    state.metrics.saved.restored(result);
    let Restored { bans, breakers, limits, dropped, concurrency } = restored;
    tracing::info!(
        event = "state_restored",
        source = result,
        age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        bans,
        breakers,
        limits,
        dropped,
        concurrency,
        "{source} is restored: {bans} bans, {breakers} breakers, {limits} keys of rate limits"
    );
    let text = format!("{source}: {bans} bans, {breakers} breakers, {limits} keys of rate limits");
    state.history.add(EventKind::Start, format!("restored {text}"));
    state.snapshots.note(|standing| standing.restored = text);
}

/// Writes snapshots until it is finished.
#[derive(Debug)]
pub(super) struct Saver {
    stop: Sender<()>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

impl Saver {
    /// Starts the thread, if there are snapshots.
    fn start(state: &Arc<State>) -> io::Result<Option<Self>> {
        let Some(rules) = state.rules.load().config.state.clone() else { return Ok(None) };
        let (stop, stopped) = mpsc::channel();
        let (ends, ended) = mpsc::channel::<()>();
        let state = Arc::clone(state);
        let keep = move || {
            let mut writer =
                Writer { state, rules, written: None, tried: None, paused_until: Instant::now(), has_failed: false };
            while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                writer.look();
            }
            writer.write(true);
            drop(ends);
        };
        std::thread::Builder::new().name("state".to_owned()).spawn(keep)?;
        Ok(Some(Self { stop, ended }))
    }

    /// Writes the last snapshot; waits for [`LAST_PATIENCE`].
    pub(super) fn finish(self) {
        drop(self.stop);
        if self.ended.recv_timeout(LAST_PATIENCE) == Err(RecvTimeoutError::Timeout) {
            tracing::error!(
                event = "state_not_written",
                "the disk is slow: the last snapshot of the state may be missing"
            );
        }
    }
}

struct Writer {
    state: Arc<State>,
    rules: StateRules,
    /// The inode of the latest snapshot and when it was written; `None` if it could not be.
    written: Option<(u64, Instant)>,
    tried: Option<Instant>,
    paused_until: Instant,
    has_failed: bool,
}

impl Writer {
    fn look(&mut self) {
        let now = Instant::now();
        if now < self.paused_until {
            return;
        }
        let is_due = self.tried.is_none_or(|tried| now.duration_since(tried) >= self.rules.every);
        if self.state.snapshots.take_urgency() || is_due {
            self.write(false);
            let took = now.elapsed();
            self.paused_until = now + took + took * PAUSE_TIMES;
        }
    }

    /// Writes a snapshot, unless it would be the same as the last one. `is_last`: even then.
    fn write(&mut self, is_last: bool) {
        let began = Instant::now();
        self.tried = Some(began);
        let mut saved = snapshot(&self.state, &self.rules);
        let left_out = saved.fit(self.rules.max_bytes);
        self.state.metrics.saved.left_out(left_out);
        let bytes = saved.encode();
        let is_current = self.written.is_some_and(|(inode, at)| {
            let is_same = Saved::payload(&self.state.snapshots.latest()) == Saved::payload(&bytes);
            // Another process may have replaced the file: the one before, when it ended.
            is_same && at.elapsed() < WRITE_EVERY && saved::is_there(&self.rules, inode)
        });
        if is_current && !is_last {
            return;
        }
        let written = saved::write(&self.rules, &bytes);
        let took = began.elapsed();
        let metrics = &self.state.metrics.saved;
        match written {
            Ok(inode) => {
                metrics.written.inc();
                if std::mem::take(&mut self.has_failed) {
                    tracing::info!(event = "state_written", "snapshots of the state are written again");
                }
                self.written = Some((inode, began));
                let size = bytes.len();
                self.state.snapshots.note(|standing| {
                    (standing.written, standing.bytes, standing.took, standing.error) = (Some(began), size, took, None);
                });
            }
            Err(e) => {
                metrics.failed.inc();
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::warn!(
                        event = "state_not_written",
                        directory = %self.rules.directory.display(),
                        "snapshots of the state cannot be written to {}, a restart begins with an old one or without: {e}",
                        self.rules.directory.display()
                    );
                }
                self.written = None;
                self.state.snapshots.note(|standing| standing.error = Some(e.to_string()));
            }
        }
        self.state.snapshots.keep(bytes);
    }
}
