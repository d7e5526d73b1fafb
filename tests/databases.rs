//! All components with real databases: acknowledged writes persist, both stores agree after any crash, and health reports an
//! unreachable database.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::chroma::Chroma;
use xtask::http;
use xtask::{Program, Signal, programs};

use crate::harness::{self, Client, fresh_dir, sum, until, with_fields};
use crate::house::{DEADLINE, House, LIMIT, SLACK, document, local, postgres_in, start_app};

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

/// Writes until `stop`; returns the ids of acknowledged documents.
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
fn health_is_correct_while_postgresql_stops_hangs_and_returns() {
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

    // No restart is needed, and the proxy probes failed routes by itself.
    let writes =
        || house.send("POST", "/api/v1/documents", &document("after")).is_ok_and(|answer| answer.status == 201);
    until("a write to succeed", writes);
}

impl House {
    /// Sends more concurrent requests than the pool has connections: none waits beyond its deadline.
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

/// The real app, stopped by a signal, as by a debugger or a starved Machine: it accepts connections and sends no response.
#[test]
fn a_suspended_app_gets_no_requests_until_it_resumes() {
    let mut house = House::start();
    let (address, admin) = (house.address, house.admin);
    let ask = move || http::send("GET", address, "/api/v1/documents", &[("x-api-key", "secret")], "", LIMIT).unwrap();
    // All requests come from one client, so the breaker rejects only that client.
    let is_refused_alone = || {
        let shown = http::get(admin, "/breakers", LIMIT).unwrap().body;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown["breakers"].as_array().unwrap().iter().any(|breaker| breaker["clients_refused"] == 1)
    };
    assert_eq!(ask().status, 200);
    house.app.signal(Signal::STOP);
    // A signal takes a while to reach every thread.
    let tasks = format!("/proc/{}/task", house.app.pid());
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, state)| state.trim_start().starts_with('T'))
    };
    until("it to be stopped", || std::fs::read_dir(&tasks).unwrap().all(is_stopped));
    let waiting: Vec<_> = (0..5).map(|_| thread::spawn(ask)).collect();
    assert!(waiting.into_iter().all(|client| client.join().unwrap().status == 504));
    assert!(is_refused_alone());
    let asked = Instant::now();
    assert_eq!(ask().status, 503, "nobody waits for it any more");
    assert!(asked.elapsed() < Duration::from_millis(250), "{:?}", asked.elapsed());
    house.app.signal(Signal::CONT);
    let on = Instant::now();
    until("it to be found again", || ask().status == 200);
    // One probe interval, or, if a probe was too early, the next one, which is twice as long plus a fifth.
    assert!(on.elapsed() < Duration::from_millis(2400) + SLACK, "{:?}", on.elapsed());
    until("no attempt to be open", || {
        let text = http::get(admin, "/metrics", LIMIT).unwrap().body;
        sum(&text, "outrigger_admission_in_flight", &[]) == 0.0
            && sum(&text, "outrigger_requests_in_flight", &[]) == 0.0
    });
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
                    let mut app = start_app(dir, &format!("app{n}"), postgres, chroma, address, &[]);
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
fn prometheus_accepts_the_metrics_of_every_endpoint() {
    let house = House::start();
    house.send("POST", "/api/v1/documents", &document("one")).unwrap();
    for (address, path) in [(house.app_address, "/metrics"), (house.admin, "/metrics"), (house.admin, "/metrics/all")] {
        let answer = http::get(address, path, LIMIT).unwrap();
        assert_eq!(answer.status, 200);
        crate::promtool::check(&answer.body).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    let accept = [("accept", crate::openmetrics::ACCEPT)];
    let page = http::send("GET", house.admin, "/metrics/all", &accept, "", LIMIT).unwrap().body;
    let families = crate::openmetrics::families(&[page]).unwrap();
    for family in ["histogram app_pool_acquire_seconds seconds", "counter app_http_requests", "gauge app_build_info"] {
        assert!(families.iter().any(|known| known == family), "{family}: {families:#?}");
    }
    assert!(!families.iter().any(|family| family.starts_with("unknown")), "{families:#?}");
    let all = http::get(house.admin, "/metrics/all", LIMIT).unwrap().body;
    assert!(all.contains("outrigger_app_metrics_up{process=\"proxy\"} 1"), "{all}");
    assert!(all.contains("app_pool_connections{process=\"app\""), "{all}");
}

/// Requests to the app itself, without the proxy and its circuit breakers.
impl House {
    fn ask(&self, request: &str) -> (harness::Answer, Duration) {
        ask_app(self.app_address, request)
    }

    fn search(&self) -> (harness::Answer, Duration) {
        self.ask(&harness::post("/api/v1/documents/search", r#"{"embedding":[1,0.5,0.25]}"#))
    }

    fn create(&self, title: &str) -> (harness::Answer, Duration) {
        self.ask(&harness::post("/api/v1/documents", &document(title)))
    }

    fn app_health(&self) -> Value {
        let answer = http::get(self.app_address, "/health/detailed", LIMIT).unwrap();
        serde_json::from_str::<Value>(&answer.body).unwrap()["data"].take()
    }

    fn breaker_is(&self, of: &str, state: &str) -> bool {
        self.app_health()["circuitBreakers"][of]["state"] == state
    }

    fn app_metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&http::get(self.app_address, "/metrics", LIMIT).unwrap().body, name, labels)
    }

    /// Waits until no connection is in use or waited for, and the pool has its minimum of connections.
    #[track_caller]
    fn pool_comes_to_rest(&self, service: &str) {
        until("the pool to come to rest", || {
            let numbers = &self.app_health()["services"][service]["metrics"];
            let number = |name: &str| numbers[name].as_i64().unwrap();
            number("active") == 0 && number("waiting") == 0 && number("idle") >= number("min")
        });
    }

    /// Fails unless the log has every change of this breaker exactly once.
    #[track_caller]
    fn log_has_every_change(&self, dependency: &str) {
        let log = fs::read_to_string(self.app.log()).unwrap();
        for to in ["open", "half_open", "closed"] {
            let counted = self.app_metric("app_breaker_transitions_total", &[("dependency", dependency), ("to", to)]);
            let is_change = |line: &&str| {
                let line: Value = serde_json::from_str(line).unwrap_or_default();
                line["to"] == to && line["dependency"] == dependency
            };
            let told = log.lines().filter(is_change).count();
            assert!(told > 0 && told as f64 == counted, "{to}: {told} told, {counted} counted: {log}");
        }
    }
}

fn ask_app(address: SocketAddr, request: &str) -> (harness::Answer, Duration) {
    let deadline = format!("X-Request-Timeout-Ms: {}", DEADLINE.as_millis());
    let fields = ["X-Api-Key: secret", "Content-Type: application/json", &deadline];
    let began = Instant::now();
    let answer = Client::connect(address).unwrap().send(with_fields(request, &fields)).answer();
    (answer, began.elapsed())
}

/// Long for a rejection, short for a wait for a database.
const AT_ONCE: Duration = Duration::from_millis(150);

#[test]
fn a_hung_postgresql_gets_few_attempts_and_is_used_after_recovery() {
    let mut house = House::start();
    assert_eq!(house.create("one").0.status, 201);
    until("the vector store to have it", || house.nothing_is_pending());
    assert!(house.breaker_is("database", "CLOSED"));

    house.postgres.pause();
    let (stop, address) = (Arc::new(AtomicBool::new(false)), house.app_address);
    let clients: Vec<_> = (0..30)
        .map(|_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut longest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let (answer, took) = ask_app(address, &harness::get("/api/v1/documents"));
                    assert!(matches!(answer.status, 200 | 503 | 504), "{answer:?}");
                    longest = longest.max(took);
                    // The client retries a little earlier than `Retry-After` says.
                    thread::sleep(Duration::from_millis(20));
                }
                longest
            })
        })
        .collect();
    until("the breaker to open", || house.breaker_is("database", "OPEN"));

    let (refused, took) = house.ask(&harness::get("/api/v1/documents"));
    refused.is_problem(503, "dependency-breaker-open");
    assert!((1..=60).contains(&refused.number("retry-after")), "{refused:?}");
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(house.create("two").0.status, 503);
    let (found, took) = house.search();
    assert_eq!((found.status, &found.json()["degraded"]), (200, &json!(true)));
    assert_eq!(found.json()["documents"][0]["title"], "one", "{found:?}");
    assert!(took < AT_ONCE, "{took:?}");
    assert!(house.breaker_is("chromadb", "CLOSED"));
    let metric = |name, label| house.app_metric(name, &[("dependency", "postgresql"), label]);
    assert_eq!(metric("app_breaker_state", ("state", "open")), 1.0);
    assert!(metric("app_breaker_refusals_total", ("mode", "enforce")) > 1.0);
    let said = house.app_health();
    let breaker = &said["circuitBreakers"]["database"];
    assert_eq!(breaker["reason"], "consecutive_failures", "{said}");
    assert!(breaker["lastFailure"].as_str().is_some_and(|text| !text.is_empty()), "{said}");

    // The breaker would wait a minute: this is much sooner, and only the load sends requests.
    house.postgres.resume();
    let documents = || house.ask(&harness::get("/api/v1/documents")).0.status;
    until("documents again", || documents() == 200);
    until("the breaker to close", || house.breaker_is("database", "CLOSED"));
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let longest = client.join().unwrap();
        assert!(longest < DEADLINE + SLACK, "{longest:?}");
    }
    assert_eq!(house.create("three").0.status, 201);
    assert_eq!(house.search().0.json()["degraded"], false);
    house.pool_comes_to_rest("postgresql");
    house.log_has_every_change("postgresql");
}

