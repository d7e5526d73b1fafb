//! Checks the file's tree against the JSON Schema that [`crate::written`] generates. Reports *all* unknown keys, wrong types
//! and unreadable texts at once, where serde would stop at the first.

use serde_json::Value as Json;

use crate::advice::{self, kind_of};
use crate::error::{Place, Problem, did_you_mean, has_password, names_secret};
use crate::finding::Rule;
use crate::foreign;
use crate::references::References;
use crate::schema::{resolve, type_name};
use crate::tree::{Node, Value};

/// A step to a value, from the root of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// A key of a table.
    Key(String),
    /// An element of a list.
    Index(usize),
}

/// The result of the check.
#[derive(Debug, Default)]
pub struct Checked {
    /// Errors.
    pub problems: Vec<Problem>,
    /// Values that cannot be used.
    pub unusable: Vec<Vec<At>>,
    /// Misspelled keys, and what they probably mean.
    pub misspelled: Vec<(Vec<At>, String)>,
}

/// Finds every problem of `root` under `schema`. Values of `references` are not shown.
pub fn against_schema(root: &Node, schema: &Json, references: &References) -> Checked {
    let (found, path) = (Checked::default(), Vec::new());
    let mut checker = Checker { schema, references, found, path, hides_value: false };
    checker.check("the file", root, schema);
    checker.found
}

struct Checker<'s> {
    schema: &'s Json,
    references: &'s References,
    found: Checked,
    /// The current value's.
    path: Vec<At>,
    /// The current value may be a misplaced secret (`"x-secret": "value"`), so errors do not show it.
    hides_value: bool,
}

