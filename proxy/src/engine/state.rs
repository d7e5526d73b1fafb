//! What requests share: the rules in force, the numbers, and whether the process is leaving.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use outrigger_identity::client::Client;
use outrigger_identity::hash::client_hash;
use outrigger_policy::retry::Budget;
use outrigger_rules::config::Config;
use outrigger_wire::client_address::Sender;
use outrigger_wire::via::Pseudonym;
use tokio::sync::Notify;

use crate::engine::exchange::Listener;
use crate::engine::metrics::{LimitMetrics, Metrics, RouteMetrics};
use crate::engine::stages::hold::Reach;
use crate::mechanism::abuse::Bans;
use crate::mechanism::access_log::AccessLog;
use crate::mechanism::audit::Trail;
use crate::mechanism::body_memory::BodyMemory;
use crate::mechanism::breakers::{self, Cell};
use crate::mechanism::claims::Claims;
use crate::mechanism::connections::{Bounds, ConnectionState, Connections, RESTED};
use crate::mechanism::gate::Gate;
use crate::mechanism::limits::shared::Shared;
use crate::mechanism::limits::table::Table;
use crate::mechanism::machines::Machines;
use crate::mechanism::peers::Peers;
use crate::transport::upstream::Upstreams;
use crate::transport::upstream::checked::Checked;
use crate::transport::upstream::exhaustion::Exhaustion;

/// One version of the rules, with what was prepared for it.
#[derive(Debug)]
pub struct Snapshot {
    /// The rules.
    pub config: Config,
    /// What they say that connections are made to.
    pub upstreams: Upstreams,
    /// The metrics of each route, in the order of the routes.
    pub route_metrics: Vec<RouteMetrics>,
    /// A hash of each route's name.
    pub route_tags: Vec<u64>,
    /// The metrics of each limit, in the order of the limits.
    pub limit_metrics: Vec<LimitMetrics>,
    /// The breakers, in the order of the rules.
    pub breakers: Vec<Arc<Cell>>,
    /// Counts up with every change.
    pub version: u64,
}

impl Snapshot {
    /// Prepares rules for use.
    pub fn new(checked: Checked, version: u64, metrics: &Metrics, breakers: &breakers::Registry) -> Self {
        let Checked { config, upstreams } = checked;
        let route_metrics =
            config.routes.all().iter().map(|route| metrics.for_route(&route.name, route.priority)).collect();
        let tag = |name: &str| client_hash(b'r', name.as_bytes());
        let route_tags = config.routes.all().iter().map(|route| tag(&route.name)).collect();
        let limit_metrics = config.limits.all.iter().map(|limit| metrics.for_limit(&limit.name)).collect();
        let breakers = breakers.prepare(&config.breakers);
        Self { config, upstreams, route_metrics, route_tags, limit_metrics, breakers, version }
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
    /// What has been taken from every quota.
    pub limits: Table,
    /// What is known of the quotas that Machines share.
    pub shared: Shared,
    /// How many Machines there are.
    pub machines: Machines,
    /// Who is shut out.
    pub bans: Bans,
    /// Client addresses that were named and not believed.
    pub claims: Claims,
    /// The slots for requests to the app.
    pub gate: Arc<Gate>,
    /// Memory for request bodies that are kept.
    pub body_memory: Arc<BodyMemory>,
    /// The breakers of all routes.
    pub breakers: breakers::Registry,
    /// Whether the app takes connections.
    pub reach: Reach,
    /// The app is to be reached elsewhere: `app.address` has changed, or the addresses of its name.
    pub app_moved: Notify,
    /// What this host is out of.
    pub exhaustion: Exhaustion,
    /// How this process calls itself in requests that it forwards: one that carries it already has been here.
    pub pseudonym: Pseudonym,
    /// The other Machines; `None` when this one is alone.
    pub peers: Option<Peers>,
    /// The audit trail; `None` when there is none.
    pub trail: Option<Trail>,
    retries: Mutex<Budget>,
    connections: Connections,
    peer_connections: Connections,
    in_flight: Arc<AtomicUsize>,
}

impl State {
    /// A process that has just begun, without an audit trail; names are not looked up.
    pub fn new(config: Config, metrics: Metrics, access_log: AccessLog) -> Self {
        let upstreams = Upstreams::new(&config.app);
        Self::with_trail(Checked { config, upstreams }, metrics, access_log, None)
    }

