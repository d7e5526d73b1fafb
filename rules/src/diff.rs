//! `outrigger diff`: what changes in meaning between two configurations.
//!
//! ```text
//! facts    the effective values of routes, limits and circuit breakers
//! losses   what starts anew when the other configuration comes into force
//! text     the result for people
//! ```
//!
//! Other spellings of a value, comments and the order of tables are no change. The order of routes is: the first that matches wins.

mod facts;
mod losses;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value as Json;

use self::facts::{Fact, Facts};
use crate::config::Config;
use crate::effective::{HIDDEN, Setting};
use crate::environment::Environment;
use crate::load::Loaded;

/// The kind of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A route, with the values that it inherits.
    Route,
    /// A rate limit.
    Limit,
    /// A circuit breaker.
    Breaker,
    /// A known key.
    Client,
    /// A key of the file.
    Setting,
}

/// How an item changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only the new configuration has it.
    Added,
    /// Only the old one has it.
    Removed,
    /// It has another place in the order of routes.
    Moved,
    /// It has other values.
    Changed,
}

/// A value of an item; `None`: there is none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ValueChange {
    /// Its name.
    pub key: String,
    /// Before.
    pub old: Option<String>,
    /// After.
    pub new: Option<String>,
}

/// Something that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its kind.
    pub kind: Kind,
    /// Its name, or the key.
    pub name: String,
    /// How it changes.
    pub change: Change,
    /// Which values change.
    pub values: Vec<ValueChange>,
    /// It takes effect at the next start; everything else when the file is saved.
    pub needs_restart: bool,
}

/// State that does not survive the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The sort of state: `limit`, `breaker`, `session`, `ban`, `client` or `process`.
    pub of: &'static str,
    /// Whose.
    pub name: String,
    /// The consequence, and the reason.
    pub what: String,
}

/// All changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// The changes.
    pub items: Vec<Item>,
    /// State that does not survive.
    pub losses: Vec<Loss>,
    /// Keys that take effect at the next start.
    pub needs_restart: Vec<&'static str>,
    /// Keys that cannot be compared: the old values are hidden.
    pub not_compared: Vec<String>,
}

impl Diff {
    /// Whether nothing changes in meaning.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// A configuration to compare.
#[derive(Debug)]
pub struct Side<'a> {
    /// The configuration.
    pub config: &'a Config,
    values: Json,
    hidden: BTreeSet<String>,
}

impl<'a> Side<'a> {
    /// With its values as written; empty without a configuration that was loaded.
    pub fn of(config: &'a Config) -> Self {
        let effective = config.effective.as_deref();
        let hidden = effective.map_or_else(Vec::new, |effective| effective.settings());
        let hidden = hidden.into_iter().filter(|setting| setting.hidden).map(|setting| key_of(&setting.path)).collect();
        Self { config, values: effective.map_or(Json::Null, |effective| effective.values()), hidden }
    }

    fn shows(&self, key: &str, value: &Json) -> String {
        if self.hidden.contains(key) { HIDDEN.to_owned() } else { facts::shown(value) }
    }
}

/// The key that a path leads to: `routes[2].path`.
pub fn key_of(path: &[Json]) -> String {
    path.iter().fold(String::new(), |key, part| match part.as_str() {
        Some(part) if key.is_empty() => part.to_owned(),
        Some(part) => format!("{key}.{part}"),
        None => format!("{key}[{part}]"),
    })
}

/// Lists whose elements are compared by their names.
const NAMED: [&str; 4] = ["routes", "rate_limits.rules", "breaker.groups", "identity.keys"];

/// Compares two configurations. `unknown`: keys of the old one whose values are not known, so they are not compared.
pub fn diff(old: &Side<'_>, new: &Side<'_>, unknown: &BTreeSet<String>, environment: Environment<'_>) -> Diff {
    let mut diff = Diff { needs_restart: old.config.needs_restart(new.config), ..Diff::default() };
    let (before, after) = (Facts::of(old), Facts::of(new));
    for kind in [Kind::Route, Kind::Limit, Kind::Breaker, Kind::Client] {
        compare(kind, before.of_kind(kind), after.of_kind(kind), &mut diff.items);
    }
    moved(&before, &after, &mut diff.items);
    settings(old, new, unknown, environment, &mut diff);
    for key in unknown {
        if !diff.not_compared.contains(key) {
            diff.not_compared.push(key.clone());
        }
    }
    diff.losses = losses::losses(old, new, (&before, &after), &diff);
    diff.items.sort_by_key(|item| item.kind);
    diff
}

