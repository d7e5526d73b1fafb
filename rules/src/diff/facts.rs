//! The effective values of routes, limits, circuit breakers and known keys, as text.

use std::collections::HashMap;
use std::time::Duration;

use outrigger_policy::audit::Declared;
use outrigger_policy::breaker::Span as Window;
use outrigger_policy::tier::Tier;
use serde_json::Value as Json;

use super::{Kind, Side, ValueChange};
use crate::config::Config;
use crate::effective::HIDDEN;
use crate::sections::breaker::BreakerRules;
use crate::sections::limits::{Count, Limit};
use crate::sections::route_table::Route;
use crate::units::{CallWindow, OrOff, Share, Size, Span};

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its name.
    pub key: String,
    /// As people read it; empty: there is none.
    pub shown: String,
    /// For comparisons: the same for all spellings of one meaning.
    pub meaning: String,
}

impl Fact {
    fn new(key: &str, shown: impl Into<String>) -> Self {
        let shown = shown.into();
        Self { key: key.to_owned(), meaning: shown.clone(), shown }
    }
}

/// All named things of a configuration, in its order.
#[derive(Debug)]
pub struct Facts {
    routes: Vec<(String, Vec<Fact>)>,
    limits: Vec<(String, Vec<Fact>)>,
    breakers: Vec<(String, Vec<Fact>)>,
    clients: Vec<(String, Vec<Fact>)>,
}

impl Facts {
    /// Those of one side.
    pub fn of(side: &Side<'_>) -> Self {
        let config = side.config;
        let mut routes: Vec<(String, Vec<Fact>)> = Vec::new();
        let positions: HashMap<&str, usize> = side.values["routes"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .filter_map(|(index, route)| Some((route["name"].as_str()?, index)))
            .collect();
        for (number, route) in config.routes.all().iter().enumerate().filter(|(_, route)| !route.is_health) {
            let written = positions.get(&*route.name).map(|index| (*index, &side.values["routes"][*index]));
            routes.push((route.name.to_string(), route_facts(side, number, route, written)));
        }
        let limits = config.limits.all.iter().enumerate();
        let limits = limits.map(|(number, limit)| (limit.name.to_string(), limit_facts(config, number, limit)));
        let breakers = config.breakers.iter().map(|rules| (rules.name.to_string(), breaker_facts(rules)));
        Self { limits: limits.collect(), breakers: breakers.collect(), clients: client_facts(side), routes }
    }

    /// The names and values of one kind.
    pub fn of_kind(&self, kind: Kind) -> &[(String, Vec<Fact>)] {
        match kind {
            Kind::Route => &self.routes,
            Kind::Limit => &self.limits,
            Kind::Breaker => &self.breakers,
            Kind::Client => &self.clients,
            Kind::Setting => &[],
        }
    }

    /// The values of one.
    pub fn find(&self, kind: Kind, name: &str) -> Option<&[Fact]> {
        self.of_kind(kind).iter().find(|(one, _)| one == name).map(|(_, facts)| facts.as_slice())
    }
}

/// The values that differ.
pub fn differences(old: &[Fact], new: &[Fact]) -> Vec<ValueChange> {
    let find = |facts: &[Fact], key: &str| facts.iter().find(|fact| fact.key == key).cloned();
    let text = |fact: Option<Fact>| fact.map(|fact| fact.shown).filter(|shown| !shown.is_empty());
    let mut changes = Vec::new();
    for key in old.iter().map(|fact| &fact.key).chain(new.iter().map(|fact| &fact.key)) {
        let (a, b) = (find(old, key), find(new, key));
        let meaning = |fact: &Option<Fact>| fact.as_ref().map(|fact| fact.meaning.clone()).unwrap_or_default();
        if meaning(&a) != meaning(&b) && changes.iter().all(|change: &ValueChange| change.key != *key) {
            changes.push(ValueChange { key: key.clone(), old: text(a), new: text(b) });
        }
    }
    changes
}

/// A value as text.
pub fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        Json::Object(entries) => {
            entries.iter().map(|(key, value)| format!("{key}: {}", shown(value))).collect::<Vec<_>>().join(", ")
        }
        Json::Null => String::new(),
        other => other.to_string(),
    }
}

/// The value to compare: lists of values are sets. An empty list and no value are the same.
pub fn normal(value: Option<&Json>) -> Option<Json> {
    match value {
        None | Some(Json::Null) => None,
        Some(Json::Array(items)) if items.is_empty() => None,
        Some(Json::Array(items)) => {
            let mut items: Vec<String> = items.iter().map(shown).collect();
            items.sort();
            items.dedup();
            Some(Json::from(items))
        }
        Some(other) => Some(other.clone()),
    }
}

