//! `outrigger run -- COMMAND`: the app as a process of Outrigger. `fixtures/run/app.py` is the app.

mod faults;
mod odd;
mod signals;

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;
use xtask::{Process, Program, Signal, http, process, programs, wait};

use crate::harness::{Client, PATIENCE, fresh_dir, get, post, sum, until};
use crate::house::local;

/// Outrigger with its app.
pub struct Run {
    pub dir: PathBuf,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub process: Process,
}

/// Settings of a file, with which tests are quick.
const QUICK: &str = "server.lame_duck = \"0s\"\nrun.backoff = \"10ms\"\n";

/// The fixture with these habits.
fn app(habits: &[&str]) -> Vec<String> {
    let python = if PathBuf::from("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/run/app.py");
    [python, program].iter().chain(habits).map(|part| (*part).to_owned()).collect()
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

impl Run {
    /// With these lines in its file.
    fn start(rules: &str, command: &[String]) -> Self {
        Self::through(&[], rules, command)
    }

    /// And through this command.
    fn through(through: &[&str], rules: &str, command: &[String]) -> Self {
        let (dir, address, admin) = (fresh_dir(), local(), local());
        let text = format!("server.listen = \"{address}\"\nadmin.listen = \"{admin}\"\n{rules}");
        fs::write(dir.join("proxy.toml"), text).unwrap();
        let args = [&["--config", "proxy.toml", "--"].map(str::to_owned), command].concat();
        Self::launch(dir, (address, admin), through, &[], &args)
    }

    pub fn launch(
        dir: PathBuf,
        (address, admin): (SocketAddr, SocketAddr),
        through: &[&str],
        environment: &[(&str, &str)],
        args: &[String],
    ) -> Self {
        let outrigger = programs::find("outrigger").unwrap();
        let program = match through.split_first() {
            None => Program::new(outrigger),
            Some((first, rest)) => Program::new(first).args(rest).arg(outrigger),
        };
        let program = program.arg("run").args(args).dir(&dir).without_env("PORT").when_orphaned("TERM");
        let program = environment.iter().fold(program, |program, (name, value)| program.env(name, value));
        let process = program.start("outrigger", &dir.join("outrigger.log")).unwrap();
        Self { dir, address, admin, process }
    }

    /// With the fixture, which serves.
    pub fn of_fixture() -> Self {
        Self::serving(QUICK, &app(&[]))
    }

    fn serving(rules: &str, command: &[String]) -> Self {
        let run = Self::start(rules, command);
        run.serves();
        run
    }

    #[track_caller]
    pub fn serves(&self) {
        self.is("serving");
    }

    #[track_caller]
    fn is(&self, state: &str) {
        until(&format!("the app to be {state}"), || {
            self.try_shown().is_some_and(|shown| shown["process"]["state"] == state)
        });
    }

    fn try_shown(&self) -> Option<Value> {
        serde_json::from_str(&http::get(self.admin, "/app", PATIENCE).ok()?.body).ok()
    }

    fn shown(&self) -> Value {
        self.try_shown().expect("the admin listener responds")
    }

    pub fn child(&self) -> u32 {
        self.shown()["process"]["pid"].as_u64().expect("the app runs").try_into().unwrap()
    }

    /// Waits for another process that serves.
    #[track_caller]
    pub fn replaces(&self, before: u32) -> u32 {
        let now = || {
            let shown = self.try_shown()?;
            let pid = u32::try_from(shown["process"]["pid"].as_u64()?).ok()?;
            (shown["process"]["state"] == "serving" && pid != before).then_some(pid)
        };
        wait::for_some("another process of the app", PATIENCE, now).unwrap_or_else(|e| panic!("{e}\n{}", self.log()))
    }

    pub fn get(&self, path: &str) -> http::Answer {
        http::get(self.address, path, PATIENCE * 2).unwrap()
    }

    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&http::get(self.admin, "/metrics", PATIENCE).unwrap().body, name, labels)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.process.log()).unwrap_or_default()
    }

    #[track_caller]
    pub fn says(&self, text: &str) -> String {
        let line = || self.log().lines().find(|line| line.contains(text)).map(str::to_owned);
        wait::for_some(&format!("the log to say {text:?}"), PATIENCE, line).unwrap_or_else(|e| panic!("{e}"))
    }

    /// `outrigger restart`.
    pub fn restart(&self) -> (ExitStatus, String) {
        let mut command = Command::new(programs::find("outrigger").unwrap());
        let output = command.args(["restart", "--admin", &self.admin.to_string()]).output().unwrap();
        (output.status, String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    #[track_caller]
    pub fn ends(&mut self) -> ExitStatus {
        self.process.wait(PATIENCE * 2).unwrap_or_else(|e| panic!("{e}\n{}", self.log()))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- what {} said last ---\n{}\n---", self.dir.display(), self.process.log_tail(40));
        }
        for child in process::children(self.process.pid()) {
            process::signal(child, Signal::KILL);
        }
    }
}

