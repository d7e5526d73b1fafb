//! Holds the file against the schema and finds everything that does not fit, with its place.
//!
//! The file is read into a small tree that remembers where each value stood. The environment is laid over it. Then the
//! tree is walked along the JSON Schema that [`super::raw`] generates, so that *all* unknown keys, wrong types and
//! unreadable texts are found at once, where serde would stop at the first.

use std::ops::Range;

use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};

use super::error::{Place, Problem, did_you_mean};
use super::units::KINDS;

/// A value and where it stood.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where.
    pub place: Place,
    /// What.
    pub value: Value,
}

/// A TOML value, as far as the configuration uses them.
#[derive(Clone, Debug)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// `true` or `false`.
    Boolean(bool),
    /// A list.
    List(Vec<Node>),
    /// Keys, where each stood, and their values.
    Table(Vec<(String, Place, Node)>),
    /// What no key of the configuration takes: floats, dates, numbers beyond 64 bits.
    Other(&'static str),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a whole number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
            Self::Integer(number) => number.to_string(),
            Self::Boolean(yes) => yes.to_string(),
            other => other.kind().to_owned(),
        }
    }
}

/// Reads TOML; on a syntax error the tree holds what could be read.
pub fn parse(source: &str) -> (Node, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(source);
    let span = table.span();
    let problems = errors.into_iter().map(|error| {
        let span = error.span().unwrap_or(0..0);
        Problem::new(Place::File(span), format!("not valid TOML: {}", error.message().replace('\n', ", ")))
            .hint("see https://toml.io for how values, keys and tables are written")
    });
    let problems = problems.collect();
    (table_node(span, table.into_inner()), problems)
}

fn table_node(span: Range<usize>, table: DeTable<'_>) -> Node {
    let entries = table.into_iter().map(|(key, value)| {
        let key_place = Place::File(key.span());
        let value_span = value.span();
        (key.into_inner().into_owned(), key_place, node(value_span, value.into_inner()))
    });
    Node { place: Place::File(span), value: Value::Table(entries.collect()) }
}

fn node(span: Range<usize>, value: DeValue<'_>) -> Node {
    let place = Place::File(span.clone());
    let value = match value {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other("a number beyond 64 bits"),
        },
        DeValue::Boolean(yes) => Value::Boolean(yes),
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => {
            Value::List(items.into_iter().map(|item| node(item.span(), item.into_inner())).collect())
        }
        DeValue::Table(table) => return table_node(span, table),
    };
    Node { place, value }
}

impl Node {
    /// Sets `section.key` to `value`, as if the file had said so.
    pub fn overlay(&mut self, section: &str, key: &str, value: Node) {
        let place = value.place.clone();
        let empty = || Node { place: place.clone(), value: Value::Table(Vec::new()) };
        let Value::Table(sections) = &mut self.value else { return };
        let index = sections.iter().position(|(name, ..)| name == section).unwrap_or_else(|| {
            sections.push((section.to_owned(), place.clone(), empty()));
            sections.len() - 1
        });
        if let Value::Table(entries) = &mut sections[index].2.value {
            entries.retain(|(name, ..)| name != key);
            entries.push((key.to_owned(), place, value));
        }
    }

    /// Takes `section.key` out; gives where the key stood.
    pub fn take(&mut self, section: &str, key: &str) -> Option<Place> {
        let Value::Table(sections) = &mut self.value else { return None };
        let (_, _, node) = sections.iter_mut().find(|(name, ..)| name == section)?;
        let Value::Table(entries) = &mut node.value else { return None };
        let index = entries.iter().position(|(name, ..)| name == key)?;
        Some(entries.remove(index).1)
    }

    /// How many steps of `path` exist, and the node that they lead to.
    pub fn nearest(&self, path: &[Step<'_>]) -> (usize, &Self) {
        let mut node = self;
        for (taken, step) in path.iter().enumerate() {
            let next = match (step, &node.value) {
                (Step::Key(key), Value::Table(entries)) => entries.iter().find(|(k, ..)| k == key).map(|(_, _, n)| n),
                (Step::Index(index), Value::List(items)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => return (taken, node),
            }
        }
        (path.len(), node)
    }

    /// The same tree without places.
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Text(text) => Json::from(text.as_str()),
            Value::Integer(number) => Json::from(*number),
            Value::Boolean(yes) => Json::from(*yes),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Table(entries) => entries.iter().map(|(key, _, node)| (key.clone(), node.to_json())).collect(),
            Value::Other(_) => Json::Null,
        }
    }
}

/// One step down the tree.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Into a table.
    Key(&'a str),
    /// Into a list.
    Index(usize),
}

/// Everything in `root` that does not fit `schema`.
pub fn against_schema(root: &Node, schema: &Json) -> Vec<Problem> {
    let mut checker = Checker { schema, problems: Vec::new(), hides_value: false };
    checker.check("the file", root, schema);
    checker.problems
}

struct Checker<'s> {
    schema: &'s Json,
    problems: Vec<Problem>,
    /// The value at hand may be a secret in the wrong place (`"x-secret": "value"`): it is not shown.
    hides_value: bool,
}

