//! State that all requests share: the configuration in force, limits, metrics, and the phase of a shutdown.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use outrigger_identity::client::Client;
use outrigger_identity::clock;
use outrigger_identity::hash::client_hash;
use outrigger_policy::hitters::RecentHitters;
use outrigger_policy::retry::Budget;
use outrigger_rules::config::Config;
use outrigger_rules::sections::route_table::Route;
use outrigger_wire::client_address::Sender;
use outrigger_wire::via::Pseudonym;
use tokio::sync::Notify;

use crate::engine::attempt_times::AttemptTimes;
use crate::engine::exchange::Listener;
use crate::engine::guard::Guard;
use crate::engine::history::History;
use crate::engine::metrics::{Metrics, RouteMetrics};
use crate::engine::pause::Pause;
use crate::engine::receipts::Receipts;
use crate::engine::stages::hold::Reach;
use crate::mechanism::abuse::Bans;
use crate::mechanism::audit::{AuditBasis, Trail};
use crate::mechanism::breakers::{self, Cell};
use crate::mechanism::claims::Claims;
use crate::mechanism::clock::Clock;
use crate::mechanism::connections::{Bounds, ConnectionState, Connections, RESTED};
use crate::mechanism::gate::Gate;
use crate::mechanism::health::AppHealth;
use crate::mechanism::limits::metrics::LimitMetrics;
use crate::mechanism::limits::shared::Shared;
use crate::mechanism::limits::table::Table;
use crate::mechanism::log::AccessLog;
use crate::mechanism::machines::Machines;
use crate::mechanism::peers::Peers;
use crate::mechanism::saved::Snapshots;
use crate::mechanism::tally::Tally;
use crate::mechanism::traces::Traces;
use crate::mechanism::traffic::{Recorder, TrafficBasis};
use crate::transport::body_memory::BodyMemory;
use crate::transport::upstream::checked::Checked;
use crate::transport::upstream::exhaustion::Exhaustion;
use crate::transport::upstream::{Resource, Upstreams};

/// One version of the configuration, with data prepared for it.
#[derive(Debug)]
pub struct Snapshot {
    /// The checked configuration.
    pub config: Config,
    /// The upstreams that it configures.
    pub upstreams: Upstreams,
    /// The metrics of each route, in the order of the routes.
    pub route_metrics: Vec<RouteMetrics>,
    /// A hash of each route's name.
    pub route_tags: Vec<u64>,
    /// The metrics of each limit, in the order of the limits.
    pub limit_metrics: Vec<LimitMetrics>,
    /// The clients that each limit rejected most often lately, in the order of the limits. They begin anew with each reload.
    pub limited: Vec<Mutex<RecentHitters>>,
    /// How long attempts may take, in the order of the routes.
    pub attempt_times: Vec<AttemptTimes>,
    /// The circuit breakers, in the order of the configuration.
    pub breakers: Vec<Arc<Cell>>,
    /// The part of the configuration that the audit log uses, if there is an audit log.
    pub audit: Option<Arc<AuditBasis>>,
    /// The part of the configuration that the traffic record uses, if traffic is recorded.
    pub traffic: Option<Arc<TrafficBasis>>,
    /// Increases by one with every change.
    pub version: u64,
}

impl Snapshot {
    /// Prepares a checked configuration for use.
    pub fn new(checked: Checked, version: u64, metrics: &Metrics, breakers: &breakers::Registry) -> Self {
        let Checked { config, upstreams } = checked;
        let route_metrics =
            config.routes.all().iter().map(|route| metrics.requests.for_route(&route.name, route.priority)).collect();
        let tag = |name: &str| client_hash(b'r', name.as_bytes());
        let route_tags = config.routes.all().iter().map(|route| tag(&route.name)).collect();
        let limit_metrics = config.limits.all.iter().map(|limit| metrics.limits.for_limit(&limit.name)).collect();
        let limited = config.limits.all.iter().map(|_| Mutex::default()).collect();
        let times = |route: &Arc<Route>| AttemptTimes::new(&config.retry, route);
        let attempt_times = config.routes.all().iter().map(times).collect();
        let breakers = breakers.prepare(&config.breakers);
        let audit = AuditBasis::of(&config).map(Arc::new);
        let traffic = TrafficBasis::of(&config).map(Arc::new);
        Self {
            config,
            upstreams,
            route_metrics,
            route_tags,
            limit_metrics,
            limited,
            attempt_times,
            breakers,
            audit,
            traffic,
            version,
        }
    }
}

