//! Events that are not requests: bans, circuit breakers, changes of configuration and flags, and actions of operators.

use std::collections::BTreeMap;

use outrigger_policy::audit::{EventType, Outcome};
use outrigger_policy::flags::{Feature, Mode};
use outrigger_rules::config::Config;
use serde_json::json;

use crate::engine::exchange::Exchange;
use crate::engine::state::State;
use crate::mechanism::audit::{Act, Item, Who};

/// Logs a change of the audit log itself, regardless of its flag.
fn enter_surely(state: &State, act: Act) {
    if let Some(trail) = &state.trail {
        trail.enter(&state.rules.load(), act);
    }
}

/// Logs that PostgreSQL has a `HEAD` of this directory ahead of the local one: the directory was rolled back.
pub fn rolled_back(state: &State, number: u64) {
    let problem =
        "PostgreSQL has a HEAD of this directory that is ahead of the one here: an earlier state was restored";
    tracing::error!(
        finding = "audit.rolled_back",
        number,
        "the audit log was changed while no process wrote to it: {problem}"
    );
    state.metrics.audit.alarm("audit.rolled_back");
    let details = json!({ "head_in_postgres": number, "problem": problem }).to_string();
    for event in [EventType::Forged, EventType::AdminAction] {
        enter_surely(
            state,
            Act { details: Some(details.clone()), ..Act::new(event, "audit.rolled_back", Outcome::Error) },
        );
    }
}

/// Logs an action, without waiting for the disk.
pub fn enter(state: &State, act: Act) {
    let Some(trail) = &state.trail else { return };
    let rules = state.rules.load();
    // There is no client: the flag's mode for everybody applies, and a percentage counts as on.
    match rules.config.flag(Feature::AuditTrail).mode_for_everybody() {
        Some(Mode::Off) => {}
        Some(Mode::Monitor) => trail.metrics.monitored(act.event.class()),
        _ => trail.push(&rules, Item::Act(Box::new(act))),
    }
}

/// Logs the ban of a client for an offence.
pub fn banned(state: &State, exchange: &Exchange, reason: &str, seconds: u64, mode: Mode) {
    if state.trail.is_none() {
        return;
    }
    let client = &exchange.client;
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

/// Logs that an operator bans a client, or lifts a ban.
pub fn ban_changed(state: &State, action: &'static str, client: &str, seconds: Option<u64>) {
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

/// Logs that a circuit breaker has changed its state.
pub fn breaker(state: &State, name: &str, from: &str, to: &'static str, reason: Option<&str>) {
    if state.trail.is_none() {
        return;
    }
    let details = json!({ "breaker": name, "from": from, "to": to }).to_string();
    let reason = reason.map(str::to_owned);
    enter(state, Act { reason, details: Some(details), ..Act::new(EventType::Breaker, to, Outcome::Success) });
}

/// Logs that an operator forces the state of a circuit breaker.
pub fn breaker_forced(state: &State, name: &str, force: &str) {
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
pub fn reloaded(state: &State, version: u64, problems: Option<usize>) {
    let outcome = if problems.is_some() { Outcome::Refused } else { Outcome::Success };
    let details = json!({ "config_version": version, "problems": problems.unwrap_or(0) }).to_string();
    let reason = problems.map(|_| "invalid".to_owned());
    let act = Act::new(EventType::ConfigChange, "reload", outcome);
    enter(state, Act { is_operator: true, reason, details: Some(details), ..act });
}

/// Returns the flags of this configuration, by name.
pub fn flags(config: &Config) -> [(String, String); Feature::ALL.len()] {
    Feature::ALL.map(|feature| (feature.key().to_owned(), config.flag(feature).switch.to_string()))
}

/// Logs the flags in `config` that differ from those before.
pub fn flags_changed(state: &State, before: impl IntoIterator<Item = (String, String)>, config: &Config) {
    let now = flags(config);
    for (flag, from) in before {
        let Some((_, to)) = now.iter().find(|(name, to)| *name == flag && *to != from) else { continue };
        let details = json!({ "flag": flag, "from": from, "to": to }).to_string();
        let act = Act::new(EventType::FlagChange, "switch", Outcome::Success);
        enter_surely(state, Act { is_operator: true, details: Some(details), ..act });
    }
}

/// Logs that the process has started, or is about to end.
pub fn process(state: &State, action: &'static str) {
    let rules = state.rules.load();
    let flags: BTreeMap<_, _> = flags(&rules.config).into();
    let details = json!({ "version": env!("CARGO_PKG_VERSION"), "flags": flags }).to_string();
    enter(state, Act { details: Some(details), ..Act::new(EventType::AdminAction, action, Outcome::Success) });
}
