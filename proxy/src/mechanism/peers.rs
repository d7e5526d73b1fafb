//! The other Machines of the same app: who they are, how they are, and what goes to them.
//!
//! ```text
//! discovery.rs   where they are: a name's addresses, or a list
//! hop.rs         the signed header of a request that goes from one Machine to another
//! used.rs        each is accepted once
//! probe.rs       how they are: each is asked every second, and has to prove itself
//! answer.rs      the proof: the signed answer to a probe
//! local.rs       how the app here is, for the others
//! ```
//!
//! A peer is known by the name that it signs, not by its address: addresses change, and a list has none. Which of the ready ones
//! takes what cannot be done here is `pingora-load-balancing`'s choice.

pub mod answer;
pub mod discovery;
pub mod hop;
pub mod local;
pub mod probe;
pub mod used;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use outrigger_identity::this::This;
use outrigger_policy::affinity::Home;
use outrigger_rules::sections::peers::PeerRules;
use outrigger_rules::target::Target;
use pingora::lb::selection::RoundRobin;
use pingora::lb::{Backends, LoadBalancer};

use crate::mechanism::peers::answer::Condition;
use crate::mechanism::peers::discovery::{Finder, Last};
use crate::mechanism::peers::hop::{Nonces, Receiver};
use crate::mechanism::peers::local::Local;
use crate::mechanism::peers::probe::{Check, Round};
use crate::mechanism::peers::used::UsedHops;

/// What was found is believed for so many refreshes: a name server that does not answer says nothing about Machines.
const BELIEVED_REFRESHES: u32 = 4;
/// Where one chooses among peers, so many are looked at.
const MOST_LOOKED_AT: usize = 16;

/// A peer that has proved itself at an address gets requests there for so many probes, but for this time in any case, unless
/// something there answers a probe without proving itself.
const PROOF_HOLDS_PROBES: u32 = probe::MISSED_BEFORE_LOST;
const PROOF_HOLDS: Duration = Duration::from_secs(5);
/// There is no proof.
const NEVER: u64 = u64::MAX;

/// How long a session waits for a Machine whose app cannot take requests.
const UNREADY_FOR_LONG: Duration = Duration::from_secs(30);

/// How a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It takes what its peers cannot.
    Ready,
    /// Requests wait for their turn at it.
    Busy,
    /// Its own app cannot take requests.
    Unready,
    /// It is about to leave.
    Leaving,
    /// It does not answer, or not as a peer does.
    Silent,
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ready, Self::Busy, Self::Unready, Self::Leaving, Self::Silent];

    /// For operators.
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

/// One of them.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is.
    pub target: Target,
    standing: AtomicU8,
    /// Probes in a row that it did not answer.
    missed: AtomicU32,
    /// Probes in a row to which it said that its app cannot take requests.
    unready: AtomicU32,
    /// The run of its process that proved itself last.
    run: AtomicU64,
    /// When that was: milliseconds since it was first seen, or [`NEVER`].
    proven: AtomicU64,
    first_seen: Instant,
}

impl Peer {
    /// One that has just proved itself.
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
            first_seen: Instant::now(),
        }
    }

    /// What a hop to it is signed for.
    pub fn receiver(&self) -> Receiver<'_> {
        Receiver { name: &self.name, run: self.run.load(Ordering::Relaxed) }
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.first_seen.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    /// Whether it has proved itself at its address, not longer ago than this.
    fn is_proven(&self, within: Duration) -> bool {
        let proven = self.proven.load(Ordering::Relaxed);
        proven != NEVER && Duration::from_millis(self.age_ms().saturating_sub(proven)) <= within
    }

    /// Something at its address does not prove that it is this peer.
    fn is_doubted(&self) {
        self.proven.store(NEVER, Ordering::Relaxed);
    }

    /// How it is.
    pub fn standing(&self) -> Standing {
        Standing::ALL[usize::from(self.standing.load(Ordering::Relaxed)) % Standing::ALL.len()]
    }

    fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Relaxed);
    }

    /// This run of it has proved itself, and said that it is like this.
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

    /// An app that restarts is back by then; sessions of one that is not have new homes.
    fn is_unready_for_long(&self, interval: Duration) -> bool {
        interval * self.unready.load(Ordering::Relaxed) > UNREADY_FOR_LONG
    }

    /// A request did not reach it: it gets no other until it answers a probe again, and its sessions have new homes.
    pub fn not_reached(&self) {
        self.missed.fetch_max(probe::MISSED_BEFORE_LOST, Ordering::Relaxed);
        if self.standing() != Standing::Silent {
            tracing::warn!(
                event = "peer",
                peer = &*self.name,
                "peer {} refuses connections, and is taken for gone",
                self.name
            );
        }
        self.set(Standing::Silent);
    }

    /// Whether it refused a connection, or has not answered for so long that it will not do so soon.
    fn is_lost(&self) -> bool {
        self.missed.load(Ordering::Relaxed) >= probe::MISSED_BEFORE_LOST
    }
}

