//! One request and all that was decided about it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::Version;
use outrigger_identity::client::Client;
use outrigger_policy::flags::Mode;
use outrigger_rules::sections::route_table::Route;
use outrigger_wire::client_address::Sender;
use outrigger_wire::forwarding::Forwarding;
use outrigger_wire::request::Kind;
use outrigger_wire::request_id::RequestId;
use outrigger_wire::sieve::Sieve;
use outrigger_wire::via::Pseudonym;

use crate::engine::attempts::Attempts;
use crate::engine::metrics::StreamKind;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::state::{InFlight, Snapshot};
use crate::mechanism::affinity::Sticky;
use crate::mechanism::audit::Noted;
use crate::mechanism::breakers::Attempt;
use crate::mechanism::gate::{Permit, Waiting};
use crate::mechanism::limits::Shown;
use crate::mechanism::peers::Peer;
use crate::mechanism::peers::hop::{self, Hop};

/// A request's way through the proxy.
#[derive(Debug)]
pub struct Exchange {
    /// The rules that were in force when it began; they stay its rules.
    pub rules: Arc<Snapshot>,
    /// When its head was complete.
    pub started: Instant,
    /// Its name in logs and answers.
    pub request_id: RequestId,
    /// The address at the other end of the connection.
    pub connected: IpAddr,
    /// Who asks.
    pub client: Client,
    /// Which listener it came by.
    pub listener: Listener,
    /// The peer that sent it, and why.
    pub hop: Option<Box<Hop>>,
    /// What the audit trail wants to know of it.
    pub audit: Noted,
    /// Its session.
    pub sticky: Sticky,
    /// Where it goes.
    pub destination: Destination,
    /// Its session's home could not be reached.
    pub has_lost_home: bool,
    /// It found no place here before it was sent to a peer.
    pub has_been_refused: bool,
    /// All of its body can be sent again, if it has one.
    pub is_replayable: bool,
    /// When it began to wait for the app here: at its start, or when a peer had not taken it.
    pub turn_began: Instant,
    /// It was sent to a peer because the app here cannot take it; there is no second time.
    pub has_failed_over: bool,
    /// The number of its route in `rules`.
    pub route: usize,
    /// What its path belongs to, where paths share a breaker that have nothing to do with each other; else 0.
    pub place: u64,
    /// How it is delimited and held open.
    pub kind: Kind,
    /// Until when the head of its answer must be there.
    pub deadline: Instant,
    /// The client has asked for less time than the route gives: that it is over says nothing about the app.
    pub is_impatient: bool,
    /// Its attempts at the app here.
    pub attempts: Attempts,
    /// We answered, and why.
    pub rejection: Option<Rejection>,
    /// The app failed, and how.
    pub failure: Option<Failure>,
    /// Its response stays open for as long as both sides like.
    pub stream: Option<StreamKind>,
    /// The answer's status, once its head is out.
    pub status: u16,
    /// The answer's head has come from the app.
    pub answered_by_app: bool,
    /// When that was.
    pub head_at: Option<Instant>,
    /// Counted while this lives.
    pub in_flight: Option<InFlight>,
    /// What limits, bans and slots do with this client.
    pub admission: Mode,
    /// What breakers, retries and the wait for an app that is away do with it.
    pub resilience: Mode,
    /// The attempt that is being made, for its circuit breaker. One whose connection broke off stays here until the next
    /// connection shows whether the app is down (then it is not counted) or only that attempt failed.
    pub attempt: Option<Attempt>,
    /// The app's answer says when to come back.
    pub says_when: bool,
    /// Since when it waits, or waited, for an app that is away: it may until its `hold` is over.
    pub held_since: Option<Instant>,
    /// The numbers of the faults on purpose that may befall it.
    pub faults: Vec<usize>,
    /// What the answer tells of limits.
    pub shown_limits: Shown,
    /// A monitored limit would have refused it, and nothing was taken from those that are monitored.
    pub is_beyond_monitored: bool,
    /// Its slot.
    pub permit: Option<Permit>,
    /// Its place in the queue for one.
    pub waiting: Option<Waiting>,
}

