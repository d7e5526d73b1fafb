//! Reports what is not a request to metrics, log, audit log and history: bans, circuit breakers, changes of configuration and
//! flags, and actions of operators.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use outrigger_policy::audit::{EventType, Outcome};
use outrigger_policy::breaker::{Reason, State as Position};
use outrigger_policy::flags::{Feature, Mode};
use outrigger_rules::config::Config;
use outrigger_rules::error::ConfigError;
use serde_json::json;

use crate::engine::exchange::Exchange;
use crate::engine::guard::Undone;
use crate::engine::history::{EventKind, ReloadProblem};
use crate::engine::pause::{End, Resumed};
use crate::engine::state::State;
use crate::mechanism::audit::upkeep::flags;
use crate::mechanism::audit::{Act, Who};
use crate::mechanism::breakers::{Cell, Change, Turned};

/// Logs an action, without waiting for the disk.
pub fn enter(state: &State, act: Act) {
    let Some(trail) = &state.trail else { return };
    let rules = state.rules.load();
    // There is no client: the flag's mode for everybody applies, and a percentage counts as on.
    match rules.config.flag(Feature::AuditTrail).mode_for_everybody() {
        Some(Mode::Off) => {}
        Some(Mode::Monitor) => trail.metrics.monitored(act.event.class()),
        _ => trail.enter(act),
    }
}

/// Logs the ban of a client for an offence.
pub fn banned(state: &State, exchange: &Exchange, reason: &str, seconds: u64, mode: Mode) {
    state.snapshots.hurry();
    let client = &exchange.client;
    let would = if mode == Mode::Monitor { "would be" } else { "is" };
    let text = format!("client {:016x} {would} banned for {seconds} s: {reason}", client.id);
    state.history.add(EventKind::Ban, text);
    if state.trail.is_none() {
        return;
    }
    enter(
        state,
        Act {
            who: Some(Who { address: client.address, tier: client.tier, verified: client.verified.clone() }),
            request_id: Some(exchange.request_id),
            reason: Some(reason.to_owned()),
            details: Some(json!({ "ban_s": seconds, "mode": mode.name() }).to_string()),
            ..Act::new(EventType::Banned, "ban", Outcome::Success)
        },
    );
}

/// Logs that an operator bans a client, or lifts a ban. `hash` is the client's pseudonym.
pub fn ban_changed(state: &State, action: &'static str, (client, hash): (&str, u64), seconds: Option<u64>) {
    state.snapshots.hurry();
    let text = match seconds {
        Some(seconds) => format!("an operator bans client {hash:016x} for {seconds} s"),
        None => format!("an operator lifts the ban of client {hash:016x}"),
    };
    state.history.add(EventKind::Ban, text);
    if state.trail.is_none() {
        return;
    }
    // Users, keys and addresses are subjects. A client that is known by a hash only is not.
    let is_subject = client.starts_with("user:") || client.starts_with("key:") || client.starts_with("address:");
    let details = json!({ "ban_s": seconds, "by": "operator" }).to_string();
    let subject = is_subject.then(|| client.to_owned());
    enter(
        state,
        Act {
            is_operator: true,
            subject,
            details: Some(details),
            ..Act::new(EventType::Banned, action, Outcome::Success)
        },
    );
}

/// Reports a change of a circuit breaker to metrics, log and audit log.
pub fn breaker_changed(state: &State, cell: &Cell, Change { clients_refused, turned }: Change) {
    state.snapshots.hurry();
    let breaker = &*cell.name;
    if let Some(clients_refused) = clients_refused {
        state.metrics.breakers.refuses_one(breaker);
        tracing::info!(
            event = "breaker_client",
            breaker,
            clients_refused,
            "breaker {breaker} rejects a client for failures that only it received"
        );
    }
    let Some(Turned { from, to, reason, open_for }) = turned else { return };
    state.metrics.breakers.changed(breaker, to);
    let (from, to_name) = (from.name(), to.name());
    state.history.breaker_changed(breaker, (from, to_name), reason.map(Reason::name));
    if state.trail.is_some() {
        let details = json!({ "breaker": breaker, "from": from, "to": to_name }).to_string();
        let reason = reason.map(|reason| reason.name().to_owned());
        enter(state, Act { reason, details: Some(details), ..Act::new(EventType::Breaker, to_name, Outcome::Success) });
    }
    if to == Position::Open {
        let reason = reason.map_or("operator", Reason::name);
        let open_ms = open_for.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        tracing::warn!(event = "breaker", breaker, from, to = to_name, reason, open_ms, "breaker {breaker} opens");
    } else {
        tracing::info!(event = "breaker", breaker, from, to = to_name, "breaker {breaker}: {from} to {to_name}");
    }
}