impl Checker<'_> {
    fn needs(&mut self, key: &str, node: &Node, what: &str, hint: String) {
        self.found.unusable.push(self.path.clone());
        let is_secret = self.hides_value || matches!(&node.value, Value::Text(text) if has_password(text));
        let problem = if let Some(expanded) = self.references.at(&node.place) {
            let message = format!("`{key}` needs {what}; its value comes from {}", expanded.names());
            let place = if is_secret { node.place.clone().hidden() } else { node.place.clone() };
            Problem::new(place, message, hint)
        } else if is_secret {
            Problem::new(node.place.clone().hidden(), format!("`{key}` needs {what}"), hint)
        } else {
            Problem::new(node.place.clone(), format!("`{key}` needs {what}, got {}", node.value.shown()), hint)
        };
        self.found.problems.push(problem.of(Rule::WrongValue));
    }

    fn resolve<'a>(&'a self, schema: &'a Json) -> &'a Json {
        resolve(schema, self.schema)
    }

    /// The value from which a remedy is guessed; one that may be a secret is not given.
    fn evidence<'n>(&self, node: &'n Node) -> &'n Value {
        if self.references.at(&node.place).is_some() { &Value::Other("a reference") } else { &node.value }
    }

    fn within(&mut self, step: At, check: impl FnOnce(&mut Self)) {
        self.path.push(step);
        check(self);
        self.path.pop();
    }

    fn check(&mut self, key: &str, node: &Node, schema: &Json) {
        if self.references.at(&node.place).is_some_and(|expanded| expanded.is_failed) {
            self.found.unusable.push(self.path.clone());
            return;
        }
        let schema = self.resolve(schema).clone();
        let schema = &schema;
        if let Some(choices) = schema["anyOf"].as_array() {
            return self.check_any(key, node, choices);
        }
        if let Some(names) = enum_names(schema) {
            return self.check_enum(key, node, &names);
        }
        let kind = type_name(schema);
        match (&node.value, kind) {
            (Value::Table(entries), "object") => self.check_table(key, node, entries, schema),
            (Value::List(items), "array") => {
                for (index, item) in items.iter().enumerate() {
                    self.within(At::Index(index), |checker| checker.check(key, item, &schema["items"]));
                }
            }
            (Value::Text(text), "string") => self.check_text(key, node, text, schema),
            (Value::Integer(number), "integer") => self.check_range(key, node, *number, schema),
            (Value::Boolean(_), "boolean") => {}
            (_, "object") if key == "the file" => {}
            (_, kind) => {
                let (what, hint) = advice::of_type(kind, schema, self.evidence(node), &self.header());
                // Text where a table of credentials belongs may be one.
                let outside = self.hides_value;
                self.hides_value |= schema["x-secret"] == "table";
                let hint = if schema["x-secret"] == "table" { DIGEST.to_owned() } else { hint };
                self.needs(key, node, what, hint);
                self.hides_value = outside;
            }
        }
    }

    /// Uses the first choice that has the value's own type, so that the message fits what the user meant.
    fn check_any(&mut self, key: &str, node: &Node, choices: &[Json]) {
        let wanted_type = match node.value {
            Value::Text(_) => "string",
            Value::Integer(_) => "integer",
            Value::Boolean(_) => "boolean",
            Value::List(_) => "array",
            Value::Table(_) => "object",
            Value::Other(_) => "",
        };
        let fitting = choices.iter().find(|choice| {
            let choice = self.resolve(choice);
            type_name(choice) == wanted_type || (wanted_type == "string" && enum_names(choice).is_some())
        });
        match fitting.or_else(|| choices.iter().find(|choice| type_name(self.resolve(choice)) != "null")) {
            Some(choice) => self.check(key, node, &choice.clone()),
            None => self.needs(key, node, "another value", "leave it out: then the default applies".to_owned()),
        }
    }

    fn check_enum(&mut self, key: &str, node: &Node, names: &[String]) {
        match &node.value {
            Value::Text(text) if names.contains(text) => {}
            _ => {
                let hint = advice::choices(self.evidence(node), names);
                self.needs(key, node, &format!("one of {}", names.join(", ")), hint);
            }
        }
    }

    fn check_table(&mut self, key: &str, node: &Node, entries: &[(String, Place, Node)], schema: &Json) {
        let no_properties = serde_json::Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&no_properties);
        for (name, place, value) in entries {
            let step = At::Key(name.clone());
            if let Some(property) = properties.get(name) {
                self.within(step, |checker| checker.check_property(name, value, property));
            } else if schema["additionalProperties"].is_object() {
                self.within(step, |checker| checker.check(name, value, &schema["additionalProperties"]));
            } else {
                self.unknown((key, entries), (name, place, value), properties, schema["x-secret"] == "table");
            }
        }
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            let is_meant = |name: &str| did_you_mean(name, properties.keys().map(String::as_str)) == Some(required);
            if !entries.iter().any(|(name, ..)| name == required || !properties.contains_key(name) && is_meant(name)) {
                let message = format!("`{key}` needs `{required}`");
                let example = match kind_of(self.resolve(&properties[required])) {
                    Some(kind) => format!("{:?}", kind.example()),
                    None => "\"…\"".to_owned(),
                };
                let example = if required == "name" { "…".to_owned() } else { example };
                let problem = Problem::new(node.place.clone(), message, format!("add `{required} = {example}`"));
                self.found.problems.push(problem.of(Rule::MissingKey));
            }
        }
    }

    fn check_property(&mut self, name: &str, value: &Node, property: &Json) {
        let outside = std::mem::replace(&mut self.hides_value, property["x-secret"] == "value");
        self.check(name, value, property);
        self.hides_value = outside;
    }

    fn unknown(
        &mut self,
        (table, entries): (&str, &[(String, Place, Node)]),
        (name, place, value): (&str, &Place, &Node),
        properties: &serde_json::Map<String, Json>,
        is_secret: bool,
    ) {
        let is_table = matches!(value.value, Value::Table(_));
        let within = if table == "the file" { String::new() } else { format!(" in `{table}`") };
        let known = || properties.keys().map(String::as_str);
        let near = did_you_mean(name, known());
        let close = near.filter(|near| strsim::damerau_levenshtein(near, &name.to_lowercase()) <= 1);
        let elsewhere = self.elsewhere(name, entries, is_secret);
        let hint = match (close, elsewhere, near) {
            (Some(meant), ..) | (None, None, Some(meant)) => format!("did you mean `{meant}`?"),
            (None, Some(elsewhere), _) => elsewhere,
            (None, None, None) => format!("known here: {}", known().collect::<Vec<_>>().join(", ")),
        };
        // A key or secret in the wrong place must not be logged as well.
        let place = if is_secret || names_secret(name) { place.clone().hidden() } else { place.clone() };
        let what = if is_table { "section" } else { "key" };
        let problem = Problem::new(place, format!("unknown {what} `{name}`{within}"), hint);
        self.found.problems.push(problem.of(Rule::UnknownKey));
        let meant =
            near.filter(|near| hint_names(&self.found.problems, near) && !entries.iter().any(|(key, ..)| key == near));
        self.path.push(At::Key(name.to_owned()));
        match meant {
            Some(meant) => {
                self.found.misspelled.push((self.path.clone(), meant.to_owned()));
                let before = self.found.problems.len();
                self.check_property(meant, value, &properties[meant]);
                // A value that is wrong for the other key, too, is the same mistake.
                if let [.., unknown, wrong] = &mut self.found.problems[before - 1..]
                    && wrong.place == value.place
                {
                    unknown.hint = format!("{} {}", unknown.hint, wrong.hint);
                    self.found.problems.pop();
                }
            }
            None => self.found.unusable.push(self.path.clone()),
        }
        self.path.pop();
    }

    /// Where an unknown key belongs, or what it is called here.
    fn elsewhere(&self, name: &str, entries: &[(String, Place, Node)], is_secret: bool) -> Option<String> {
        if is_secret && self.path.get(1) == Some(&At::Key("keys".to_owned())) {
            return Some(DIGEST.to_owned());
        }
        let in_route = self.path.first() == Some(&At::Key("routes".to_owned()));
        if in_route
            && ["rate_limit", "rate_limits", "limit", "limits", "ratelimit", "rate", "burst", "by"].contains(&name)
        {
            let own = entries.iter().find_map(|(key, _, node)| match &node.value {
                Value::Text(text) if key == "name" => Some(text.as_str()),
                _ => None,
            });
            let own = own.unwrap_or("…");
            return Some(format!("write [[rate_limits.rules]] with routes = [{own:?}], `name` and `rate`"));
        }
        let is_address = ["host", "hostname", "port", "ip", "addr", "bind", "socket", "url", "uri"].contains(&name);
        match self.header().as_str() {
            "app" if is_address => {
                return Some("write address = \"127.0.0.1:3000\", or \"unix:/run/app.sock\"".to_owned());
            }
            "server" | "admin" if is_address => return Some("write listen = \"0.0.0.0:8080\", for example".to_owned()),
            _ => {}
        }
        let in_rule = self.header() == "rate_limits.rules";
        if in_rule && ["limit", "limits", "quota", "average", "requests", "max"].contains(&name) {
            return Some("did you mean `rate`? write rate = \"100/1m\"".to_owned());
        }
        if self.header() == "identity.jwt" && names_secret(name) {
            return Some("name a file with it in `secret_file`, or set OUTRIGGER_JWT_SECRET".to_owned());
        }
        let top = self.schema["properties"].as_object()?;
        if name == "include" {
            return Some("write it at the beginning of the file, before the first [table]".to_owned());
        }
        if top.contains_key(name) && !self.path.is_empty() {
            let is_list = self.resolve(&top[name])["type"] == "array";
            let header = if is_list { format!("[[{name}]]") } else { format!("[{name}]") };
            return Some(format!("`{name}` is a table of its own: write {header}"));
        }
        let here = foreign::foreign(name);
        if let Some((owner, key)) = foreign::joined(name, self.schema) {
            return Some(format!("write `{key}` in {}", foreign::bracketed(&owner)));
        }
        let owners = foreign::owners(&name.to_lowercase(), self.schema);
        let mut tables: Vec<String> = owners.iter().take(3).map(|owner| foreign::bracketed(owner)).collect();
        let last = tables.pop();
        let owned = last.map(|last| if tables.is_empty() { last } else { format!("{} or {last}", tables.join(", ")) });
        match (owned, here) {
            // Other programs have it in every table; here only one has.
            (Some(tables), _) if owners.len() <= 8 && name != "enabled" => {
                Some(format!("`{name}` belongs to {tables}"))
            }
            (_, Some(here)) => Some(match here.strip_prefix("no key: ") {
                Some(why) => format!("there is no such key here: {why}"),
                None => format!("here `{name}` is {here}"),
            }),
            _ => None,
        }
    }

    fn check_text(&mut self, key: &str, node: &Node, text: &str, schema: &Json) {
        if let Some(kind) = kind_of(schema)
            && !(kind.check)(text)
        {
            let (what, hint) = match self.references.at(&node.place) {
                Some(_) => (kind.needs.what.to_owned(), kind.needs.hint.to_owned()),
                None => advice::of_kind(kind, text),
            };
            self.needs(key, node, &what, hint);
        }
    }

    fn check_range(&mut self, key: &str, node: &Node, number: i64, schema: &Json) {
        let (low, high) = (schema["minimum"].as_i64(), schema["maximum"].as_i64().or_else(|| width_limit(schema)));
        if low.is_some_and(|low| number < low) || high.is_some_and(|high| number > high) {
            let (what, hint) = advice::of_range(low, high, schema);
            self.needs(key, node, &what, hint);
        }
    }

    /// The current path as a table's header has it.
    fn header(&self) -> String {
        let keys = self.path.iter().filter_map(|step| match step {
            At::Key(key) => Some(key.as_str()),
            At::Index(_) => None,
        });
        keys.collect::<Vec<_>>().join(".")
    }
}

const DIGEST: &str =
    "write [[identity.keys]] with `name` and sha256 = \"…\", the key's digest: `printf %s KEY | sha256sum` makes it";

/// Whether the last problem suggests `name`.
fn hint_names(problems: &[Problem], name: &str) -> bool {
    problems.last().is_some_and(|problem| problem.hint == format!("did you mean `{name}`?"))
}

/// The largest number of a schema's width.
pub fn width_limit(schema: &Json) -> Option<i64> {
    match schema["format"].as_str()? {
        "uint8" => Some(u8::MAX.into()),
        "uint16" => Some(u16::MAX.into()),
        "uint32" => Some(u32::MAX.into()),
        _ => None,
    }
}

/// The names of an enum, with or without documentation of its variants.
fn enum_names(schema: &Json) -> Option<Vec<String>> {
    let text = |value: &Json| value.as_str().map(str::to_owned);
    if let Some(names) = schema["enum"].as_array() {
        return Some(names.iter().filter_map(text).collect());
    }
    let variants = schema["oneOf"].as_array()?;
    variants.iter().map(|variant| text(&variant["const"])).collect()
}
