//! `outrigger config`: the configuration in force, with the origin of each value. Values that may be secrets are not shown.

mod text;

use std::fmt;

use outrigger_policy::flags::{Feature, Flag, Percentage, Switch};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use self::text::Shown;
use crate::environment::{AUDIT_DATABASE_URL, Environment, GIVEN_PREFIX, REDIS_URL};
use crate::error::{Place, has_password, names_secret};
use crate::references::{Reference, References};
use crate::sources::{Lines, Sources};
use crate::tree::{Node, Step, Value};
use crate::written::Raw;

/// Replaces a hidden value.
pub const HIDDEN: &str = "***";

/// Variables that replace a key and are read by the section itself, because they may contain a password.
const SECRET_VARIABLES: [(&[&str], &str); 2] =
    [(&["rate_limits", "redis", "url"], REDIS_URL), (&["audit", "database"], AUDIT_DATABASE_URL)];

/// The configuration as written, and where each value is from.
pub struct Effective {
    raw: Raw,
    /// The files and the environment.
    root: Node,
    sources: Sources,
    references: References,
    /// Flags that the environment changes.
    flags: Vec<(Feature, Json)>,
    /// Keys whose value is in the environment.
    replaced: Vec<(&'static [&'static str], &'static str)>,
}

impl fmt::Debug for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values may be secrets.
        f.debug_struct("Effective").finish_non_exhaustive()
    }
}

/// Where a value is from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum Origin {
    /// It is in a file.
    File {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// A file refers to it.
    Reference {
        /// Such as `${PORT}`.
        references: Vec<String>,
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// A variable replaces the key.
    Environment {
        /// Its name.
        variable: String,
    },
    /// `outrigger run -- COMMAND` sets it.
    Launch,
    /// It follows from the absence of `[rate_limits]`.
    Implied,
    /// Nothing sets it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::Reference { references, file, line } => write!(f, "{} at {file}:{line}", references.join(" and ")),
            Self::Environment { variable } => write!(f, "environment, {variable}"),
            Self::Launch => f.write_str("outrigger run"),
            Self::Implied => f.write_str("default without [rate_limits]"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Setting {
    /// The keys that lead to it, and the numbers of elements.
    pub path: Vec<Json>,
    /// The value; [`HIDDEN`] if it may be a secret.
    pub value: Json,
    /// Where it is from.
    #[serde(flatten)]
    pub origin: Origin,
    /// The value is not shown.
    pub hidden: bool,
}

impl Effective {
    /// The files, and the values that the environment adds.
    pub fn new(
        raw: Raw,
        root: Node,
        sources: Sources,
        references: References,
        (flags, environment): (&[Flag; 5], Environment<'_>),
    ) -> Self {
        let is_set = |name: &str| environment(name).is_some_and(|text| !text.trim().is_empty());
        let changed = Feature::ALL.into_iter().filter(|feature| {
            ["", "_PERCENTAGE", "_USERS", "_IPS"]
                .iter()
                .any(|suffix| is_set(&format!("{}{suffix}", feature.variable())))
        });
        let flags = changed.map(|feature| (feature, written_flag(&flags[feature as usize]))).collect();
        let replaced = SECRET_VARIABLES.into_iter().filter(|(_, variable)| is_set(variable)).collect();
        Self { raw, root, sources, references, flags, replaced }
    }

    /// The names of the variables that the files refer to.
    pub fn variables(&self) -> Vec<&str> {
        self.references.variables().collect()
    }

    /// All values, table by table.
    pub fn settings(&self) -> Vec<Setting> {
        let mut gatherer = Gatherer { effective: self, lines: Lines::of(&self.sources), settings: Vec::new() };
        gatherer.walk(&mut Vec::new(), &self.values());
        gatherer.settings
    }

    /// The values as one tree, secrets included: never display it.
    pub fn values(&self) -> Json {
        let mut values = serde_json::to_value(&self.raw).unwrap_or_default();
        if let Json::Object(tables) = &mut values {
            tables.remove("include");
        }
        // An empty section asks for a key.
        if self.root.nearest(&[Step::Key("identity"), Step::Key("jwt")]).0 < 2 {
            values["identity"]["jwt"] = Json::Null;
        }
        for feature in Feature::ALL {
            let flag = &mut values["flags"][feature.key()];
            if let Some(switch) = flag.as_str().and_then(|text| text.parse::<bool>().ok()) {
                *flag = json!(switch);
            }
        }
        for (feature, flag) in &self.flags {
            values["flags"][feature.key()] = flag.clone();
        }
        for (path, variable) in &self.replaced {
            let table = path[..path.len() - 1].iter().fold(&mut values, |table, key| &mut table[*key]);
            table[path[path.len() - 1]] = json!(format!("${{{variable}}}"));
        }
        values
    }

    /// The configuration as TOML, with a comment for each value. `only_changed`: without defaults.
    pub fn to_toml(&self, only_changed: bool) -> String {
        let mut root = Shown::default();
        for setting in self.settings() {
            if !only_changed || setting.origin != Origin::Default {
                root.add(&setting.path, &setting);
            }
        }
        // An empty [rate_limits] has a meaning, too.
        if let Value::Table(entries) = &self.root.value {
            for (key, _, node) in entries {
                if matches!(node.value, Value::Table(_)) && node.place != Place::Whole {
                    root.table(key);
                }
            }
        }
        let mut text = String::new();
        root.write(&mut Vec::new(), &mut text);
        text
    }

    /// The configuration as JSON. `only_changed`: without defaults.
    pub fn to_json(&self, only_changed: bool) -> Json {
        let settings = self.settings().into_iter();
        let shown: Vec<Setting> = settings.filter(|one| !only_changed || one.origin != Origin::Default).collect();
        json!({ "file": self.sources.main().display().to_string(), "settings": shown })
    }
}

/// A flag as the file has it.
fn written_flag(flag: &Flag) -> Json {
    if !flag.users.is_empty() || !flag.networks.is_empty() {
        let networks: Vec<String> = flag.networks.iter().map(ToString::to_string).collect();
        return json!({ "switch": flag.switch.to_string(), "users": flag.users, "networks": networks });
    }
    match flag.switch {
        Switch::On(Percentage::ALL) => json!(true),
        Switch::Off => json!(false),
        other => json!(other.to_string()),
    }
}

struct Gatherer<'a> {
    effective: &'a Effective,
    lines: Lines<'a>,
    settings: Vec<Setting>,
}

impl Gatherer<'_> {
    fn walk(&mut self, path: &mut Vec<Json>, value: &Json) {
        match value {
            Json::Null => {}
            Json::Object(entries) => {
                for (key, inner) in entries {
                    path.push(json!(key));
                    self.walk(path, inner);
                    path.pop();
                }
            }
            Json::Array(items) if !items.is_empty() && items.iter().all(Json::is_object) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(json!(index));
                    self.walk(path, item);
                    path.pop();
                }
            }
            value => {
                let (origin, is_secret) = self.origin(path);
                let hidden = is_secret || is_hidden(path, value);
                let value = if hidden { json!(HIDDEN) } else { value.clone() };
                self.settings.push(Setting { path: path.clone(), value, origin, hidden });
            }
        }
    }

    /// Where the value is from, and whether that says that it is a secret.
    fn origin(&self, path: &[Json]) -> (Origin, bool) {
        let effective = self.effective;
        let steps: Vec<Step<'_>> = path.iter().map(step).collect();
        if let Some((_, variable)) = effective.replaced.iter().find(|(keys, _)| leads_to(path, keys)) {
            return (Origin::Environment { variable: (*variable).to_owned() }, true);
        }
        if let Some((feature, _)) =
            effective.flags.iter().find(|(feature, _)| leads_to(path, &["flags", feature.key()]))
        {
            return (Origin::Environment { variable: feature.variable().to_owned() }, false);
        }
        let (taken, node) = effective.root.nearest(&steps);
        if taken < steps.len() {
            return (Origin::Default, false);
        }
        match &node.place {
            Place::Whole => (Origin::Implied, false),
            Place::Variable(name) if name.starts_with(GIVEN_PREFIX) => (Origin::Launch, false),
            Place::Variable(name) => (Origin::Environment { variable: name.clone() }, names_secret(name)),
            Place::File(span) | Place::Secret(span) => {
                let (file, line) = self.lines.line(span);
                let file = file.display().to_string();
                let mut found = Vec::new();
                referred(node, &effective.references, &mut found);
                if found.is_empty() {
                    return (Origin::File { file, line }, false);
                }
                // Any variable may have a secret, whatever its name is. Numbers and switches have none.
                let is_text = matches!(node.value, Value::Text(_) | Value::List(_) | Value::Table(_));
                let is_secret = is_text || found.iter().any(|one| matches!(one, Reference::File(_)));
                let references = found.iter().map(ToString::to_string).collect();
                (Origin::Reference { references, file, line }, is_secret)
            }
        }
    }
}