#[test]
fn a_database_that_is_down_gets_less_than_one_attempt_a_second() {
    let mut house = House::start();
    let address = house.postgres.address();
    house.postgres.stop().unwrap();
    // Accepts connections and never responds.
    let dead = TcpListener::bind(address).unwrap();
    let (stop, attempts) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let (house, stop, attempts) = (&house, &stop, &attempts);
        scope.spawn(move || {
            while let Ok((attempt, _)) = dead.accept() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                attempts.lock().unwrap().push((attempt, Instant::now()));
            }
        });
        for path in ["/api/v1/documents", "/health/ready", "/health/detailed", "/metrics"] {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    house.ask(&harness::get(path));
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let seen = || attempts.lock().unwrap().len();
        let more = |count: usize| {
            let from = seen();
            until("more attempts", || seen() >= from + count);
            attempts.lock().unwrap()[from + count - 1].1
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the breaker to open", || house.breaker_is("database", "OPEN"));
            // By then, attempts in flight when it opened have arrived.
            let from = more(2);
            let took = more(5) - from;
            assert!(took > Duration::from_secs(5), "{took:?} for five attempts");
        }));
        // The threads must end, whether the test passed or not.
        stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(address);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    drop(attempts);
    house.postgres.start_again().unwrap();
    until("the breaker to close", || house.breaker_is("database", "CLOSED"));
    assert_eq!(house.create("after").0.status, 201);
}

