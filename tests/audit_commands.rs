//! The `outrigger audit` commands of operators and auditors, next to a running proxy and without one.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use outrigger_trail::keys::MasterKeys;
use outrigger_trail::layout::{self, Checkpoint};
use outrigger_trail::store::schema;
use serde_json::{Value, json};
use xtask::postgres::Postgres;
use xtask::{Signal, http};

use crate::audit::entries;
use crate::audit_store::{on_database, ship};
use crate::backend::Backend;
use crate::harness::{Proxy, Setup, get, until, with_fields};
use crate::house::postgres_in;
use crate::limits::EDGE;

pub const KEYS: (&str, &str) = ("OUTRIGGER_AUDIT_KEYS", "k1:fedcba9876543210fedcba9876543210");
pub const TRAIL: &str = "audit.directory = \"trail\"\naudit.default = \"data\"\nserver.lame_duck = \"0s\"\n";
const ANN: &str = "address:192.0.2.7";

/// The exit code and output of a command.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The lines of JSON that the command printed.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    #[track_caller]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }
}

pub fn audit(setup: &Setup, args: &[&str]) -> Said {
    let file = setup.file.to_str().unwrap();
    let output = setup.run(&[&["audit"], args, &["--config", file]].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// A proxy with five requests from one address, and two from another.
fn asked(app: &Backend) -> Proxy {
    let proxy = Setup::new(app, &format!("{EDGE}{TRAIL}")).env(KEYS.0, KEYS.1).start();
    for (address, count) in [("192.0.2.7", 5), ("192.0.2.8", 2)] {
        for _ in 0..count {
            let request = with_fields(&get("/documents"), &[&format!("Fly-Client-IP: {address}")]);
            assert_eq!(proxy.ask(&request).status, 200);
        }
    }
    until("seven entries on disk", || proxy.metric("outrigger_audit_entries_total", &[("class", "data")]) >= 7.0);
    proxy
}

fn stopped(app: &Backend) -> Proxy {
    let mut proxy = asked(app);
    proxy.signal(Signal::TERM);
    assert!(proxy.ends_within(Duration::from_secs(15)).success());
    proxy
}

pub fn keys() -> MasterKeys {
    MasterKeys::parse(KEYS.1).unwrap().unwrap()
}

fn segment(setup: &Setup) -> PathBuf {
    setup.dir.join("trail/data-00000000000000000001.jsonl")
}

#[test]
fn entries_are_found_revealed_exported_and_erased_while_the_proxy_writes() {
    let app = Backend::start();
    let proxy = asked(&app);
    let verified = audit(&proxy, &["verify"]).ends_with(0);
    assert!(verified.out.contains("whole: "), "{}", verified.out);

    let found = audit(&proxy, &["search", "--subject", ANN, "--json"]);
    assert_eq!(found.json().len(), 5, "{}", found.out);
    assert!(!found.out.contains("192.0.2.7"), "{}", found.out);
    let table = audit(&proxy, &["search", "--subject", ANN, "--reveal", "--limit", "2"]).ends_with(0);
    assert_eq!(table.out.matches("192.0.2.7").count(), 4, "who and from where, twice: {}", table.out);
    assert_eq!(audit(&proxy, &["search", "--since", "1h", "--type", "data.read", "--json"]).json().len(), 7);
    assert_eq!(audit(&proxy, &["search", "--until", "1h", "--json"]).json().len(), 0);

    let csv = audit(&proxy, &["export", "--subject", ANN, "--format", "csv"]).ends_with(0);
    assert!(csv.out.starts_with("time,class,type,") && csv.out.lines().count() == 6, "{}", csv.out);
    assert_eq!(csv.out.matches("address:192.0.2.7").count(), 5, "{}", csv.out);
    audit(&proxy, &["export", "--subject", ANN, "--output", "ann.jsonl"]).ends_with(0);
    let exported = fs::read_to_string(proxy.dir.join("ann.jsonl")).unwrap();
    // The first export is itself an entry about the subject.
    assert_eq!(exported.lines().count(), 6, "{exported}");
    audit(&proxy, &["export", "--subject", ANN, "--output", "ann.jsonl"]).ends_with(1);

    let without = ["erase", "--subject", ANN, "--without-database", "--yes", "--json"];
    let held = audit(&proxy, &["hold", "add", "--subject", ANN, "--reason", "a court", "--json"]);
    let hold = held.json()[0]["holds"][0].as_str().unwrap().to_owned();
    let refused = audit(&proxy, &without).ends_with(1);
    assert!(refused.err.contains(&hold) && refused.err.contains("a court"), "{}", refused.err);
    audit(&proxy, &["hold", "release", &hold]).ends_with(0);
    assert!(audit(&proxy, &["hold", "list"]).out.contains(&hold));

    let receipt = audit(&proxy, &[&without[..], &["--by", "eve", "--reason", "asked to"]].concat());
    let said = receipt.json().remove(0);
    assert!(said["keys"]["spool"].as_u64().unwrap() >= 1, "{said}");
    assert_eq!((said["by"].as_str(), said["reason"].as_str()), (Some("eve"), Some("asked to")));
    fs::write(proxy.dir.join("receipt.json"), &receipt.out).unwrap();
    let proved = audit(&proxy, &["verify", "--receipt", "receipt.json"]).ends_with(0);
    assert!(proved.out.contains("its entry is there (spool)"), "{}", proved.out);
    fs::write(proxy.dir.join("receipt.json"), receipt.out.replace("\"eve\"", "\"bob\"")).unwrap();
    audit(&proxy, &["verify", "--receipt", "receipt.json"]).ends_with(1);

    let left = audit(&proxy, &["search", "--type", "data.read", "--reveal", "--json"]).json();
    let revealed: Vec<_> = left.iter().filter_map(|entry| entry["revealed"]["actor"].as_str()).collect();
    assert_eq!(revealed, ["address:192.0.2.8"; 2]);

    let acts = audit(&proxy, &["search", "--class", "administration", "--class", "deletion", "--json"]).json();
    for action in ["audit.verify", "audit.search", "export", "audit.hold", "audit.release", "audit.erase", "erase"] {
        assert!(acts.iter().any(|act| act["action"] == action), "{action} is not entered: {acts:?}");
    }
    audit(&proxy, &["verify"]).ends_with(0);
}

#[test]
fn tampering_is_reported_with_its_position() {
    let app = Backend::start();
    let proxy = stopped(&app);
    let public = audit(&proxy, &["keys"]).ends_with(0).out;
    let by_auditor = ["verify", "--public-keys", public.trim(), "--directory", "trail"];
    let whole = audit(&proxy, &by_auditor).ends_with(0);
    assert!(!whole.out.contains("note:"), "{}", whole.out);

    let before = fs::read_to_string(segment(&proxy)).unwrap();
    fs::write(segment(&proxy), before.replacen("\"status\":200", "\"status\":500", 1)).unwrap();
    let said = audit(&proxy, &by_auditor).ends_with(1);
    let place =
        "data-00000000000000000001.jsonl:2, data entry 1: is not the entry that the next one, 2, was written after";
    assert!(said.out.contains(place) && said.out.contains("NOT WHOLE: 1 problem"), "{}", said.out);
    let said = audit(&proxy, &[&by_auditor[..], &["--json"]].concat()).ends_with(1);
    let said: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said["whole"].as_bool(), said["problems"][0]["entry"].as_u64()), (Some(false), Some(1)), "{said}");
    // Verifying repairs nothing: a second run reports the same.
    for _ in 0..2 {
        let said = audit(&proxy, &["verify"]).ends_with(1);
        assert!(said.out.contains(place) && said.err.contains("as it was found"), "{}{}", said.out, said.err);
    }
    fs::remove_file(segment(&proxy)).unwrap();
    let said = audit(&proxy, &by_auditor).ends_with(1);
    assert!(said.out.contains("HEAD confirms 7 entries") || said.out.contains("confirms 7"), "{}", said.out);
    fs::write(segment(&proxy), before).unwrap();
    audit(&proxy, &by_auditor).ends_with(0);

    // The commands write to the audit log themselves, and their entries are complete.
    audit(&proxy, &["search"]).ends_with(0);
    audit(&proxy, &["verify"]).ends_with(0);
    let after = audit(&proxy, &by_auditor).ends_with(0);
    assert!(after.out.contains("administration") && !after.out.contains("note:"), "{}", after.out);

    audit(&proxy, &["verify", "--directory", "nowhere"]).ends_with(2);
    let report = audit(&proxy, &["report", "--format", "json"]).json_of_all();
    assert_eq!(report["retention"][2]["kept"], "365d", "{report}");
    fs::remove_dir_all(proxy.dir.join("trail")).unwrap();
    let none = audit(&proxy, &by_auditor).ends_with(2);
    assert!(none.err.contains("has no audit log"), "{}", none.err);
    fs::write(&proxy.file, "nonsense = 1\n").unwrap();
    audit(&proxy, &["search"]).ends_with(78);
}

