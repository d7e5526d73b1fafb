//! Guarded reload: a change is in force at once and on probation. If requests fare worse than before, the last good configuration returns.
//!
//! ```text
//!            a change ──► on probation ──► time is over ──► good
//!                          │    │
//!            another change│    │requests fare worse, or it is not confirmed in time
//!   the same good one stays▼    ▼
//!             on probation     taken back: the good one is in force again, the same content is not tried again
//! ```
//!
//! Twice a second, what the tally has counted goes to the baseline of the good rules, or to the test of the change
//! (`policy/src/probation.rs`). The file is never written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use outrigger_identity::clock;
use outrigger_policy::flags::Mode;
use outrigger_policy::probation::baseline::Baseline;
use outrigger_policy::probation::{BIN, Probation, Scope, Worse};
use outrigger_rules::environment::ADMIN_TOKEN;
use outrigger_rules::error::ConfigError;
use outrigger_rules::inputs::Trust;
use tokio::time::MissedTickBehavior;

use crate::control::reload::{Cause, Content, Reloader};
use crate::control::turns::Waiting;
use crate::engine::guard::{NotObeyed, Obeyed, OnProbation, Order, UNCONFIRMED, Undone, told};
use crate::engine::notices;
use crate::engine::pause;
use crate::engine::state::{Phase, Snapshot, State};
use crate::mechanism::tally::Reader;
use crate::transport::upstream::checked::Checked;

/// After a change was taken back, this many bins do not count as good ones: its effects last, such as open circuit breakers.
const AFTERMATH: u32 = 20;

/// How a change comes into force.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// Without probation.
    pub is_forced: bool,
    /// It is taken back unless it is confirmed within this time.
    pub confirm: Option<Duration>,
}

/// A change that may be taken back.
#[derive(Debug)]
struct Trial {
    /// Absent if it has passed or is not tested, and waits to be confirmed.
    test: Option<Probation>,
    scope: Scope,
    /// The configuration that returns.
    good: Arc<Snapshot>,
    content: Content,
    version: u64,
    mode: Mode,
    ends: Instant,
    confirm_by: Option<Instant>,
}

/// The change on probation, and what it is compared with.
#[derive(Debug, Default)]
pub struct Trials {
    baseline: Baseline,
    reader: Reader,
    /// Bins that do not count yet.
    aftermath: u32,
    trial: Option<Trial>,
    undone: Option<Content>,
    /// The content of the file that an operator's order has read: the watch finds the same.
    ordered: Option<Content>,
    /// The last change, if it is in force.
    in_force: Option<Content>,
    /// The file has a change that another Machine tries first.
    pub waiting: Option<Waiting>,
}

/// Watches changes, and obeys orders, for the life of the process.
pub async fn keep(reloader: Arc<Reloader>) {
    let Some(mut orders) = reloader.state.guard.take_orders() else { return };
    let mut bins = tokio::time::interval(BIN);
    bins.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = bins.tick() => reloader.trials.lock().await.tick(&reloader),
            Some((order, reply)) = orders.recv() => {
                // The operator may have gone meanwhile.
                let _ = reply.send(obey(&reloader, order).await);
            }
        }
    }
}

async fn obey(reloader: &Reloader, order: Order) -> Result<Obeyed, NotObeyed> {
    let mut trials = reloader.trials.lock().await;
    let is_applied = matches!(order, Order::Apply { .. });
    trials.ordered = None;
    let (read, terms) = match order {
        Order::Confirm => return trials.confirm(&reloader.state),
        Order::Reload { is_forced } => (reloader.read(true).await, Terms { is_forced, confirm: None }),
        Order::Apply { text, confirm, is_forced } => {
            let has_token = std::env::var(ADMIN_TOKEN).is_ok_and(|token| !token.is_empty());
            let trust = if has_token { Trust::Operator } else { Trust::Stranger };
            (reloader.check(Some((text, trust))).await, Terms { is_forced, confirm })
        }
    };
    let invalid = |e: ConfigError| {
        reloader.refuse(&e);
        NotObeyed::Invalid(e.to_string())
    };
    let (checked, content) = read.map_err(invalid)?;
    if trials.is_undone(content) && !terms.is_forced {
        let why = reloader.state.guard.shown().undone.map_or_else(String::new, |undone| undone.text);
        return Err(NotObeyed::Undone(why));
    }
    let obeyed = trials.change(reloader, checked, content, terms);
    trials.ordered = (!is_applied).then_some(content);
    if is_applied {
        notices::change_applied(&reloader.state, obeyed.version, obeyed.confirm);
    }
    Ok(obeyed)
}