/// Logs that an operator forces the state of a circuit breaker.
pub fn breaker_forced(state: &State, name: &str, force: &str) {
    state.history.add(EventKind::Breaker, format!("an operator sets breaker {name} to {force}"));
    let details = json!({ "breaker": name, "force": force, "by": "operator" }).to_string();
    enter(
        state,
        Act {
            is_operator: true,
            details: Some(details),
            ..Act::new(EventType::AdminAction, "breaker.force", Outcome::Success)
        },
    );
}

/// Logs that a configuration was applied or rejected.
pub fn reloaded(state: &State, version: u64, refused: Option<&ConfigError>) {
    remember_reload(state, version, refused);
    let problems = refused.map(ConfigError::errors);
    let outcome = if problems.is_some() { Outcome::Refused } else { Outcome::Success };
    let details = json!({ "config_version": version, "problems": problems.unwrap_or(0) }).to_string();
    let reason = problems.map(|_| "invalid".to_owned());
    let act = Act::new(EventType::ConfigChange, "reload", outcome);
    enter(state, Act { is_operator: true, reason, details: Some(details), ..act });
}

/// Reports a change that was taken back, or would have been in `monitor`. `returned` is the version that is in force instead.
pub fn change_undone(state: &State, undone: Undone, returned: Option<u64>) {
    let Undone { version, measure, text, is_in_file, .. } = &undone;
    let mode = if undone.is_kept { Mode::Monitor } else { Mode::Enforce };
    state.metrics.config.rolled_back(measure, mode);
    let what = if undone.is_kept { "would be taken back" } else { "is taken back" };
    let hint = match (undone.is_kept, is_in_file) {
        (true, _) => "reload.mode is monitor",
        (false, true) => "the file still has it, and a restart would bring it into force: change the file",
        (false, false) => "the file does not have it",
    };
    tracing::error!(
        event = "config_rollback",
        measure,
        mode = mode.name(),
        config_version = returned.unwrap_or(*version),
        undone_version = version,
        "configuration {version} {what}: {text}; {hint}"
    );
    state.history.add(EventKind::Reload, format!("configuration {version} {what}: {text}"));
    let details = json!({
        "config_version": returned,
        "undone_version": version,
        "mode": mode.name(),
        "seen": text,
    });
    let act = Act::new(EventType::ConfigChange, "rollback", Outcome::Success);
    enter(state, Act { reason: Some((*measure).to_owned()), details: Some(details.to_string()), ..act });
    state.guard.show_undone(Some(undone));
}

/// Logs that an operator keeps a change that would have been taken back.
pub fn change_confirmed(state: &State, version: u64) {
    tracing::info!(
        event = "config_confirmed",
        config_version = version,
        "an operator confirms configuration {version}"
    );
    operator_changes(state, version, "config.confirm", format!("an operator confirms configuration {version}"));
}

/// Logs that an operator brings a text into force in place of the file.
pub fn change_applied(state: &State, version: u64, confirm: Option<Duration>) {
    let confirm_s = confirm.map(|time| time.as_secs_f64());
    tracing::warn!(
        event = "config_applied",
        config_version = version,
        confirm_s,
        "an operator applies configuration {version} in place of the file"
    );
    let text = format!("an operator applies configuration {version} in place of the file");
    operator_changes(state, version, "config.apply", text);
}

/// Logs that an operator brings a change into force without probation.
pub fn reload_forced(state: &State, version: u64) {
    tracing::warn!(
        event = "config_forced",
        config_version = version,
        "an operator brings configuration {version} into force without probation"
    );
    let text = format!("an operator brings configuration {version} into force without probation");
    operator_changes(state, version, "config.force", text);
}

fn operator_changes(state: &State, version: u64, action: &'static str, text: String) {
    state.history.add(EventKind::Reload, text);
    let details = json!({ "config_version": version, "by": "operator" }).to_string();
    let act = Act::new(EventType::AdminAction, action, Outcome::Success);
    enter(state, Act { is_operator: true, details: Some(details), ..act });
}

fn remember_reload(state: &State, version: u64, refused: Option<&ConfigError>) {
    let Some(error) = refused else {
        state.history.reloaded(None);
        state.history.add(EventKind::Reload, format!("configuration {version} is in force"));
        return;
    };
    let problems: Vec<ReloadProblem> = error
        .placed()
        .filter(|(_, problem)| !problem.rule.is_warning())
        .map(|(place, problem)| {
            let (message, hint) = (problem.message.clone(), Some(problem.hint.clone()));
            ReloadProblem { place, message, hint }
        })
        .collect();
    let first = problems.first().map_or_else(String::new, |first| format!(": {}: {}", first.place, first.message));
    state.history.add(EventKind::ReloadRefused, format!("the changed configuration is rejected{first}"));
    state.history.reloaded(Some((problems.len(), problems, error.to_string())));
}

