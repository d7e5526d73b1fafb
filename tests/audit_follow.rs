//! `outrigger audit follow`: a log shipper gets each verified entry at least once, in order, whoever is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use xtask::Signal;

use crate::audit::{ask_until_it_ends, entries};
use crate::audit_commands::{KEYS, TRAIL};
use crate::backend::Backend;
use crate::harness::{Setup, get, until, with_fields};

/// By class, the numbers that were read, in order.
type Read = BTreeMap<String, Vec<u64>>;

fn setup(app: &Backend) -> Setup {
    Setup::new(app, &format!("{TRAIL}audit.segment_size = \"64KiB\"\n")).env(KEYS.0, KEYS.1)
}

fn follow(setup: &Setup, args: &[&str]) -> Child {
    let file = setup.file.to_str().unwrap();
    let mut command = setup.command(&[&["audit", "follow", "--config", file], args].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn follow_once(setup: &Setup, args: &[&str]) -> (i32, Vec<Value>, String) {
    let output = follow(setup, &[&["--once"], args].concat()).wait_with_output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.is_empty() || lines.ends_with('\n'), "half a line: {lines}");
    let lines =
        lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect();
    (output.status.code().unwrap(), lines, String::from_utf8(output.stderr).unwrap())
}

/// Adds a line that one run of the command printed. `run` has the last number of each class in this run.
fn take(line: &Value, run: &mut BTreeMap<String, u64>, read: &mut Read) {
    let (class, seq) = (line["class"].as_str().unwrap().to_owned(), line["seq"].as_u64().unwrap());
    let before = run.insert(class.clone(), seq);
    assert!(before.is_none_or(|before| seq == before + 1), "{class}: {seq} after {before:?}");
    let of_class = read.entry(class).or_default();
    let last = of_class.last().copied().unwrap_or_default();
    assert!(seq <= last + 1, "{last} is followed by {seq}");
    if seq == last + 1 {
        of_class.push(seq);
    }
}

/// Reads some lines, then the reader, or the command, is killed. The reader has handled what it has taken out of the pipe.
fn read_some(setup: &Setup, args: &[&str], count: usize, is_reader_killed: bool, read: &mut Read) {
    let mut command = follow(setup, args);
    let mut lines = BufReader::with_capacity(1, command.stdout.take().unwrap());
    let mut run = BTreeMap::new();
    for _ in 0..count {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        take(&serde_json::from_str(&line).unwrap(), &mut run, read);
    }
    if is_reader_killed {
        drop(lines);
        assert_eq!(command.wait().unwrap().code(), Some(1), "it ends with its reader");
    } else {
        command.kill().unwrap();
        command.wait().unwrap();
    }
}

/// The position of a reader that knows what it has.
fn position(setup: &Setup, read: &Read) -> String {
    let chain = fs::read_to_string(setup.dir.join("trail/CHAIN")).unwrap();
    let classes: Vec<_> = read.iter().map(|(class, numbers)| format!("{class}:{}", numbers.len())).collect();
    format!("{}/{}", chain.trim(), classes.join(","))
}

#[test]
fn a_consumer_that_is_killed_and_resumed_gets_every_entry_in_order() {
    let app = Backend::start();
    let setup = setup(&app);
    let mut proxy = setup.clone().start();
    let clients: Vec<_> = (0..3).map(|_| ask_until_it_ends(proxy.address, get("/a"))).collect();
    let mut read = Read::new();
    for round in 0..6 {
        let own = position(&setup, &read);
        let args = if round % 3 == 2 { ["--since", &own] } else { ["--state", "position"] };
        read_some(&setup, &args, 150, round % 2 == 0, &mut read);
    }
    proxy.signal(Signal::TERM);
    proxy.ends_within(Duration::from_secs(15));
    clients.into_iter().for_each(|client| drop(client.join().unwrap()));
    let (code, rest, said) = follow_once(&setup, &["--state", "position"]);
    assert_eq!(code, 0, "{said}");
    let mut run = BTreeMap::new();
    rest.iter().for_each(|line| take(line, &mut run, &mut read));
    // It has added an entry of its own each time; the last is behind what it printed.
    let mut written: BTreeMap<String, u64> = BTreeMap::new();
    for entry in entries(&setup) {
        *written.entry(entry["class"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(written["data"] > 300, "{written:?}");
    assert_eq!(read["data"].len() as u64, written["data"]);
    let follows = entries(&setup).iter().filter(|entry| entry["action"] == "audit.follow").count();
    assert_eq!(follows, 7);
    let segments = fs::read_dir(setup.dir.join("trail")).unwrap().flatten();
    assert!(segments.filter(|file| file.file_name().to_string_lossy().starts_with("data-")).count() > 1);
}

#[test]
fn a_follower_waits_for_more_and_begins_where_it_is_told() {
    let app = Backend::start();
    let setup = setup(&app);
    let proxy = setup.clone().start();
    (0..3).for_each(|_| assert_eq!(proxy.get("/a").status, 200));
    until("them to be signed", || follow_once(&setup, &["--class", "data"]).1.len() == 3);
    let chain = fs::read_to_string(setup.dir.join("trail/CHAIN")).unwrap();
    let (code, lines, said) = follow_once(&setup, &["--class", "data", "--since", &format!("{}/data:2", chain.trim())]);
    assert_eq!((code, lines.len(), &lines[0]["seq"]), (0, 1, &Value::from(3)), "{said}");
    assert!(lines[0]["actor"]["id"].as_str().unwrap().starts_with("a_") && lines[0]["revealed"].is_null());
    let (_, lines, said) = follow_once(&setup, &["--class", "data", "--reveal"]);
    assert_eq!(lines[0]["revealed"]["actor"], "address:127.0.0.1", "{said}");

    let recorded = || entries(&setup).iter().filter(|entry| entry["action"] == "audit.follow").count();
    let before = recorded();
    let mut command = follow(&setup, &["--class", "data", "--since", "end"]);
    let mut lines = BufReader::new(command.stdout.take().unwrap());
    until("it to be recorded", || recorded() > before);
    assert_eq!(proxy.get("/a").status, 200);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"seq\":4,\"class\":\"data\""), "{line}");
    command.kill().unwrap();
    command.wait().unwrap();

    for (since, why) in [
        ("0123456789abcdef/data:1", "the position is in chain 0123456789abcdef"),
        (&*format!("{}/data:99", chain.trim()), "an earlier state was restored"),
    ] {
        let (code, lines, said) = follow_once(&setup, &["--class", "data", "--since", since]);
        assert!(code == 1 && lines.is_empty() && said.contains(why), "{said}");
    }
    // One class does not stop the others.
    let (code, lines, said) = follow_once(&setup, &["--since", &format!("{}/data:99", chain.trim())]);
    assert!(code == 1 && said.contains("an earlier state was restored"), "{said}");
    assert!(!lines.is_empty() && lines.iter().all(|line| line["class"] != "data"), "{lines:?}");

    // The first position is kept, too: what comes after it is printed by the next one.
    let state = setup.dir.join("position");
    let from_end = ["--class", "data", "--since", "end", "--state", state.to_str().unwrap()];
    assert_eq!(follow_once(&setup, &from_end).1.len(), 0);
    assert_eq!(proxy.get("/a").status, 200);
    until("the next entry to be printed", || {
        let (_, lines, _) = follow_once(&setup, &from_end);
        lines.iter().any(|line| line["seq"] == 5)
    });
}

#[test]
fn a_follower_reports_what_was_deleted_and_passes_on_nothing_that_was_changed() {
    let app = Backend::start();
    let setup = setup(&app);
    let mut proxy = setup.clone().start();
    let segments = || {
        let files = fs::read_dir(setup.dir.join("trail")).unwrap().flatten().map(|file| file.path());
        let mut files: Vec<_> = files
            .filter(|path| path.to_string_lossy().contains("/data-") && path.extension().is_some_and(|e| e == "jsonl"))
            .collect();
        files.sort();
        files
    };
    let mut asked = 0;
    until("three segments", || {
        (0..100).for_each(|_| assert_eq!(proxy.get("/a").status, 200));
        asked += 100;
        segments().len() >= 3
    });
    proxy.signal(Signal::TERM);
    proxy.ends_within(Duration::from_secs(15));
    let first = segments();
    let chain = fs::read_to_string(setup.dir.join("trail/CHAIN")).unwrap();
    assert_eq!(follow_once(&setup, &["--class", "data"]).1.len(), asked);

    fs::remove_file(&first[0]).unwrap();
    let next: u64 = first[1].file_stem().unwrap().to_str().unwrap()[5..].parse().unwrap();
    let (code, lines, said) = follow_once(&setup, &["--class", "data", "--since", &format!("{}/data:2", chain.trim())]);
    assert!(code == 1 && said.contains(&format!("data: entries 3 to {} were deleted", next - 1)), "{said}");
    assert_eq!((&lines[0]["seq"], lines.len() as u64), (&Value::from(next), asked as u64 - (next - 1)));
    // Who begins anew misses nothing.
    let (code, lines, _) = follow_once(&setup, &["--class", "data"]);
    assert_eq!((code, lines.len() as u64), (0, asked as u64 - (next - 1)));

    let changed = fs::read_to_string(&first[2]).unwrap().replacen("\"status\":200", "\"status\":500", 1);
    fs::write(&first[2], changed).unwrap();
    let end: u64 = first[2].file_stem().unwrap().to_str().unwrap()[5..].parse().unwrap();
    let (code, lines, said) = follow_once(&setup, &["--class", "data"]);
    assert!(code == 1 && said.contains(first[2].to_str().unwrap().rsplit('/').next().unwrap()), "{said}");
    assert_eq!(lines.last().unwrap()["seq"], end - 1, "all before the changed segment");
}

/// The problems of `value` with a schema of OCSF. Supports the keywords that occur there.
fn misfits(schema: &Value, root: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        return misfits(&root["$defs"][name], root, value, at, found);
    }
    let is_type = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        other => panic!("{at}: a type that is not looked at: {other:?}"),
    };
    let has = |name: &Value| value.get(name.as_str().unwrap()).is_some();
    let required = |schema: &Value| schema["required"].as_array().is_none_or(|names| names.iter().all(has));
    let is_known = schema["enum"].as_array().is_none_or(|all| all.contains(value));
    let is_constant = schema.get("const").is_none_or(|only| only == value);
    let is_any = schema["anyOf"].as_array().is_none_or(|any| any.iter().any(required));
    if !(is_type && is_known && is_constant && is_any && required(schema)) {
        found.push(format!("{at}: {value}"));
    }
    for item in value.as_array().into_iter().flatten() {
        misfits(&schema["items"], root, item, at, found);
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(name) {
            Some(schema) => misfits(schema, root, value, &format!("{at}.{name}"), found),
            None if schema["additionalProperties"] == true => {}
            None => found.push(format!("{at}.{name} is not known")),
        }
    }
}