impl Trials {
    /// Whether an order has read this content of the file; then that is known no longer.
    pub fn was_ordered(&mut self, content: Content) -> bool {
        self.ordered.take() == Some(content)
    }

    /// Whether this content was taken back, and no other has come into force since.
    pub fn is_undone(&self, content: Content) -> bool {
        self.undone == Some(content)
    }

    /// Another Machine has taken this content back: it is not tried here.
    pub fn skip(&mut self, state: &State, content: Content, undone: Undone) {
        (self.undone, self.waiting) = (Some(content), None);
        state.guard.show_waiting(None);
        state.guard.show_undone(Some(undone));
    }

    /// Brings a change into force, and begins its probation.
    pub fn change(&mut self, reloader: &Reloader, checked: Checked, content: Content, terms: Terms) -> Obeyed {
        let state = &reloader.state;
        let was_away = state.reach.is_away();
        let (before, next) = reloader.put_in_force(checked, Cause::Change);
        // A change on probation is not good yet.
        let good = self.trial.take().map_or(before, |trial| trial.good);
        (self.undone, self.waiting) = (None, None);
        state.guard.show_undone(None);
        state.guard.show_waiting(None);
        self.in_force = Some(content);
        let rules = next.config.reload;
        let is_tested = !terms.is_forced && rules.mode != Mode::Off;
        if terms.is_forced {
            notices::reload_forced(state, next.version);
        }
        // Requests that were counted so far began under the rules before.
        self.reader.restart(&state.tally);
        let now = clock::now();
        if is_tested || terms.confirm.is_some() {
            let reaches_elsewhere = !was_away && leads_elsewhere(&good, &next);
            let scope = Scope { reaches_elsewhere };
            let test = is_tested.then(|| Probation::new(&self.baseline, rules.probation, scope));
            let (ends, confirm_by) = (now + rules.probation, terms.confirm.map(|time| now + time));
            let (version, mode) = (next.version, rules.mode);
            self.trial = Some(Trial { test, scope, good, content, version, mode, ends, confirm_by });
        }
        self.show(state);
        state.metrics.config.show_version(next.version);
        let probation = is_tested.then_some(rules.probation);
        Obeyed { version: next.version, probation, confirm: terms.confirm }
    }

    /// Keeps the change that waits to be confirmed. Its probation goes on.
    fn confirm(&mut self, state: &State) -> Result<Obeyed, NotObeyed> {
        let trial = self.trial.as_mut().filter(|trial| trial.confirm_by.is_some());
        let trial = trial.ok_or(NotObeyed::NothingToConfirm)?;
        trial.confirm_by = None;
        let (version, left) = (trial.version, trial.ends.saturating_duration_since(clock::now()));
        let probation = trial.test.as_ref().map(|_| left);
        if trial.test.is_none() {
            self.trial = None;
        }
        notices::change_confirmed(state, version);
        self.show(state);
        Ok(Obeyed { version, probation, confirm: None })
    }

