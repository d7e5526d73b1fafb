//! The whole house: the proxy, the app, PostgreSQL and ChromaDB, all real. What clients wrote is there, both stores
//! agree after any crash, and health tells the truth while a database is gone.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::chroma::Chroma;
use xtask::http::{self, Answer};
use xtask::postgres::Postgres;
use xtask::{Process, Program, Signal, paths, ports, programs, wait};

use crate::harness::{fresh_dir, until};

/// How soon health has to tell the truth.
const TRUTH: Duration = Duration::from_secs(2);
/// What a request may take in these tests, by the route's timeout, and what a busy machine adds.
const DEADLINE: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_millis(700);
const LIMIT: Duration = Duration::from_secs(10);

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free().expect("a free port")))
}

fn postgres_in(dir: &Path) -> Postgres {
    let postgres = Postgres::start(&dir.join("postgres")).unwrap();
    postgres.create_database("app").unwrap();
    postgres
}

/// Everything, running.
struct House {
    dir: PathBuf,
    postgres: Postgres,
    chroma: Chroma,
    app: Process,
    /// The app's own port, and the proxy's two.
    app_address: SocketAddr,
    address: SocketAddr,
    admin: SocketAddr,
    _proxy: Process,
}

impl House {
    fn start() -> Self {
        let dir = fresh_dir();
        let postgres = postgres_in(&dir);
        let chroma = Chroma::start(&dir.join("chroma")).unwrap();
        let (app_address, address, admin) = (local(), local(), local());
        let app = start_app(&dir, "app", &postgres, &chroma, app_address);
        let rules = dir.join("proxy.toml");
        let text = format!(
            "server.listen = \"{address}\"\nserver.lame_duck = \"0s\"\nadmin.listen = \"{admin}\"\n\
             app.address = \"unix:{}\"\napp.timeout = \"{}s\"\n",
            paths::socket(&dir, "app.sock").unwrap().display(),
            DEADLINE.as_secs()
        );
        fs::write(&rules, text).unwrap();
        let mut proxy = Program::new(programs::find("outrigger").unwrap())
            .args(["run", "--config", rules.to_str().unwrap()])
            .start("outrigger", &dir.join("proxy.log"))
            .unwrap();
        let house_is_up = || http::get(address, "/health/detailed", LIMIT).is_ok_and(|answer| answer.status == 200);
        proxy.ready(Duration::from_secs(30), house_is_up).unwrap();
        Self { dir, postgres, chroma, app, app_address, address, admin, _proxy: proxy }
    }

    fn restart_app(&mut self) {
        self.app = start_app(&self.dir, "app", &self.postgres, &self.chroma, self.app_address);
    }

    fn send(&self, method: &str, path: &str, body: &str) -> xtask::Result<Answer> {
        let fields = [("x-api-key", "secret"), ("content-type", "application/json")];
        http::send(method, self.address, path, &fields, body, LIMIT)
    }

    fn health(&self, path: &str) -> (u16, Value) {
        let answer = http::get(self.address, path, LIMIT).unwrap();
        (answer.status, serde_json::from_str(&answer.body).unwrap_or_default())
    }

    /// Waits, for as long as health may take, until PostgreSQL is reported as `status`.
    #[track_caller]
    fn health_says(&self, status: &str) {
        let says_so = || self.health("/health/detailed").1["data"]["services"]["postgresql"]["status"] == status;
        if let Err(e) = wait::until(&format!("health to say that postgresql is {status}"), TRUTH, says_so) {
            panic!("{e}; it says {}", self.health("/health/detailed").1);
        }
    }

    fn ids_in_postgres(&self) -> BTreeSet<String> {
        let rows = self.postgres.sql("app", "select id from documents").unwrap();
        rows.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }

