//! The JSON Schema of the configuration, in three validators: ajv, which editors for the web use, check-jsonschema, which CI uses, and Taplo,
//! which editors for TOML use.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use xtask::tools::Tool;

use crate::harness::fresh_dir;

fn repository(name: &str) -> PathBuf {
    xtask::paths::root().join(name)
}

/// The file that is published.
fn schema() -> PathBuf {
    repository("config/proxy.schema.json")
}

/// The files among these that ajv rejects. It reads JSON, so a file that is no TOML is left out.
fn rejected_by_ajv(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut documents = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        if let Ok(document) = toml::from_str::<Value>(text.trim_start_matches('\u{feff}')) {
            documents.insert(file, document);
        }
    }
    let input = fresh_dir().join("documents.json");
    fs::write(&input, serde_json::to_string(&documents).unwrap()).unwrap();
    let output = Command::new(Tool::Node.get().unwrap())
        .arg(repository("tests/schema/validate.js"))
        .args([Tool::Ajv.get().unwrap(), schema(), input])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "ajv does not take the schema as it is: {said}");
    let told: BTreeMap<PathBuf, Vec<String>> = serde_json::from_slice(&output.stdout).unwrap();
    told.into_iter().filter(|(_, errors)| !errors.is_empty()).map(|(file, _)| file).collect()
}

/// The files that check-jsonschema rejects.
fn rejected_by_check_jsonschema(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let output = Command::new(Tool::CheckJsonschema.get().unwrap())
        .args(["--output-format", "json", "--schemafile"])
        .arg(schema())
        .args(files)
        .output()
        .unwrap();
    let told: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let lists = ["errors", "parse_errors"].map(|list| told[list].as_array().cloned().unwrap_or_default());
    lists.concat().iter().map(|error| PathBuf::from(error["filename"].as_str().unwrap())).collect()
}

/// The files that Taplo rejects: by the published schema, or by the one that each file names.
fn rejected_by_taplo(files: &[PathBuf], names_schema: bool) -> BTreeSet<PathBuf> {
    let mut taplo = Command::new(Tool::Node.get().unwrap());
    taplo.arg(Tool::Taplo.get().unwrap()).args(["lint", "--no-auto-config", "--colors", "never"]);
    if !names_schema {
        taplo.arg("--schema").arg(format!("file://{}", schema().display()));
    }
    let output = taplo.args(files).current_dir(files[0].parent().unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let rejected: BTreeSet<PathBuf> =
        files.iter().filter(|file| said.contains(&format!("path=\"{}\"", file.display()))).cloned().collect();
    assert_eq!(output.status.success(), rejected.is_empty(), "{said}");
    rejected
}

/// `files`, each with the names of the validators that reject it.
fn rejected(files: &[PathBuf]) -> BTreeMap<PathBuf, Vec<&'static str>> {
    let validators = [
        ("ajv", rejected_by_ajv(files)),
        ("check-jsonschema", rejected_by_check_jsonschema(files)),
        ("taplo", rejected_by_taplo(files, false)),
    ];
    let by = |file: &PathBuf| {
        validators.iter().filter(|(_, rejected)| rejected.contains(file)).map(|(name, _)| *name).collect()
    };
    files.iter().map(|file| (file.clone(), by(file))).collect()
}

#[test]
fn validators_see_each_mistake_that_a_schema_can_see() {
    let dir = fresh_dir();
    let table: toml::Table = fs::read_to_string(repository("tests/fixtures/mistakes.toml")).unwrap().parse().unwrap();
    let mut files = Vec::new();
    let mut expected = BTreeMap::new();
    for (number, mistake) in table["mistake"].as_array().unwrap().iter().enumerate() {
        let file = dir.join(format!("{number:03}.toml"));
        fs::write(&file, mistake["input"].as_str().unwrap()).unwrap();
        let validators = match &mistake["schema"] {
            toml::Value::Boolean(true) => vec!["ajv", "check-jsonschema", "taplo"],
            toml::Value::String(text) if text == "syntax" => vec!["check-jsonschema", "taplo"],
            toml::Value::String(_) => vec![],
            other => panic!("{other}"),
        };
        expected.insert(file.clone(), (validators, mistake["kind"].as_str().unwrap()));
        files.push(file);
    }
    let wrong: Vec<String> = rejected(&files)
        .into_iter()
        .filter(|(file, by)| expected[file].0 != *by)
        .map(|(file, by)| format!("{}: rejected by {by:?}, expected {:?}", expected[&file].1, expected[&file].0))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The shipped file with every key that has a default, instead of comments.
fn spelled_out() -> String {
    let is_key = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let shipped = fs::read_to_string(repository("config/proxy.toml")).unwrap();
    let line = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| is_key(key)) => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    shipped.lines().map(line).collect()
}