impl Said {
    #[track_caller]
    fn json_of_all(&self) -> Value {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        serde_json::from_str(&self.out).unwrap()
    }
}

#[test]
fn without_an_audit_entry_data_is_neither_revealed_nor_destroyed() {
    let app = Backend::start();
    let proxy = asked(&app);
    // The proxy holds the lock, and the commands look for its admin listener at the wrong address.
    let astray = ["--admin", "127.0.0.1:1"];
    for act in [
        &["search", "--reveal"][..],
        &["export", "--subject", ANN, "--output", "ann.jsonl"],
        &["erase", "--subject", ANN, "--without-database", "--yes"],
        &["hold", "add", "--class", "data", "--reason", "a court"],
    ] {
        let said = audit(&proxy, &[act, &astray].concat()).ends_with(1);
        assert!(said.out.is_empty() && said.err.contains("not done"), "{act:?}: {}{}", said.out, said.err);
    }
    assert!(!proxy.dir.join("ann.jsonl").exists());
    assert!(!proxy.dir.join("trail/HOLDS").exists());
    let found = audit(&proxy, &["search", "--subject", ANN, "--reveal", "--json"]).json();
    assert!(found.iter().all(|entry| entry["revealed"]["address"] == "192.0.2.7"), "{found:?}");
}