    fn ids_in_chroma(&self) -> BTreeSet<String> {
        let base = "/api/v2/tenants/default_tenant/databases/default_database/collections";
        let found = http::get(self.chroma.address(), &format!("{base}/documents"), LIMIT).unwrap();
        let collection: Value = serde_json::from_str(&found.body).unwrap();
        let path = format!("{base}/{}/get", collection["id"].as_str().unwrap());
        let json_body = [("content-type", "application/json")];
        let got = http::send("POST", self.chroma.address(), &path, &json_body, r#"{"include":[]}"#, LIMIT).unwrap();
        let got: Value = serde_json::from_str(&got.body).unwrap();
        got["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    fn nothing_is_pending(&self) -> bool {
        self.postgres.sql("app", "select count(*) from outbox").is_ok_and(|count| count.trim() == "0")
    }
}

fn start_app(dir: &Path, name: &str, postgres: &Postgres, chroma: &Chroma, address: SocketAddr) -> Process {
    // SHA-256 of "secret".
    let key = "test:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let mut app = Program::new(programs::find("outrigger-app").unwrap())
        .env("DATABASE_URL", postgres.url("app"))
        .env("CHROMA_URL", chroma.url())
        .env("APP_SOCKET", paths::socket(dir, &format!("{name}.sock")).unwrap())
        .env("APP_LISTEN", address.to_string())
        .env("APP_API_KEYS", key)
        .env("APP_VECTOR_DIMENSION", "3")
        .start("outrigger-app", &dir.join(format!("{name}.log")))
        .unwrap();
    app.ready(Duration::from_secs(20), || http::get(address, "/health/live", LIMIT).is_ok()).unwrap();
    app
}

fn document(title: &str) -> String {
    json!({ "title": title, "content": "An outrigger keeps a canoe upright.", "embedding": [1.0, 0.5, 0.25] })
        .to_string()
}

#[test]
fn a_document_is_created_fetched_found_and_deleted() {
    let house = House::start();
    let created = house.send("POST", "/api/v1/documents", &document("one")).unwrap();
    assert_eq!(created.status, 201, "{}", created.body);
    let id = serde_json::from_str::<Value>(&created.body).unwrap()["id"].as_str().unwrap().to_owned();

    let fetched = house.send("GET", &format!("/api/v1/documents/{id}"), "").unwrap();
    assert_eq!(fetched.status, 200);
    assert!(fetched.body.contains("keeps a canoe upright"), "{}", fetched.body);

    let found = house.send("POST", "/api/v1/documents/search", r#"{"embedding":[1,0.5,0.2],"limit":3}"#).unwrap();
    assert_eq!(found.status, 200);
    assert!(found.body.contains(&id), "{}", found.body);

    assert_eq!(house.send("DELETE", &format!("/api/v1/documents/{id}"), "").unwrap().status, 204);
    assert_eq!(house.send("GET", &format!("/api/v1/documents/{id}"), "").unwrap().status, 404);
    until("the delete to reach both stores", || house.nothing_is_pending());
    assert!(house.ids_in_chroma().is_empty());

    let wrong = house.send("POST", "/api/v1/documents", r#"{"content":"x","embedding":[1,2]}"#).unwrap();
    assert_eq!(wrong.status, 422, "{}", wrong.body);
    assert!(wrong.body.contains('3'), "says which dimension it wants: {}", wrong.body);
    assert_eq!(http::get(house.address, "/api/v1/documents", LIMIT).unwrap().status, 401);
}

#[test]
fn both_stores_agree_after_the_app_was_killed_in_the_middle_of_writes() {
    let mut house = House::start();
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        let stop = Arc::new(AtomicBool::new(false));
        let address = house.address;
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || write_until(address, &stop, &format!("{round}-{writer}")))
            })
            .collect();
        let seen = http::get(house.app_address, "/metrics", LIMIT).unwrap();
        assert_eq!(seen.status, 200);
        until("some writes", || house.ids_in_postgres().len() > 5 * (round + 1));
        house.app.kill();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            acknowledged.extend(writer.join().unwrap());
        }
        house.restart_app();
    }
    until("the outbox to be empty", || house.nothing_is_pending());
    let in_postgres = house.ids_in_postgres();
    assert_eq!(in_postgres, house.ids_in_chroma());
    let lost: Vec<_> = acknowledged.difference(&in_postgres).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(!acknowledged.is_empty());
}

