//! The audit log in PostgreSQL: shipped entries are stored once in spite of crashes and repeats, retention removes only old
//! entries, erasures are permanent, and no document is read or written without an entry.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use outrigger_policy::audit::{Class, Outcome};
use outrigger_trail::keys::{MasterKeys, WrappedKey};
use outrigger_trail::layout;
use outrigger_trail::store::batch::Batch;
use outrigger_trail::store::drops::{self, Dropped, Recorded};
use outrigger_trail::store::ingest::{Ingested, ingest};
use outrigger_trail::store::retention::{Resume, Retention, Steps, retain};
use outrigger_trail::store::search::{Found, Search, explain, search};
use outrigger_trail::store::{StoreError, chains, subjects};
use serde_json::{Value, json};
use tokio_postgres::Client as Database;
use xtask::postgres::Postgres;
use xtask::{Process, Program, Signal, http, programs, wait};

use crate::backend::Backend;
use crate::harness::{Answer, Client, Setup, fresh_dir, hex, post, sha256, sum, until, with_fields};
use crate::house::{House, LIMIT, document, local, postgres_in};

const KEYS: &str = "k1:fedcba9876543210fedcba9876543210";
const CHAIN: &str = "00000000000000aa";

/// PostgreSQL and the app. ChromaDB is not running; these tests do not need it.
struct Store {
    dir: PathBuf,
    postgres: Postgres,
    app: Process,
    address: SocketAddr,
}

impl Store {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(env: &[(&str, &str)]) -> Self {
        let dir = fresh_dir();
        let postgres = postgres_in(&dir);
        let address = local();
        let app = start_app(&dir, &postgres, address, env);
        let store = Self { dir, postgres, app, address };
        store.is_ready();
        store
    }

    #[track_caller]
    fn is_ready(&self) {
        until("the tables", || self.get("/api/v1/documents").status == 200);
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&crate::harness::get(path))
    }

    fn ask(&self, request: &str) -> Answer {
        let fields = ["X-Api-Key: secret", "Content-Type: application/json", "X-Request-Timeout-Ms: 5000"];
        Client::connect(self.address).unwrap().send(with_fields(request, &fields)).answer()
    }

    /// Stores a batch as a proxy does.
    fn ship(&self, batch: impl AsRef<[u8]>) -> Result<Value, StoreError> {
        let stored = ship(&self.postgres.url("app"), batch.as_ref())?;
        Ok(serde_json::to_value(stored).unwrap())
    }

    #[track_caller]
    fn ships(&self, batch: impl AsRef<[u8]>, stored: u64, known: u64, refused: u64) -> Value {
        let done = self.ship(batch).unwrap();
        let counts = ["stored", "known", "refused"].map(|of| done[of].as_u64().unwrap());
        assert_eq!(counts, [stored, known, refused], "{done}");
        done
    }

    /// Runs retention as a proxy does; returns the removals that it is told of.
    #[track_caller]
    fn retains(&self, retention: &Retention) -> Vec<Value> {
        self.retains_at(Timestamp::now(), retention)
    }

    #[track_caller]
    fn retains_at(&self, now: Timestamp, retention: &Retention) -> Vec<Value> {
        let (mut told, mut resume) = (Vec::new(), None);
        loop {
            let began = Instant::now();
            let (done, offered) = self.on_database(async |client| {
                let done = retain(client, retention, now, resume.take(), &Steps::default()).await.unwrap();
                (done, drops::offer(client).await.unwrap())
            });
            let took = began.elapsed();
            assert!(took < Duration::from_secs(15), "one step of a retention took {took:?}");
            told.extend(offered.iter().map(|offered| serde_json::to_value(offered).unwrap()));
            resume = done.resume;
            if resume.is_none() {
                return told;
            }
            println!("a step of the retention took {took:?}");
        }
    }

    #[track_caller]
    fn sql(&self, statement: &str) -> String {
        self.postgres.sql("app", statement).unwrap()
    }

    #[track_caller]
    fn count(&self, of: &str) -> u64 {
        self.sql(&format!("select count(*) from {of}")).parse().unwrap()
    }

    /// Number of entries of each class that match a condition.
    fn by_class(&self, and: &str) -> BTreeMap<String, u64> {
        let rows = self.sql(&format!("select class, count(*) from audit_events where {and} group by class"));
        rows.lines()
            .map(|row| row.split_once('|').unwrap())
            .map(|(class, n)| (class.to_owned(), n.parse().unwrap()))
            .collect()
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&http::get(self.address, "/metrics", LIMIT).unwrap().body, name, labels)
    }

    fn on_database<T>(&self, work: impl AsyncFnOnce(&mut Database) -> T) -> T {
        on_database(&self.postgres.url("app"), work).unwrap()
    }
}

/// Runs `work` on its own connection, as a command does.
pub fn on_database<T>(url: &str, work: impl AsyncFnOnce(&mut Database) -> T) -> Result<T, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(work(&mut client).await)
    })
}

/// Stores a batch as a proxy does: a line with its origin, then its lines.
pub fn ship(url: &str, batch: &[u8]) -> Result<Ingested, StoreError> {
    let end = batch.iter().position(|b| *b == b'\n').unwrap();
    let first: Value = serde_json::from_slice(&batch[..end]).unwrap();
    let text = |name: &str| first[name].as_str().unwrap();
    let head = first["head"].as_str().and_then(|line| Some((line.to_owned(), serde_json::from_str(line).ok()?)));
    let parsed = Batch {
        erasures_seen: first["erasures_seen"].as_i64().unwrap_or_default(),
        keys: serde_json::from_value(first["keys"].clone()).unwrap_or_default(),
        head,
        ..Batch::new(text("chain"), text("machine"), Class::named(text("class")).unwrap())
    };
    let parsed = parsed.with_lines(&batch[end + 1..]);
    on_database(url, async |client| ingest(client, &parsed).await)?
}

pub fn start_app(dir: &std::path::Path, postgres: &Postgres, address: SocketAddr, env: &[(&str, &str)]) -> Process {
    let key = format!("test:{}", sha256("secret"));
    let program = env.iter().fold(Program::new(programs::find("outrigger-app").unwrap()), |p, (k, v)| p.env(k, v));
    let mut app = program
        .env("DATABASE_URL", postgres.url("app"))
        .env("CHROMA_URL", "http://127.0.0.1:1")
        .env("APP_LISTEN", address.to_string())
        .env("APP_API_KEYS", key)
        .env("APP_VECTOR_DIMENSION", "3")
        .start("outrigger-app", &dir.join("app.log"))
        .unwrap();
    app.ready(Duration::from_secs(20), || http::get(address, "/health/live", LIMIT).is_ok()).unwrap();
    app
}

/// A younger entry of a class that is shipped earlier does not hide the lag.
#[test]
fn the_lag_is_the_age_of_the_oldest_entry_that_postgresql_does_not_have() {
    let mut app = Backend::start();
    app.stop();
    let rules = "app.hold = \"0s\"\naudit.directory = \"trail\"\naudit.default = \"data\"\n";
    let nobody = format!("postgres://app:x@{}/app", local());
    let setup = Setup::new(&app, rules).env("OUTRIGGER_AUDIT_KEYS", KEYS).env("OUTRIGGER_AUDIT_DATABASE_URL", &nobody);
    let proxy = setup.start();
    let lag = || proxy.metric("outrigger_audit_lag_seconds", &[]);
    assert_eq!(proxy.get("/").status, 502);
    until("the entry to wait for PostgreSQL", || lag() > 2.0);
    let asked = Instant::now();
    proxy.ask(&with_fields(&crate::harness::get("/"), &["X-Forwarded-For: 192.0.2.1"]));
    until("it to be entered as forged", || {
        proxy.metric("outrigger_audit_entries_total", &[("class", "security")]) > 0.0
    });
    let failed = || proxy.metric("outrigger_audit_batches_total", &[("result", "failed")]);
    let before = failed();
    until("two more rounds", || failed() >= before + 2.0);
    // Longer than the time since the younger entry was made; a shipping round has just ended.
    let (lag, since) = (lag(), asked.elapsed().as_secs_f64());
    assert!(lag > since, "{lag} s, and {since} s since the younger one");
    assert!(proxy.metric("outrigger_audit_unshipped_entries", &[]) >= 3.0);
}