/// `POST` to the admin listener; returns the status and the response.
fn post_to(proxy: &Proxy, path: &str, body: &Value) -> (u16, Value) {
    let fields = [("content-type", "application/json")];
    let answer = http::send("POST", proxy.admin, path, &fields, &body.to_string(), Duration::from_secs(15)).unwrap();
    (answer.status, serde_json::from_str(&answer.body).unwrap_or_default())
}

fn erasures(proxy: &Proxy) -> Vec<(String, String)> {
    let found = entries(proxy).into_iter().filter(|entry| entry["action"] == "audit.erase");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    found.map(|entry| (text(&entry["type"]), text(&entry["outcome"]))).collect()
}

#[test]
fn an_erasure_through_the_admin_listener_is_recorded_first_and_obeys_holds() {
    let app = Backend::start();
    let proxy = asked(&app);
    let erase = |subject: &str| post_to(&proxy, "/audit/erase", &json!({ "subjects": [subject], "by": "eve" }));
    let keys_of = |subject: &str| {
        let subjects = keys().pseudonyms(subject).unwrap();
        outrigger_trail::spool::count_keys(&proxy.dir.join("trail"), &subjects).unwrap()
    };
    let row = |event: &str, outcome: &str| (event.to_owned(), outcome.to_owned());
    let asked_for = row("admin.action", "success");
    until("a key of the subject", || keys_of(ANN) > 0);

    let held = audit(&proxy, &["hold", "add", "--subject", ANN, "--reason", "a court", "--json"]).json();
    let hold = held[0]["holds"][0].as_str().unwrap().to_owned();
    let (status, answer) = erase(ANN);
    assert_eq!(status, 409, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains(&hold), "{answer}");
    assert!(keys_of(ANN) > 0, "what is held is there");
    let mut expected = vec![asked_for.clone(), row("subject.erasure_request", "refused")];
    let by_chain = |mut rows: Vec<(String, String)>| {
        rows.sort();
        rows
    };
    assert_eq!(by_chain(erasures(&proxy)), by_chain(expected.clone()));

    audit(&proxy, &["hold", "release", &hold]).ends_with(0);
    let (status, answer) = erase(ANN);
    assert!(status == 200 && answer["keys"].as_u64() >= Some(1), "{status} {answer}");
    assert_eq!(keys_of(ANN), 0);
    expected.extend([asked_for.clone(), row("subject.erasure_request", "success")]);
    assert_eq!(by_chain(erasures(&proxy)), by_chain(expected.clone()));

    for unknown in [ANN, "user:nobody"] {
        let (status, answer) = erase(unknown);
        assert_eq!(status, 404, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("this subject is unknown"), "{answer}");
        expected.extend([asked_for.clone(), row("subject.erasure_request", "failure")]);
    }
    assert_eq!(by_chain(erasures(&proxy)), by_chain(expected.clone()));
    for bad in ["ann", "u_short", ""] {
        assert_eq!(erase(bad).0, 400, "{bad}");
    }
    assert_eq!(post_to(&proxy, "/audit/erase", &json!({ "subjects": [] })).0, 400);

    // An action that cannot be recorded is rejected.
    let other = "address:192.0.2.8";
    assert!(keys_of(other) > 0);
    let (trail, away) = (proxy.dir.join("trail"), proxy.dir.join("away"));
    let administration = |dir: &std::path::Path| dir.join("administration-00000000000000000001.jsonl");
    fs::create_dir(&away).unwrap();
    // The open segment is gone, and directories block the names of the next ones.
    fs::rename(administration(&trail), administration(&away)).unwrap();
    let last = entries(&proxy).len() as u64 + 100;
    let blocked: Vec<_> = (1..last).map(|first| trail.join(format!("administration-{first:020}.jsonl"))).collect();
    blocked.iter().filter(|path| !path.exists()).for_each(|path| fs::create_dir(path).unwrap());
    assert_eq!(erase(other).0, 503);
    assert!(keys_of(other) > 0, "it was not entered, so it is not done");
}

