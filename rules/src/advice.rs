//! Remedies for values of the wrong type or form.

use serde_json::Value as Json;

use crate::error::did_you_mean;
use crate::kinds::{KINDS, Kind};
use crate::tree::Value;

/// Words of other programs for the names of choices: those in one group mean the same.
const SAME: &[&[&str]] = &[
    &["error", "err", "fatal", "crit", "critical", "alert", "emerg"],
    &["warn", "warning"],
    &["info", "notice", "information", "default"],
    &["debug", "trace", "verbose"],
    &["enforce", "on", "true", "yes", "enabled", "enable", "active", "block", "strict"],
    &["off", "no", "false", "disabled", "disable", "none", "never"],
    &[
        "monitor",
        "shadow",
        "dry-run",
        "dry_run",
        "report",
        "report-only",
        "log",
        "observe",
        "test",
        "permissive",
        "warn",
    ],
    &["critical", "urgent", "highest", "top", "max"],
    &["high", "important"],
    &["medium", "normal", "default", "middle", "standard"],
    &["low", "background", "batch", "bulk", "lowest", "min"],
    &["address", "ip", "remote_addr", "client_ip", "remote-address", "source", "peer"],
    &["client", "user", "key", "consumer", "api-key"],
    &["client-and-route", "client-route", "user-and-route"],
    &["route", "path", "endpoint", "service"],
    &["machine", "global", "host", "server", "instance", "all"],
    &["text", "plain", "logfmt", "pretty", "console", "human", "common", "combined"],
    &["json", "structured"],
    &["redis", "valkey", "true", "on", "yes"],
    &["both", "all", "on", "true"],
    &["before-response", "sync", "always", "fsync"],
    &["group", "async", "batch"],
    &["failures", "errors", "failed"],
    &["requests", "hits", "calls"],
    &["count", "true"],
    &["ignore", "false"],
];

/// The one of `names` that `found` probably means.
pub fn meant_choice<'a>(found: &Value, names: &'a [String]) -> Option<&'a str> {
    let found = match found {
        Value::Text(text) => text.to_lowercase(),
        Value::Boolean(yes) => yes.to_string(),
        _ => return None,
    };
    let known = || names.iter().map(String::as_str);
    let same = |name: &&str| SAME.iter().any(|group| group.contains(name) && group.contains(&found.as_str()));
    did_you_mean(&found, known()).or_else(|| known().find(same))
}

/// How to write one of `names`.
pub fn choices(found: &Value, names: &[String]) -> String {
    if let Some(name) = meant_choice(found, names) {
        return format!("did you mean {name:?}?");
    }
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => format!("write {last}"),
        Some((last, others)) => format!("write {} or {last}", others.join(", ")),
        None => "leave it out".to_owned(),
    }
}

/// The kind of text that a schema asks for.
pub fn kind_of(schema: &Json) -> Option<&'static Kind> {
    let format = schema["format"].as_str()?;
    KINDS.iter().find(|kind| kind.format == format)
}

/// The need of this kind, and the remedy for `text`.
pub fn of_kind(kind: &Kind, text: &str) -> (String, String) {
    match text.strip_prefix('-').filter(|positive| (kind.check)(positive)) {
        Some(positive) => {
            let what = format!("{}, which is not negative", kind.needs.what);
            (what, format!("did you mean {positive:?}? {}", kind.needs.hint))
        }
        None => (kind.needs.what.to_owned(), kind.needs.hint.to_owned()),
    }
}

/// The type that a value should have, and how to write it. `key`: the path of its key, with the brackets of its table.
pub fn of_type(type_name: &str, schema: &Json, found: &Value, key: &str) -> (&'static str, String) {
    let default = || match &schema["default"] {
        Json::Number(number) => number.to_string(),
        _ => schema["minimum"].as_i64().unwrap_or(1).to_string(),
    };
    match (type_name, found) {
        ("object", Value::List(items)) if items.iter().any(|item| matches!(item.value, Value::Table(_))) => {
            ("a table", format!("write [{key}], in single brackets: there is only one"))
        }
        ("object", _) => ("a table", "write [table] and its keys below, or { key = value }".to_owned()),
        ("array", Value::Table(_)) => ("a list", format!("write [[{key}]], in double brackets, for each of them")),
        ("array", _) => ("a list", "write [\"…\", \"…\"]".to_owned()),
        ("integer", Value::Text(text)) if text.trim().parse::<i64>().is_ok() => {
            ("a whole number", "write it without quotes".to_owned())
        }
        ("integer", Value::Other("a reference")) => {
            ("a whole number", format!("set it to digits, such as {}", default()))
        }
        ("boolean", Value::Other("a reference")) => ("true or false", "set it to true or false".to_owned()),
        ("integer", _) => ("a whole number", format!("write digits without quotes, such as {}", default())),
        ("boolean", Value::Text(text)) => ("true or false", switch(text)),
        ("boolean", Value::Integer(0)) => ("true or false", "write false".to_owned()),
        ("boolean", Value::Integer(1)) => ("true or false", "write true".to_owned()),
        ("boolean", _) => ("true or false", "write true or false".to_owned()),
        _ => match kind_of(schema) {
            Some(kind) => (kind.needs.what, kind.needs.hint.to_owned()),
            None => match found {
                Value::List(_) => ("text", "write one text in quotes, without brackets".to_owned()),
                Value::Table(_) => ("text", "write a text in quotes, not a table".to_owned()),
                _ => ("text", "write it in quotes".to_owned()),
            },
        },
    }
}

fn switch(text: &str) -> String {
    let hint = match text.trim().to_lowercase().as_str() {
        "true" | "false" => "write it without quotes",
        "yes" | "on" | "1" | "enabled" | "enforce" | "y" => "write true, without quotes",
        "no" | "off" | "0" | "disabled" | "none" | "n" => "write false, without quotes",
        _ => "write true or false, without quotes",
    };
    hint.to_owned()
}

/// The range of a number, and how to write one in it.
pub fn of_range(low: Option<i64>, high: Option<i64>, schema: &Json) -> (String, String) {
    let what = match (low, high) {
        (Some(low), Some(high)) => format!("a whole number from {low} to {high}"),
        (Some(low), None) => format!("a whole number of at least {low}"),
        _ => "a whole number".to_owned(),
    };
    let hint = match (schema["default"].as_i64(), low) {
        (Some(default), _) => format!("write {default}, for example, which is the default"),
        (None, Some(low)) => format!("write {low}, for example"),
        (None, None) => "write digits".to_owned(),
    };
    (what, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_other_programs_are_understood() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let levels = names(&["error", "warn", "info", "debug"]);
        let modes = names(&["enforce", "monitor", "off"]);
        let priorities = names(&["critical", "high", "medium", "low", "strict"]);
        for (found, names, meant) in [
            ("warning", &levels, Some("warn")),
            ("CRITICAL", &levels, Some("error")),
            ("on", &modes, Some("enforce")),
            ("shadow", &modes, Some("monitor")),
            ("urgent", &priorities, Some("critical")),
            ("normal", &priorities, Some("medium")),
            ("purple", &priorities, None),
        ] {
            assert_eq!(meant_choice(&Value::Text(found.to_owned()), names), meant, "{found}");
        }
        assert_eq!(meant_choice(&Value::Boolean(true), &modes), Some("enforce"));
        let hint = choices(&Value::Text("purple".to_owned()), &levels);
        assert_eq!(hint, "write \"error\", \"warn\", \"info\" or \"debug\"");
    }
}
