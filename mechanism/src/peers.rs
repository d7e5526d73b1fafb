//! The other Machines of the same app: how they are found and checked, and which of them serves a request.
//!
//! ```text
//! discovery.rs   addresses, from DNS or a list
//! hop.rs         the signed header of a request from one Machine to another
//! used.rs        accepts each hop once
//! probe.rs       health checks: probes each peer every `peers.interval`; it must prove its identity
//! answer.rs      the proof: the signed response to a probe
//! local.rs       health checks of the local app, for the peers
//! state.rs       the state of the peers, for a Machine without a snapshot
//! ```
//!
//! A peer is identified by the name that it signs, not by its address: addresses change, and a list has no names.
//! `pingora-load-balancing` selects the ready peer that serves a request which the local app cannot.

pub mod answer;
pub mod discovery;
pub mod hop;
pub mod local;
pub mod metrics;
pub mod probe;
pub mod state;
pub mod summary;
pub mod used;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use outrigger_identity::clock;
use outrigger_identity::this::This;
use outrigger_policy::affinity::Home;
use outrigger_rules::sections::peers::{FoundBy, PeerRules};
use outrigger_rules::target::Target;
use pingora_load_balancing::selection::RoundRobin;
use pingora_load_balancing::{Backends, LoadBalancer};

use crate::peers::answer::Condition;
use crate::peers::discovery::{Finder, Last};
use crate::peers::hop::{Nonces, Receiver};
use crate::peers::local::Local;
use crate::peers::probe::{Check, Round};
use crate::peers::used::UsedHops;

/// The last result of discovery is used for this many refreshes: a failed DNS query says nothing about Machines.
const BELIEVED_REFRESHES: u32 = 4;
/// How long after its start a Machine may be missing in DNS, with the difference between two Machines' clocks.
const DNS_LAG: Duration = Duration::from_secs(2);
/// The maximum number of backends considered when a peer is selected.
const MOST_LOOKED_AT: usize = 16;

/// A peer that has proved its identity at an address gets requests there for this many probes, and at least for
/// [`PROOF_HOLDS`], unless a probe of the address gets a response without a proof.
const PROOF_HOLDS_PROBES: u32 = probe::MISSED_BEFORE_LOST;
const PROOF_HOLDS: Duration = Duration::from_secs(5);
/// There is no proof.
const NEVER: u64 = u64::MAX;

/// How long a session waits for a Machine whose app is not ready.
const UNREADY_FOR_LONG: Duration = Duration::from_secs(30);

/// The state of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It accepts requests that its peers cannot serve.
    Ready,
    /// Requests are queued there.
    Busy,
    /// Its app is not ready.
    Unready,
    /// It is draining.
    Leaving,
    /// It does not respond to probes, or its response proves no identity.
    Silent,
}

impl Standing {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Ready, Self::Busy, Self::Unready, Self::Leaving, Self::Silent];

    /// Returns the name for operators.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Unready => "unready",
            Self::Leaving => "leaving",
            Self::Silent => "silent",
        }
    }
}

impl From<Condition> for Standing {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::Ready => Self::Ready,
            Condition::Busy => Self::Busy,
            Condition::Unready => Self::Unready,
            Condition::Leaving => Self::Leaving,
        }
    }
}

/// A peer.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub name: Arc<str>,
    /// Its address.
    pub target: Target,
    standing: AtomicU8,
    /// Probes in a row without a response.
    missed: AtomicU32,
    /// Probes in a row with the response that its app is not ready.
    unready: AtomicU32,
    /// The run of its process that last proved its identity.
    run: AtomicU64,
    /// When that was: milliseconds since it was first seen, or [`NEVER`].
    proven: AtomicU64,
    first_seen: Instant,
}

impl Peer {
    /// Creates a peer that has just proved its identity.
    fn new(name: Arc<str>, address: SocketAddr, standing: Standing, run: u64) -> Self {
        let standing = AtomicU8::new(standing as u8);
        Self {
            name,
            target: Target::Tcp(address),
            standing,
            missed: AtomicU32::default(),
            unready: AtomicU32::default(),
            run: AtomicU64::new(run),
            proven: AtomicU64::new(0),
            first_seen: clock::now(),
        }
    }