#[test]
fn a_proxy_ships_its_remaining_entries_before_it_exits() {
    let store = Store::start();
    let (address, trail, rules) = (local(), store.dir.join("trail"), store.dir.join("proxy.toml"));
    let text = format!(
        "server.listen = \"{address}\"\nserver.lame_duck = \"0s\"\nadmin.listen = \"{}\"\napp.address = \"{}\"\n\
         audit.directory = \"{}\"\naudit.default = \"data\"\n",
        local(),
        store.address,
        trail.display()
    );
    fs::write(&rules, text).unwrap();
    let mut proxy = Program::new(programs::find("outrigger").unwrap())
        .args(["run", "--config", rules.to_str().unwrap()])
        .env("OUTRIGGER_AUDIT_KEYS", KEYS)
        .env("OUTRIGGER_AUDIT_DATABASE_URL", store.postgres.url("app"))
        .start("outrigger", &store.dir.join("proxy.log"))
        .unwrap();
    proxy.ready(Duration::from_secs(20), || http::get(address, "/health/live", LIMIT).is_ok()).unwrap();
    let request = with_fields(&crate::harness::get("/api/v1/documents"), &["X-Api-Key: secret"]);
    assert_eq!(Client::connect(address).unwrap().send(&request).answer().status, 200);
    until("the request to be shipped", || store.count("audit_events where class = 'data'") == 1);
    // This chain has been idle since; another chain's last entry is written at the stop.
    assert!(proxy.stop(Signal::TERM, Duration::from_secs(20)).unwrap().success());
    fs::remove_dir_all(&trail).unwrap();
    assert_eq!(store.count("audit_events where action in ('start', 'stop') and chain <> 'app'"), 2);
    assert_eq!(store.count("audit_checkpoints where kind = 'checkpoint' and class in ('data', 'administration')"), 2);
}

/// A chain of entries as a spool writes them.
struct Chain {
    id: String,
    class: Class,
    lines: Vec<String>,
}

impl Chain {
    fn new(id: &str, class: Class) -> Self {
        Self { id: id.to_owned(), class, lines: Vec::new() }
    }

    /// `count` entries, one second apart, the last one now.
    fn of(id: &str, class: Class, count: u64) -> Self {
        let mut chain = Self::new(id, class);
        for n in 0..count {
            chain.add(Timestamp::now() - SignedDuration::from_secs((count - n) as i64), "u_ann", "a_home");
        }
        chain
    }

    fn add(&mut self, time: Timestamp, actor: &str, client: &str) {
        let seq = self.lines.len() + 1;
        let (class, prev) = (self.class.name(), self.lines.last().map_or("0".repeat(64), |line| sha256(line)));
        let time = time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ");
        let id = format!("{}-0000-7000-8000-{}{seq:06x}", &self.id[8..], class_digits(self.class));
        self.lines.push(format!(
            r#"{{"seq":{seq},"class":"{class}","id":"{id}","time":"{time}","machine":"m1","request_id":"r{seq}","type":"data.read","action":"read","method":"GET","route":"documents","outcome":"success","status":200,"duration_us":5,"actor":{{"id":"{actor}","kind":"user"}},"client":"{client}","prev":"{prev}"}}"#
        ));
    }

    fn head(&self) -> String {
        json!({ "chain": self.id, "machine": "m1", "class": self.class.name(), "erasures_seen": 0, "keys": [] })
            .to_string()
    }

    fn batch(&self) -> String {
        format!("{}\n{}\n", self.head(), self.lines.join("\n"))
    }
}

/// A signed `HEAD` of the chain with `last` entries of one class, `seconds` after the first.
fn signed_head(number: u64, last: u64, seconds: i64) -> String {
    let time = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(500_000) + SignedDuration::from_secs(seconds);
    let span = layout::Span { first: 1, last, hash: "0".repeat(64) };
    let heads = layout::Heads {
        head: 1,
        chain: CHAIN.to_owned(),
        machine: "m1".to_owned(),
        number,
        time: time.to_string(),
        classes: [("data".to_owned(), span)].into(),
        closed: false,
        key: "k1".to_owned(),
    };
    String::from_utf8(layout::sign(&heads, &MasterKeys::parse(KEYS).unwrap().unwrap())).unwrap()
}

#[test]
fn a_head_that_is_behind_an_earlier_one_is_reported_once_and_both_are_kept() {
    let store = Store::start();
    let ship = |number, last, seconds| {
        let head = json!({
            "chain": CHAIN, "machine": "m1", "class": "data", "erasures_seen": 0, "keys": [],
            "head": signed_head(number, last, seconds),
        });
        store.ships(format!("{head}\n"), 0, 0, 0)["rolled_back"].as_i64()
    };
    let anchors = || store.sql("select number from audit_anchors order by number").replace('\n', " ");
    assert_eq!((ship(5, 50, 5), anchors()), (None, "5".to_owned()));
    assert_eq!((ship(9, 90, 9), anchors()), (None, "9".to_owned()));
    // A batch that was delayed on its way.
    assert_eq!((ship(7, 70, 7), anchors()), (None, "9".to_owned()));
    assert_eq!((ship(9, 90, 9), anchors()), (None, "9".to_owned()));
    // Signed later but behind: the directory was restored from an older copy.
    assert_eq!((ship(6, 60, 20), anchors()), (Some(9), "6 9".to_owned()));
    assert_eq!((ship(8, 80, 21), anchors()), (None, "8 9".to_owned()));
    assert_eq!((ship(30, 81, 22), anchors()), (None, "9 30".to_owned()));
    // Its number is higher, but its chain is not longer.
    assert_eq!((ship(40, 80, 23), anchors()), (Some(30), "9 30 40".to_owned()));
}

/// Digits that differ between any two classes.
fn class_digits(class: Class) -> String {
    format!("{:06x}", Class::ALL.iter().position(|of| *of == class).unwrap())
}