fn compare(kind: Kind, old: &[(String, Vec<Fact>)], new: &[(String, Vec<Fact>)], items: &mut Vec<Item>) {
    let named = |all: &'_ [(String, Vec<Fact>)]| -> BTreeMap<String, usize> {
        all.iter().enumerate().map(|(index, (name, _))| (name.clone(), index)).collect()
    };
    let (before, after) = (named(old), named(new));
    let one_sided = |facts: &[Fact], is_new: bool| {
        let value = |fact: &Fact| {
            let shown = Some(fact.shown.clone());
            let (old, new) = if is_new { (None, shown) } else { (shown, None) };
            ValueChange { key: fact.key.clone(), old, new }
        };
        facts.iter().filter(|fact| !fact.shown.is_empty()).map(value).collect::<Vec<_>>()
    };
    let item = |name: &str, change, values| Item { kind, name: name.to_owned(), change, values, needs_restart: false };
    for (name, facts) in old.iter().filter(|(name, _)| !after.contains_key(name)) {
        items.push(item(name, Change::Removed, one_sided(facts, false)));
    }
    for (name, facts) in new {
        let Some(index) = before.get(name) else {
            items.push(item(name, Change::Added, one_sided(facts, true)));
            continue;
        };
        let values = facts::differences(&old[*index].1, facts);
        if !values.is_empty() {
            items.push(item(name, Change::Changed, values));
        }
    }
}

/// The routes whose place among those that stay is another one: as few as explain the new order.
fn moved(before: &Facts, after: &Facts, items: &mut Vec<Item>) {
    let names = |facts: &Facts| facts.of_kind(Kind::Route).iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let (old, new) = (names(before), names(after));
    let places: BTreeMap<&str, usize> = old.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    let common: Vec<(&str, usize)> =
        new.iter().filter_map(|name| Some((name.as_str(), *places.get(name.as_str())?))).collect();
    let stays = longest_rise(&common.iter().map(|(_, place)| *place).collect::<Vec<_>>());
    let above = |all: &[String], name: &str| {
        let place = all.iter().position(|one| one == name)?;
        Some(place.checked_sub(1).map_or_else(|| "first".to_owned(), |above| format!("after {}", all[above])))
    };
    for (_, (name, _)) in common.iter().enumerate().filter(|(index, _)| !stays.contains(index)) {
        let value = ValueChange { key: "order".to_owned(), old: above(&old, name), new: above(&new, name) };
        let (kind, change) = (Kind::Route, Change::Moved);
        items.push(Item { kind, name: (*name).to_owned(), change, values: vec![value], needs_restart: false });
    }
}

/// The indices of a longest rising subsequence.
fn longest_rise(numbers: &[usize]) -> BTreeSet<usize> {
    // The index of the smallest end of a rise of each length, and the element before each element.
    let (mut ends, mut before): (Vec<usize>, Vec<Option<usize>>) = (Vec::new(), Vec::new());
    for (index, number) in numbers.iter().enumerate() {
        let length = ends.partition_point(|end| numbers[*end] < *number);
        before.push(length.checked_sub(1).map(|length| ends[length]));
        if length == ends.len() {
            ends.push(index);
        } else {
            ends[length] = index;
        }
    }
    std::iter::successors(ends.last().copied(), |index| before[*index]).collect()
}

/// The keys that are not part of a named thing.
fn settings(old: &Side<'_>, new: &Side<'_>, unknown: &BTreeSet<String>, environment: Environment<'_>, diff: &mut Diff) {
    let of = |side: &Side<'_>| {
        let mut leaves = Vec::new();
        leaves_of(&side.values, &mut Vec::new(), &mut leaves);
        leaves.into_iter().map(|(path, value)| (key_of(&path), (path, value))).collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (of(old), of(new));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let is_named =
            |list: &&str| key.strip_prefix(*list).is_some_and(|rest| rest.is_empty() || rest.starts_with('['));
        let (a, b) = (before.get(key), after.get(key));
        let same = facts::normal(a.map(|(_, value)| value)) == facts::normal(b.map(|(_, value)| value));
        if same || NAMED.iter().any(is_named) {
            continue;
        }
        if unknown.contains(key) {
            diff.not_compared.push(key.clone());
            continue;
        }
        let shown = |side: &Side<'_>, found: Option<&(Vec<Json>, Json)>| found.map(|(_, value)| side.shows(key, value));
        let value = ValueChange { key: key.clone(), old: shown(old, a), new: shown(new, b) };
        let path = a.or(b).map(|(path, _)| path.clone()).unwrap_or_default();
        let needs_restart = needs_restart(old, &path, b.map(|(_, value)| value), &diff.needs_restart, environment);
        let change = match (a, b) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            _ => Change::Changed,
        };
        diff.items.push(Item { kind: Kind::Setting, name: key.clone(), change, values: vec![value], needs_restart });
    }
}