/// Which listener a request came by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listener {
    /// The public one.
    #[default]
    Public,
    /// That for peers: what comes without a hop is refused.
    Peers,
}

/// Where a request goes.
#[derive(Clone, Debug, Default)]
pub enum Destination {
    /// To the app here.
    #[default]
    App,
    /// To a peer, and why.
    Peer(Arc<Peer>, hop::Kind),
    /// The edge sends it to the Machine of this name.
    Replay(Box<str>),
    /// Nowhere: a peer asks how we are.
    Probe,
}

impl Exchange {
    /// What may pass of its headers.
    pub fn sieve(&self) -> Sieve<'_> {
        let sender = self.client.sender;
        let notes_claims = sender != Sender::Peer && self.client.address == self.connected;
        let config = &self.rules.config;
        Sieve { sender, edge: &config.edge, read: &config.read_headers, notes_claims }
    }

    /// What the app is told about it, when `pseudonym` sends it on.
    pub fn forwarding<'a>(&'a self, received: Version, pseudonym: &'a Pseudonym, now: Instant) -> Forwarding<'a> {
        let config = &self.rules.config;
        Forwarding {
            sender: self.client.sender,
            edge: &config.edge,
            connected: self.connected,
            received,
            pseudonym,
            style: config.headers.forwarded.into(),
            with_via: config.headers.via,
            request_id: config.headers.request_id.then_some(&self.request_id),
            keeper: if self.sticky.is_enforced() { self.sticky.keeper(&config.this) } else { None },
            time_left: (self.kind == Kind::Plain).then(|| self.deadline.saturating_duration_since(now)),
        }
    }

    /// A request that has just been read.
    pub fn new(rules: Arc<Snapshot>) -> Self {
        let started = Instant::now();
        let last = rules.config.routes.all().len() - 1;
        Self {
            rules,
            started,
            request_id: RequestId::default(),
            connected: IpAddr::from([0, 0, 0, 0]),
            client: Client::UNKNOWN,
            listener: Listener::Public,
            hop: None,
            audit: Noted::default(),
            sticky: Sticky::default(),
            destination: Destination::App,
            has_lost_home: false,
            has_been_refused: false,
            is_replayable: true,
            turn_began: started,
            has_failed_over: false,
            route: last,
            place: 0,
            kind: Kind::Plain,
            deadline: started,
            is_impatient: false,
            attempts: Attempts::default(),
            rejection: None,
            failure: None,
            stream: None,
            status: 0,
            answered_by_app: false,
            head_at: None,
            in_flight: None,
            admission: Mode::Off,
            resilience: Mode::Off,
            attempt: None,
            says_when: false,
            held_since: None,
            faults: Vec::new(),
            shown_limits: Shown::default(),
            is_beyond_monitored: false,
            permit: None,
            waiting: None,
        }
    }

    /// Whether limits and bans count it here, and not on the Machine that it comes from or goes to.
    pub fn is_counted_here(&self) -> bool {
        let came_for_want_of_an_app = self.hop.as_ref().is_some_and(|hop| hop.kind == hop::Kind::Failover);
        !came_for_want_of_an_app && !matches!(self.destination, Destination::Peer(_, hop::Kind::Session))
    }

    /// The limit that refused it.
    pub fn violated_policy(&self) -> Option<&str> {
        match self.rejection {
            Some(Rejection::QuotaExceeded { limit, .. }) => {
                self.rules.config.limits.all.get(usize::from(limit)).map(|limit| limit.name.as_str())
            }
            _ => None,
        }
    }

    /// The rules of its route.
    pub fn route(&self) -> &Route {
        &self.rules.config.routes.all()[self.route]
    }
}
