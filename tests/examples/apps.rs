//! Each example serves, and survives `kill -9`, a hang and a deploy.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::{Signal, http, process, wait};

use super::{Copied, words};
use crate::harness::{Client, PATIENCE, get, post, until, with_fields};
use crate::house::local;
use crate::run::{Load, Request, Run, executed};

/// From the first command to the first response of the app.
const FIRST_RESPONSE: Duration = Duration::from_secs(60);

/// Settings that make the tests quick, before those of the example.
const QUICK: &str =
    "server.lame_duck = \"0s\"\nrun.backoff = \"10ms\"\nrun.hang_timeout = \"4s\"\nrun.stop_grace = \"5s\"\n";

/// An example behind Outrigger.
struct Running {
    run: Run,
    notes: PathBuf,
}

impl Running {
    fn start(example: &str) -> Self {
        // Building it first may take a compiler minutes on a new machine; that is not the app's start.
        let copied = Copied::of(example);
        let began = Instant::now();
        let rules = copied.dir.join("outrigger.toml");
        fs::write(&rules, format!("{QUICK}{}", fs::read_to_string(&rules).unwrap())).unwrap();
        let (address, admin) = (local(), local());
        let (path, listen, admin_listen) = (copied.path(), address.to_string(), admin.to_string());
        let environment = [
            ("PATH", path.as_str()),
            ("OUTRIGGER_LISTEN", &listen),
            ("OUTRIGGER_ADMIN_LISTEN", &admin_listen),
            // Each request of the load is another client.
            ("OUTRIGGER_TRUSTED", "127.0.0.0/8"),
            ("OUTRIGGER_CONFIG", "outrigger.toml"),
            ("OUTRIGGER_MACHINE", "a"),
            ("OUTRIGGER_AFFINITY_KEYS", "0123456789abcdef0123456789abcdef"),
        ];
        let started = [words(example, "ENTRYPOINT"), words(example, "CMD")].concat();
        assert_eq!(started[..2], ["outrigger", "run"]);
        let notes = copied.dir.join("notes.txt");
        let run = Run::launch(copied.dir, (address, admin), &[], &environment, &started[2..]);
        let serves = || http::get(address, "/api/notes", PATIENCE * 2).is_ok_and(|answer| answer.status == 200);
        wait::until("the app's first response", FIRST_RESPONSE.saturating_sub(began.elapsed()), serves)
            .unwrap_or_else(|e| panic!("{e}\n{}", run.log()));
        run.serves();
        Self { run, notes }
    }

    fn ask(&self, request: &str) -> crate::harness::Answer {
        Client::connect(self.run.address).unwrap().send(request).answer()
    }

    /// How many notes the app counts.
    fn count(&self) -> u64 {
        self.ask(&get("/api/notes")).json()["notes"].as_u64().unwrap()
    }

    fn load(&self) -> Load {
        Load::of(self.run.address, |number, id| {
            let request = id.map_or_else(|| get("/api/notes"), |id| post("/api/notes", id));
            let [.., a, b, c] = number.to_be_bytes();
            with_fields(&request, &[&format!("X-Forwarded-For: 10.{a}.{b}.{c}")])
        })
    }

    /// No `GET` failed, a `POST` only if its response was lost with the app, and none was executed twice.
    ///
    /// A response that the app was killed in cannot be sent again: uvicorn sends its head and its body one after the other.
    fn holds(&self, requests: &[Request]) {
        let executed: HashMap<String, usize> = executed(&self.notes);
        let broken = requests.iter().filter(|request| request.status == 0).count();
        assert!(broken <= self.run.log().matches("the body ended early").count(), "{broken} without a response");
        for request in requests {
            match &request.id {
                None => assert!(matches!(request.status, 0 | 200), "a GET: {}", request.status),
                Some(id) if matches!(request.status, 0 | 502) => {
                    assert!(executed.get(id).is_none_or(|count| *count == 1), "{id}");
                }
                Some(id) => assert_eq!((request.status / 100, executed.get(id)), (2, Some(&1)), "{id}"),
            }
        }
    }