/// The budgets for requests that are sent a second time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budgets {
    /// After an attempt that failed.
    pub retries: Budget,
    /// While the first attempt goes on.
    pub hedges: Budget,
}

/// State that all workers share.
#[derive(Debug)]
pub struct State {
    /// The configuration in force.
    pub rules: ArcSwap<Snapshot>,
    /// All metrics.
    pub metrics: Metrics,
    /// Receipts of requests.
    pub receipts: Receipts,
    /// The summary of this Machine for its peers, as JSON; empty without peers.
    pub summary: ArcSwap<Vec<u8>>,
    /// Writes the access log.
    pub access_log: AccessLog,
    /// How far a shutdown has progressed.
    pub drain: Drain,
    /// When the process started.
    pub started: Instant,
    /// The state of this Machine's own rate limits.
    pub limits: Table,
    /// The state of shared rate limits.
    pub shared: Arc<Shared>,
    /// The number of Machines.
    pub machines: Arc<Machines>,
    /// The banned clients.
    pub bans: Bans,
    /// Client addresses in headers of untrusted senders.
    pub claims: Claims,
    /// The concurrency limit and its queue.
    pub gate: Arc<Gate>,
    /// The memory for buffered request bodies.
    pub body_memory: Arc<BodyMemory>,
    /// The circuit breakers of all routes.
    pub breakers: breakers::Registry,
    /// Whether requests may be sent to the app.
    pub reach: Reach,
    /// Pause and maintenance, as operators order.
    pub pause: Pause,
    /// The app's health, if the file names a check.
    pub health: AppHealth,
    /// Notified when `app.address` or the addresses of its name have changed.
    pub app_moved: Arc<Notify>,
    /// Which resources this host has run out of.
    pub exhaustion: Exhaustion,
    /// This process's name in requests that it forwards: a request that already has it is in a loop.
    pub pseudonym: Pseudonym,
    /// The other Machines; `None` if this one is alone.
    pub peers: Option<Arc<Peers>>,
    /// The audit log, if there is one.
    pub trail: Option<Arc<Trail>>,
    /// Traces on their way to the collector, if there is one.
    pub traces: Option<Traces>,
    /// Snapshots of the state.
    pub snapshots: Snapshots,
    /// The traffic record.
    pub traffic: Arc<Recorder>,
    /// The latest events, for operators.
    pub history: History,
    /// How requests end for each client.
    pub tally: Arc<Tally>,
    /// The change that is on probation, and orders about changes.
    pub guard: Guard,
    budgets: Mutex<Budgets>,
    connections: Connections,
    peer_connections: Connections,
    in_flight: Arc<AtomicUsize>,
}

impl State {
    /// The state of a process that has just started, without an audit log; names are not resolved.
    pub fn new(config: Config, metrics: Metrics, access_log: AccessLog) -> Self {
        let upstreams = Upstreams::new(&config.app);
        Self::with_trail(Checked { config, upstreams }, metrics, access_log, None)
    }

    /// The state of a process that has just started.
    pub fn with_trail(checked: Checked, metrics: Metrics, access_log: AccessLog, trail: Option<Arc<Trail>>) -> Self {
        let config = &checked.config;
        let limits = Table::new(config.max_limit_keys);
        let shared = Arc::new(Shared::new(config.max_limit_keys));
        let gate = Arc::new(Gate::new(config.gate.settings));
        let breakers = breakers::Registry::default();
        let peers =
            config.peers.clone().zip(config.this.clone()).map(|(rules, this)| Arc::new(Peers::new(rules, this)));
        let traffic = Arc::new(Recorder::new(config.server.threads, metrics.traffic.clone()));
        let rules = Snapshot::new(checked, 1, &metrics, &breakers);
        Self {
            limits,
            shared,
            machines: Arc::default(),
            bans: Bans::default(),
            claims: Claims::default(),
            gate,
            body_memory: Arc::default(),
            breakers,
            reach: Reach::default(),
            pause: Pause::default(),
            health: AppHealth::default(),
            app_moved: Arc::default(),
            exhaustion: Exhaustion::default(),
            pseudonym: Pseudonym::fresh(),
            peers,
            trail,
            traces: None,
            snapshots: Snapshots::default(),
            traffic,
            history: History::default(),
            tally: Arc::default(),
            guard: Guard::default(),
            budgets: Mutex::default(),
            rules: ArcSwap::from_pointee(rules),
            metrics,
            receipts: Receipts::default(),
            summary: ArcSwap::default(),
            access_log,
            drain: Drain::default(),
            started: clock::now(),
            connections: Connections::default(),
            peer_connections: Connections::default(),
            in_flight: Arc::default(),
        }
    }