/// All that were seen, in the order of their addresses.
#[derive(Debug, Default)]
pub struct Seen {
    /// Those whose name is known; never this Machine itself.
    pub peers: Vec<Arc<Peer>>,
    /// Addresses that were found and have never said a name, and how often each was asked.
    strangers: HashMap<SocketAddr, u32>,
}

impl Seen {
    /// Whether whoever is not here is not there: all others were asked often enough to be no peers.
    fn is_complete(&self) -> bool {
        self.strangers.values().all(|asked| *asked >= probe::MISSED_BEFORE_LOST)
    }
}

/// What is known of the other Machines.
pub struct Peers {
    /// The rules, as they were at the start.
    pub rules: PeerRules,
    /// This Machine.
    pub this: This,
    /// How the app here is.
    pub local: Local,
    /// The numbers of what is sent to them.
    pub nonces: Arc<Nonces>,
    /// What they have sent, so that nobody sends it again.
    pub used: UsedHops,
    seen: ArcSwap<Seen>,
    /// All have been seen at once: from then on a change is one.
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
    /// Nobody is known yet; [`probe::keep_asking`] finds them.
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

    /// What a hop to this Machine is signed for.
    pub fn here(&self) -> Receiver<'_> {
        Receiver { name: &self.this.name, run: self.nonces.run() }
    }

    /// For how long a proof counts.
    fn proof_holds(&self) -> Duration {
        PROOF_HOLDS.max((self.rules.interval + self.rules.timeout) * PROOF_HOLDS_PROBES)
    }

    /// All that were seen.
    pub fn seen(&self) -> Arc<Seen> {
        self.seen.load_full()
    }

    /// The peer of this name.
    pub fn named(&self, name: &[u8]) -> Option<Arc<Peer>> {
        let seen = self.seen.load();
        let mut found = seen.peers.iter().filter(|peer| peer.name.as_bytes() == name);
        // A list may have two addresses of one: that which answers counts.
        let first = found.next()?;
        let answers = |peer: &&Arc<Peer>| peer.standing() != Standing::Silent;
        Some(Arc::clone(found.find(answers).filter(|_| !answers(&first)).unwrap_or(first)))
    }

    /// What is known of the Machine that keeps a session.
    pub fn home(&self, name: &[u8]) -> Home {
        let seen = self.seen.load();
        let Some(peer) = self.named(name) else {
            let is_fresh = |age: Duration| age <= self.rules.refresh * BELIEVED_REFRESHES;
            let is_known = seen.is_complete() && self.found.age().is_some_and(is_fresh);
            return if is_known { Home::Gone } else { Home::Unknown };
        };
        match peer.standing() {
            Standing::Silent if peer.is_lost() => Home::Lost,
            // It may be something else by now: the session waits, and nothing is sent there.
            Standing::Ready | Standing::Busy | Standing::Silent if !peer.is_proven(self.proof_holds()) => Home::Unready,
            Standing::Ready | Standing::Busy => Home::Alive,
            Standing::Unready if peer.is_unready_for_long(self.rules.interval) => Home::Gone,
            Standing::Unready => Home::Unready,
            Standing::Leaving => Home::Leaving,
            Standing::Silent => Home::Silent,
        }
    }

    /// One that takes what cannot be done here; one at which requests wait only if that `may_be`, and no other is there.
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

    /// Started Machines, this one included, as far as is known; and those among them that take requests.
    pub fn machines(&self) -> (u32, u32) {
        let seen = self.seen.load();
        let count =
            |is: fn(&Peer) -> bool| u32::try_from(seen.peers.iter().filter(|p| is(p)).count()).unwrap_or(u32::MAX);
        let here = u32::from(!self.local.is_unready());
        let takes_requests = |peer: &Peer| matches!(peer.standing(), Standing::Ready | Standing::Busy);
        (count(|peer| !peer.is_lost()).saturating_add(1), count(takes_requests) + here)
    }
}
