//! Brings a saved file into force, or refuses it and keeps what is.
//!
//! The file, those that it includes and those of `${file:…}` are looked at ten times a second: by their time, size and inode, then by
//! their text. That works where change notifications do not (bind mounts, config maps, network file systems, editors that rename), costs
//! one `stat` for each, and a file caught half-written is read again once it stops changing. Whether a change stays in force is decided
//! in `probation.rs`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_identity::clock::unix_now;
use outrigger_policy::flags::Mode;
use outrigger_rules::environment::Given;
use outrigger_rules::error::{ConfigError, Place, Problem};
use outrigger_rules::inputs::{Inputs, Trust};
use outrigger_rules::load::Loaded;
use outrigger_rules::own::OwnListeners;
use outrigger_rules::sections::peers::PeerRules;
use ring::digest::{SHA256, digest};
use tokio::signal::unix::{SignalKind, signal};

use crate::control::probation::{self, Terms, Trials};
use crate::control::turns::{self, Waiting};
use crate::engine::notices;
use crate::engine::state::{Snapshot, State};
use crate::mechanism::audit::upkeep;
use crate::mechanism::log::LevelSwitch;
use crate::transport::upstream::checked::Checked;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a reload waits for the addresses of a name that is new. Without them it comes into force all the same.
const NAMES_PATIENCE: Duration = Duration::from_millis(500);

/// The file counts as completely written after this many looks in a row that find the same version.
const SETTLED_AFTER: u32 = 2;

/// The file to watch.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The configuration file.
    pub file: PathBuf,
    /// Defaults that the command line gives.
    pub given: Given,
}

/// Watches the files for the life of the process. `inputs` are those that the process was started with, and their versions, taken before
/// they were read, so that a change during the start is not missed.
pub async fn watch(watched: Watched, mut inputs: Inputs, state: Arc<State>, level: LevelSwitch) {
    let reloader = Arc::new(Reloader::new(watched, state, level));
    tokio::spawn(probation::keep(Arc::clone(&reloader)));
    tokio::spawn(turns::keep(Arc::clone(&reloader)));
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(e) => {
            tracing::warn!("SIGHUP cannot be caught, saving the file still works: {e}");
            None
        }
    };
    let mut in_force = inputs.versions().clone();
    let (mut last_seen, mut looks_alike, mut is_gone) = (in_force.clone(), 0, !inputs.has_main(&in_force));
    loop {
        let asked = tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => false,
            () = asked_by(&mut hangup) => true,
        };
        // A file system may hang, and other tasks run on this thread.
        let looking = inputs.clone();
        let Ok(seen) = tokio::task::spawn_blocking(move || looking.now()).await else { continue };
        let is_there = inputs.has_main(&seen);
        looks_alike = if seen == last_seen { looks_alike + 1 } else { 0 };
        last_seen.clone_from(&seen);
        let has_settled = looks_alike >= SETTLED_AFTER;
        if !is_there && (asked || (has_settled && !is_gone)) {
            is_gone = true;
            tracing::warn!(file = %reloader.file.display(), "there is no configuration file, the current configuration stays in force");
        }
        if is_there && (asked || (has_settled && seen != in_force)) {
            let has_file = inputs.has_main(&in_force);
            (in_force, is_gone) = (seen, false);
            // A file that was refused may include others than the one before.
            if let Some(read) = reloader.reload(has_file, asked).await {
                inputs = read;
                in_force.clone_from(inputs.versions());
                last_seen.clone_from(&in_force);
            }
        }
    }
}

