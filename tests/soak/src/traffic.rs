//! The clients: each is a task that sends one kind of traffic, with random pauses, and checks each response.

mod agent;
mod streams;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use self::agent::Agent;
use crate::judge::{Failure, Kind};
use crate::slope::Point;

/// How many clients send each kind of traffic.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    pub kept: usize,
    pub new: usize,
    pub http2: usize,
    pub websocket: usize,
    pub events: usize,
    pub uploads: usize,
    pub leaving: usize,
}

impl Mix {
    pub const ALL: Self = Self { kept: 64, new: 20, http2: 12, websocket: 12, events: 12, uploads: 6, leaving: 6 };
    /// Requests alone, for the hangs.
    pub const REQUESTS: Self = Self { kept: 40, new: 8, http2: 6, websocket: 0, events: 0, uploads: 0, leaving: 0 };
}

/// The public ports of a Machine.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub http1: SocketAddr,
    pub http2: SocketAddr,
}

/// State that all clients share.
#[derive(Debug)]
pub struct Shared {
    pub begin: Instant,
    /// The clients' timeout for each request.
    pub timeout: Duration,
    pub seed: u64,
    machines: Vec<(Ports, AtomicBool)>,
    next: AtomicUsize,
    is_over: AtomicBool,
}

impl Shared {
    pub fn new(machines: Vec<Ports>, timeout: Duration, seed: u64) -> Self {
        let machines = machines.into_iter().map(|ports| (ports, AtomicBool::new(true))).collect();
        let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { begin: Instant::now(), timeout, seed, machines, next, is_over }
    }

    /// Whether new connections go to this Machine, as an edge decides by its health checks.
    pub fn route(&self, machine: usize, is_routed: bool) {
        if let Some((_, routed)) = self.machines.get(machine) {
            routed.store(is_routed, Ordering::Relaxed);
        }
    }

    /// The next Machine, in turn.
    fn pick(&self) -> Ports {
        loop {
            let (ports, is_routed) = &self.machines[self.next.fetch_add(1, Ordering::Relaxed) % self.machines.len()];
            if is_routed.load(Ordering::Relaxed) {
                return *ports;
            }
        }
    }

    pub fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Failed {
    pub kind: Kind,
    /// Since the start.
    pub from: Duration,
    pub to: Duration,
    pub failure: Failure,
    /// `X-Request-Id`, or the id in the path.
    pub request: String,
}

/// Results of the clients.
#[derive(Debug, Default)]
pub struct Results {
    /// Requests, sessions of WebSockets, and streams.
    pub requests: BTreeMap<Kind, usize>,
    /// Seconds since the start, and milliseconds.
    pub latencies: BTreeMap<Kind, Vec<Point>>,
    pub failed: Vec<Failed>,
    /// Requests sent again by the client, since the proxy had certainly not processed them.
    pub resent: usize,
    /// Messages and events that were checked.
    pub messages: usize,
    /// Orders and uploads: those with the right response.
    pub done: Vec<u64>,
}

impl Results {
    fn add(&mut self, other: Self) {
        for (kind, number) in other.requests {
            *self.requests.entry(kind).or_default() += number;
        }
        for (kind, latencies) in other.latencies {
            self.latencies.entry(kind).or_default().extend(latencies);
        }
        self.failed.extend(other.failed);
        self.resent += other.resent;
        self.messages += other.messages;
        self.done.extend(other.done);
    }

    pub fn total(&self) -> usize {
        self.requests.values().sum()
    }
}

/// Starts all clients. They end, with their results, some seconds after [`Shared::stop`].
pub fn start(shared: &Arc<Shared>, mix: Mix) -> JoinSet<Results> {
    let mut clients = JoinSet::new();
    let mut number = 0;
    let mut some = |count: usize, kind: agent::Habit| {
        for _ in 0..count {
            number += 1;
            let agent = Agent::new(Arc::clone(shared), number);
            clients.spawn(agent.run(kind));
        }
    };
    some(mix.kept, agent::Habit::Kept);
    some(mix.new, agent::Habit::New);
    some(mix.http2, agent::Habit::Http2);
    some(mix.websocket, agent::Habit::WebSocket);
    some(mix.events, agent::Habit::Events);
    some(mix.uploads, agent::Habit::Uploads);
    some(mix.leaving, agent::Habit::Leaves);
    clients
}

/// Waits for all clients.
pub async fn finish(mut clients: JoinSet<Results>) -> Results {
    let mut all = Results::default();
    while let Some(done) = clients.join_next().await {
        if let Ok(results) = done {
            all.add(results);
        }
    }
    all.failed.sort_by_key(|failed| failed.from);
    all
}
