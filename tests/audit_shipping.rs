//! From the request to PostgreSQL: each entry arrives once, even if the proxy, the app or the database is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::Value;
use xtask::postgres::Postgres;
use xtask::{Process, Program, Signal, http, programs};

use crate::audit::{ask_until_it_ends, entries, id};
use crate::backend::Backend;
use crate::harness::{Client, Proxy, Setup, get, post, sha256, until, with_fields};
use crate::house::{local, postgres_in};

const KEYS: (&str, &str) = ("OUTRIGGER_AUDIT_KEYS", "k1:fedcba9876543210fedcba9876543210");
const DATABASE: &str = "OUTRIGGER_AUDIT_DATABASE_URL";
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
        let setup = Setup::new(&stand_in, &format!("{RULES}{}", known_key())).env(KEYS.0, KEYS.1);
        let address = stand_in.address().parse().unwrap();
        let postgres = postgres_in(&setup.dir);
        let setup = setup.env(DATABASE, &postgres.url("app"));
        let app = start_app(&setup, &postgres, address);
        Self { setup, postgres, address, app }
    }

    fn restart_app(&mut self) {
        self.app.kill();
        self.app = start_app(&self.setup, &self.postgres, self.address);
    }

    #[track_caller]
    fn is_shipped(&self, proxy: &Proxy) {
        is_shipped(&self.setup, proxy, &self.postgres);
    }

    fn audit(&self, args: &[&str]) -> (i32, String) {
        audit(&self.setup, args)
    }

    #[track_caller]
    fn is_whole(&self) {
        is_whole(&self.setup, &self.postgres);
    }
}

/// Waits until PostgreSQL has all entries of this proxy.
#[track_caller]
fn is_shipped(setup: &Setup, proxy: &Proxy, postgres: &Postgres) {
    until("everything to be shipped", || {
        let chain = fs::read_to_string(setup.dir.join("trail/CHAIN")).unwrap();
        let count = format!("select count(*) from audit_events where class = 'data' and chain = '{}'", chain.trim());
        let here = || entries(setup).iter().filter(|entry| entry["class"] == "data").count().to_string();
        proxy.metric("outrigger_audit_unshipped_entries", &[]) == 0.0
            && postgres.sql("app", &count).is_ok_and(|count| count.trim() == here())
    });
}