    /// Returns the receiver that a hop to this peer is signed for.
    pub fn receiver(&self) -> Receiver<'_> {
        Receiver { name: &self.name, run: self.run.load(Ordering::Relaxed) }
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(clock::since(self.first_seen).as_millis()).unwrap_or(NEVER - 1)
    }

    /// Returns whether it proved its identity at its address within this time.
    fn is_proven(&self, within: Duration) -> bool {
        let proven = self.proven.load(Ordering::Relaxed);
        proven != NEVER && Duration::from_millis(self.age_ms().saturating_sub(proven)) <= within
    }

    /// Discards the proof: a response from its address does not prove its identity.
    fn is_doubted(&self) {
        self.proven.store(NEVER, Ordering::Relaxed);
    }

    /// Returns its state.
    pub fn standing(&self) -> Standing {
        Standing::ALL[usize::from(self.standing.load(Ordering::Relaxed)) % Standing::ALL.len()]
    }

    fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Relaxed);
    }

    /// Records a response to a probe that proves the identity of this run.
    fn says(&self, standing: Standing, run: u64) {
        self.set(standing);
        self.run.store(run, Ordering::Relaxed);
        self.proven.store(self.age_ms(), Ordering::Relaxed);
        self.missed.store(0, Ordering::Relaxed);
        match standing {
            Standing::Unready => drop(self.unready.fetch_add(1, Ordering::Relaxed)),
            _ => self.unready.store(0, Ordering::Relaxed),
        }
    }

    /// Returns whether sessions stop waiting for it. An app that restarts is back earlier.
    fn is_unready_for_long(&self, interval: Duration) -> bool {
        interval * self.unready.load(Ordering::Relaxed) > UNREADY_FOR_LONG
    }

    /// Records a refused connection: the peer gets no requests until it responds to a probe, and its sessions move.
    pub fn not_reached(&self) {
        self.missed.fetch_max(probe::MISSED_BEFORE_LOST, Ordering::Relaxed);
        if self.standing() != Standing::Silent {
            tracing::warn!(
                event = "peer",
                peer = &*self.name,
                "peer {} refuses connections and is considered down",
                self.name
            );
        }
        self.set(Standing::Silent);
    }

    /// Returns whether it refused a connection, or did not respond to several probes in a row.
    fn is_lost(&self) -> bool {
        self.missed.load(Ordering::Relaxed) >= probe::MISSED_BEFORE_LOST
    }
}

/// All addresses seen, in order.
#[derive(Debug, Default)]
pub struct Seen {
    /// Peers whose name is known; never this Machine itself.
    pub peers: Vec<Arc<Peer>>,
    /// Addresses that were found but never gave a name, and how often each was probed.
    strangers: HashMap<SocketAddr, u32>,
}

impl Seen {
    /// Returns whether a peer that is missing here does not exist: the other addresses were probed often enough.
    fn is_complete(&self) -> bool {
        self.strangers.values().all(|asked| *asked >= probe::MISSED_BEFORE_LOST)
    }
}

/// The other Machines.
pub struct Peers {
    /// The configuration, as it was at the start.
    pub rules: PeerRules,
    /// This Machine.
    pub this: This,
    /// The state of the local app.
    pub local: Local,
    /// The nonces of hops and probes from here.
    pub nonces: Arc<Nonces>,
    /// The hops from peers that were accepted, so that they cannot be replayed.
    pub used: UsedHops,
    seen: ArcSwap<Seen>,
    /// Whether a complete table was seen. Only later differences are changes.
    has_looked: AtomicBool,
    found: Arc<Last>,
    round: Arc<Round>,
    balancer: LoadBalancer<RoundRobin>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("rules", &self.rules).field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Peers {
    /// Creates an empty table of peers; [`probe::keep_probing`] fills it.
    pub fn new(rules: PeerRules, this: This) -> Self {
        let finder = Finder::new(rules.found_by.clone(), rules.refresh);
        let found = finder.last();
        let round = Arc::new(Round::default());
        let mut backends = Backends::new(Box::new(finder));
        let nonces = Arc::new(Nonces::default());
        let check = Check {
            this: this.clone(),
            nonces: Arc::clone(&nonces),
            is_translated: rules.address.is_some(),
            patience: rules.timeout,
            round: Arc::clone(&round),
        };
        backends.set_health_check(Box::new(check));
        let balancer = LoadBalancer::from_backends(backends);
        Self {
            rules,
            this,
            local: Local::default(),
            nonces,
            used: UsedHops::default(),
            seen: ArcSwap::default(),
            has_looked: AtomicBool::new(false),
            found,
            round,
            balancer,
        }
    }

    /// Returns whether a peer was found at this address.
    pub fn is_at(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_there = |peer: &Arc<Peer>| {
            peer.standing() != Standing::Silent
                && matches!(&peer.target, Target::Tcp(at) if at.ip().to_canonical() == address)
        };
        self.seen.load().peers.iter().any(is_there)
    }

    /// Returns the receiver that a hop to this Machine is signed for.
    pub fn here(&self) -> Receiver<'_> {
        Receiver { name: &self.this.name, run: self.nonces.run() }
    }

