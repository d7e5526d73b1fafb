//! Changes that harm, under real traffic.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use xtask::wait;

use super::{GOOD, Shape, Traffic, app, save, undone};
use crate::backend::{Backend, Play};
use crate::harness::{Proxy, get, until};

/// Within this time a harmful change must be taken back.
const SOON: Duration = Duration::from_secs(30);

/// A change: its name, and the lines that it adds, or the address of the app that it names.
enum Change {
    Lines(&'static str, &'static str),
    App(&'static str, fn(&Elsewhere) -> String, &'static str),
}

/// Addresses that are no app.
struct Elsewhere {
    nobody: String,
    silent: (TcpListener, String),
    garbage: Backend,
}

impl Elsewhere {
    fn new() -> Self {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let garbage = Backend::start();
        for path in ["/api/x", "/missing"] {
            garbage.at(path, Play::SayAndClose(b"\x16\x03\x01 no HTTP\r\n\r\n".to_vec()));
        }
        let nobody = format!("127.0.0.1:{}", xtask::ports::free().unwrap());
        Self { nobody, silent: (silent, address), garbage }
    }
}

const LIMITS: [Change; 6] = [
    Change::Lines("a limit of 1/1m", "rate_limits.medium = \"1/1m\"\n"),
    Change::Lines(
        "a rule of 1/1h",
        "rate_limits.medium = \"off\"\n[[rate_limits.rules]]\nname = \"hour\"\nrate = \"1/1h\"\nby = \"address\"\n",
    ),
    Change::Lines("a tier of 0.01x", "rate_limits.medium = \"600/1m\"\ntiers.anonymous = \"0.01x\"\n"),
    Change::Lines(
        "a route whose requests cost all of the quota",
        "rate_limits.medium = \"600/1m\"\n[[routes]]\nname = \"api\"\npath = \"/api/**\"\ncost = 600\n",
    ),
    Change::Lines(
        "a limit for all clients together",
        "rate_limits.medium = \"off\"\n[[rate_limits.rules]]\nname = \"all\"\nrate = \"1/1s\"\nby = \"machine\"\n",
    ),
    // Last: the bans outlive it.
    Change::Lines(
        "a ban for three 404",
        "abuse.mode = \"enforce\"\nabuse.not_found = \"3/1m\"\nrate_limits.medium = \"6000/1m\"\n",
    ),
];

const REFUSALS: [Change; 7] = [
    Change::Lines("addresses that nobody has", "server.allow = [\"192.0.2.0/24\"]\n"),
    Change::Lines("all addresses denied", "server.deny = [\"127.0.0.0/8\"]\n"),
    Change::Lines("a route that denies all", "[[routes]]\nname = \"all\"\npath = \"/**\"\ndeny = [\"0.0.0.0/0\"]\n"),
    Change::Lines("hardly any headers", "client.max_fields = 1\n[[routes]]\nname = \"a\"\npath = \"/a\"\n"),
    Change::Lines("bodies of 1 byte", "client.max_body = \"1B\"\nclient.max_head = \"1KiB\"\n"),
    Change::Lines(
        "a route that takes all and no bodies",
        "client.max_head = \"1KiB\"\n[[routes]]\nname = \"all\"\npath = \"/**\"\nmax_body = \"1B\"\n",
    ),
    Change::Lines(
        "a concurrency limit of 1",
        "admission.max = 1\nadmission.initial = 1\nadmission.max_wait = \"1ms\"\nadmission.max_queue = 1\n",
    ),
];

const TIMES: [Change; 5] = [
    Change::Lines("a deadline of 1 ms", "app.timeout = \"1ms\"\n"),
    Change::Lines("a deadline below the usual latency", "app.timeout = \"12ms\"\n"),
    Change::Lines("a route that swallows all", "[[routes]]\nname = \"all\"\npath = \"/**\"\ntimeout = \"2ms\"\n"),
    Change::Lines(
        "a breaker that trips at once",
        "breaker.slow_after = \"1ms\"\nbreaker.slow_rate = \"1%\"\nbreaker.min_calls = 5\nbreaker.open = \"30s\"\n",
    ),
    Change::Lines(
        "a breaker that opens for slow routes",
        "breaker.slow_after = \"5ms\"\nbreaker.min_calls = 5\n[[routes]]\nname = \"api\"\npath = \"/api/**\"\n",
    ),
];

const ADDRESSES: [Change; 5] = [
    Change::App("a wrong port", |elsewhere| elsewhere.nobody.clone(), ""),
    Change::App("a wrong port, and requests do not wait", |elsewhere| elsewhere.nobody.clone(), "app.hold = \"0s\"\n"),
    Change::App("a socket that is not there", |_| "unix:/nonexistent/app.sock".to_owned(), ""),
    Change::App("a port that speaks another protocol", |elsewhere| elsewhere.garbage.address(), ""),
    // Last: its requests wait for as long as they may.
    Change::App("a port where nobody answers", |elsewhere| elsewhere.silent.1.clone(), "app.timeout = \"40s\"\n"),
];

/// Makes each change of a list, one after the other, and waits until it is taken back.
fn are_undone(changes: &[Change], shape: Shape) {
    let (app, elsewhere) = (app(), Elsewhere::new());
    let proxy = Proxy::with(&app, GOOD);
    let traffic = Traffic::start(&proxy, 8, shape);
    traffic.is_usual(&proxy);
    for change in changes {
        let (name, text) = match change {
            Change::Lines(name, lines) => (name, proxy.text(&format!("{GOOD}{lines}"))),
            Change::App(name, address, lines) => {
                let there = format!("app.address = \"{}\"", app.address());
                let text = proxy.text(&format!("{GOOD}{lines}"));
                (name, text.replace(&there, &format!("app.address = \"{}\"", address(&elsewhere))))
            }
        };
        let before = undone(&proxy);
        save(&proxy, &text);
        let saved = Instant::now();
        let is_undone = wait::until(name, SOON, || undone(&proxy) > before);
        assert!(is_undone.is_ok(), "{name}, {shape:?}: not taken back within 30 s");
        let (after, shown) = (saved.elapsed(), proxy.shows("/status")["config"]["undone"].clone());
        println!("{name}, {shape:?}: taken back after {after:.1?}: {}", shown["text"]);
        assert_eq!(std::fs::read_to_string(&proxy.file).unwrap(), text, "the file is not touched");
        // A client that has not sent a request yet.
        until("requests to be served again", || proxy.ask_as(99, &get("/api/x")).status == 200);
        let served = traffic.served();
        if !name.starts_with("a ban") && !name.ends_with("nobody answers") {
            until("the traffic to be served again", || traffic.served() > served + 10);
        }
    }
    drop(elsewhere.silent.0);
}

/// All lists at a time, each with a proxy of its own: they mostly wait.
fn all_are_undone(shape: Shape) {
    thread::scope(|scope| {
        for changes in [&LIMITS[..], &REFUSALS, &TIMES, &ADDRESSES] {
            scope.spawn(move || are_undone(changes, shape));
        }
    });
}

#[test]
fn twenty_three_harmful_changes_are_taken_back_within_30_s() {
    all_are_undone(Shape::Steady);
}

#[test]
#[ignore = "minutes: cargo xtask soak --tests"]
fn all_of_them_are_taken_back_under_bursty_and_wavy_traffic() {
    for shape in [Shape::Bursty, Shape::Wave] {
        all_are_undone(shape);
    }
}