    /// Looks at what has happened since the last call.
    fn tick(&mut self, reloader: &Reloader) {
        let (state, now) = (&reloader.state, clock::now());
        let bin = self.reader.take(&state.tally);
        let scope = self.trial.as_ref().map_or(Scope::default(), |trial| trial.scope);
        let is_disturbed = is_disturbed(state, scope);
        let Some(trial) = &mut self.trial else {
            self.aftermath = self.aftermath.saturating_sub(1);
            if self.aftermath == 0 && !is_disturbed {
                self.baseline.add(&bin);
                state.guard.show_learned(BIN * u32::try_from(self.baseline.learned()).unwrap_or(u32::MAX));
            }
            return;
        };
        if !is_disturbed && let Some(worse) = trial.test.as_mut().and_then(|test| test.observe(&bin)) {
            return self.found(reloader, &worse);
        }
        if trial.test.is_some() && now >= trial.ends {
            trial.test = None;
            tracing::info!(
                event = "probation_passed",
                config_version = trial.version,
                "the configuration has passed its probation"
            );
            self.show(state);
        }
        let Some(trial) = &self.trial else { return };
        if trial.confirm_by.is_some_and(|by| now >= by) {
            return self.take_back(reloader, UNCONFIRMED, "it was not confirmed in time".to_owned());
        }
        if trial.test.is_none() && trial.confirm_by.is_none() {
            self.trial = None;
            self.show(state);
        }
    }

    /// A measure has become worse.
    fn found(&mut self, reloader: &Reloader, worse: &Worse) {
        let (name, text) = (worse.measure.name(), told(worse));
        let Some(trial) = &mut self.trial else { return };
        if trial.mode == Mode::Enforce {
            return self.take_back(reloader, name, text);
        }
        // It is said once.
        trial.test = None;
        let undone = Undone {
            at: Timestamp::now(),
            version: trial.version,
            measure: name,
            text,
            is_kept: true,
            is_in_file: reloader.is_in_file(trial.content),
            content: trial.content.to_string(),
        };
        notices::change_undone(&reloader.state, undone, None);
    }

    /// Brings the good configuration back into force.
    fn take_back(&mut self, reloader: &Reloader, measure: &'static str, text: String) {
        let Some(trial) = self.trial.take() else { return };
        let state = &reloader.state;
        let good = Checked { config: trial.good.config.clone(), upstreams: trial.good.upstreams.clone() };
        let (_, next) = reloader.put_in_force(good, Cause::Rollback);
        self.reader.restart(&state.tally);
        (self.undone, self.in_force, self.aftermath) = (Some(trial.content), None, AFTERMATH);
        let is_in_file = reloader.is_in_file(trial.content);
        let (at, version) = (Timestamp::now(), trial.version);
        let content = trial.content.to_string();
        let undone = Undone { at, version, measure, text, is_kept: false, is_in_file, content };
        notices::change_undone(state, undone, Some(next.version));
        self.show(state);
        state.metrics.config.show_version(next.version);
    }

    /// Shows operators what is on probation.
    fn show(&self, state: &State) {
        let now = clock::now();
        let at = |instant: Instant| {
            let left = instant.saturating_duration_since(now);
            Timestamp::now().saturating_add(left).unwrap_or(Timestamp::MAX)
        };
        let shown = self.trial.as_ref().map(|trial| OnProbation {
            version: trial.version,
            since: Timestamp::from_second(state.metrics.config.loaded_at()).unwrap_or_default(),
            until: trial.test.as_ref().map(|_| at(trial.ends)),
            confirm_until: trial.confirm_by.map(at),
        });
        state.metrics.config.show_probation(shown.is_some());
        state.guard.show_probation(shown, self.in_force.map(|content| content.to_string()));
    }
}

/// Whether a change decides if the app can be reached: it names another one, or connects to it in another way.
fn leads_elsewhere(good: &Snapshot, next: &Snapshot) -> bool {
    let (a, b) = (&good.config.app, &next.config.app);
    !good.upstreams.app.is_same(&next.upstreams.app) || a.connect_timeout != b.connect_timeout
}

/// Whether requests now say little about the rules: an operator has stopped them, this process is leaving, or the app
/// is down although the change does not lead elsewhere.
fn is_disturbed(state: &State, scope: Scope) -> bool {
    state.reach.is_paused()
        || pause::is_maintenance(state)
        || state.drain.phase() != Phase::Serving
        || (state.reach.is_away() && !scope.reaches_elsewhere)
}