/// Clients that send requests all the time, a `GET` and a `POST` in turn.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<Request>>>,
}

/// A request and its status.
#[derive(Debug)]
pub struct Request {
    /// The body of a `POST`.
    pub id: Option<String>,
    /// 0: the response broke off, or there was none.
    pub status: u16,
}

impl Load {
    fn begin(address: SocketAddr) -> Self {
        Self::of(address, |_, id| id.map_or_else(|| get("/"), |id| post("/", id)))
    }

    /// With these requests: the `GET` of this number, or the `POST` with this body.
    pub fn of(address: SocketAddr, request: fn(usize, Option<&str>) -> String) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |number: usize| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                let mut requests = Vec::new();
                let mut client = None;
                while !stop.load(Ordering::Relaxed) {
                    let count = requests.len();
                    let id = (count % 2 == 1).then(|| format!("{number}-{count}"));
                    let text = request((number << 16) | count, id.as_deref());
                    let connected: &mut Client = client.get_or_insert_with(|| Client::connect(address).unwrap());
                    let answer = connected.send(text).try_answer();
                    requests.push(Request { id, status: answer.as_ref().map_or(0, |answer| answer.status) });
                    if answer.map_or(true, |answer| answer.closes()) {
                        client = None;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                requests
            })
        };
        let clients = (0..6).map(client).collect();
        Self { stop, done, clients }
    }

    /// Waits for this many more requests.
    #[track_caller]
    pub fn goes_on(&self, more: usize) {
        let before = self.done.load(Ordering::Relaxed);
        until("more requests", || self.done.load(Ordering::Relaxed) >= before + more);
    }

    pub fn end(self) -> Vec<Request> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

/// How often the app has executed each `POST`.
pub fn executed(record: &PathBuf) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for line in fs::read_to_string(record).unwrap_or_default().lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn a_command_is_all_that_is_needed() {
    let (dir, address, admin) = (fresh_dir(), local(), local());
    let (port, listen) = (address.port().to_string(), admin.to_string());
    let secret = "0123456789abcdef0123456789abcdef";
    let environment = [
        ("PORT", port.as_str()),
        ("OUTRIGGER_ADMIN_LISTEN", &listen),
        ("OUTRIGGER_KEY_SECRET", secret),
        ("OTHER", "passes"),
    ];
    let args = [&["--port-env", "APP_PORT", "--"].map(str::to_owned), app(&[]).as_slice()].concat();
    let mut run = Run::launch(dir, (address, admin), &[], &environment, &args);
    run.serves();
    let environment: Value = serde_json::from_str(&run.get("/env").body).unwrap();
    let own: u16 = environment["PORT"].as_str().unwrap().parse().unwrap();
    assert_ne!(own, address.port());
    assert_eq!((&environment["APP_PORT"], &environment["OTHER"]), (&environment["PORT"], &Value::from("passes")));
    assert_eq!(environment["OUTRIGGER_KEY_SECRET"], Value::Null, "a secret of the proxy");
    assert_eq!(run.shown()["address"], format!("localhost:{own}"));
    assert_eq!(run.metric("outrigger_app_process_state", &[("state", "serving")]), 1.0);
    // All addresses, as the platform expects it.
    assert!(run.says("outrigger serves").contains(&format!("0.0.0.0:{port}")));
    let child = run.child();
    run.process.signal(Signal::TERM);
    run.says("draining");
    run.process.signal(Signal::TERM);
    assert!(run.ends().success());
    assert!(!process::exists(child), "the app outlives Outrigger");
}