/// Whether this change alone needs a restart: asks [`Config::needs_restart`], which knows.
fn needs_restart(
    old: &Side<'_>,
    path: &[Json],
    value: Option<&Json>,
    keys: &[&'static str],
    environment: Environment<'_>,
) -> bool {
    let key = key_of(path);
    let is_within =
        |list: &&str| key.strip_prefix(*list).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    if !keys.iter().any(is_within) {
        return false;
    }
    let mut values = old.values.clone();
    set(&mut values, path, value.cloned().unwrap_or(Json::Null));
    // Alone it may contradict the other values; then the key decides.
    let changed = Loaded::of_values(&values, environment);
    changed.map_or(true, |loaded| !old.config.needs_restart(&loaded.config).is_empty())
}

fn set(values: &mut Json, path: &[Json], value: Json) {
    let mut at = values;
    for part in path {
        let next = match (part.as_str(), part.as_u64().and_then(|index| usize::try_from(index).ok())) {
            (Some(key), _) => {
                if at.is_null() {
                    *at = Json::Object(serde_json::Map::new());
                }
                let Json::Object(entries) = at else { return };
                entries.entry(key.to_owned()).or_insert(Json::Null)
            }
            (None, Some(index)) => match at.get_mut(index) {
                Some(next) => next,
                None => return,
            },
            (None, None) => return,
        };
        at = next;
    }
    *at = value;
}

fn leaves_of(value: &Json, path: &mut Vec<Json>, leaves: &mut Vec<(Vec<Json>, Json)>) {
    match value {
        Json::Null => {}
        Json::Object(entries) => {
            for (key, inner) in entries {
                path.push(Json::from(key.as_str()));
                leaves_of(inner, path, leaves);
                path.pop();
            }
        }
        Json::Array(items) if items.iter().any(Json::is_object) => {
            for (index, item) in items.iter().enumerate() {
                path.push(Json::from(index));
                leaves_of(item, path, leaves);
                path.pop();
            }
        }
        leaf => leaves.push((path.clone(), leaf.clone())),
    }
}

/// The values of a running proxy, as its admin listener shows them, to compare with. Hidden ones are those of `new`, as far as it has
/// them. Also returns their keys.
///
/// # Errors
/// These are no settings.
pub fn running(shown: &Json, new: &Config) -> Result<(Json, BTreeSet<String>), serde_json::Error> {
    let settings: Vec<Setting> = serde_json::from_value(shown["settings"].clone())?;
    let own = new.effective.as_deref().map_or(Json::Null, |effective| effective.values());
    let mut values = Json::Object(serde_json::Map::new());
    let mut unknown = BTreeSet::new();
    for (number, setting) in settings.into_iter().enumerate() {
        let value = if setting.hidden {
            unknown.insert(key_of(&setting.path));
            let escaped = |part: &Json| facts::shown(part).replace('~', "~0").replace('/', "~1");
            let pointer: String = setting.path.iter().map(|part| format!("/{}", escaped(part))).collect();
            match own.pointer(&pointer).filter(|value| !value.is_null()) {
                Some(value) => value.clone(),
                // The digest of a key: each has its own.
                None if setting.path.last().is_some_and(|key| key == "sha256" || key == "hmac_sha256") => {
                    Json::from(format!("{number:064x}"))
                }
                None => continue,
            }
        } else {
            setting.value
        };
        grow(&mut values, &setting.path, value);
    }
    Ok((values, unknown))
}

/// Sets the value at `path`, and makes the tables and lists on the way.
fn grow(at: &mut Json, path: &[Json], value: Json) {
    let Some((part, rest)) = path.split_first() else {
        *at = value;
        return;
    };
    match part.as_str() {
        Some(key) => {
            if !at.is_object() {
                *at = Json::Object(serde_json::Map::new());
            }
            if let Json::Object(entries) = at {
                grow(entries.entry(key.to_owned()).or_insert(Json::Null), rest, value);
            }
        }
        None => {
            if !at.is_array() {
                *at = Json::Array(Vec::new());
            }
            let Json::Array(items) = at else { return };
            // Elements come in their order.
            let index = part.as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX);
            if index == items.len() {
                items.push(Json::Null);
            }
            if let Some(item) = items.get_mut(index) {
                grow(item, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