/// Remembers that the app became unreachable, or is back.
pub fn app_reach_changed(state: &State, is_away: bool, text: String) {
    state.history.set_away(is_away);
    state.history.add(EventKind::App, text);
}

/// Logs the flags in `config` that differ from those before.
pub fn flags_changed(state: &State, before: impl IntoIterator<Item = (String, String)>, config: &Config) {
    let Some(trail) = &state.trail else { return };
    let now = flags(config);
    for (flag, from) in before {
        let Some((_, to)) = now.iter().find(|(name, to)| *name == flag && *to != from) else { continue };
        let details = json!({ "flag": flag, "from": from, "to": to }).to_string();
        let act = Act::new(EventType::FlagChange, "switch", Outcome::Success);
        // Regardless of the audit log's own flag, which may be the one that has changed.
        trail.enter(Act { is_operator: true, details: Some(details), ..act });
    }
}

/// Logs that the app's process was started, restarted, killed or given up.
pub fn app_process(state: &State, action: &'static str, reason: Option<&str>, details: &serde_json::Value) {
    let because = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    state.history.add(EventKind::AppProcess, format!("{}{because}", action.replacen("app.", "the app's process: ", 1)));
    let act = Act::new(EventType::AdminAction, action, Outcome::Success);
    enter(state, Act { reason: reason.map(str::to_owned), details: Some(details.to_string()), ..act });
}

/// Logs that an operator restarts the app.
pub fn app_restarted(state: &State) {
    state.history.add(EventKind::AppProcess, "an operator restarts the app");
    let details = json!({ "by": "operator" }).to_string();
    let act = Act::new(EventType::AdminAction, "app.restart", Outcome::Success);
    enter(state, Act { is_operator: true, details: Some(details), ..act });
}

/// Logs that an operator pauses requests.
pub fn paused(state: &State, length: Duration) {
    let seconds = length.as_secs_f64();
    tracing::warn!(event = "paused", for_s = seconds, "an operator pauses requests for at most {seconds} s");
    state.history.add(EventKind::Pause, format!("an operator pauses requests for at most {seconds} s"));
    let details = json!({ "for_s": seconds, "by": "operator" }).to_string();
    let act = Act::new(EventType::AdminAction, "pause", Outcome::Success);
    enter(state, Act { is_operator: true, details: Some(details), ..act });
}

/// Logs that requests are sent to the app again.
pub fn resumed(state: &State, why: End, Resumed { paused, held }: Resumed) {
    let (why, seconds) = (why.name(), (paused.as_secs_f64() * 10.0).round() / 10.0);
    tracing::warn!(event = "resumed", by = why, paused_s = seconds, held, "the pause has ended after {seconds} s");
    let text = format!("the pause has ended after {seconds} s ({why}); {held} requests waited");
    state.history.add(EventKind::Pause, text);
    let details = json!({ "by": why, "paused_s": seconds, "held": held }).to_string();
    let act = Act::new(EventType::AdminAction, "resume", Outcome::Success);
    enter(state, Act { is_operator: why == End::Operator.name(), details: Some(details), ..act });
}

/// Logs that an operator begins or ends maintenance.
pub fn maintenance_changed(state: &State, is_on: bool) {
    let (verb, action) = if is_on { ("begins", "maintenance.begin") } else { ("ends", "maintenance.end") };
    tracing::warn!(event = "maintenance", on = is_on, "an operator {verb} maintenance");
    state.history.add(EventKind::Pause, format!("an operator {verb} maintenance"));
    let details = json!({ "by": "operator" }).to_string();
    let act = Act::new(EventType::AdminAction, action, Outcome::Success);
    enter(state, Act { is_operator: true, details: Some(details), ..act });
}

/// Logs that an operator has logged in to the page, or failed to.
pub fn logged_in(state: &State, is_right: bool, address: IpAddr) {
    if is_right {
        tracing::info!(event = "admin_login", client = %address, "an operator logs in to the page");
    } else {
        tracing::warn!(event = "admin_login_failed", client = %address, "a login to the page failed: this is not the token");
    }
    let outcome = if is_right { Outcome::Success } else { Outcome::Refused };
    let act = Act::new(EventType::AdminAction, "admin.login", outcome);
    enter(state, Act { is_operator: is_right, reason: (!is_right).then(|| "bad_token".to_owned()), ..act });
}

/// Logs that the process has started, or is about to end.
pub fn process(state: &State, action: &'static str) {
    let rules = state.rules.load();
    let flags: BTreeMap<_, _> = flags(&rules.config).into();
    let details = json!({ "version": env!("CARGO_PKG_VERSION"), "flags": flags }).to_string();
    enter(state, Act { details: Some(details), ..Act::new(EventType::AdminAction, action, Outcome::Success) });
}