#[test]
fn a_shutdown_drains_first_and_stops_the_app_after() {
    let mut run = Run::serving(QUICK, &app(&[]));
    let mut client = Client::connect(run.address).unwrap();
    client.send(get("/slow?1"));
    until("the request", || run.metric("outrigger_requests_in_flight", &[]) == 1.0);
    run.process.signal(Signal::TERM);
    assert_eq!(client.answer().status, 200);
    assert!(run.ends().success());
}

#[test]
fn an_app_may_have_a_unix_socket() {
    let dir = fresh_dir();
    let socket = crate::harness::socket(&dir);
    let rules = format!("{QUICK}app.address = \"unix:{}\"\n", socket.display());
    let run = Run::serving(&rules, &app(&[&format!("socket={}", socket.display())]));
    let environment: Value = serde_json::from_str(&run.get("/env").body).unwrap();
    assert_eq!(environment["PORT"], Value::Null);
}

#[test]
fn a_restart_by_an_operator_loses_no_request() {
    let record = fresh_dir().join("record");
    let run = Run::serving(QUICK, &app(&[&format!("record={}", record.display())]));
    let load = Load::begin(run.address);
    let mut child = run.child();
    for _ in 0..3 {
        load.goes_on(100);
        let (status, said) = run.restart();
        assert!(status.success() && said.contains("restarted"), "{said}");
        child = run.replaces(child);
    }
    load.goes_on(100);
    let requests = load.end();
    let failed: Vec<_> = requests.iter().filter(|request| request.status != 200).collect();
    assert!(failed.is_empty(), "of {} requests: {failed:?}", requests.len());
    let executed = executed(&record);
    assert!(requests.iter().filter_map(|request| request.id.as_ref()).all(|id| executed[id] == 1));
    assert_eq!(run.metric("outrigger_app_restarts_total", &[("reason", "operator")]), 3.0);
}

#[test]
fn a_restart_lets_requests_finish() {
    let run = Run::serving(QUICK, &app(&[]));
    let child = run.child();
    let mut client = Client::connect(run.address).unwrap();
    client.send(post("/slow", "x"));
    assert_eq!(client.answer().status, 200);
    client.send(get("/slow?3"));
    until("the request", || run.metric("outrigger_requests_in_flight", &[]) == 1.0);
    let restart = {
        let admin = run.admin;
        thread::spawn(move || http::send("POST", admin, "/app/restart", &[], "", PATIENCE).unwrap())
    };
    run.is("finishing");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text()), (200, child.to_string()), "the old process completes it");
    assert_eq!(restart.join().unwrap().status, 200);
    assert_ne!(run.child(), child);
}

#[test]
fn without_a_command_there_is_no_app_to_restart() {
    let app = crate::backend::Backend::start();
    let proxy = crate::harness::Proxy::start(&app);
    let answer = http::send("POST", proxy.admin, "/app/restart", &[], "", PATIENCE).unwrap();
    assert_eq!(answer.status, 409);
    assert!(answer.body.contains("outrigger run -- COMMAND"), "{}", answer.body);
    assert_eq!(proxy.shows("/app")["process"], Value::Null);
    let output = proxy.run(&["restart", "--admin", &proxy.admin.to_string()]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_audit_log_has_starts_ends_and_restarts() {
    let directory = fresh_dir().join("audit");
    let run = Run::serving(&format!("{QUICK}audit.directory = \"{}\"\n", directory.display()), &app(&[]));
    assert!(run.restart().0.success());
    let entries = || {
        let files = fs::read_dir(&directory).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect::<String>()
    };
    for (action, count) in [("app.start", 2), ("app.exit", 1), ("app.restart", 1)] {
        let action = format!("\"action\":\"{action}\"");
        until(&action, || entries().matches(&action).count() == count);
    }
}

/// Outrigger would not know when to give up its own port.
#[test]
fn a_platforms_port_must_be_one() {
    let mut command = Command::new(programs::find("outrigger").unwrap());
    let output = command.args(["run", "--", "true"]).env("PORT", "http").current_dir(fresh_dir()).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("PORT is \"http\""), "{said}");
}

/// An interval within which something happens, on a busy machine.
const SOON: Duration = Duration::from_secs(10);
