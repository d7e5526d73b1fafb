//! From the request to PostgreSQL: each entry arrives once, even if the proxy, the app or the database is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use std::{fs, thread};

use serde_json::Value;
use xtask::postgres::Postgres;
use xtask::{Process, Program, Signal, http, programs};

use crate::audit::{ask_until_it_ends, entries, id};
use crate::backend::Backend;
use crate::harness::{Proxy, Setup, get, post, sha256, until, with_fields};
use crate::house::postgres_in;

const KEYS: (&str, &str) = ("OUTRIGGER_AUDIT_KEYS", "k1:fedcba9876543210fedcba9876543210");
const SECRET: (&str, &str) = ("OUTRIGGER_AUDIT_SECRET", "a secret that both programs know about");
const KEY: &str = "X-Api-Key: secret-of-the-test";
const RULES: &str = "audit.directory = \"trail\"\naudit.default = \"data\"\naudit.durability.data = \"before-response\"\n\
                     audit.parameters = [\"id\"]\naudit.segment_size = \"64KiB\"\nserver.lame_duck = \"0s\"\napp.hold = \"500ms\"\n\
                     [[routes]]\nname = \"documents\"\npath = \"/api/v1/documents/{id}\"\naudit = \"data\"\n";

/// The real app and PostgreSQL, and a config for a proxy in front of them.
struct Place {
    setup: Setup,
    postgres: Postgres,
    address: SocketAddr,
    app: Process,
}

impl Place {
    fn new() -> Self {
        let stand_in = Backend::stopped();
        let setup =
            Setup::new(&stand_in, &format!("{RULES}{}", known_key())).env(KEYS.0, KEYS.1).env(SECRET.0, SECRET.1);
        let address = stand_in.address().parse().unwrap();
        let postgres = postgres_in(&setup.dir);
        let app = start_app(&setup, &postgres, address);
        Self { setup, postgres, address, app }
    }

    fn restart_app(&mut self) {
        self.app.kill();
        self.app = start_app(&self.setup, &self.postgres, self.address);
    }

    fn sql(&self, statement: &str) -> String {
        self.postgres.sql("app", statement).unwrap()
    }

    /// Waits until the app has received all entries.
    #[track_caller]
    fn is_shipped(&self, proxy: &Proxy) {
        until("everything to be shipped", || {
            let of =
                |class: &str| entries(&self.setup).iter().filter(|entry| entry["class"] == class).count().to_string();
            let is_there = |class: &str| {
                let count = format!("select count(*) from audit_events where class = '{class}' and seq is not null");
                self.postgres.sql("app", &count).is_ok_and(|count| count.trim() == of(class))
            };
            proxy.metric("outrigger_audit_unshipped_entries", &[]) == 0.0 && is_there("data")
        });
    }

    fn audit(&self, args: &[&str]) -> (i32, String) {
        let file = self.setup.file.to_str().unwrap();
        let output = self.setup.run(&[&["audit"], args, &["--config", file]].concat());
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }

    #[track_caller]
    fn is_whole(&self) {
        let (code, said) = self.audit(&["verify", "--database", &self.postgres.url("app")]);
        assert_eq!(code, 0, "{said}");
    }
}

fn known_key() -> String {
    format!("[[identity.keys]]\nname = \"test\"\nsha256 = \"{}\"\ntier = \"pro\"\n", sha256("secret-of-the-test"))
}

fn start_app(setup: &Setup, postgres: &Postgres, address: SocketAddr) -> Process {
    let mut app = Program::new(programs::find("outrigger-app").unwrap())
        .env("DATABASE_URL", postgres.url("app"))
        .env("CHROMA_URL", "http://127.0.0.1:1")
        .env("APP_LISTEN", address.to_string())
        .env("APP_API_KEYS", format!("test:{}", sha256("secret-of-the-test")))
        .env("APP_VECTOR_DIMENSION", "3")
        .env(KEYS.0, KEYS.1)
        .env(SECRET.0, SECRET.1)
        .start("outrigger-app", &setup.dir.join("app.log"))
        .unwrap();
    app.ready(Duration::from_secs(20), || http::get(address, "/health/live", Duration::from_secs(2)).is_ok()).unwrap();
    app
}