fn route_facts(side: &Side<'_>, number: usize, route: &Route, written: Option<(usize, &Json)>) -> Vec<Fact> {
    let config = side.config;
    let mut facts = Vec::new();
    if let Some((index, written)) = written {
        for key in ["path", "methods", "hosts", "headers", "allow", "deny", "fallback"] {
            facts.push(written_fact(side, &format!("routes[{index}].{key}"), key, &written[key]));
        }
        if route.addresses.is_some() {
            facts.push(Fact::new("address_mode", shown(&written["address_mode"])));
        }
    }
    let max_body = (route.max_body_bytes < u64::MAX).then_some(Size(route.max_body_bytes));
    let statuses: Vec<String> = route.retry_statuses.iter().map(u16::to_string).collect();
    facts.push(Fact::new("priority", route.priority.name()));
    facts.push(Fact::new("timeout", Span(route.timeout).to_string()));
    facts.push(Fact::new("client_timeout", route.heeds_client_timeout.to_string()));
    facts.push(Fact::new("max_body", OrOff(max_body).to_string()));
    facts.push(Fact::new("cost", route.cost.to_string()));
    facts.push(Fact::new("attempts", route.attempts.to_string()));
    facts.push(Fact::new("retry_statuses", statuses.join(", ")));
    let audit = match route.audit {
        Declared::Off => "off",
        Declared::Class(class) => class.name(),
        Declared::Type(event) => event.name(),
    };
    facts.push(Fact::new("audit", audit));
    let parameters: Vec<&str> = route.resource.iter().map(|(_, name)| &**name).collect();
    facts.push(Fact::new("audit parameters", parameters.join(", ")));
    if let Some(rules) = route.breaker.and_then(|number| config.breakers.get(usize::from(number))) {
        facts.push(Fact::new("breaker", &*rules.name));
        for fact in breaker_facts(rules) {
            facts.push(Fact { key: format!("breaker.{}", fact.key), ..fact });
        }
    }
    for (_, limit) in config.limits.of(number) {
        let (by, mode) = (shown(&serde_json::to_value(limit.by).unwrap_or_default()), limit.mode.name());
        facts.push(Fact::new(&format!("limit {}", limit.name), format!("by {by}, {mode}")));
        for fact in limit_values(limit).into_iter().filter(|fact| !["by", "mode"].contains(&&*fact.key)) {
            facts.push(Fact { key: format!("limit {}.{}", limit.name, fact.key), ..fact });
        }
    }
    facts
}

/// A value of a route as it is written, with the same meaning for all spellings.
fn written_fact(side: &Side<'_>, place: &str, key: &str, value: &Json) -> Fact {
    let is_here = |hidden: &String| {
        hidden.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let is_hidden = side.hidden.iter().any(is_here);
    let text = if is_hidden { HIDDEN.to_owned() } else { shown(value) };
    let meaning = match key {
        // Case and a slash at the end are ignored, and a parameter's name selects no request.
        "path" => {
            let lower = shown(value).to_lowercase();
            let path = lower.strip_suffix('/').unwrap_or(&lower);
            path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect::<Vec<_>>().join("/")
        }
        "fallback" => shown(value),
        _ => normal(Some(value)).map_or_else(String::new, |value| shown(&value).to_lowercase()),
    };
    // The values of headers have their case.
    let meaning = if key == "headers" { shown(value) } else { meaning };
    Fact { key: key.to_owned(), shown: text, meaning }
}

fn limit_facts(config: &Config, number: usize, limit: &Limit) -> Vec<Fact> {
    let mut facts = limit_values(limit);
    let routes = config.routes.all().iter().enumerate();
    let applies = routes.filter(|(route, _)| config.limits.of(*route).any(|(one, _)| usize::from(one) == number));
    let mut names: Vec<&str> = applies.map(|(_, route)| &*route.name).collect();
    names.sort_unstable();
    facts.push(Fact::new("routes", names.join(", ")));
    facts
}

fn limit_values(limit: &Limit) -> Vec<Fact> {
    let by = serde_json::to_value(limit.by).unwrap_or_default();
    let count = match limit.count {
        Count::Requests => "requests",
        Count::Failures => "failures",
    };
    let mut facts = vec![
        Fact::new("by", shown(&by)),
        Fact::new("count", count),
        Fact::new("mode", limit.mode.name()),
        Fact::new("shared", limit.is_shared.to_string()),
    ];
    for tier in Tier::ALL {
        let text = limit.quotas[tier as usize].map_or_else(
            || "unlimited".to_owned(),
            |quota| {
                let every = Duration::from_nanos(quota.charge_ns(1));
                format!("{} at once, then one every {every:?}", quota.burst())
            },
        );
        facts.push(Fact::new(tier.name(), text));
    }
    facts
}

fn breaker_facts(rules: &BreakerRules) -> Vec<Fact> {
    let settings = &rules.settings;
    let share = |share: Option<f64>| OrOff(share.map(Share)).to_string();
    let slow_after = OrOff(settings.slow_after.map(Span)).to_string();
    vec![
        Fact::new("mode", rules.mode.name()),
        Fact::new("failures", settings.consecutive.to_string()),
        Fact::new("min_clients", settings.min_clients.to_string()),
        Fact::new("failure_rate", share(settings.failure_rate)),
        Fact::new("slow_after", slow_after),
        Fact::new("slow_rate", share(settings.slow_rate)),
        Fact::new("window", CallWindow(settings.window).to_string()),
        Fact::new("min_calls", settings.minimum.to_string()),
        Fact::new("open", Span(settings.open_for).to_string()),
        Fact::new("max_open", Span(settings.max_open_for).to_string()),
        Fact::new("jitter", Share(settings.jitter).to_string()),
        Fact::new("probes", settings.probes.to_string()),
        Fact::new("successes", settings.successes.to_string()),
        Fact::new("ramp", Span(settings.ramp).to_string()),
        Fact::new("count_429", rules.counts_429.to_string()),
    ]
}

/// Whether what a breaker has counted is kept with the other window.
pub fn keeps_window(old: Window, new: Window) -> bool {
    old == new
}

fn client_facts(side: &Side<'_>) -> Vec<(String, Vec<Fact>)> {
    let keys = side.values["identity"]["keys"].as_array().into_iter().flatten();
    let facts = keys.map(|key| {
        let digest = shown(&key["sha256"]) + &shown(&key["hmac_sha256"]);
        let digest = Fact { key: "digest".to_owned(), shown: HIDDEN.to_owned(), meaning: digest };
        (shown(&key["name"]), vec![Fact::new("tier", shown(&key["tier"])), digest])
    });
    facts.collect()
}
