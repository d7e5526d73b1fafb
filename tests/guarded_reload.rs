//! Guarded reload: a change under which requests fare worse is taken back by itself, and a harmless one stays.

mod apply;
mod fleet;
mod harmful;
mod harmless;
mod orders;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use xtask::wait;

use crate::backend::{Backend, Play, Workers};
use crate::harness::{Client, Proxy, Setup, get, until, with_fields};

/// The rules before each change. The long probation outlives a busy machine.
pub const GOOD: &str = "reload.probation = \"2m\"\nretry.attempts = 1\n";
/// How long the proxies learn what is usual before the first change, in seconds with requests.
const LEARNED_S: f64 = 11.0;
/// Within this time, also under traffic with pauses, on a busy machine.
const LEARNS_WITHIN: Duration = Duration::from_secs(90);

/// How many requests there are at which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Steady,
    Bursty,
    Wave,
}

impl Shape {
    /// The pause before a client's next request.
    fn pause(self, sent: u64) -> Duration {
        Duration::from_millis(match self {
            Self::Steady => 100,
            // Twenty at once, then a pause.
            Self::Bursty => {
                if sent.is_multiple_of(20) {
                    1500
                } else {
                    20
                }
            }
            // From one in 50 ms to one in 350 ms, and back.
            Self::Wave => 50 + (sent % 40).abs_diff(20) * 15,
        })
    }
}

/// Clients with addresses of their own that send requests until it is dropped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// `clients` clients, from 127.0.0.30 on.
    pub fn start(proxy: &Setup, clients: u8, shape: Shape) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (30..30 + clients).map(|last| {
            let (stop, served, address) = (Arc::clone(&stop), Arc::clone(&served), proxy.address);
            thread::spawn(move || send(address, last, shape, &stop, &served))
        });
        Self { clients: clients.collect(), stop, served }
    }

    /// Responses with 200 so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Waits until the proxy has learned what is usual.
    #[track_caller]
    pub fn is_usual(&self, proxy: &Proxy) {
        let learned = || proxy.shows("/status")["config"]["learned_s"].as_f64() >= Some(LEARNED_S);
        wait::until("the proxy to learn what is usual", LEARNS_WITHIN, learned).unwrap();
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Each ends with its next response.
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

fn send(address: SocketAddr, last: u8, shape: Shape, stop: &AtomicBool, served: &AtomicU64) {
    let filler = format!("X-Filler: {}", "x".repeat(1100));
    let body = "twenty bytes of body";
    let mut client = None;
    // Their bursts are not all at one time.
    let mut sent = u64::from(last) * 7;
    while !stop.load(Ordering::Relaxed) {
        sent += 1;
        let request = match sent % 4 {
            0 => format!("POST /api/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
            1 => get("/missing"),
            2 => with_fields(&get("/api/x"), &[&filler]),
            _ => get("/api/x"),
        };
        let connection = match client.take() {
            Some(connection) => Ok(connection),
            None => Client::connect_from([127, 0, 0, last].into(), address),
        };
        if let Ok(mut connection) = connection {
            let answer = connection.send(request).try_answer();
            if let Ok(answer) = answer {
                served.fetch_add(u64::from(answer.status == 200), Ordering::Relaxed);
                client = (!answer.closes()).then_some(connection);
            }
        }
        thread::sleep(shape.pause(sent));
    }
}

/// An app that takes 20 ms for a response, and 404 for `/missing`.
pub fn app() -> Backend {
    let app = Backend::start();
    prepare(&app);
    app
}

/// Has an app do so.
pub fn prepare(app: &Backend) {
    app.at("/api/x", Play::Work(Workers::new(200, Duration::from_millis(20))));
    app.at("/missing", Play::Say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()));
}

/// Saves a file and waits until it is in force.
#[track_caller]
pub fn save(proxy: &Proxy, text: &str) {
    let version = proxy.metric("outrigger_config_version", &[]);
    fs::write(&proxy.file, text).unwrap();
    until("the change to be in force", || proxy.metric("outrigger_config_version", &[]) > version);
}

/// Changes that were taken back so far.
pub fn undone(proxy: &Proxy) -> f64 {
    proxy.metric("outrigger_config_rollbacks_total", &[("mode", "enforce")])
}