    /// Returns how long a proof is valid.
    fn proof_holds(&self) -> Duration {
        PROOF_HOLDS.max((self.rules.interval + self.rules.timeout) * PROOF_HOLDS_PROBES)
    }

    /// Returns all addresses seen.
    pub fn seen(&self) -> Arc<Seen> {
        self.seen.load_full()
    }

    /// Returns the peer of this name.
    pub fn named(&self, name: &[u8]) -> Option<Arc<Peer>> {
        let seen = self.seen.load();
        let mut found = seen.peers.iter().filter(|peer| peer.name.as_bytes() == name);
        // A list may have two addresses of one peer: use the one that responds.
        let first = found.next()?;
        let answers = |peer: &&Arc<Peer>| peer.standing() != Standing::Silent;
        Some(Arc::clone(found.find(answers).filter(|_| !answers(&first)).unwrap_or(first)))
    }

    /// Returns the state of a session's home, which wrote the session's cookie so long ago.
    pub fn home(&self, name: &[u8], written: Duration) -> Home {
        let seen = self.seen.load();
        let Some(peer) = self.named(name) else {
            let is_known = seen.is_complete() && self.found.age().is_some_and(|age| self.would_list(age, written));
            return if is_known { Home::Gone } else { Home::Unknown };
        };
        match peer.standing() {
            Standing::Silent if peer.is_lost() => Home::Lost,
            // Something else may have the address by now: no request is sent there, and the session keeps its home.
            Standing::Ready | Standing::Busy | Standing::Silent if !peer.is_proven(self.proof_holds()) => Home::Unready,
            Standing::Ready | Standing::Busy => Home::Alive,
            Standing::Unready if peer.is_unready_for_long(self.rules.interval) => Home::Gone,
            Standing::Unready => Home::Unready,
            Standing::Leaving => Home::Leaving,
            Standing::Silent => Home::Silent,
        }
    }

    /// Whether a list of peers of this age contains every Machine that is running and wrote a cookie `written` ago. A Machine that
    /// has just started is in DNS a moment later.
    fn would_list(&self, age: Duration, written: Duration) -> bool {
        let has_seen = match self.rules.found_by {
            FoundBy::Dns { .. } => written > age + DNS_LAG,
            FoundBy::List(_) => true,
        };
        has_seen && age <= self.rules.refresh * BELIEVED_REFRESHES
    }

    /// Selects a peer for a request that cannot be served here: a ready one, else, if `may_be_busy`, a busy one.
    pub fn ready(&self, may_be_busy: bool) -> Option<Arc<Peer>> {
        self.chosen(Standing::Ready).or_else(|| if may_be_busy { self.chosen(Standing::Busy) } else { None })
    }

    fn chosen(&self, standing: Standing) -> Option<Arc<Peer>> {
        let seen = self.seen.load();
        let of = |address: SocketAddr| seen.peers.iter().find(|peer| peer.target == Target::Tcp(address));
        let holds = self.proof_holds();
        let is_ready = |address| of(address).is_some_and(|peer| peer.standing() == standing && peer.is_proven(holds));
        let chosen = self.balancer.select_with(b"", MOST_LOOKED_AT, |backend, is_healthy| {
            is_healthy && backend.addr.as_inet().is_some_and(|address| is_ready(*address))
        })?;
        of(*chosen.addr.as_inet()?).cloned()
    }

    /// Returns the number of Machines that are running, this one included, and of those that accept requests.
    pub fn machines(&self) -> (u32, u32) {
        let seen = self.seen.load();
        let count =
            |is: fn(&Peer) -> bool| u32::try_from(seen.peers.iter().filter(|p| is(p)).count()).unwrap_or(u32::MAX);
        let here = u32::from(!self.local.is_unready());
        let takes_requests = |peer: &Peer| matches!(peer.standing(), Standing::Ready | Standing::Busy);
        (count(|peer| !peer.is_lost()).saturating_add(1), count(takes_requests) + here)
    }
}