#[test]
fn erasing_an_unknown_subject_is_an_error() {
    let app = Backend::start();
    let proxy = stopped(&app);
    let erase = |more: &[&str]| {
        audit(&proxy, &[&["erase", "--subject", "user:nobody", "--without-database", "--yes"], more].concat())
    };
    let said = erase(&[]).ends_with(1).err;
    assert!(
        said.contains("user:nobody (u_") && said.contains("is unknown") && said.contains("no key was destroyed"),
        "{said}"
    );
    let entered: Vec<_> = entries(&proxy).into_iter().filter(|entry| entry["action"] == "audit.erase").collect();
    assert_eq!(entered.len(), 1, "{entered:?}");
    assert_eq!((entered[0]["outcome"].as_str(), entered[0]["class"].as_str()), (Some("failure"), Some("deletion")));
    let by = entered[0]["details"]["by"].as_str().unwrap();
    assert!(!by.is_empty() && by != "unknown", "{by}");
    erase(&["--even-if-unknown"]).ends_with(0);
}

#[test]
fn only_the_apps_part_of_the_keys_is_derived_and_passed_on() {
    let app = Backend::start();
    let setup = Setup::new(&app, TRAIL).env(KEYS.0, KEYS.1).env("OUTRIGGER_ADMIN_TOKEN", "a-token-that-is-long-enough");
    let derived = audit(&setup, &["keys", "derive"]).ends_with(0).out;
    assert_eq!(derived.trim(), keys().pseudonym_key().expose());
    let output = setup.run(&["audit", "keys", "exec", "--", "env"]);
    let env = String::from_utf8(output.stdout).unwrap();
    assert!(env.contains(&format!("OUTRIGGER_AUDIT_PSEUDONYM_KEY={}", derived.trim())), "{env}");
    for secret in ["OUTRIGGER_AUDIT_KEYS", "OUTRIGGER_ADMIN_TOKEN", &KEYS.1[3..]] {
        assert!(!env.contains(secret), "{secret} is handed on: {env}");
    }
    let nobody = setup.run(&["audit", "keys", "exec", "--user", "no such user", "--", "id", "-u"]);
    assert!(!nobody.status.success() && nobody.stdout.is_empty());
    let id = setup.run(&["audit", "keys", "exec", "--user", "nobody", "--", "id", "-u"]);
    let root = setup.run(&["audit", "keys", "exec", "--", "id", "-u"]).stdout == b"0\n";
    assert_eq!(id.status.success(), root, "only root may become somebody else: {id:?}");
    assert_eq!(id.stdout == b"65534\n", root, "{id:?}");
}