/// Kills the proxy, the app and PostgreSQL in turn under load, then looks for the requests whose responses clients received.
fn killed(rounds: usize, load: Duration) {
    let mut place = Place::new();
    let list = with_fields(&get("/api/v1/documents?limit=1"), &[KEY]);
    let mut seen = BTreeSet::new();
    let mut proxy = place.setup.clone().start();
    until("the documents to be there", || proxy.ask(&list).status == 200);
    for round in 0..rounds {
        let clients: Vec<_> = (0..4).map(|_| ask_until_it_ends(proxy.address, list.clone())).collect();
        // A different moment in each round; there is no event to wait for.
        let moment = load / 2 + load * u32::try_from(round * 7919 % 100).unwrap() / 200;
        thread::sleep(moment);
        match round % 3 {
            0 => {}
            1 => place.restart_app(),
            _ => {
                place.postgres.crash().unwrap();
                thread::sleep(moment / 4);
                place.postgres.start_again().unwrap();
            }
        }
        // The app or database has recovered: now the proxy is killed, which ends the clients.
        proxy.signal(Signal::KILL);
        proxy.ends_within(Duration::from_secs(10));
        drop(proxy);
        seen.extend(clients.into_iter().flat_map(|client| client.join().unwrap()));
        proxy = place.setup.clone().start();
    }
    assert!(seen.len() > rounds * 3, "{} answers in {rounds} rounds", seen.len());
    let last = place.setup.clone();
    until("the documents to be there again", || proxy.ask(&list).status == 200);
    place.is_shipped(&proxy);
    let entered: BTreeSet<String> =
        entries(&last).iter().filter_map(|entry| entry["request_id"].as_str().map(str::to_owned)).collect();
    let missing: Vec<_> = seen.difference(&entered).collect();
    assert!(missing.is_empty(), "{} of {} are not in the spool: {missing:?}", missing.len(), seen.len());
    let rows = place.sql("select request_id || ' ' || count(*) from audit_events where class = 'data' and seq is not null group by request_id");
    let rows: BTreeMap<&str, &str> = rows.lines().filter_map(|row| row.trim().split_once(' ')).collect();
    for request in &seen {
        assert_eq!(rows.get(request.as_str()), Some(&"1"), "{request} is not in PostgreSQL once");
    }
    assert_eq!(place.sql("select count(*) from audit_refused").trim(), "0");
    place.is_whole();
}

#[test]
fn each_entry_is_stored_once_despite_kills() {
    killed(6, Duration::from_millis(600));
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn each_entry_is_stored_once_despite_200_kills() {
    killed(200, Duration::from_millis(600));
}

/// Searches the proxy's entries and the app's own.
#[test]
fn the_life_of_a_document_is_found_in_the_entries_of_both_programs() {
    let place = Place::new();
    let proxy = place.setup.clone().start();
    let body = r#"{"title":"a","content":"An outrigger keeps a canoe upright.","embedding":[1.0,0.5,0.25]}"#;
    let create = post("/api/v1/documents", body);
    let create = with_fields(&create, &[KEY, "Content-Type: application/json"]);
    let mut made = None;
    until("a document to be made", || {
        let answer = proxy.ask(&create);
        made =
            (answer.status == 201).then(|| (id(&answer), answer.json()["id"].as_str().unwrap_or_default().to_owned()));
        made.is_some()
    });
    let (created, document) = made.unwrap();
    let path = format!("/api/v1/documents/{document}");
    let read = proxy.ask(&with_fields(&get(&path), &[KEY]));
    let stranger = proxy.ask(&get(&path));
    let deleted = proxy.ask(&with_fields(&get(&path).replace("GET", "DELETE"), &[KEY]));
    assert_eq!((read.status, stranger.status, deleted.status), (200, 401, 204));
    place.is_shipped(&proxy);
    let rows = [
        (&created, "data.write", "success"),
        (&id(&read), "data.read", "success"),
        (&id(&stranger), "auth.failed", "failure"),
        (&id(&deleted), "data.delete", "success"),
    ];
    for (request, event, outcome) in rows {
        for from in [&["--database", &*place.postgres.url("app")][..], &[]] {
            let args = [&["search", "--request-id", request.as_str(), "--json", "--reveal"], from].concat();
            let mut said = String::new();
            let mut found: Vec<Value> = Vec::new();
            until("the entries to be found", || {
                said = place.audit(&args).1;
                found = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
                !found.is_empty() && found.iter().any(|entry| entry["seq"].is_u64())
            });
            let chained = found.iter().find(|entry| entry["seq"].is_u64()).unwrap();
            assert_eq!((chained["type"].as_str(), chained["outcome"].as_str()), (Some(event), Some(outcome)), "{said}");
            let is_known = event != "auth.failed";
            assert_eq!(chained["revealed"]["actor"] == "key:test", is_known, "{said}");
            if is_known && !from.is_empty() {
                let own = found.iter().find(|entry| !entry["seq"].is_u64()).expect("the app's own entry");
                assert_eq!((&own["type"], &own["actor"]["id"]), (&chained["type"], &chained["actor"]["id"]), "{said}");
            }
        }
    }
    let erased = place.audit(&["erase", "--subject", "key:test", "--yes", "--database", &place.postgres.url("app")]);
    assert_eq!(erased.0, 0, "{}", erased.1);
    for from in [&["--database", &*place.postgres.url("app")][..], &[]] {
        let (code, said) = place.audit(&[&["export", "--subject", "key:test"], from].concat());
        assert!(code == 0 && said.contains("data.write") && !said.contains("\"key:test\""), "{said}");
    }
    place.is_shipped(&proxy);
    place.is_whole();
    let stored =
        fs::read_dir(place.setup.dir.join("trail")).unwrap().flatten().map(|file| fs::read(file.path()).unwrap());
    let stored: Vec<u8> = stored.flatten().collect();
    assert!(!String::from_utf8_lossy(&stored).contains("secret-of-the-test"));
}