/// Checked against the published schema: see fixtures/ocsf/README.md.
#[test]
fn entries_are_events_of_ocsf() {
    let app = Backend::start();
    let rules = "audit.headers = [\"user-agent\"]\n[[routes]]\nname = \"login\"\npath = \"/login\"\naudit = \"authentication\"\n";
    let setup = Setup::new(&app, &format!("{TRAIL}{rules}")).env(KEYS.0, KEYS.1);
    let proxy = setup.clone().start();
    proxy.ask(&with_fields(&get("/a"), &["User-Agent: test/1"]));
    proxy.ask(&get("/a").replacen("GET", "PATCH", 1));
    proxy.ask(&get("/login"));
    proxy.ask(&get("/login").replacen("GET", "DELETE", 1));
    proxy.ask(&with_fields(&get("/a"), &["X-Forwarded-For: 192.0.2.1"]));
    let schemas = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/ocsf/1.5.0.json")).unwrap();
    let schemas: Value = serde_json::from_str(&schemas).unwrap();
    let mut events = Vec::new();
    until("all to be signed", || {
        events = follow_once(&setup, &["--format", "ocsf", "--reveal"]).1;
        let requests =
            events.iter().filter(|event| event["class_uid"] != 0 && event["metadata"]["log_name"] != "security");
        requests.count() >= 5
    });
    let classes: BTreeSet<u64> = events.iter().map(|event| event["class_uid"].as_u64().unwrap()).collect();
    assert_eq!(classes, BTreeSet::from([0, 3002, 4002]));
    for event in &events {
        let schema = &schemas[event["class_uid"].to_string()];
        let mut found = Vec::new();
        misfits(schema, schema, event, "event", &mut found);
        assert!(found.is_empty(), "{found:#?} in {event:#}");
    }
    let of = |code: &str| events.iter().find(|event| event["metadata"]["event_code"] == code).unwrap();
    let read = of("data.read");
    assert_eq!((&read["activity_id"], &read["type_uid"], &read["status_id"]), (&3.into(), &400_203.into(), &1.into()));
    assert_eq!(read["http_request"]["http_headers"][0]["value"], "test/1");
    assert_eq!((&read["src_endpoint"]["ip"], &read["http_response"]["code"]), (&"127.0.0.1".into(), &200.into()));
    assert_eq!((&of("auth.login")["activity_id"], &of("auth.logout")["activity_id"]), (&1.into(), &2.into()));
    let patch = of("data.write");
    assert_eq!((&patch["activity_id"], &patch["unmapped"]["method"]), (&99.into(), &"PATCH".into()));
}