#[test]
fn a_hung_chromadb_gets_missed_writes_after_it_recovers() {
    let mut house = House::start();
    assert_eq!(house.create("one").0.status, 201);
    until("the vector store to have it", || house.nothing_is_pending());

    house.chroma.pause();
    until("the breaker to open", || {
        let (searched, took) = house.search();
        assert_eq!(searched.status, 503, "{searched:?}");
        assert!(took < DEADLINE + SLACK, "{took:?}");
        house.breaker_is("chromadb", "OPEN")
    });
    let (refused, took) = house.search();
    refused.is_problem(503, "dependency-breaker-open");
    assert!(refused.text().contains("ChromaDB") && took < AT_ONCE, "{took:?}: {refused:?}");
    for n in 0..10 {
        let (created, _) = house.create(&format!("meanwhile {n}"));
        assert_eq!((created.status, &created.json()["indexed"]), (201, &json!(false)), "{created:?}");
        let path = format!("/api/v1/documents/{}", created.json()["id"].as_str().unwrap());
        assert_eq!(house.ask(&harness::get(&path)).0.status, 200);
    }
    assert!(house.breaker_is("database", "CLOSED"));

    house.chroma.resume();
    until("the breaker to close, with no request to help it", || house.breaker_is("chromadb", "CLOSED"));
    until("the outbox to be empty", || house.nothing_is_pending());
    assert_eq!(house.ids_in_chroma(), house.ids_in_postgres());
    assert_eq!(house.search().0.json()["documents"].as_array().map(Vec::len), Some(10));
    house.pool_comes_to_rest("chromadb");
    house.log_has_every_change("chromadb");
}