impl Checker<'_> {
    fn complain(&mut self, place: &Place, message: String, hint: Option<String>) {
        self.problems.push(Problem { place: place.clone(), message, hint });
    }

    fn needs(&mut self, key: &str, node: &Node, what: &str, hint: Option<String>) {
        if self.hides_value {
            return self.complain(&node.place.clone().hidden(), format!("`{key}` needs {what}"), hint);
        }
        self.complain(&node.place, format!("`{key}` needs {what}, got {}", node.value.shown()), hint);
    }

    fn resolve<'a>(&'a self, schema: &'a Json) -> &'a Json {
        // A documented key of a named type is written `{ "allOf": [{ "$ref": … }], "description": … }` in draft 7.
        let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        reference.and_then(|path| self.schema.pointer(path.trim_start_matches('#'))).unwrap_or(schema)
    }

    fn check(&mut self, key: &str, node: &Node, schema: &Json) {
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
                for item in items {
                    self.check(key, item, &schema["items"]);
                }
            }
            (Value::Text(text), "string") => self.check_text(key, node, text, schema),
            (Value::Integer(number), "integer") => self.check_range(key, node, *number, schema),
            (Value::Boolean(_), "boolean") => {}
            (_, "object") if key == "the file" => {}
            (_, kind) => {
                let (what, hint) = wanted(kind, schema);
                self.needs(key, node, what, hint);
            }
        }
    }

    /// The first choice of the value's own type counts, so that its message is about what was meant.
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
            None => self.needs(key, node, "another value", None),
        }
    }

    fn check_enum(&mut self, key: &str, node: &Node, names: &[String]) {
        let known = names.iter().map(String::as_str);
        match &node.value {
            Value::Text(text) if names.contains(text) => {}
            Value::Text(text) => {
                let meant = did_you_mean(text, known).map(|name| format!("did you mean {name:?}?"));
                self.needs(key, node, &format!("one of {}", names.join(", ")), meant);
            }
            _ => self.needs(key, node, &format!("one of {}", names.join(", ")), None),
        }
    }

    fn check_table(&mut self, key: &str, node: &Node, entries: &[(String, Place, Node)], schema: &Json) {
        let no_properties = serde_json::Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&no_properties);
        for (name, place, value) in entries {
            if let Some(property) = properties.get(name) {
                let outside = std::mem::replace(&mut self.hides_value, property["x-secret"] == "value");
                self.check(name, value, property);
                self.hides_value = outside;
            } else if schema["additionalProperties"].is_object() {
                self.check(name, value, &schema["additionalProperties"]);
            } else {
                let known: Vec<&str> = properties.keys().map(String::as_str).collect();
                let hint = did_you_mean(name, known.iter().copied()).map_or_else(
                    || format!("known here: {}", known.join(", ")),
                    |meant| format!("did you mean `{meant}`?"),
                );
                let what = if matches!(value.value, Value::Table(_)) { "section" } else { "key" };
                let within = if key == "the file" { String::new() } else { format!(" in `{key}`") };
                // Who writes a key or a secret where none belongs should not find it in a log as well.
                let is_secret = schema["x-secret"] == "table";
                let place = if is_secret { place.clone().hidden() } else { place.clone() };
                self.complain(&place, format!("unknown {what} `{name}`{within}"), Some(hint));
            }
        }
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            if !entries.iter().any(|(name, ..)| name == required) {
                self.complain(
                    &node.place,
                    format!("`{key}` needs `{required}`"),
                    Some(format!("add `{required} = …`")),
                );
            }
        }
    }

    fn check_text(&mut self, key: &str, node: &Node, text: &str, schema: &Json) {
        if let Some(kind) = kind_of(schema)
            && !(kind.check)(text)
        {
            self.needs(key, node, kind.needs.what, Some(kind.needs.hint.to_owned()));
        }
    }

    fn check_range(&mut self, key: &str, node: &Node, number: i64, schema: &Json) {
        let (low, high) = (schema["minimum"].as_i64(), schema["maximum"].as_i64().or_else(|| width_limit(schema)));
        if low.is_some_and(|low| number < low) || high.is_some_and(|high| number > high) {
            let what = match (low, high) {
                (Some(low), Some(high)) => format!("a whole number from {low} to {high}"),
                (Some(low), None) => format!("a whole number of at least {low}"),
                _ => "a whole number".to_owned(),
            };
            self.needs(key, node, &what, None);
        }
    }
}

fn kind_of(schema: &Json) -> Option<&'static super::units::Kind> {
    let format = schema["format"].as_str()?;
    KINDS.iter().find(|kind| kind.format == format)
}

fn wanted(type_name: &str, schema: &Json) -> (&'static str, Option<String>) {
    match type_name {
        "object" => ("a table", None),
        "array" => ("a list", Some("write [\"…\", \"…\"]".to_owned())),
        "integer" => ("a whole number", Some("write it without quotes".to_owned())),
        "boolean" => ("true or false", Some("write it without quotes".to_owned())),
        _ => match kind_of(schema) {
            Some(kind) => (kind.needs.what, Some(kind.needs.hint.to_owned())),
            None => ("text", Some("write it in quotes".to_owned())),
        },
    }
}

/// The type, without the `null` that an optional key adds.
fn type_name(schema: &Json) -> &str {
    match &schema["type"] {
        Json::Array(types) => types.iter().filter_map(Json::as_str).find(|t| *t != "null").unwrap_or("null"),
        other => other.as_str().unwrap_or_default(),
    }
}

fn width_limit(schema: &Json) -> Option<i64> {
    match schema["format"].as_str()? {
        "uint8" => Some(u8::MAX.into()),
        "uint16" => Some(u16::MAX.into()),
        "uint32" => Some(u32::MAX.into()),
        _ => None,
    }
}

/// The names of an enum, whether or not its variants are documented.
fn enum_names(schema: &Json) -> Option<Vec<String>> {
    let text = |value: &Json| value.as_str().map(str::to_owned);
    if let Some(names) = schema["enum"].as_array() {
        return Some(names.iter().filter_map(text).collect());
    }
    let variants = schema["oneOf"].as_array()?;
    variants.iter().map(|variant| text(&variant["const"])).collect()
}