#[test]
fn a_batch_is_stored_once_however_often_and_by_however_many_it_is_sent() {
    let store = Store::start();
    let chain = Chain::of(CHAIN, Class::Data, 500);
    store.ships(chain.batch(), 500, 0, 0);
    store.ships(chain.batch(), 0, 500, 0);
    store.ships(chain.batch(), 0, 500, 0);
    let lines = store.sql("select entry from audit_events where chain <> 'app' order by seq");
    assert_eq!(lines.lines().collect::<Vec<_>>(), chain.lines, "to the last byte");

    let other = Chain::of("00000000000000bb", Class::Security, 500);
    let header = format!(
        r#"{{"segment":1,"chain":"{}","class":"security","machine":"m1","first":1,"prev":"{}","created":"2026-01-01T00:00:00Z"}}"#,
        other.id,
        "0".repeat(64)
    );
    let batch = format!("{}\n{header}\n{}\n", other.head(), other.lines.join("\n"));
    let stored: u64 = thread::scope(|scope| {
        let (store, batch) = (&store, &batch);
        let senders: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(move || {
                    let answer = store.ship(batch).unwrap();
                    assert_eq!(answer["stored"].as_u64().unwrap() + answer["known"].as_u64().unwrap(), 500);
                    answer["stored"].as_u64().unwrap()
                })
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).sum()
    });
    assert_eq!(stored, 500);
    assert_eq!(store.count("audit_events where class = 'security'"), 500);
    assert_eq!(store.sql("select kind, first, last, line from audit_checkpoints"), format!("header|1|0|{header}"));

    // Reads as `verify` does: in pieces, in order, up to a known end.
    store.on_database(async |client| {
        let (mut read, mut after) = (Vec::new(), 0);
        loop {
            let piece = chains::entries(client, CHAIN, Class::Data, after, 77).await.unwrap();
            let Some(last) = piece.last() else { break };
            after = last.seq;
            read.extend(piece.into_iter().map(|row| row.line));
        }
        assert_eq!(read, chain.lines);
        let known = chains::chains(client).await.unwrap();
        assert_eq!(
            known.iter().map(|chain| (&*chain.class, chain.last)).collect::<Vec<_>>(),
            [("data", 500), ("security", 500)]
        );
    });
}

#[test]
fn only_a_column_that_differs_from_its_line_is_reported() {
    let store = Store::start();
    let mut chain = Chain::of(CHAIN, Class::Data, 6);
    let odd = [
        ("\"status\":200,", ""),
        (",\"client\":\"a_home\"", ""),
        ("\"request_id\":\"r3\",", ""),
        ("\"route\":\"documents\"", "\"resource\":{\"id\":\"a\\u0000b\\ud800\"}"),
        ("\"machine\":\"m1\"", "\"machine\":\"m\\u00e9 \\\"1\\\"\""),
        // More digits than the database can tell apart.
        ("Z\",\"machine\"", "999Z\",\"machine\""),
    ];
    for (line, (what, with)) in chain.lines.iter_mut().zip(odd) {
        assert!(line.contains(what), "{what}: {line}");
        *line = line.replacen(what, with, 1);
    }
    store.ships(chain.batch(), 6, 0, 0);
    let changed = || {
        store.on_database(async |client| {
            let rows = chains::entries(client, CHAIN, Class::Data, 0, 100).await.unwrap();
            rows.into_iter().map(|row| row.changed).collect::<Vec<_>>()
        })
    };
    assert_eq!(changed(), vec![Some(Vec::new()); 6]);
    store.sql("update audit_events set actor = 'u_bob', status = 200 where seq = 1");
    store.sql("update audit_events set client = '', request_id = 'r3' where seq = 2");
    store.sql("update audit_events set time = time - interval '1 microsecond' where seq = 3");
    store.sql("update audit_events set entry = '{}' where seq = 5");
    let same = || Some(Vec::new());
    assert_eq!(
        changed(),
        [Some(vec!["status", "actor"]), Some(vec!["client", "request_id"]), Some(vec!["time"]), same(), None, same()]
    );
    // A row that no partition should have, and a time that cannot be read.
    store.sql("create table beyond partition of audit_events_data default");
    store.sql("update audit_events set time = 'infinity' where seq = 4");
    assert_eq!(changed()[3], Some(vec!["time"]));

    // Deleting a chain's row does not hide the chain while other rows name it.
    let header = r#"{"segment":1,"chain":"CHAIN","class":"data","machine":"m1","first":7,"prev":"00","created":"2026-01-01T00:00:00Z"}"#;
    store.ships(format!("{}\n{}\n", chain.head(), header.replace("CHAIN", CHAIN)), 0, 0, 0);
    store.sql("delete from audit_chains");
    let known = store.on_database(async |client| chains::chains(client).await.unwrap());
    assert_eq!(known.iter().map(|chain| (&*chain.chain, &*chain.class)).collect::<Vec<_>>(), [(CHAIN, "data")]);
}

#[test]
fn several_machines_that_need_a_month_at_once_make_it_once() {
    let store = Store::start();
    let years: Vec<Timestamp> = (0..24).map(|n| Timestamp::now() - SignedDuration::from_hours(24 * 31 * n)).collect();
    thread::scope(|scope| {
        for sender in 0..4 {
            let (store, years) = (&store, &years);
            scope.spawn(move || {
                let mut chain = Chain::new(&format!("{sender:016x}"), Class::Administration);
                years.iter().rev().for_each(|time| chain.add(*time, "u_ann", "a_home"));
                store.ships(chain.batch(), 24, 0, 0);
            });
        }
    });
    assert_eq!(store.by_class("TRUE")["administration"], 96);
    let months = store.sql("select count(distinct date_trunc('month', time at time zone 'UTC')) from audit_events where class = 'administration'");
    let tables =
        store.sql("select count(*) from pg_inherits where inhparent = 'audit_events_administration'::regclass");
    assert_eq!(tables, months);
}

#[test]
fn a_row_that_the_database_rejects_is_kept_unchanged_and_stops_no_other() {
    let store = Store::start();
    let mut chain = Chain::of(CHAIN, Class::Data, 200);
    let good = chain.lines.clone();
    let poison = |line: &mut String, what: &str, with: &str| {
        assert!(line.contains(what), "{line}");
        *line = line.replacen(what, with, 1);
    };
    poison(&mut chain.lines[3], "\"machine\":\"m1\"", "\"machine\":\"m\\u0000\"");
    poison(&mut chain.lines[50], "success", "perhaps");
    let year = good[51].split("\"time\":\"").nth(1).unwrap()[..4].to_owned();
    poison(&mut chain.lines[51], &format!("\"time\":\"{year}"), "\"time\":\"9999");
    poison(&mut chain.lines[99], "\"actor\":", "\"actr\":");
    poison(&mut chain.lines[100], "\"class\":\"data\"", "\"class\":\"deletion\"");
    poison(&mut chain.lines[150], "\"actor\":{\"id\":\"u_ann\"", &format!("\"actor\":{{\"id\":\"{}\"", noise(6000)));
    let mut batch = chain.batch().into_bytes();
    batch.extend_from_slice(b"no entry \xff\xfe\n");
    store.ships(&batch, 194, 0, 7);
    store.ships(&batch, 0, 194, 7);
    assert_eq!(store.count("audit_events where chain <> 'app'"), 194);
    let refused = store.sql("select encode(line, 'hex'), why from audit_refused order by id");
    let refused: BTreeMap<&str, &str> = refused.lines().map(|row| row.split_once('|').unwrap()).collect();
    assert_eq!(refused.len(), 7, "{refused:#?}");
    for (line, why) in [
        (chain.lines[3].as_bytes(), "invalid byte sequence"),
        (chain.lines[50].as_bytes(), "audit_events_outcome_check"),
        (chain.lines[51].as_bytes(), "an impossible time"),
        (chain.lines[99].as_bytes(), "is not an entry"),
        (chain.lines[100].as_bytes(), "of class \"deletion\""),
        (chain.lines[150].as_bytes(), "index row"),
        (b"no entry \xff\xfe".as_slice(), "not UTF-8"),
    ] {
        let said = refused.get(&*hex(line)).unwrap_or_else(|| panic!("{why}: not kept: {refused:#?}"));
        assert!(said.contains(why), "{said}");
    }

    // An entry does not replace another one with the same id and time.
    let mut forged = chain;
    forged.lines = vec![good[0].replace("u_ann", "u_bob")];
    store.ships(forged.batch(), 0, 0, 1);
    assert!(store.sql("select entry from audit_events where seq = 1").contains("u_ann"));
    assert!(store.sql("select why from audit_refused order by id desc limit 1").contains("another entry"));
}