async fn asked_by(hangup: &mut Option<tokio::signal::unix::Signal>) {
    match hangup {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Why a configuration comes into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is new.
    Change,
    /// The one after it is taken back.
    Rollback,
}

/// The bytes of a configuration, by their hash: those of all that was read for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content([u8; 32]);

impl Content {
    /// The content of a text.
    pub fn of(text: &[u8]) -> Self {
        let mut content = [0; 32];
        content.copy_from_slice(digest(&SHA256, text).as_ref());
        Self(content)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Brings configurations into force.
#[derive(Debug)]
pub struct Reloader {
    file: PathBuf,
    given: Given,
    /// All that requests share.
    pub state: Arc<State>,
    level: LevelSwitch,
    /// Held while a change is made, so that there is one at a time.
    pub trials: tokio::sync::Mutex<Trials>,
}

impl Reloader {
    /// For these files and this state.
    pub fn new(watched: Watched, state: Arc<State>, level: LevelSwitch) -> Self {
        let Watched { file, given } = watched;
        Self { file, given, state, level, trials: tokio::sync::Mutex::default() }
    }

    /// Brings the file into force. One that was taken back stays so until it changes. Returns the files that were read.
    async fn reload(&self, has_file: bool, asked: bool) -> Option<Inputs> {
        let mut trials = self.trials.lock().await;
        trials.waiting = None;
        self.state.guard.show_waiting(None);
        let (checked, content) = match self.read(has_file).await {
            Ok(read) => read,
            Err(e) => {
                self.refuse(&e);
                // Nothing was read of an empty file.
                return (!e.inputs.versions().is_empty()).then_some(*e.inputs);
            }
        };
        let inputs = checked.config.inputs.clone();
        let is_known = trials.was_ordered(content) && !asked;
        if is_known {
            tracing::debug!("the change of the file is in force already, by `outrigger reload`");
        } else if trials.is_undone(content) {
            tracing::warn!(
                event = "config_still_undone",
                "the configuration file has the content that was taken back, and is not tried again: change it, or use \
                 `outrigger reload --force`"
            );
        } else if turns::has_peers(&self.state, &checked.config) {
            trials.waiting = Some(Waiting::new(content, &checked.config));
        } else {
            let _ = trials.change(self, checked, content, Terms::default());
        }
        Some(inputs)
    }

    /// Reads the file; returns it with its content.
    pub async fn read(&self, has_file: bool) -> Result<(Checked, Content), ConfigError> {
        // An empty file would be all defaults. Nobody means that of a running proxy: it is a save that is under way, or
        // one that failed. Where there was no file, all defaults are in force already.
        if has_file && std::fs::metadata(&self.file).is_ok_and(|meta| meta.len() == 0) {
            return Err(self.is_empty());
        }
        self.check(None).await
    }

    fn is_empty(&self) -> ConfigError {
        let problem = Problem::new(Place::Whole, "is empty", "save it again; for all defaults, write a comment");
        ConfigError::new(&self.file, "", vec![problem])
    }

    /// Checks a text, or the file, against the listeners that this process really has: the file may have others, for its next start.
    pub async fn check(&self, text: Option<(String, Trust)>) -> Result<(Checked, Content), ConfigError> {
        if text.as_ref().is_some_and(|(text, _)| text.trim().is_empty()) {
            return Err(self.is_empty());
        }
        let (file, own) = (self.file.clone(), OwnListeners::of(&self.state.rules.load().config));
        let given = self.given.clone();
        let load = move || {
            let environment = |name: &str| given.and_environment(name);
            let (checked, content) = Checked::read(&file, text, &environment, NAMES_PATIENCE, &own)?;
            Ok((checked, Content::of(&content)))
        };
        tokio::task::spawn_blocking(load).await.unwrap_or_else(|e| {
            let problem = Problem::new(Place::Whole, format!("could not be read: {e}"), "try again");
            Err(ConfigError::new(&self.file, "", vec![problem]))
        })
    }

    /// Whether the file has this content. Reads it, and those that it includes: only for rare occasions.
    pub fn is_in_file(&self, content: Content) -> bool {
        let environment = |name: &str| self.given.and_environment(name);
        Loaded::read(&self.file, &environment).is_ok_and(|loaded| Content::of(&loaded.content()) == content)
    }

    /// Reports a configuration that is not valid.
    pub fn refuse(&self, error: &ConfigError) {
        self.state.metrics.config.reloaded(false);
        let version = self.state.rules.load().version;
        // The texts of the problems may contain a secret, so only their number is recorded.
        notices::reloaded(&self.state, version, Some(error));
        tracing::error!(
            config_version = version,
            problems = error.errors(),
            "the changed configuration is rejected, the previous one stays in force:\n{error}"
        );
    }

    /// Brings a configuration into force, as far as a running process can. Returns the one before and the one in force. The caller
    /// shows its version when the rest of the change is done.
    pub fn put_in_force(&self, checked: Checked, cause: Cause) -> (Arc<Snapshot>, Arc<Snapshot>) {
        let Checked { mut config, mut upstreams } = checked;
        let before = self.state.rules.load_full();
        let fixed = before.config.needs_restart(&config);
        if !fixed.is_empty() {
            tracing::warn!(
                keys = fixed.join(", "),
                "these changes take effect at the next start; all others are in force"
            );
        }
        // The rules report the values that the process really uses.
        config.server.listen = before.config.server.listen;
        config.server.h2c_listen = before.config.server.h2c_listen;
        config.server.threads = before.config.server.threads;
        config.admin.listen = before.config.admin.listen;
        config.app.max_idle = before.config.app.max_idle;
        config.log.format = before.config.log.format;
        config.max_limit_keys = before.config.max_limit_keys;
        config.this = before.config.this.clone();
        config.audit = match (&before.config.audit, config.audit) {
            (Some(before), Some(after)) => Some(after.keeping(before)),
            (before, _) => before.clone(),
        };
        config.peers = match (&before.config.peers, config.peers) {
            (Some(before), Some(after)) => Some(PeerRules { failover: after.failover, ..before.clone() }),
            (before, _) => before.clone(),
        };
        match Arc::get_mut(&mut config.credentials) {
            Some(credentials) => credentials.adopt(&before.config.credentials),
            // They were in force before, with a source that the change in between may have set to another interval.
            None => config.credentials.refresh_as_configured(),
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let app_moved = !upstreams.app.is_same(&before.upstreams.app);
        upstreams.adopt(&before.upstreams);
        let next =
            Snapshot::new(Checked { config, upstreams }, before.version + 1, &self.state.metrics, &self.state.breakers);
        self.level.set(next.config.log.level);
        if cause == Cause::Change {
            self.state.metrics.config.reloaded(true);
        }
        self.state.metrics.config.show(&next.config, unix_now());
        tracing::info!(
            config_version = next.version,
            routes = next.config.routes.all().len(),
            "the configuration is in force"
        );
        self.state.gate.set(next.config.gate.settings);
        let next = Arc::new(next);
        self.state.rules.store(Arc::clone(&next));
        self.state.tally.follow(next.version, next.config.reload.mode == Mode::Off);
        if let (Some(trail), Some(basis)) = (&self.state.trail, &next.audit) {
            trail.set_basis(Arc::clone(basis));
        }
        if app_moved {
            tracing::info!(event = "app_moved", app = %next.config.app.address, "requests go to {} from now on", next.config.app.address);
        }
        // The tasks that resolve names, too: another name may be in force now.
        self.state.app_moved.notify_waiters();
        if cause == Cause::Change {
            notices::reloaded(&self.state, next.version, None);
        }
        notices::flags_changed(&self.state, upkeep::flags(&before.config), &next.config);
        upkeep::keep_flags(&next.config);
        for gone in before.config.routes.all() {
            if !next.config.routes.all().iter().any(|r| r.name == gone.name && r.priority == gone.priority) {
                let keeps_name = next.config.routes.all().iter().any(|route| route.name == gone.name);
                self.state.metrics.requests.forget_route(&gone.name, gone.priority, keeps_name);
            }
        }
        self.state.breakers.forget(&next.config.breakers, |gone| self.state.metrics.breakers.forget(gone));
        for gone in &before.config.limits.all {
            if !next.config.limits.all.iter().any(|limit| limit.name == gone.name) {
                self.state.metrics.limits.forget(&gone.name);
            }
        }
        (before, next)
    }
}