fn step(part: &Json) -> Step<'_> {
    match part.as_str() {
        Some(key) => Step::Key(key),
        None => Step::Index(part.as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX)),
    }
}

fn leads_to(path: &[Json], keys: &[&str]) -> bool {
    path.len() >= keys.len() && path.iter().zip(keys).all(|(part, key)| part.as_str() == Some(key))
}

/// The references in a value and in its elements.
fn referred(node: &Node, references: &References, found: &mut Vec<Reference>) {
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| referred(item, references, found)),
        Value::Table(entries) => entries.iter().for_each(|(.., node)| referred(node, references, found)),
        _ => {
            for reference in references.at(&node.place).iter().flat_map(|expanded| &expanded.references) {
                if !found.contains(reference) {
                    found.push(reference.clone());
                }
            }
        }
    }
}

/// Whether the key or the value says that it may be a secret.
fn is_hidden(path: &[Json], value: &Json) -> bool {
    let is_text = |value: &Json| value.as_str().is_some_and(has_password);
    let has_text = match value {
        Json::String(_) => true,
        Json::Array(items) => items.iter().any(Json::is_string),
        _ => false,
    };
    let key = path.iter().rev().find_map(Json::as_str).unwrap_or_default().to_ascii_lowercase();
    // A URL without a password is none, nor is the name of a file. PostgreSQL's `host=… password=…` is no URL.
    let is_plain =
        |text: &str| text.contains("://") && !text.contains('@') && !text.to_ascii_lowercase().contains("passw");
    let is_url = ["url", "database"].iter().any(|end| key.ends_with(end)) && value.as_str().is_some_and(is_plain);
    let is_other = is_url || key.ends_with("_file");
    let is_named = names_secret(&key) && !is_other || key.contains("authorization") || key.contains("cookie");
    has_text && (is_named || is_text(value) || value.as_array().is_some_and(|items| items.iter().any(is_text)))
}

#[cfg(test)]
mod tests;