/// Values that Outrigger accepts, in unusual spellings.
const UNUSUAL: &str = r#"
[server]
listen = "[::1]:18080"
[app]
address = "unix:run/app.sock"
timeout = "90sec"
connect_timeout = "1.5s"
hold = "0s"
stream_timeout = "2weeks"
idle_timeout = "1h30m"
metrics = "http://app.internal"
[client]
max_head = "1.5KiB"
max_body = "off"
head_timeout = "1500ms"
[health]
path = "/readyz?verbose"
[identity]
edge = "forwarded"
trusted = ["10.0.0.0/8", "fdaa::/16", "192.0.2.1"]
key_field = "X_Api-Key"
[flags]
audit_trail = "monitor"
session_affinity = { switch = "10%", users = ["ann"], networks = ["::1"] }
[rate_limits]
critical = "off"
high = "5/1s"
medium = "100/m"
[tiers]
pro = "0.5x"
enterprise = "unlimited"
[breaker]
failure_rate = "2.5%"
slow_after = "off"
window = "100 calls"
[[routes]]
name = "a"
path = "/v1/items:batchGet/"
methods = ["PROPFIND", "X-NEW"]
hosts = ["*.example.com", "localhost"]
[[routes]]
name = "b"
path = "/caf\u00e9/{id}/Products(1)/$count/**"
[[routes]]
name = "c"
path = "/"
"#;

/// References instead of values of every type.
const REFERENCES: &str = r#"
include = ["rules.d/*.toml"]
[server]
listen = "0.0.0.0:${PORT}"
threads = "${THREADS:-2}"
[app]
address = "${APP:-127.0.0.1:3000}"
timeout = "${TIMEOUT:-30s}"
[headers]
request_id = "${REQUEST_ID:-true}"
[log]
level = "${LEVEL:-info}"
[flags]
audit_trail = "${AUDIT:-10%}"
[retry]
statuses = ["${STATUS:-503}", 502]
[[identity.keys]]
name = "a"
sha256 = "${file:digest}"
tier = "${TIER:-pro}"
[[routes]]
name = "${ROUTE:-a}"
path = "/${PREFIX:-v1}/**"
methods = ["${METHOD:-GET}"]
priority = "${PRIORITY:-high}"
cost = "${COST:-2}"
fallback = { status = "${STATUS:-503}", body = "$${no reference}" }
"#;

#[test]
fn validators_accept_what_outrigger_accepts() {
    let dir = fresh_dir();
    let mut files: Vec<PathBuf> =
        ["config/proxy.toml", "deploy/debian/proxy.toml", "tests/experiment/proxy.toml"].map(repository).into();
    for (name, text) in [
        ("all.toml", spelled_out()),
        ("unusual.toml", UNUSUAL.to_owned()),
        ("references.toml", REFERENCES.to_owned()),
        ("empty.toml", String::new()),
    ] {
        let file = dir.join(name);
        fs::write(&file, text).unwrap();
        files.push(file);
    }
    for (file, by) in rejected(&files) {
        assert!(by.is_empty(), "{}: {by:?}", file.display());
    }
    fs::write(dir.join("digest"), "0".repeat(64)).unwrap();
    fs::create_dir(dir.join("rules.d")).unwrap();
    for name in ["unusual.toml", "references.toml"] {
        let mut check = Command::new(crate::harness::outrigger());
        let output = check.arg("check").arg(dir.join(name)).env("PORT", "18080").output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn an_editor_finds_the_schema_by_the_line_in_the_shipped_file() {
    let dir = fresh_dir();
    fs::copy(schema(), dir.join("proxy.schema.json")).unwrap();
    let shipped = fs::read_to_string(repository("config/proxy.toml")).unwrap();
    let write = |name: &str, text: &str| {
        let file = dir.join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let right = write("right.toml", &shipped);
    let wrong = write("wrong.toml", &shipped.replace("[server] ", "[server]\nlisen = \"0.0.0.0:8080\"\n#"));
    assert_eq!(rejected_by_taplo(&[right, wrong.clone()], true), BTreeSet::from([wrong]));
    let is_there = |path: &Path| fs::read_to_string(path).unwrap().starts_with("#:schema ./proxy.schema.json\n");
    assert!(is_there(&repository("config/proxy.toml")));
}