/// The ids whose creation was acknowledged.
fn write_until(address: SocketAddr, stop: &AtomicBool, name: &str) -> Vec<String> {
    let fields = [("x-api-key", "secret"), ("content-type", "application/json")];
    let mut ids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = http::send("POST", address, "/api/v1/documents", &fields, &document(name), LIMIT);
        if let Some(answer) = answer.ok().filter(|answer| matches!(answer.status, 201 | 202)) {
            let created: Value = serde_json::from_str(&answer.body).unwrap();
            ids.push(created["id"].as_str().unwrap().to_owned());
        }
    }
    ids
}

#[test]
fn health_tells_the_truth_while_postgresql_stops_hangs_and_returns() {
    let mut house = House::start();
    assert_eq!(house.health("/health/detailed").0, 200);

    house.postgres.stop().unwrap();
    house.health_says("unhealthy");
    let (status, detailed) = house.health("/health/detailed");
    assert_eq!(status, 503);
    assert_eq!(detailed["data"]["services"]["chromadb"]["status"], "healthy", "{detailed}");
    assert_eq!(house.health("/health/live").0, 200);
    house.answers_in_time();

    house.postgres.start_again().unwrap();
    house.health_says("healthy");
    assert_eq!(house.health("/health/detailed").0, 200);

    house.postgres.pause();
    house.health_says("unhealthy");
    house.answers_in_time();
    house.postgres.resume();
    house.health_says("healthy");

    let created = house.send("POST", "/api/v1/documents", &document("after")).unwrap();
    assert_eq!(created.status, 201, "nothing needed a restart: {}", created.body);
}

impl House {
    /// More requests at once than the pool has connections: none waits beyond its deadline.
    fn answers_in_time(&self) {
        let address = self.address;
        let clients: Vec<_> = (0..30)
            .map(|_| {
                thread::spawn(move || {
                    let began = Instant::now();
                    let answer = http::send("GET", address, "/api/v1/documents", &[("x-api-key", "secret")], "", LIMIT);
                    (answer.unwrap().status, began.elapsed())
                })
            })
            .collect();
        for client in clients {
            let (status, took) = client.join().unwrap();
            assert!(matches!(status, 503 | 504), "{status}");
            assert!(took < DEADLINE + SLACK, "{took:?}");
        }
    }
}

#[test]
fn several_machines_that_start_at_once_migrate_once() {
    let dir = fresh_dir();
    let postgres = postgres_in(&dir);
    let chroma = Chroma::start(&dir.join("chroma")).unwrap();
    thread::scope(|scope| {
        let (dir, postgres, chroma) = (&dir, &postgres, &chroma);
        let machines: Vec<_> = (0..3)
            .map(|n| {
                scope.spawn(move || {
                    let address = local();
                    let mut app = start_app(dir, &format!("app{n}"), postgres, chroma, address);
                    let is_well = || http::get(address, "/health/detailed", LIMIT).is_ok_and(|a| a.status == 200);
                    app.ready(Duration::from_secs(20), is_well).unwrap();
                    app
                })
            })
            .collect();
        for machine in machines {
            let mut app = machine.join().unwrap();
            let log = app.log_tail(200);
            assert!(!log.contains("\"level\":\"ERROR\""), "{log}");
            assert!(app.stop(Signal::TERM, Duration::from_secs(10)).unwrap().success());
        }
    });
    let applied = postgres.sql("app", "select count(*), count(distinct version) from refinery_schema_history").unwrap();
    let counts: Vec<&str> = applied.trim().split('|').map(str::trim).collect();
    assert_eq!(counts[0], counts[1], "a migration ran twice: {applied}");
}

#[test]
fn prometheus_is_content_with_every_endpoint() {
    let house = House::start();
    house.send("POST", "/api/v1/documents", &document("one")).unwrap();
    for (address, path) in [(house.app_address, "/metrics"), (house.admin, "/metrics"), (house.admin, "/metrics/all")] {
        let answer = http::get(address, path, LIMIT).unwrap();
        assert_eq!(answer.status, 200);
        crate::promtool::check(&answer.body).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    let all = http::get(house.admin, "/metrics/all", LIMIT).unwrap().body;
    assert!(all.contains("outrigger_app_metrics_up{process=\"proxy\"} 1"), "{all}");
    assert!(all.contains("app_pool_connections{process=\"app\""), "{all}");
}