#[test]
fn a_document_whose_creation_is_undone_is_recorded_as_deleted() {
    let house = House::with(&[("OUTRIGGER_AUDIT_KEYS", KEYS)]);
    // ChromaDB keeps the dimension of its first document and rejects any other, after PostgreSQL has stored the document.
    assert_eq!(house.send("POST", "/api/v1/documents", &document("one")).unwrap().status, 201);
    until("the vector store to have it", || house.nothing_is_pending());
    let (dir, address) = (fresh_dir(), local());
    let env = [("OUTRIGGER_AUDIT_KEYS", KEYS), ("APP_VECTOR_DIMENSION", "4")];
    let _second = crate::house::start_app(&dir, "second", &house.postgres, &house.chroma, address, &env);
    let other = json!({ "content": "x", "embedding": [1, 2, 3, 4] }).to_string();
    let fields = [("x-api-key", "secret"), ("content-type", "application/json")];
    until("the second app's tables", || {
        http::send("GET", address, "/api/v1/documents", &fields, "", LIMIT).is_ok_and(|answer| answer.status == 200)
    });
    let answer = http::send("POST", address, "/api/v1/documents", &fields, &other, LIMIT).unwrap();
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("holds vectors of 3 numbers"), "{}", answer.body);
    let entries: Vec<_> = own(&house.postgres).into_iter().filter(|entry| entry[1] != "list").collect();
    let acts: Vec<&str> = entries.iter().map(|entry| entry[1].as_str()).collect();
    assert_eq!(acts, ["create", "create", "undo"]);
    assert_eq!((&entries[1][2], &entries[1][5]), (&entries[2][2], &entries[2][5]), "the same document and request");
    assert_eq!((&*entries[2][3], &*entries[2][4]), ("", "outrigger"));
    assert_eq!(house.ids_in_postgres().len(), 1);
}

/// Text that does not compress.
fn noise(length: usize) -> String {
    (0..).map(|n: u32| sha256(&n.to_string())).flat_map(|text| text.chars().collect::<Vec<_>>()).take(length).collect()
}

