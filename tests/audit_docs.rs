//! docs/audit.md matches the audit log: real entries fit its schema, and its shell scripts verify real files.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use outrigger_policy::audit::{Class, EventType, Outcome};
use serde_json::Value;
use xtask::Signal;

use crate::audit::entries;
use crate::backend::Backend;
use crate::harness::{Proxy, Setup, get, post, until, with_fields};

fn docs() -> String {
    fs::read_to_string(xtask::paths::root().join("docs/audit.md")).unwrap()
}

/// The code block that begins with this line.
fn block(fence: &str, first: &str) -> String {
    let docs = docs();
    let found = docs.split("\n```").find(|block| block.starts_with(&format!("{fence}\n{first}")));
    found.unwrap_or_else(|| panic!("docs/audit.md has no block {first}"))[fence.len()..].to_owned()
}

fn schema() -> Value {
    serde_json::from_str(&block("json", "{\n  \"$schema\"")).unwrap()
}

/// The parts of `value` that the schema does not allow. Supports the JSON Schema keywords that the docs use, except patterns.
fn misfits(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let is_type = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some(other) => panic!("the schema has a type that is not looked at: {other}"),
        None => schema["enum"].as_array().unwrap().contains(value),
    };
    if !is_type {
        return vec![format!("{at} is {value}")];
    }
    let Some(members) = value.as_object() else { return Vec::new() };
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut found: Vec<String> =
        required.filter(|name| !members.contains_key(*name)).map(|name| format!("{at} lacks {name}")).collect();
    for (name, member) in members {
        let at = format!("{at}.{name}");
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(of), _) => found.extend(misfits(of, member, &at)),
            (None, Value::Bool(false)) => found.push(format!("{at} is not in the schema")),
            (None, Value::Object(_)) => found.extend(misfits(&schema["additionalProperties"], member, &at)),
            (None, _) => {}
        }
    }
    found
}

fn audit(setup: &Setup, args: &[&str]) -> Output {
    setup.run(&[&["--config", "proxy.toml", "audit"], args].concat())
}

/// An audit log with several kinds of entries, of a program that has ended.
fn trail(app: &Backend) -> Setup {
    let rules = "server.lame_duck = \"0s\"\naudit.directory = \"trail\"\naudit.headers = [\"User-Agent\"]\naudit.parameters = [\"id\"]\n\
        breaker.failures = 1\nbreaker.min_clients = 1\nbreaker.window = \"10s\"\n[[routes]]\nname = \"item\"\npath = \"/items/{id}\"\naudit = \"data\"\n";
    app.says("/items/500", "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
    let mut proxy: Proxy = Setup::new(app, rules).start();
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    proxy.ask(&with_fields(&get("/items/42"), &["User-Agent: \"quoted\"", trace]));
    proxy.ask(&post("/items/43", "hello"));
    proxy.ask(&get("/items/44").replace("GET", "DELETE"));
    until("the breaker to refuse", || proxy.get("/items/500").status == 503);
    let searched = audit(&proxy, &["search", "--reveal", "--reason", "a ticket", "--subject", "address:127.0.0.1"]);
    assert!(searched.status.success(), "{searched:?}");
    proxy.signal(Signal::TERM);
    assert!(proxy.ends_within(Duration::from_secs(20)).success());
    Setup::clone(&proxy)
}

#[test]
fn real_entries_fit_the_schema() {
    let schema = schema();
    let app = Backend::start();
    let entries = entries(&trail(&app));
    let misfits: Vec<String> = entries.iter().flat_map(|entry| misfits(&schema, entry, "entry")).collect();
    assert!(misfits.is_empty(), "{misfits:#?}");
    for event in ["data.read", "data.write", "data.delete", "security.breaker", "admin.action"] {
        assert!(entries.iter().any(|entry| entry["type"] == event), "no {event}");
    }
    // Every property occurs, so the schema promises nothing that is never written; `client` occurs only where the actor is
    // another.
    for name in schema["properties"].as_object().unwrap().keys() {
        assert!(entries.iter().any(|entry| entry.get(name).is_some()) || name == "client", "no entry has {name}");
    }
}

#[test]
fn every_class_type_and_outcome_is_in_the_docs_with_the_time_that_it_is_kept() {
    let (docs, schema) = (docs(), schema());
    let names = |member: &str| schema["properties"][member]["enum"].clone();
    assert_eq!(names("class"), Value::from(Class::ALL.map(Class::name).to_vec()));
    assert_eq!(names("type"), Value::from(EventType::ALL.map(EventType::name).to_vec()));
    assert_eq!(names("outcome"), Value::from(Outcome::ALL.map(Outcome::name).to_vec()));
    for class in Class::ALL {
        let types = EventType::ALL.into_iter().filter(|event| event.class() == class);
        let types: Vec<String> = types.map(|event| format!("`{}`", event.name())).collect();
        let days = class.default_retention_s() / 86_400;
        let row = format!("| `{}` | {days} days | {} |", class.name(), types.join(", "));
        assert!(docs.contains(&row), "docs/audit.md has no row {row}");
    }
}

/// Runs a script of the docs.
fn script(name: &str, args: &[&str], dir: &Path) -> Output {
    fs::write(dir.join(name), block("sh", &format!("# {name}"))).unwrap();
    Command::new("sh").arg(name).args(args).current_dir(dir).output().unwrap()
}

#[test]
fn the_scripts_of_the_docs_verify_a_segment_and_find_changes() {
    let app = Backend::start();
    let setup = trail(&app);
    let keys = audit(&setup, &["keys"]);
    let keys = String::from_utf8(keys.stdout).unwrap();
    let (_, key) = keys.trim().split_once(':').unwrap();
    let segment = "trail/data-00000000000000000001.jsonl";
    let text = fs::read_to_string(setup.dir.join(segment)).unwrap();
    for (name, from, to) in
        [("chain.sh", "\"status\":200", "\"status\":201"), ("checkpoint.sh", "\"last\":", "\"last\":1")]
    {
        fs::write(setup.dir.join("changed.jsonl"), text.replacen(from, to, 1)).unwrap();
        let whole = script(name, &[segment, key], &setup.dir);
        assert!(whole.status.success() && !whole.stdout.starts_with(b"broken"), "{name}: {whole:?}");
        let changed = script(name, &["changed.jsonl", key], &setup.dir);
        assert!(!changed.status.success() || changed.stdout.starts_with(b"broken"), "{name}: {changed:?}");
    }
}