    /// A process that has just begun.
    pub fn with_trail(checked: Checked, metrics: Metrics, access_log: AccessLog, trail: Option<Trail>) -> Self {
        let config = &checked.config;
        let limits = Table::new(config.max_limit_keys);
        let shared = Shared::new(config.max_limit_keys);
        let gate = Arc::new(Gate::new(config.gate.settings));
        let breakers = breakers::Registry::default();
        let peers = config.peers.clone().zip(config.this.clone()).map(|(rules, this)| Peers::new(rules, this));
        let rules = Snapshot::new(checked, 1, &metrics, &breakers);
        Self {
            limits,
            shared,
            machines: Machines::default(),
            bans: Bans::default(),
            claims: Claims::default(),
            gate,
            body_memory: Arc::default(),
            breakers,
            reach: Reach::default(),
            app_moved: Notify::new(),
            exhaustion: Exhaustion::default(),
            pseudonym: Pseudonym::fresh(),
            peers,
            trail,
            retries: Mutex::default(),
            rules: ArcSwap::from_pointee(rules),
            metrics,
            access_log,
            drain: Drain::default(),
            started: Instant::now(),
            connections: Connections::default(),
            peer_connections: Connections::default(),
            in_flight: Arc::default(),
        }
    }

    /// Nanoseconds on the clock of limits and bans. It never jumps, and began long before this process: a time of 0 is past.
    pub fn nanoseconds(&self, at: Instant) -> u64 {
        const BEFORE: u64 = 1 << 50;
        let since = u64::try_from(at.saturating_duration_since(self.started).as_nanos());
        BEFORE.saturating_add(since.unwrap_or(u64::MAX))
    }

    /// What is left for retries.
    pub fn retry_budget(&self) -> MutexGuard<'_, Budget> {
        // Whoever panicked while holding it has left a number behind that is off by one at the worst.
        self.retries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A flood on the public listener must not keep peers out, nor the other way round: each has its own bound.
    fn connections_by(&self, listener: Listener) -> &Connections {
        match listener {
            Listener::Public => &self.connections,
            Listener::Peers => &self.peer_connections,
        }
    }

    /// Counts a connection for as long as what is returned lives; `None` at a bound where no other one makes room.
    pub fn open_connection(self: &Arc<Self>, listener: Listener, client: IpAddr) -> Option<OpenConnection> {
        let rules = self.rules.load();
        let server = &rules.config.server;
        let is_trusted = listener == Listener::Peers || rules.config.edge.sender(client) != Sender::Stranger;
        // Edges and peers speak for many clients from few addresses.
        let address = (!is_trusted).then(|| Client::hash_of(client));
        let bounds = Bounds { all: server.max_connections, address: server.max_address_connections };
        let (entry, made_room) = self.connections_by(listener).open(address, bounds)?;
        if made_room {
            self.metrics.connections_closed_for_others.inc();
        }
        Some(OpenConnection { state: Arc::clone(self), listener, entry })
    }

    /// Has some connections close that have not been used for a moment, for their descriptors (RFC 9112 section 9.5 allows it at any
    /// time). False if there is none.
    pub fn make_room(&self) -> bool {
        /// More than one: what they make room for needs a connection to the app as well.
        const ROOM: u64 = 4;
        let one = || self.connections.make_room(RESTED) || self.peer_connections.make_room(RESTED);
        let closed: u64 = (0..ROOM).map_while(|_| one().then_some(1)).sum();
        self.metrics.connections_closed_for_others.inc_by(closed);
        closed > 0
    }

    /// Counts a request for as long as the answer lives.
    pub fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { count: Arc::clone(&self.in_flight), connection: None }
    }

    /// Connections of clients and peers now.
    pub fn connections(&self) -> usize {
        self.connections.number() + self.peer_connections.number()
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
    listener: Listener,
    /// As others see it.
    pub entry: Arc<ConnectionState>,
}

impl OpenConnection {
    /// An unfinished head holds so many bytes from now on: false if that is too much.
    pub fn hold_head(&self, bytes: usize) -> bool {
        let most = self.state.rules.load().config.client.max_unfinished_head_bytes;
        self.state.connections_by(self.listener).hold_head(&self.entry, bytes, most)
    }

    /// The head is complete.
    pub fn release_head(&self) {
        self.state.connections_by(self.listener).release_head(&self.entry);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let is_last = self.state.connections_by(self.listener).close(&self.entry);
        if is_last && self.state.drain.phase() != Phase::Serving {
            self.state.drain.idle.notify_one();
        }
    }
}

/// One request, counted.
#[derive(Debug)]
pub struct InFlight {
    count: Arc<AtomicUsize>,
    /// The connection that it came by, where that has several at a time.
    connection: Option<Arc<ConnectionState>>,
}

impl InFlight {
    /// It came by a connection that may bring others at the same time.
    pub fn on(&mut self, connection: Arc<ConnectionState>) {
        if connection.begin() {
            self.connection = Some(connection);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(connection) = self.connection.take() {
            connection.end();
        }
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
