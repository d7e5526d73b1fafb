//! The file as a small tree that remembers the place of each value. The environment is overlaid on it.

use std::ops::Range;

use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};

use crate::error::Place;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its place.
    pub place: Place,
    /// The value.
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
    /// Keys, their places and their values.
    Table(Vec<(String, Place, Node)>),
    /// Types that no key of the configuration has: floats, dates, numbers beyond 64 bits.
    Other(&'static str),
}

impl Value {
    /// The name of its type, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a whole number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }

    /// The value, or the name of its type, for messages.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
            Self::Integer(number) => number.to_string(),
            Self::Boolean(yes) => yes.to_string(),
            other => other.kind().to_owned(),
        }
    }
}

/// Parses TOML; after a syntax error, the tree contains what could be parsed. Also returns the place of each error, and what the parser
/// says about it.
pub fn parse(source: &str) -> (Node, Vec<(Range<usize>, String)>) {
    let (table, errors) = DeTable::parse_recoverable(source);
    let span = table.span();
    let errors = errors.iter().map(|error| (error.span().unwrap_or(0..0), error.message().to_owned())).collect();
    (table_node(span, table.into_inner()), errors)
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
    /// Sets `section.key` to `value`, as if it were in the file.
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

    /// Moves all places by `base`: the text of the file begins there in the text of all files.
    pub fn shift(&mut self, base: usize) {
        self.place.shift(base);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(base)),
            Value::Table(entries) => entries.iter_mut().for_each(|(_, place, node)| {
                place.shift(base);
                node.shift(base);
            }),
            _ => {}
        }
    }

    /// Removes `section.key`; returns its place.
    pub fn take(&mut self, section: &str, key: &str) -> Option<Place> {
        let Value::Table(sections) = &mut self.value else { return None };
        let (_, _, node) = sections.iter_mut().find(|(name, ..)| name == section)?;
        let Value::Table(entries) = &mut node.value else { return None };
        let index = entries.iter().position(|(name, ..)| name == key)?;
        Some(entries.remove(index).1)
    }

    /// Returns how many steps of `path` exist, and the node at their end.
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

    /// The path of the node or key at `place`, such as `routes[2].path`.
    pub fn path_of(&self, place: &Place) -> Option<String> {
        let joined = |step: &str, rest: String| match rest.as_str() {
            "" => step.to_owned(),
            rest if rest.starts_with('[') => format!("{step}{rest}"),
            rest => format!("{step}.{rest}"),
        };
        let is_here = |at: &Place| *place != Place::Whole && at.clone().hidden() == place.clone().hidden();
        match &self.value {
            Value::Table(entries) => entries.iter().find_map(|(key, at, node)| {
                let own = (is_here(at) || is_here(&node.place)).then(String::new);
                Some(joined(key, node.path_of(place).or(own)?))
            }),
            Value::List(items) => items.iter().enumerate().find_map(|(index, node)| {
                let own = is_here(&node.place).then(String::new);
                Some(joined(&format!("[{index}]"), node.path_of(place).or(own)?))
            }),
            _ => None,
        }
    }

    /// A tree without places.
    pub fn of_json(json: &Json) -> Self {
        let value = match json {
            Json::String(text) => Value::Text(text.clone()),
            Json::Bool(yes) => Value::Boolean(*yes),
            Json::Number(number) => number.as_i64().map_or(Value::Other("a number"), Value::Integer),
            Json::Array(items) => Value::List(items.iter().map(Self::of_json).collect()),
            Json::Object(entries) => {
                let entries = entries.iter().filter(|(_, value)| !value.is_null());
                Value::Table(entries.map(|(key, value)| (key.clone(), Place::Whole, Self::of_json(value))).collect())
            }
            Json::Null => Value::Other("nothing"),
        };
        Self { place: Place::Whole, value }
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