/// Stores a stopped proxy's segments as the proxy does.
pub fn store(setup: &Setup, postgres: &Postgres) {
    let url = postgres.url("app");
    on_database(&url, async |client| schema::migrate(client).await.unwrap()).unwrap();
    let trail = setup.dir.join("trail");
    let chain = fs::read_to_string(trail.join("CHAIN")).unwrap();
    // Every segment that the newest HEAD signs, not only those of the first run.
    let lines = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    for segment in layout::segments(&trail).unwrap() {
        let keys: Vec<Value> =
            lines(segment.keys()).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let first = json!({
            "chain": chain.trim(), "machine": "m1", "class": segment.class.name(), "erasures_seen": 0, "keys": keys,
            "head": layout::newest_head(&trail, &self::keys().public()).unwrap().map(|(line, _)| line),
        });
        ship(&url, format!("{first}\n{}", lines(segment.path)).as_bytes()).unwrap();
    }
}

#[test]
fn entries_in_postgresql_are_verified_searched_and_erased_with_the_spool() {
    let app = Backend::start();
    let proxy = stopped(&app);
    let postgres = postgres_in(&proxy.dir);
    store(&proxy, &postgres);
    let url = postgres.url("app");
    let with = |args: &[&str]| audit(&proxy, &[args, &["--database", &url]].concat());
    let said = with(&["verify", "--json"]).json_of_all();
    let stored = |class: &str| {
        let is_it = |chain: &&Value| chain["where"] == "postgres" && chain["class"] == class;
        said["chains"].as_array().unwrap().iter().find(is_it).unwrap()["entries"].clone()
    };
    assert_eq!((said["whole"].as_bool(), stored("data")), (Some(true), json!(7)), "{said}");
    // Entries that are in both the spool and the database are shown once.
    assert_eq!(with(&["search", "--type", "data.read", "--json"]).json().len(), 7);

    let receipt = with(&["erase", "--subject", ANN, "--yes", "--json"]).json().remove(0);
    assert!(receipt["keys"]["postgres"].as_u64().unwrap() >= 1, "{receipt}");
    assert!(receipt["keys"]["spool"].as_u64().unwrap() >= 1, "{receipt}");
    assert_eq!(postgres.sql("app", "select count(*) from audit_erasures where receipt is not null").unwrap(), "1");
    with(&["hold", "add", "--class", "data", "--reason", "a court"]).ends_with(0);
    assert!(with(&["hold", "list"]).ends_with(0).out.contains("postgres"));
    with(&["hold", "release", "1"]).ends_with(0);
    with(&["hold", "release", "1"]).ends_with(1);

    for (harm, words) in [
        ("delete from audit_events where class = 'data' and seq = 7", "entries"),
        ("delete from audit_events where class = 'data' and seq = 3", "entry 3 is missing"),
        (
            "update audit_events set entry = replace(entry, '200', '500') where class = 'data' and seq = 5",
            "data entry 5",
        ),
    ] {
        postgres.sql("app", &format!("create table spare as select * from audit_events; {harm}")).unwrap();
        let said = with(&["verify"]).ends_with(1);
        assert!(said.out.contains("audit_events") && said.out.contains(words), "{harm}: {}", said.out);
        let mend = "delete from audit_events; insert into audit_events select * from spare; drop table spare";
        postgres.sql("app", mend).unwrap();
        with(&["verify"]).ends_with(0);
    }
    // Searches use columns, which no hash covers.
    for (column, value) in [
        ("id", "gen_random_uuid()"),
        ("time", "time + interval '1 second'"),
        ("machine", "'m2'"),
        ("type", "'data.write'"),
        ("action", "'write'"),
        ("outcome", "'refused'"),
        ("status", "null"),
        ("actor", "'u_bob'"),
        ("client", "'a_bob'"),
        ("request_id", "'r'"),
        ("route", "null"),
    ] {
        let harm = format!("update audit_events set {column} = {value} where class = 'data' and seq = 5");
        postgres.sql("app", &format!("create table spare as select * from audit_events; {harm}")).unwrap();
        let said = with(&["verify"]).ends_with(1);
        let place = format!("audit_events, data entry 5: the column `{column}` differs from the entry");
        assert!(said.out.contains(&place) && said.out.contains("NOT WHOLE: 1 problem"), "{harm}: {}", said.out);
        let mend = "delete from audit_events; insert into audit_events select * from spare; drop table spare";
        postgres.sql("app", mend).unwrap();
    }
    with(&["verify"]).ends_with(0);
    let away = audit(&proxy, &["verify", "--database", "postgres://app@127.0.0.1:1/app"]).ends_with(1);
    assert!(away.err.contains("PostgreSQL: ") && away.err.contains("is it up"), "{}", away.err);
}