#[test]
fn no_entry_is_lost_or_doubled_when_postgresql_restarts() {
    let mut store = Store::start();
    let url = store.postgres.url("app");
    let refused_for_now = AtomicBool::new(false);
    const BATCHES: usize = 40;
    const ROWS: usize = 100;
    thread::scope(|scope| {
        let senders: Vec<_> = (0..3)
            .map(|sender| {
                let (url, refused_for_now) = (&url, &refused_for_now);
                scope.spawn(move || {
                    let chain = Chain::of(&format!("{sender:016x}"), Class::Data, (BATCHES * ROWS) as u64);
                    for lines in chain.lines.chunks(ROWS) {
                        let batch = format!("{}\n{}\n", chain.head(), lines.join("\n"));
                        let sent = || {
                            let stored = ship(url, batch.as_bytes());
                            assert!(matches!(stored, Ok(_) | Err(StoreError::Database(_))), "{stored:?}");
                            refused_for_now.fetch_or(stored.is_err(), Ordering::Relaxed);
                            stored.is_ok()
                        };
                        wait::until("a batch to be stored", Duration::from_secs(60), sent).unwrap();
                    }
                })
            })
            .collect();
        let stored =
            || store.postgres.sql("app", "select count(*) from audit_events").unwrap().parse::<usize>().unwrap();
        until("some batches", || stored() > 5 * ROWS);
        store.postgres.crash().unwrap();
        until("a refusal", || refused_for_now.load(Ordering::Relaxed));
        store.postgres.start_again().unwrap();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
    let rows = store
        .sql("select chain, count(*), count(distinct seq), max(seq) from audit_events group by chain order by chain");
    let all = BATCHES * ROWS;
    let expected: Vec<String> = (0..3).map(|n| format!("{n:016x}|{all}|{all}|{all}")).collect();
    assert_eq!(rows.lines().collect::<Vec<_>>(), expected);
    assert_eq!(store.count("audit_refused"), 0);
}

/// Days of events: more than thirteen months.
const DAYS: i64 = 400;

/// One event per day, oldest first, at an hour at which no retention ends. Every tenth is about another subject.
fn thirteen_months(class: Class) -> Chain {
    let mut chain = Chain::new(CHAIN, class);
    let now = Timestamp::now();
    for day in (0..DAYS).rev() {
        let time = now - SignedDuration::from_hours(24 * day + 1);
        let (actor, client) = match day % 10 {
            0 => ("u_held", "a_home"),
            5 => ("u_ann", "a_held"),
            _ => ("u_ann", "a_home"),
        };
        chain.add(time, actor, client);
    }
    chain
}

fn defaults() -> Retention {
    Class::ALL.map(|class| (class, class.default_retention_s())).into()
}

#[test]
fn retention_removes_exactly_what_the_table_says() {
    let store = Store::start();
    let all: BTreeMap<Class, Chain> = Class::ALL.into_iter().map(|class| (class, thirteen_months(class))).collect();
    for chain in all.values() {
        store.ships(chain.batch(), DAYS as u64, 0, 0);
    }
    assert!(store.by_class("TRUE").values().all(|count| *count == DAYS as u64));
    let tables = |class: &str| {
        let list = "select count(*) from pg_inherits where inhparent = 'audit_events_CLASS'::regclass";
        store.sql(&list.replace("CLASS", class)).parse::<u64>().unwrap()
    };
    let before = tables("security");

    let drops = store.retains(&defaults());
    let expected = [
        ("security", 30),
        ("authentication", 90),
        ("data", 365),
        ("administration", DAYS as u64),
        ("deletion", DAYS as u64),
    ];
    let expected: BTreeMap<String, u64> = expected.into_iter().map(|(class, days)| (class.to_owned(), days)).collect();
    assert_eq!(store.by_class("TRUE"), expected);
    let old = store.sql("select class, count(*) from audit_events where class in ('security', 'authentication', 'data') and time < now() - \
        case class when 'security' then 30 when 'authentication' then 90 else 365 end * interval '1 day' group by class");
    assert_eq!(old, "");
    assert!(before >= 13 && tables("security") <= 3, "{before} → {}", tables("security"));
    let classes: Vec<&str> = drops.iter().map(|drop| drop["class"].as_str().unwrap()).collect();
    assert_eq!(classes, ["security", "authentication", "data"]);
    for drop in &drops {
        let class = Class::named(drop["class"].as_str().unwrap()).unwrap();
        let gone = DAYS as u64 - expected[class.name()];
        assert_eq!((&drop["through"], &drop["count"], &drop["kept"]), (&json!(gone), &json!(gone), &json!(0)));
        assert_eq!(drop["hash"], sha256(&all[&class].lines[gone as usize - 1]), "what the next entry has for prev");
        assert_eq!(drop["kept_digest"], sha256(""));
    }
    assert_eq!(
        store.retains(&defaults()),
        Vec::<Value>::new(),
        "nothing is left to remove, and who was told has a minute"
    );

    // Removed entries are not stored again, and the app does not ask for them again.
    store.ships(all[&Class::Security].batch(), 0, DAYS as u64, 0);
    assert_eq!(store.by_class("TRUE"), expected);

    // The audit log records the removal once.
    let (entry, other) = ("0199a7a5-0000-7000-8000-00000000000a", "0199a7a5-0000-7000-8000-00000000000b");
    let note = |entry: &str| {
        let recorded: Vec<Recorded> = drops
            .iter()
            .map(|drop| json!({ "id": drop["id"], "entry": entry, "key": "k1", "signature": "s" }))
            .map(|recorded| serde_json::from_value(recorded).unwrap())
            .collect();
        store.on_database(async |client| drops::note(client, &recorded).await.unwrap())
    };
    assert_eq!((note(entry), note(other)), (3, 0));
    store.sql("update audit_drops set offered = '-infinity'");
    assert_eq!(store.retains(&defaults()), Vec::<Value>::new());
    store.on_database(async |client| {
        let removals = chains::removals(client, CHAIN, Class::Security).await.unwrap();
        let (recorded, signature) = removals[0].recorded.clone().unwrap();
        assert_eq!((recorded.to_string(), &*signature.key), (entry.to_owned(), "k1"));
        let told: Dropped = serde_json::from_value(drops[0].clone()).unwrap();
        assert_eq!(removals[0].dropped.canonical(), told.canonical(), "what was signed can be checked");
    });
}

/// Each step is a transaction of bounded size; steps of any size remove the same entries in total.
#[test]
fn a_large_retention_goes_in_small_steps_and_can_be_killed_between_any_two() {
    let store = Store::start();
    // 400 days: whole months that have expired, and one that has expired in part.
    store.ships(thirteen_months(Class::Data).batch(), DAYS as u64, 0, 0);
    let retention = Retention::from([(Class::Data, 100 * 86_400)]);
    let small = Steps { whole_bytes: 1, part_bytes: 1, rows: 7, budget: Duration::ZERO };
    let left = || store.count("audit_events where class = 'data'");
    let (mut steps, mut removed, mut resume) = (0, 0, None);
    loop {
        let before = left();
        let asked: Option<Resume> = resume.take();
        let done = store.on_database(async |client| retain(client, &retention, Timestamp::now(), asked, &small).await);
        let done = done.unwrap();
        let of_step: i64 = done.dropped.iter().map(|dropped| dropped.count).sum();
        assert_eq!(i64::try_from(before - left()).unwrap(), of_step);
        assert!((0..=8).contains(&of_step), "{of_step} entries in a step of 7");
        (steps, removed) = (steps + 1, removed + of_step);
        resume = done.resume;
        if steps % 10 == 5 {
            // As if the process had been killed: starts again from the beginning.
            resume = None;
        } else if resume.is_none() {
            break;
        }
        assert!(steps < 500, "{removed} of 300 after {steps} steps");
    }
    assert!(steps > 300 / 8, "{steps} steps");
    assert_eq!((removed, left()), (DAYS - 100, 100));
    // Each removal is recorded, and the rest of the chain continues after the last one.
    let last = store.sql("select through from audit_drops order by through desc limit 1").parse::<i64>().unwrap();
    assert_eq!(last, removed);
    assert_eq!(store.sql("select min(seq) from audit_events where class = 'data'"), (removed + 1).to_string());
    let partitions = store.sql("select count(*) from pg_inherits where inhparent = 'audit_events_data'::regclass");
    assert!(partitions.parse::<u32>().unwrap() <= 6, "empty partitions are dropped: {partitions} are left");
}

#[test]
fn a_restarted_chain_is_not_mistaken_for_one_removed_by_retention() {
    let store = Store::start();
    let ago = |hours: i64| Timestamp::now() - SignedDuration::from_hours(hours);
    let mut old = Chain::new(CHAIN, Class::Security);
    [24 * 50, 24 * 45, 24 * 20, 24].into_iter().for_each(|hours| old.add(ago(hours), "u_ann", "a_home"));
    store.ships(old.batch(), 4, 0, 0);
    assert_eq!(store.retains(&defaults())[0]["through"], json!(2));
    store.ships(old.batch(), 0, 4, 0);

    // The directory was restored to its state before the first entry, so new entries reuse the numbers.
    let mut anew = Chain::new(CHAIN, Class::Security);
    // One made before retention ran, but after all that it removed; and one made after both.
    [24 * 10, 0].into_iter().for_each(|hours| anew.add(ago(hours), "u_bob", "a_home"));
    store.ships(anew.batch(), 0, 0, 2);
    store.ships(anew.batch(), 0, 0, 2);
    let kept = store.sql("select convert_from(line, 'UTF8') from audit_refused order by id");
    assert_eq!(kept.lines().collect::<Vec<_>>(), anew.lines, "kept, once, to the last byte");
    let why = store.sql("select why from audit_refused limit 1");
    assert!(why.contains("up to 2") && why.contains("was restarted"), "{why}");

    // Where no entry is left, the time of the removal decides.
    let mut gone = Chain::new("00000000000000bb", Class::Security);
    gone.add(ago(24 * 50), "u_ann", "a_home");
    store.ships(gone.batch(), 1, 0, 0);
    store.retains(&defaults());
    store.ships(gone.batch(), 0, 1, 0);
    let mut anew = Chain::new(&gone.id, Class::Security);
    anew.add(Timestamp::now() + SignedDuration::from_secs(1), "u_bob", "a_home");
    store.ships(anew.batch(), 0, 0, 1);
}

#[test]
fn entries_on_hold_stay_until_released() {
    let store = Store::start();
    let mut chains = BTreeMap::new();
    for class in [Class::Security, Class::Authentication, Class::Data] {
        let chain = thirteen_months(class);
        store.ships(chain.batch(), DAYS as u64, 0, 0);
        chains.insert(class, chain);
    }
    let subjects = ["u_held".to_owned(), "a_held".to_owned()];
    let (of_class, of_subject) = store.on_database(async |client| {
        let of_class = subjects::hold(client, Some(Class::Authentication), &[], "an inquiry", "ann").await.unwrap();
        let of_subject = subjects::hold(client, None, &subjects, "a lawsuit", "ann").await.unwrap();
        assert!(matches!(subjects::hold(client, None, &[], "?", "ann").await, Err(StoreError::Invalid(_))));
        let refused = subjects::erase(client, &subjects[..1], "ann", None).await;
        assert!(matches!(refused, Err(StoreError::Held(id)) if id == of_subject.id), "{refused:?}");
        (of_class.id, of_subject.id)
    });
    let drops = store.retains(&defaults());
    // One in five is on hold: of 370 days, 37 by the actor and 37 by the client.
    assert_eq!(store.by_class("TRUE")["authentication"], DAYS as u64);
    assert_eq!(store.by_class("TRUE")["security"], 30 + 74);
    assert_eq!(store.by_class("TRUE")["data"], 365 + 7);
    assert_eq!(
        store
            .by_class("actor <> 'u_held' and client <> 'a_held' and time < now() - interval '30 days'")
            .get("security"),
        None
    );
    let classes: Vec<&str> = drops.iter().map(|drop| drop["class"].as_str().unwrap()).collect();
    assert_eq!(classes, ["security", "data"]);
    let security = &drops[0];
    assert_eq!((&security["through"], &security["count"], &security["kept"]), (&json!(370), &json!(296), &json!(74)));
    let held = |line: &&String| line.contains("u_held") || line.contains("a_held");
    let digest = ring::digest::digest(
        &ring::digest::SHA256,
        &chains[&Class::Security].lines[..370].iter().filter(held).fold(Vec::new(), |mut hashes, line| {
            hashes.extend_from_slice(ring::digest::digest(&ring::digest::SHA256, line.as_bytes()).as_ref());
            hashes
        }),
    );
    assert_eq!(security["kept_digest"], hex(digest.as_ref()));

    store.on_database(async |client| {
        assert!(subjects::release(client, of_class).await.unwrap().is_some());
        assert!(subjects::release(client, of_subject).await.unwrap().is_some());
        assert!(subjects::release(client, of_subject).await.unwrap().is_none(), "once");
        assert_eq!(subjects::holds(client).await.unwrap().len(), 2);
    });
    let drops = store.retains(&defaults());
    assert_eq!(store.by_class("TRUE")["security"], 30);
    assert_eq!(store.by_class("TRUE")["authentication"], 90);
    assert_eq!(store.by_class("TRUE")["data"], 365);
    let security = drops.iter().find(|drop| drop["class"] == "security").unwrap();
    // The removed prefix is the same: the entries on hold in it are gone too.
    assert_eq!((&security["through"], &security["count"], &security["kept"]), (&json!(370), &json!(74), &json!(0)));
    assert_eq!(security["hash"], sha256(&chains[&Class::Security].lines[369]));
}

#[test]
fn retention_removes_only_a_prefix_of_a_chain_despite_clock_jumps() {
    let store = Store::start();
    let mut chain = Chain::new(CHAIN, Class::Security);
    let day = |days: i64| Timestamp::now() - SignedDuration::from_hours(24 * days + 1);
    // The clock was wrong for a while: the third and fourth entry look older than they are.
    for days in [45, 20, 300, 45, 10] {
        chain.add(day(days), "u_ann", "a_home");
    }
    store.ships(chain.batch(), 5, 0, 0);
    let drops = store.retains(&defaults());
    assert_eq!((&drops[0]["through"], &drops[0]["count"]), (&json!(1), &json!(1)));
    assert_eq!(store.sql("select seq from audit_events where class = 'security' order by seq"), "2\n3\n4\n5");
}

#[test]
fn the_apps_own_entries_are_removed_by_their_time() {
    let store = Store::start();
    store.ships(thirteen_months(Class::Data).batch(), DAYS as u64, 0, 0);
    store.sql(
        "insert into audit_events (class, time, id, chain, machine, type, action, outcome, actor, entry)
         select 'data', now() - day * interval '1 day' - interval '1 hour', gen_random_uuid(), 'app', 'm1', 'data.read', 'read', 'success', 'u_ann', '{}'
         from generate_series(0, 399) day",
    );
    let drops = store.retains(&defaults());
    assert_eq!(store.by_class("chain = 'app'")["data"], 365);
    let own = drops.iter().find(|drop| drop["chain"] == "app").unwrap();
    assert_eq!((&own["through"], &own["count"], &own["hash"]), (&json!(0), &json!(35), &json!("0".repeat(64))));
}

#[test]
fn a_clock_that_is_ahead_removes_no_entry_too_early() {
    let store = Store::start();
    store.ships(Chain::of(CHAIN, Class::Security, 10).batch(), 10, 0, 0);
    assert_eq!(store.retains_at("2099-01-01T00:00:00Z".parse().unwrap(), &defaults()), Vec::<Value>::new());
    assert_eq!(store.by_class("TRUE")["security"], 10);
}

#[test]
fn an_erased_key_stays_erased_in_every_spool() {
    let store = Store::start();
    let chain = Chain::of(CHAIN, Class::Data, 1);
    let keys = MasterKeys::parse(KEYS).unwrap().unwrap();
    let key = |subject: &str, created: Timestamp| {
        let (_, key) = keys.new_data_key(subject).unwrap();
        WrappedKey { created: created.to_string(), ..key }
    };
    let ship = |seen: i64, keys: &[&WrappedKey]| {
        let head = json!({ "chain": CHAIN, "machine": "m1", "class": "data", "erasures_seen": seen, "keys": keys });
        store.ship(format!("{head}\n{}\n", chain.lines[0])).unwrap()["erasures"].clone()
    };
    let known =
        || store.sql("select id from audit_keys order by created").lines().map(str::to_owned).collect::<Vec<_>>();
    let ago = |hours: i64| Timestamp::now() - SignedDuration::from_hours(hours);
    let (stored, late, other) = (key("u_ann", ago(48)), key("u_ann", ago(47)), key("u_bob", ago(46)));
    assert_eq!(ship(0, &[&stored, &other]), json!([]));
    assert_eq!(ship(0, &[&stored, &other]), json!([]), "again");
    assert_eq!(known(), [stored.id.clone(), other.id.clone()]);
    let found = store.on_database(async |client| subjects::keys_of(client, &["u_ann".to_owned()]).await.unwrap());
    assert_eq!(keys.unwrap_key(&found[0]).unwrap().id(), stored.id);

    let erasures = store.on_database(async |client| {
        let subjects = ["u_ann".to_owned(), "u_an2".to_owned()];
        let erased = subjects::erase(client, &subjects, "the officer", Some("asked for")).await.unwrap();
        subjects::set_receipt(client, &[erased[0].erased.number], "entry").await.unwrap();
        subjects::erasures_of(client, &["u_ann".to_owned()]).await.unwrap()
    });
    assert_eq!((erasures.len(), erasures[0].keys, erasures[0].receipt.as_deref()), (1, 1, Some("entry")));
    assert_eq!(known(), [&*other.id]);

    // From the delayed batch, from a spool that has not seen the erasure, and from one that claims that it has.
    for seen in [0, 0, 100] {
        ship(seen, &[&stored, &late, &other]);
        assert_eq!(known(), [&*other.id], "{seen}");
    }
    let heard = ship(0, &[]);
    assert_eq!(
        heard.as_array().unwrap().iter().map(|e| e["subject"].as_str().unwrap()).collect::<Vec<_>>(),
        ["u_ann", "u_an2"]
    );
    assert_eq!(ship(heard[0]["number"].as_i64().unwrap(), &[]).as_array().unwrap().len(), 1);
    assert_eq!(ship(heard[1]["number"].as_i64().unwrap(), &[]), json!([]));

    // A subject that returns gets a new key, from a spool that has seen the erasure.
    let again = key("u_ann", Timestamp::now());
    ship(heard[1]["number"].as_i64().unwrap(), &[&again]);
    assert_eq!(known(), [other.id, again.id]);
}

#[test]
fn keys_are_removed_with_the_last_entry_they_encrypt() {
    let store = Store::start();
    let mut chain = Chain::new(CHAIN, Class::Deletion);
    chain.add(Timestamp::now() - SignedDuration::from_hours(24 * 1200), "u_old", "a_home");
    chain.add(Timestamp::now() - SignedDuration::from_hours(24 * 1200), "u_held", "a_home");
    chain.add(Timestamp::now() - SignedDuration::from_hours(24), "u_ann", "a_home");
    let keys = MasterKeys::parse(KEYS).unwrap().unwrap();
    let sealed: Vec<WrappedKey> = ["u_old", "u_held", "u_ann"]
        .map(|subject| {
            let (_, key) = keys.new_data_key(subject).unwrap();
            WrappedKey { created: (Timestamp::now() - SignedDuration::from_hours(24 * 1201)).to_string(), ..key }
        })
        .into();
    let head = json!({ "chain": CHAIN, "machine": "m1", "class": "deletion", "keys": sealed });
    store.ships(format!("{head}\n{}\n", chain.lines.join("\n")), 3, 0, 0);
    store.on_database(async |client| {
        subjects::hold(client, Some(Class::Deletion), &["u_held".to_owned()], "a lawsuit", "ann").await.unwrap();
    });
    store.retains(&defaults());
    assert_eq!(store.sql("select subject from audit_keys order by subject"), "u_ann\nu_held");
}

#[test]
fn a_name_is_removed_with_its_last_entry() {
    let store = Store::start();
    let ago = |days: i64| Timestamp::now() - SignedDuration::from_hours(24 * days + 1);
    let keys = MasterKeys::parse(KEYS).unwrap().unwrap();
    let mut sealed = Vec::new();
    let mut chain = Chain::new(CHAIN, Class::Security);
    // The shortest retention is that of `security`, 30 days; keys stay a week longer for entries that are not shipped yet.
    for (subject, made) in [("u_gone", 40), ("u_late", 36), ("u_back", 40), ("u_else", 40)] {
        chain.add(ago(made), subject, "a_home");
        let (_, key) = keys.new_data_key(subject).unwrap();
        sealed.push(WrappedKey { created: ago(made).to_string(), ..key });
    }
    chain.add(ago(2), "u_back", "a_home");
    let head = json!({ "chain": CHAIN, "machine": "m1", "class": "security", "keys": sealed });
    store.ships(format!("{head}\n{}\n", chain.lines.join("\n")), 5, 0, 0);
    let mut other = Chain::new("00000000000000bb", Class::Data);
    other.add(ago(40), "u_else", "a_home");
    store.ships(other.batch(), 1, 0, 0);
    let left = || store.sql("select subject from audit_keys order by subject");

    store.retains(&defaults());
    assert_eq!(store.by_class("TRUE"), BTreeMap::from([("security".to_owned(), 1), ("data".to_owned(), 1)]));
    assert_eq!(left(), "u_back\nu_else\nu_late");
    // A shorter retention removes the keys sooner.
    let mut shorter = defaults();
    shorter.insert(Class::Security, 86_400);
    store.retains(&shorter);
    assert_eq!(left(), "u_else");
}

#[test]
fn entries_are_found_by_content_newest_first_in_pages() {
    let store = Store::start();
    let mut data = Chain::new(CHAIN, Class::Data);
    let now = Timestamp::now();
    for n in 0..100_i64 {
        let (actor, client) = if n % 4 == 0 { ("u_bob", "a_bob") } else { ("u_ann", "a_home") };
        data.add(now - SignedDuration::from_hours(24 * (100 - n)), actor, client);
    }
    store.ships(data.batch(), 100, 0, 0);
    let mut security = Chain::new(CHAIN, Class::Security);
    security.add(now - SignedDuration::from_hours(24 * 50 + 12), "u_eve", "a_bob");
    security.lines[0] = security.lines[0].replace("success", "refused").replace("data.read", "security.banned");
    store.ships(security.batch(), 1, 0, 0);
    let find =
        |asked: &Search| -> Vec<Found> { store.on_database(async |client| search(client, asked).await.unwrap()) };
    let any = || Search { limit: 1000, ..Search::default() };

    let all = find(&any());
    assert_eq!(all.len(), 101);
    assert!(all.is_sorted_by_key(|found| std::cmp::Reverse((found.place.time, found.place.id))));
    let bob = Search { subjects: vec!["u_bob".to_owned(), "a_bob".to_owned()], ..any() };
    let bobs = find(&bob);
    // An entry that matches by both actor and client is listed once.
    assert_eq!(bobs.len(), 26);
    let mut pages = Vec::new();
    let mut page = Search { limit: 7, ..bob.clone() };
    loop {
        let found = find(&page);
        page.after = found.last().map(|found| found.place);
        pages.extend(found.clone());
        if found.len() < 7 {
            break;
        }
    }
    assert_eq!(pages, bobs);
    assert_eq!(find(&Search { classes: vec![Class::Security], ..bob }).len(), 1);
    assert_eq!(find(&Search { outcome: Some(Outcome::Refused), ..any() })[0].line, security.lines[0]);
    assert_eq!(find(&Search { types: vec!["security.banned".to_owned()], ..any() }).len(), 1);
    assert_eq!(find(&Search { request_id: Some("r1".to_owned()), ..any() }).len(), 2);
    assert_eq!(find(&Search { machine: Some("m2".to_owned()), ..any() }).len(), 0);
    let hours = |hours: i64| Some(now - SignedDuration::from_hours(hours));
    assert_eq!(find(&Search { from: hours(24 * 10), until: hours(24 * 5), ..any() }).len(), 5);
    store.on_database(async |client| {
        assert!(matches!(search(client, &Search::default()).await, Err(StoreError::Invalid(_))), "a page of none");
    });
}

/// The app's own entries: type, action, document or documents, status, actor, request.
fn own(house: &Postgres) -> Vec<[String; 6]> {
    let rows = house
        .sql(
            "app",
            "select entry, type, action, actor, request_id, status from audit_events where chain = 'app' order by time",
        )
        .unwrap();
    rows.lines()
        .map(|row| {
            let (entry, columns) = row.rsplit_once('}').map(|(entry, rest)| (format!("{entry}}}"), rest)).unwrap();
            let entry: Value = serde_json::from_str(&entry).unwrap_or_else(|e| panic!("{e}: {entry}"));
            let columns: Vec<&str> = columns.trim_start_matches('|').split('|').collect();
            assert_eq!((entry["type"].as_str(), entry["action"].as_str()), (Some(columns[0]), Some(columns[1])));
            assert_eq!(
                (entry["actor"]["id"].as_str(), entry["request_id"].as_str()),
                (Some(columns[2]), Some(columns[3]))
            );
            assert!(entry.get("seq").is_none() && entry.get("prev").is_none(), "{entry}");
            let what =
                if entry["resource"].is_null() { &entry["details"]["documents"] } else { &entry["resource"]["id"] };
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            ["type", "action"]
                .map(|of| text(&entry[of]))
                .into_iter()
                .chain([text(what), columns[4].to_owned(), columns[2].to_owned(), columns[3].to_owned()])
                .collect::<Vec<_>>()
                .try_into()
                .unwrap()
        })
        .collect()
}

#[test]
fn every_operation_on_documents_is_recorded_with_its_actor() {
    let house = House::with(&[("OUTRIGGER_AUDIT_KEYS", KEYS)]);
    let ask = |method: &str, path: &str, body: &str, id: &str| {
        let fields = [("x-api-key", "secret"), ("content-type", "application/json"), ("x-request-id", id)];
        http::send(method, house.app_address, path, &fields, body, LIMIT).unwrap()
    };
    let created = ask("POST", "/api/v1/documents", &document("one"), "r-create");
    assert_eq!(created.status, 201, "{}", created.body);
    let id = serde_json::from_str::<Value>(&created.body).unwrap()["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/documents/{id}");
    until("the vector store to have it", || house.nothing_is_pending());
    let second = ask("POST", "/api/v1/documents", &document("two"), "r-second");
    let second = serde_json::from_str::<Value>(&second.body).unwrap()["id"].as_str().unwrap().to_owned();
    until("the vector store to have it", || house.nothing_is_pending());
    assert_eq!(ask("GET", &path, "", "r-read").status, 200);
    assert_eq!(ask("GET", "/api/v1/documents?limit=1", "", "r-list").status, 200);
    let found = ask("POST", "/api/v1/documents/search", r#"{"embedding":[1,0.5,0.25],"limit":1}"#, "r-search");
    let found = serde_json::from_str::<Value>(&found.body).unwrap()["documents"].as_array().unwrap().clone();
    assert_eq!(found.len(), 1);
    assert_eq!(ask("DELETE", &path, "", "r-delete").status, 204);
    // A missing document was not read, and the proxy records rejected requests.
    assert_eq!(ask("GET", &path, "", "r-gone").status, 404);
    assert_eq!(ask("DELETE", &path, "", "r-gone").status, 404);
    assert_eq!(http::get(house.app_address, &path, LIMIT).unwrap().status, 401);

    let keys = MasterKeys::parse(KEYS).unwrap().unwrap();
    let [actor] = keys.pseudonyms("key:test").unwrap().try_into().unwrap();
    let shown = |id: &str| format!("[\"{id}\"]");
    let expected = [
        ["data.write", "create", &id, "201", &actor, "r-create"],
        ["data.write", "create", &second, "201", &actor, "r-second"],
        ["data.read", "read", &id, "200", &actor, "r-read"],
        ["data.read", "list", &shown(&second), "200", &actor, "r-list"],
        ["data.read", "search", &shown(found[0]["id"].as_str().unwrap()), "200", &actor, "r-search"],
        ["data.delete", "delete", &id, "204", &actor, "r-delete"],
    ];
    assert_eq!(own(&house.postgres), expected);
    let classes =
        house.postgres.sql("app", "select distinct class from audit_events where type = 'data.delete'").unwrap();
    assert_eq!(classes, "deletion");
}

#[test]
fn without_audit_flag_or_keys_documents_work_as_before() {
    let documents = |store: &Store| {
        assert_eq!(store.ask(&post("/api/v1/documents", &document("one"))).status, 201);
        store.get("/api/v1/documents").status
    };
    for (env, mode) in [
        (vec![], ""),
        (vec![("OUTRIGGER_AUDIT_KEYS", KEYS), ("FF_ENABLE_AUDIT_TRAIL", "false")], ""),
        (vec![("OUTRIGGER_AUDIT_KEYS", KEYS), ("FF_ENABLE_AUDIT_TRAIL", "monitor")], "monitor"),
    ] {
        let store = Store::with(&env);
        store.sql("alter table audit_events rename to broken");
        assert_eq!(documents(&store), 200, "{env:?}");
        assert_eq!(store.count("broken"), 0);
        let counted = store.metric("app_audit_events_total", &[("type", "data.write")]);
        assert_eq!(counted, f64::from(u8::from(!mode.is_empty())), "{env:?}");
        let log = fs::read_to_string(store.app.log()).unwrap();
        assert_eq!(log.contains("OUTRIGGER_AUDIT_PSEUDONYM_KEY is not set"), env.is_empty(), "{log}");
    }
}

#[test]
fn without_an_audit_entry_a_change_is_rejected() {
    let store = Store::with(&[("OUTRIGGER_AUDIT_KEYS", KEYS)]);
    let create = || store.ask(&post("/api/v1/documents", &document("one")));
    let created = create();
    assert_eq!(created.status, 201, "{}", created.text());
    let path = format!("/api/v1/documents/{}", created.json()["id"].as_str().unwrap());
    store.sql("alter table audit_events rename to broken");
    let delete = format!("DELETE {path} HTTP/1.1\r\nHost: outrigger.test\r\n\r\n");
    for answer in [create(), store.get(&path), store.get("/api/v1/documents"), store.ask(&delete)] {
        answer.is_problem(503, "audit-unavailable");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        assert!(!answer.text().contains("audit_events"), "the cause is for the log: {}", answer.text());
    }
    let log = fs::read_to_string(store.app.log()).unwrap();
    assert!(log.contains("relation \\\"audit_events\\\" does not exist"), "{log}");
    assert_eq!(store.count("documents"), 1);
    store.sql("alter table broken rename to audit_events");
    assert_eq!(store.get(&path).status, 200);

    // The app creates a missing partition without an operator.
    let tables =
        store.sql("select string_agg(relname, ', ') from pg_class where relname ~ '^audit_events_data_[0-9_]+$'");
    assert_eq!(tables.matches("audit_events_data_").count(), 2, "this month's and the next one's: {tables}");
    store.sql(&format!("drop table {tables}"));
    store.get(&path).is_problem(503, "audit-unavailable");
    until("a place in the trail", || store.get(&path).status == 200);
    assert!(store.metric("app_audit_partitions", &[]) >= 4.0);
}

#[test]
#[ignore = "cargo xtask soak --tests: ten million rows, minutes and gigabytes"]
fn a_subject_is_found_among_ten_million_entries_within_100_milliseconds() {
    let store = Store::start();
    // Throughput of storing batches from one sender, sequentially, as a proxy ships them.
    let chain = Chain::of(CHAIN, Class::Data, 100_000);
    let began = Instant::now();
    for lines in chain.lines.chunks(2000) {
        store.ships(format!("{}\n{}\n", chain.head(), lines.join("\n")), lines.len() as u64, 0, 0);
    }
    let took = began.elapsed().as_secs_f64();
    println!("100000 entries in batches of 2000: {took:.1} s, {:.0} entries/s", 100_000.0 / took);
    assert!(took < 60.0, "{took}");

    // A year of entries, from 100,000 users at 10,000 addresses.
    let mut year = Chain::new("00000000000000bb", Class::Data);
    (0..366).rev().for_each(|day| year.add(Timestamp::now() - SignedDuration::from_hours(24 * day), "u_x", "a_x"));
    store.ships(year.batch(), 366, 0, 0);
    let began = Instant::now();
    store.sql(
        r#"insert into audit_events (class, time, id, chain, seq, machine, type, action, outcome, status, actor, client, request_id, route, entry)
        select 'data', now() - n * interval '3.1 seconds', md5(n::text)::uuid, '00000000000000cc', 10000001 - n, 'm' || n % 10, 'data.read', 'read', 'success', 200,
            'u_' || md5((n * 7919 % 100000)::text), 'a_' || md5((n * 104729 % 10000)::text), 'r' || n, 'documents',
            format('{"seq":%s,"class":"data","id":"%s","time":"2026-11-24T14:00:00.123456Z","machine":"m1","request_id":"r%s","type":"data.read","action":"read","method":"GET","route":"documents","resource":{"id":"42"},"outcome":"success","status":200,"duration_us":1234,"actor":{"id":"u_","kind":"user"},"client":"a_","sealed":"%s","prev":"%s"}', n, n, n, repeat('x', 120), repeat('0', 64))
        from generate_series(1, 10000000::bigint) n"#,
    );
    store.sql("analyze audit_events");
    let size =
        store.sql("select pg_size_pretty(sum(pg_total_relation_size(relid))) from pg_partition_tree('audit_events')");
    println!("10000000 entries made in {:.0} s, {size}", began.elapsed().as_secs_f64());
    let subject = store.sql("select actor from audit_events where chain = '00000000000000cc' and seq = 4711");
    let address = store.sql("select client from audit_events where chain = '00000000000000cc' and seq = 4711");
    store.on_database(async |client| {
        for (name, limit, subjects) in
            [("a user", 1000, vec![subject.clone()]), ("a user and an address", 100, vec![subject, address])]
        {
            let asked = Search { subjects, limit, ..Search::default() };
            let (mut times, mut count) = (Vec::new(), 0);
            for _ in 0..11 {
                let began = Instant::now();
                count = search(client, &asked).await.unwrap().len();
                times.push(began.elapsed());
            }
            println!("{name}: {count} entries; first {:?}", times[0]);
            times.sort();
            println!("{name}: median {:?}, longest {:?}", times[5], times[10]);
            let plan = explain(client, &asked).await.unwrap();
            let told = |line: &&String| !line.contains("never executed");
            println!("{}", plan.iter().filter(told).cloned().collect::<Vec<_>>().join("\n"));
            assert!(count > 50, "{count}");
            assert!(times[5] < Duration::from_millis(100), "{times:?}");
        }
    });
    let began = Instant::now();
    let drops = store.retains(&Retention::from([(Class::Data, 200 * 86_400)]));
    println!(
        "retention of 200 days: {} entries removed in {:?}",
        drops.iter().map(|d| d["count"].as_u64().unwrap()).sum::<u64>(),
        began.elapsed()
    );
    assert!(!drops.is_empty());
    let mut store = store;
    assert!(store.app.stop(Signal::TERM, Duration::from_secs(30)).unwrap().success());
    let _ = fs::remove_dir_all(&store.dir);
}