#[test]
fn a_statement_ends_with_its_request_and_at_the_latest_on_postgresqls_own_clock() {
    let mut house = House::with(&[("DB_STATEMENT_TIMEOUT", "3s")]);
    let waiting = "select count(*) from pg_stat_activity where application_name = 'outrigger-app' \
                   and wait_event_type = 'Lock'";
    let locked = "begin; lock table documents in access exclusive mode; select pg_sleep(60)";
    let unlock = "select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(60)' and pid <> pg_backend_pid()";
    let are_waiting = |house: &House, count: &str| house.postgres.sql("app", waiting).is_ok_and(|n| n == count);
    let is_locked = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and granted \
                     and relation = 'documents'::regclass";
    thread::scope(|scope| {
        scope.spawn(|| house.postgres.sql("app", locked));
        until("the lock", || house.postgres.sql("app", is_locked).is_ok_and(|n| n == "1"));
        let asking = scope.spawn(|| house.ask(&harness::get("/api/v1/documents")));
        until("a statement to hang", || are_waiting(&house, "1"));
        let (answer, took) = asking.join().unwrap();
        answer.is_problem(504, "deadline-exceeded");
        assert!(took < DEADLINE + SLACK, "{took:?}");
        until("it to be cancelled, though the lock is held", || are_waiting(&house, "0"));
        house.postgres.sql("app", unlock).unwrap();
    });
    assert_eq!(house.ask(&harness::get("/api/v1/documents")).0.status, 200);
    house.pool_comes_to_rest("postgresql");

    // The same again, with no app left to cancel the statement.
    let address = house.app_address;
    let (postgres, app) = (&house.postgres, &mut house.app);
    thread::scope(|scope| {
        scope.spawn(|| postgres.sql("app", locked));
        until("the lock", || postgres.sql("app", is_locked).is_ok_and(|n| n == "1"));
        let request = with_fields(&harness::get("/api/v1/documents"), &["X-Api-Key: secret"]);
        let mut client = Client::connect(address).unwrap();
        client.send(request);
        let are_waiting = |count: &str| postgres.sql("app", waiting).is_ok_and(|n| n == count);
        until("a statement to hang", || are_waiting("1"));
        app.kill();
        until("it to end without the app", || are_waiting("0"));
        postgres.sql("app", unlock).unwrap();
    });
}

#[test]
fn invalid_breaker_settings_are_rejected_at_start() {
    for (variable, value, hint) in [
        ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "five", "such as \"5\""),
        ("CIRCUIT_BREAKER_TIMEOUT", "soon", "such as \"60000\""),
        ("CIRCUIT_BREAKER_TIMEOUT", "0", "more than zero"),
        ("FF_ENABLE_CIRCUIT_BREAKER", "maybe", "monitor"),
    ] {
        let app = Program::new(programs::find("outrigger-app").unwrap()).env("APP_AUTH", "off").env(variable, value);
        let said = app.env("APP_LISTEN", local().to_string()).output().unwrap_err().to_string();
        assert!(said.contains("exit status: 78") && said.contains(hint), "{variable}={value}: {said}");
    }
}