    fn serves_the_api_and_health(&self, own: &str) {
        assert_eq!(self.count(), 0);
        let answer = self.ask(&post("/api/notes", "first"));
        assert_eq!((answer.status / 100, answer.json()["notes"].as_u64()), (2, Some(1)), "{answer:?}");
        assert!(answer.header("ratelimit").is_some_and(|limits| limits.contains("\"writing\"")), "{answer:?}");
        until("the app to be healthy", || self.run.get("/health").status == 200);
        for path in ["/health/ready", "/health/live", own] {
            assert_eq!(self.run.get(path).status, 200, "{path}");
        }
        let health: Value = serde_json::from_str(&self.run.get("/health").body).unwrap();
        assert_eq!(health["data"]["status"], "healthy", "Outrigger responds, not the app: {health}");
    }

    fn survives_a_kill(&self) {
        let (load, child) = (self.load(), self.run.child());
        load.goes_on(60);
        process::signal(child, Signal::KILL);
        self.run.replaces(child);
        load.goes_on(60);
        self.holds(&load.end());
    }

    fn survives_a_hang(&self) {
        let child = self.run.child();
        process::signal(child, Signal::STOP);
        let address = self.run.address;
        let clients = [(); 4].map(|()| thread::spawn(move || http::get(address, "/api/notes", PATIENCE * 2)));
        self.run.replaces(child);
        for client in clients {
            assert_eq!(client.join().unwrap().unwrap().status, 200);
        }
    }

    fn deploys(&self) {
        // Its requests have the same bodies as those before.
        fs::remove_file(&self.notes).unwrap();
        let (load, child) = (self.load(), self.run.child());
        load.goes_on(60);
        let mut slow = Client::connect(self.run.address).unwrap();
        slow.send(get("/api/report"));
        let (status, said) = self.run.restart();
        assert!(status.success(), "{said}");
        self.run.replaces(child);
        assert_eq!(slow.answer().status, 200, "it finishes, or waits for the next process");
        load.goes_on(60);
        let requests = load.end();
        let failed: Vec<_> = requests.iter().filter(|request| request.status / 100 != 2).collect();
        assert!(failed.is_empty(), "of {}: {failed:?}", requests.len());
        self.holds(&requests);
    }

    /// 20 a minute that write, as its file says.
    fn limits_a_client(&self) {
        let write = with_fields(&post("/api/notes", "again"), &["X-Forwarded-For: 192.0.2.7"]);
        let answers: Vec<_> = (0..25).map(|_| self.ask(&write)).collect();
        let rejected: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
        assert!((1..=5).contains(&rejected.len()), "{} of 25", rejected.len());
        rejected[0].is_problem(429, "quota_exceeded");
    }

    fn ends(mut self) {
        for (reason, count) in [("exit", 1.0), ("hang", 1.0), ("operator", 1.0)] {
            assert_eq!(self.run.metric("outrigger_app_restarts_total", &[("reason", reason)]), count, "{reason}");
        }
        let child = self.run.child();
        self.run.process.signal(Signal::TERM);
        assert!(self.run.ends().success());
        assert!(!process::exists(child), "the app outlives Outrigger");
    }
}

fn works(example: &str, health: &str) {
    let running = Running::start(example);
    let part = |name: &str, part: &dyn Fn()| {
        let began = Instant::now();
        part();
        println!("{example}: {name} took {:?}", began.elapsed());
    };
    part("requests", &|| running.serves_the_api_and_health(health));
    part("a kill", &|| running.survives_a_kill());
    part("a hang", &|| running.survives_a_hang());
    part("a deploy", &|| running.deploys());
    part("limits", &|| running.limits_a_client());
    match example {
        "node" => {
            let cookie = running.ask(&get("/api/notes"));
            assert!(cookie.header("set-cookie").is_some_and(|cookie| cookie.contains("_fly_affinity")), "{cookie:?}");
        }
        "cgi" => assert!(running.run.get("/").body.contains("<title>Notes</title>"), "static files"),
        _ => {}
    }
    running.ends();
}

#[test]
fn node_with_express() {
    works("node", "/health");
}

#[test]
fn ruby_with_puma() {
    works("ruby", "/up");
}

#[test]
fn python_with_fastapi() {
    works("python", "/healthz");
}

#[test]
fn go_with_its_standard_library() {
    works("go", "/readyz");
}

#[test]
fn static_files_and_php_with_lighttpd() {
    works("cgi", "/health");
}