#[test]
fn a_truncated_chain_in_postgresql_is_found_by_checkpoints_of_other_classes() {
    let app = Backend::start();
    let proxy = stopped(&app);
    let public = audit(&proxy, &["keys"]).ends_with(0).out;
    // A search is recorded in its own segment, after the one with the program's start and stop. The checkpoints of both name
    // the ends of the other classes.
    audit(&proxy, &["search"]).ends_with(0);
    let postgres = postgres_in(&proxy.dir);
    store(&proxy, &postgres);
    let url = postgres.url("app");
    let sql = |statement: &str| postgres.sql("app", statement).unwrap();
    // An auditor has only the database and the public keys.
    let auditor = || {
        let args = ["verify", "--public-keys", public.trim(), "--directory", "nowhere", "--database", &url];
        audit(&proxy, &args)
    };
    let whole = auditor().ends_with(0);
    assert!(!whole.out.contains("note:"), "{}", whole.out);

    // The checkpoint of the program's start and stop; the one after the search stays young.
    let of_administration = "class = 'administration' and kind = 'checkpoint' and first = 1";
    let cut = "delete from audit_events where class = 'data' and seq > 5; \
        delete from audit_checkpoints where class = 'data' and kind = 'checkpoint'; \
        update audit_chains set last = 5 where class = 'data'";
    let all = "delete from audit_events where class = 'data'; delete from audit_checkpoints where class = 'data'; \
        delete from audit_chains where class = 'data'";
    sql(cut);
    let young = auditor().ends_with(0);
    let note = "confirms 7 entries, which are not all stored yet";
    assert!(young.out.contains(note), "it may be under way: {}", young.out);

    // The same checkpoint, two hours older.
    let line = sql(&format!("select line from audit_checkpoints where {of_administration}"));
    let mut checkpoint: Checkpoint = serde_json::from_str(&line).unwrap();
    checkpoint.time = (Timestamp::now() - SignedDuration::from_hours(2)).to_string();
    let line = String::from_utf8(layout::sign(&checkpoint, &MasterKeys::parse(KEYS.1).unwrap().unwrap())).unwrap();
    sql(&format!("update audit_checkpoints set line = '{line}' where {of_administration}"));
    for (harm, missing) in [(cut, "the last 2 missing"), (all, "the last 7 missing")] {
        sql(harm);
        let said = auditor().ends_with(1);
        let by = "audit_events: the chain ends here, but the checkpoint of administration entries 1 to ";
        let what = format!(" confirms 7 entries: {missing}");
        assert!(said.out.contains(by) && said.out.contains(&what), "{}", said.out);
        assert!(said.out.contains("NOT WHOLE: 1 problem"), "{}", said.out);
    }
}