    /// The clock of rate limits, bans and circuit breakers.
    pub fn clock(&self) -> Clock {
        Clock::new(self.started)
    }

    /// Nanoseconds on [`Self::clock`].
    pub fn nanoseconds(&self, at: Instant) -> u64 {
        self.clock().nanoseconds(at)
    }

    /// The budgets for second requests.
    pub fn budgets(&self) -> MutexGuard<'_, Budgets> {
        // If a thread panicked while it held the lock, the count is off by one at most.
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each listener has its own connection limit, so that a flood on the public one does not keep peers out, or the
    /// reverse.
    fn connections_by(&self, listener: Listener) -> &Connections {
        match listener {
            Listener::Public => &self.connections,
            Listener::Peers => &self.peer_connections,
        }
    }

    /// Counts a connection until the returned value is dropped. Returns `None` if a limit is reached and no other connection
    /// makes room.
    pub fn open_connection(self: &Arc<Self>, listener: Listener, client: IpAddr) -> Option<OpenConnection> {
        let rules = self.rules.load();
        let server = &rules.config.server;
        let is_trusted = match listener {
            Listener::Public => rules.config.edge.sender(client) != Sender::Stranger,
            // Others may connect to it, although none of their requests is served.
            Listener::Peers => self.peers.as_ref().is_some_and(|peers| peers.is_at(client)),
        };
        // Edges and peers carry the requests of many clients from few addresses.
        let address = (!is_trusted).then(|| Client::hash_of(client));
        let bounds = Bounds { all: server.max_connections, address: server.max_address_connections };
        let (entry, made_room) = self.connections_by(listener).open(address, bounds)?;
        if made_room {
            self.metrics.connections.closed_for_others.inc();
        }
        Some(OpenConnection { state: Arc::clone(self), listener, entry })
    }

    /// Asks a few connections that have been idle for a moment to close, to free their descriptors (RFC 9112 section 9.5
    /// allows it at any time). Returns false if there are no such connections.
    pub fn make_room(&self) -> bool {
        /// More than one: the connection that needs room also needs one to the app.
        const ROOM: u64 = 4;
        let one = || self.connections.make_room(RESTED) || self.peer_connections.make_room(RESTED);
        let closed: u64 = (0..ROOM).map_while(|_| one().then_some(1)).sum();
        self.metrics.connections.closed_for_others.inc_by(closed);
        closed > 0
    }

    /// Records that this host lacks `resource`: counts it, logs it, and makes room. Returns true if client connections are
    /// closing.
    pub fn note_exhaustion(&self, resource: Resource) -> bool {
        self.metrics.upstream.exhausted(resource);
        self.exhaustion.note(resource);
        resource.is_of_process() && self.make_room()
    }

    /// Counts a request until the returned value is dropped.
    pub fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { count: Arc::clone(&self.in_flight) }
    }

    /// The number of open connections of clients and peers.
    pub fn connections(&self) -> usize {
        self.connections.number() + self.peer_connections.number()
    }

    /// The number of requests between their head and the end of their response.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// An open connection, which counts towards its listener's limit.
#[derive(Debug)]
pub struct OpenConnection {
    state: Arc<State>,
    listener: Listener,
    /// Its state, shared with the table of connections.
    pub entry: Arc<ConnectionState>,
}

impl OpenConnection {
    /// Records that an unfinished head takes `bytes`. Returns false if that exceeds the memory for them.
    pub fn hold_head(&self, bytes: usize) -> bool {
        let most = self.state.rules.load().config.client.max_unfinished_head_bytes;
        self.state.connections_by(self.listener).hold_head(&self.entry, bytes, most)
    }

    /// Frees the head's share of that memory: the head is complete.
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

/// A request in flight.
#[derive(Debug)]
pub struct InFlight {
    count: Arc<AtomicUsize>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The phase of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The process serves.
    Serving = 0,
    /// Health checks fail and responses ask clients to reconnect; all requests are still served.
    LameDuck = 1,
    /// No new connections are accepted; idle ones are closed.
    Closing = 2,
}

/// The progress of a shutdown, as workers see it.
#[derive(Debug, Default)]
pub struct Drain {
    phase: AtomicU8,
    /// Notified when the last connection has closed.
    pub idle: Notify,
}

impl Drain {
    /// The current phase.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::LameDuck,
            _ => Phase::Closing,
        }
    }

    /// Advances to `phase`.
    pub fn advance(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }
}