fn audit(setup: &Setup, args: &[&str]) -> (i32, String) {
    let file = setup.file.to_str().unwrap();
    let output = setup.run(&[&["audit"], args, &["--config", file]].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// Verifies the spool and PostgreSQL, whose address the proxy's environment has.
#[track_caller]
fn is_whole(setup: &Setup, postgres: &Postgres) {
    let (code, said) = audit(setup, &["verify", "--database"]);
    assert!(code == 0 && said.contains("postgres"), "{said}");
    assert_eq!(postgres.sql("app", "select count(*) from audit_refused").unwrap().trim(), "0");
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
    until("the documents to be there again", || proxy.ask(&list).status == 200);
    place.is_shipped(&proxy);
    is_stored_once(&place.setup, &place.postgres, &seen);
    place.is_whole();
}

/// Each request whose response a client received is in the spool and, once, in PostgreSQL.
#[track_caller]
fn is_stored_once(setup: &Setup, postgres: &Postgres, seen: &BTreeSet<String>) {
    let entered: BTreeSet<String> =
        entries(setup).iter().filter_map(|entry| entry["request_id"].as_str().map(str::to_owned)).collect();
    let missing: Vec<_> = seen.difference(&entered).collect();
    assert!(missing.is_empty(), "{} of {} are not in the spool: {missing:?}", missing.len(), seen.len());
    let rows = "select request_id || ' ' || count(*) from audit_events where class = 'data' and seq is not null group by request_id";
    let rows = postgres.sql("app", rows).unwrap();
    let rows: BTreeMap<&str, &str> = rows.lines().filter_map(|row| row.trim().split_once(' ')).collect();
    for request in seen {
        assert_eq!(rows.get(request.as_str()), Some(&"1"), "{request} is not in PostgreSQL once");
    }
}

#[test]
fn each_entry_is_stored_once_despite_kills() {
    killed(6, Duration::from_millis(600));
}

#[test]
#[ignore = "minutes: cargo xtask soak --tests"]
fn each_entry_is_stored_once_despite_200_kills() {
    killed(200, Duration::from_millis(600));
}

/// Any app will do.
fn without_our_app(app: &Backend) -> (Setup, Postgres) {
    let setup = Setup::new(app, RULES).env(KEYS.0, KEYS.1);
    let postgres = postgres_in(&setup.dir);
    (setup.env(DATABASE, &postgres.url("app")), postgres)
}

/// PostgreSQL is away under load, and the proxy is killed meanwhile.
fn away(rounds: usize, load: Duration) {
    let app = Backend::start();
    let (setup, mut postgres) = without_our_app(&app);
    let mut proxy = setup.clone().start();
    assert_eq!(proxy.get("/first").status, 200);
    is_shipped(&setup, &proxy, &postgres);
    postgres.crash().unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..rounds {
        let clients: Vec<_> = (0..4).map(|_| ask_until_it_ends(proxy.address, get("/a"))).collect();
        thread::sleep(load);
        // It says why, and serves.
        proxy.says("the audit log stays on this disk until PostgreSQL accepts it: PostgreSQL cannot be reached: ");
        proxy.signal(Signal::KILL);
        proxy.ends_within(Duration::from_secs(10));
        drop(proxy);
        seen.extend(clients.into_iter().flat_map(|client| client.join().unwrap()));
        proxy = setup.clone().start();
    }
    assert!(seen.len() > rounds * 3, "{} answers in {rounds} rounds", seen.len());
    until("the backlog to show", || proxy.metric("outrigger_audit_unshipped_entries", &[]) >= seen.len() as f64);
    until("the lag to show", || proxy.metric("outrigger_audit_lag_seconds", &[]) > 0.0);
    postgres.start_again().unwrap();
    // After ten minutes it takes longer than one deadline, but some of it is shipped within each.
    let backlog = || proxy.metric("outrigger_audit_unshipped_entries", &[]);
    let mut left = backlog();
    while left > 0.0 {
        until("the backlog to shrink", || backlog() < left);
        left = backlog();
    }
    is_shipped(&setup, &proxy, &postgres);
    until("no lag", || proxy.metric("outrigger_audit_lag_seconds", &[]) == 0.0);
    proxy.says("PostgreSQL accepts the audit log again");
    is_stored_once(&setup, &postgres, &seen);
    is_whole(&setup, &postgres);
}

#[test]
fn entries_wait_while_postgresql_is_down_and_the_proxy_is_killed() {
    away(2, Duration::from_millis(500));
}

#[test]
#[ignore = "minutes: cargo xtask soak --tests"]
fn entries_wait_while_postgresql_is_down_for_ten_minutes() {
    away(20, Duration::from_secs(30));
}

/// The proxies make the tables, and the app finds them made.
#[test]
fn two_proxies_and_then_the_app_start_in_an_empty_database() {
    let app = Backend::start();
    let (setup, postgres) = without_our_app(&app);
    let other = Setup::new(&app, RULES).env(KEYS.0, KEYS.1).env(DATABASE, &postgres.url("app"));
    let proxies = [setup.clone().start(), other.clone().start()];
    for (proxy, setup) in proxies.iter().zip([&setup, &other]) {
        (0..20).for_each(|_| assert_eq!(proxy.get("/a").status, 200));
        is_shipped(setup, proxy, &postgres);
    }
    is_whole(&setup, &postgres);
    is_whole(&other, &postgres);
    assert_eq!(postgres.sql("app", "select count(distinct chain) from audit_chains").unwrap(), "2");
    let histories = "select to_regclass('refinery_schema_history') is null, count(*) from audit_schema_history";
    assert_eq!(postgres.sql("app", histories).unwrap(), "t|2");

    let address = local();
    let _app = start_app(&setup, &postgres, address);
    let ask = |path: &str| Client::connect(address).unwrap().send(with_fields(&get(path), &[KEY])).answer();
    until("the app's tables", || ask("/api/v1/documents").status == 200);
    assert_eq!(postgres.sql("app", "select count(*) from refinery_schema_history").unwrap(), "4");
    assert_eq!(proxies[0].get("/a").status, 200);
    is_shipped(&setup, &proxies[0], &postgres);
    is_whole(&setup, &postgres);
}

#[test]
fn a_wrong_password_is_reported_and_never_shown() {
    let app = Backend::start();
    let (setup, postgres) = without_our_app(&app);
    let right = postgres.url("app");
    let (scheme_and_user, rest) =
        (right.split(':').take(2).collect::<Vec<_>>().join(":"), right.split_once('@').unwrap().1);
    let wrong = format!("{scheme_and_user}:correct-horse@{rest}");
    let proxy = setup.clone().env(DATABASE, &wrong).start();
    assert_eq!(proxy.get("/a").status, 200);
    let log = proxy.says("password authentication failed");
    assert!(log.contains("OUTRIGGER_AUDIT_DATABASE_URL") && !log.contains("horse"), "{log}");
    for path in ["/config", "/metrics", "/status"] {
        assert!(!proxy.admin(path).body.contains("horse"), "{path}");
    }
    drop(proxy);
    let proxy = setup.clone().start();
    is_shipped(&setup, &proxy, &postgres);
    is_whole(&setup, &postgres);
}

/// A database that hangs holds up neither requests nor more than two connections.
#[test]
fn a_lock_in_postgresql_holds_up_no_request() {
    let app = Backend::start();
    let (setup, postgres) = without_our_app(&app);
    let proxy = setup.clone().start();
    assert_eq!(proxy.get("/a").status, 200);
    is_shipped(&setup, &proxy, &postgres);
    let sql = |statement: &str| postgres.sql("app", statement).unwrap();
    thread::scope(|scope| {
        let lock = "begin; lock table audit_chains in access exclusive mode; select pg_sleep(60)";
        scope.spawn(|| postgres.sql("app", lock));
        until("the lock", || {
            sql("select count(*) from pg_locks where relation = 'audit_chains'::regclass and granted") == "1"
        });
        let ours = |and: &str| {
            sql(&format!("select count(*) from pg_stat_activity where application_name = 'outrigger'{and}"))
        };
        assert_eq!(proxy.get("/a").status, 200);
        until("a batch to hang", || ours(" and wait_event_type = 'Lock'") == "1");
        for _ in 0..20 {
            let asked = Instant::now();
            assert_eq!(proxy.get("/a").status, 200);
            assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        }
        assert!(ours("").parse::<u32>().unwrap() <= 2);
        sql(
            "select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(60)' and pid <> pg_backend_pid()",
        );
    });
    is_shipped(&setup, &proxy, &postgres);
    is_whole(&setup, &postgres);
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
