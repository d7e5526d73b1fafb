//! What requests share: the rules in force, the numbers, and whether the process is leaving.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::metrics::{Metrics, RouteMetrics};

/// One version of the rules, with what was prepared for it.
#[derive(Debug)]
pub struct Snapshot {
    /// The rules.
    pub config: Config,
    /// The metrics of each route, in the order of the routes.
    pub route_metrics: Vec<RouteMetrics>,
    /// Counts up with every change.
    pub version: u64,
}

impl Snapshot {
    /// Prepares `config` for use.
    pub fn new(config: Config, version: u64, metrics: &Metrics) -> Self {
        let route_metrics =
            config.routes.all().iter().map(|route| metrics.for_route(&route.name, route.priority)).collect();
        Self { config, route_metrics, version }
    }
}

/// What every worker sees.
#[derive(Debug)]
pub struct State {
    /// The rules in force.
    pub rules: ArcSwap<Snapshot>,
    /// Every metric.
    pub metrics: Metrics,
    /// Where access lines go.
    pub access_log: AccessLog,
    /// Is the process leaving?
    pub drain: Drain,
    /// When it began.
    pub started: Instant,
    connections: AtomicUsize,
    in_flight: Arc<AtomicUsize>,
}

impl State {
    /// A process that has just begun.
    pub fn new(config: Config, metrics: Metrics, access_log: AccessLog) -> Self {
        let rules = Snapshot::new(config, 1, &metrics);
        Self {
            rules: ArcSwap::from_pointee(rules),
            metrics,
            access_log,
            drain: Drain::default(),
            started: Instant::now(),
            connections: AtomicUsize::new(0),
            in_flight: Arc::default(),
        }
    }

    /// Counts a connection for as long as the answer lives; `None` at the bound.
    pub fn open_connection(self: &Arc<Self>, most: usize) -> Option<OpenConnection> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let open = OpenConnection { state: Arc::clone(self) };
        (before < most).then_some(open)
    }

    /// Counts a request for as long as the answer lives.
    pub fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { count: Arc::clone(&self.in_flight) }
    }

    /// Client connections now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests between their head and the end of their answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// One connection, counted.
#[derive(Debug)]
pub struct OpenConnection {
    state: Arc<State>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let before = self.state.connections.fetch_sub(1, Ordering::Relaxed);
        if before == 1 && self.state.drain.phase() != Phase::Serving {
            self.state.drain.idle.notify_one();
        }
    }
}

/// One request, counted.
#[derive(Debug)]
pub struct InFlight {
    count: Arc<AtomicUsize>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Serving = 0,
    /// Health fails, answers ask clients to reconnect, everything is still served.
    LameDuck = 1,
    /// Nothing new is taken; connections that rest are closed.
    Closing = 2,
}

/// The way out, as workers see it.
#[derive(Debug, Default)]
pub struct Drain {
    phase: AtomicU8,
    /// Told when the last connection has gone.
    pub idle: Notify,
}

impl Drain {
    /// How far the process is.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::LameDuck,
            _ => Phase::Closing,
        }
    }

    /// Goes on to `phase`.
    pub fn advance(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }
}
