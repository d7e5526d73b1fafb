//! Checks the file's tree against the JSON Schema that [`crate::written`] generates. Reports *all* unknown keys, wrong types
//! and unreadable texts at once, where serde would stop at the first.

use serde_json::Value as Json;

use crate::error::{Place, Problem, did_you_mean};
use crate::kinds::{KINDS, Kind};
use crate::tree::{Node, Value};

/// Returns every problem of `root` under `schema`.
pub fn against_schema(root: &Node, schema: &Json) -> Vec<Problem> {
    let mut checker = Checker { schema, problems: Vec::new(), hides_value: false };
    checker.check("the file", root, schema);
    checker.problems
}

struct Checker<'s> {
    schema: &'s Json,
    problems: Vec<Problem>,
    /// The current value may be a misplaced secret (`"x-secret": "value"`), so errors do not show it.
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
        // In draft 7, a documented key of a named type is `{ "allOf": [{ "$ref": … }], "description": … }`.
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
                // A key or secret in the wrong place must not be logged as well.
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

fn kind_of(schema: &Json) -> Option<&'static Kind> {
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

/// The type, ignoring the `null` that an optional key adds.
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

/// The names of an enum, with or without documentation of its variants.
fn enum_names(schema: &Json) -> Option<Vec<String>> {
    let text = |value: &Json| value.as_str().map(str::to_owned);
    if let Some(names) = schema["enum"].as_array() {
        return Some(names.iter().filter_map(text).collect());
    }
    let variants = schema["oneOf"].as_array()?;
    variants.iter().map(|variant| text(&variant["const"])).collect()
}
