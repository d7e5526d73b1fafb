//! A request and everything decided about it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Version;
use outrigger_identity::client::Client;
use outrigger_identity::clock;
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
use crate::engine::receipts::steps::Steps;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::state::{InFlight, Snapshot};
use crate::mechanism::affinity::Sticky;
use crate::mechanism::audit::Noted;
use crate::mechanism::breakers::Attempt;
use crate::mechanism::evidence::Evidence;
use crate::mechanism::gate::{Permit, Waiting};
use crate::mechanism::limits::Shown;
use crate::mechanism::peers::Peer;
use crate::mechanism::peers::hop::{self, Hop};
use crate::mechanism::tally::Unanswered;
use crate::mechanism::traces::{Recording, Traced};
use crate::mechanism::traffic::Hints;

/// A request, its response, and the decisions about them.
#[derive(Debug)]
pub struct Exchange {
    /// The configuration snapshot when it began, which it keeps.
    pub rules: Arc<Snapshot>,
    /// When its head was complete.
    pub started: Instant,
    /// The request id, for logs and responses.
    pub request_id: RequestId,
    /// The remote address of the connection.
    pub connected: IpAddr,
    /// The client, as far as it is identified.
    pub client: Client,
    /// The listener that accepted it.
    pub listener: Listener,
    /// The peer that sent it, and the reason.
    pub hop: Option<Box<Hop>>,
    /// Its client prefers HTML to JSON, if the response is Outrigger's own.
    pub prefers_html: bool,
    /// Its data for the audit log.
    pub audit: Noted,
    /// Its sticky session.
    pub sticky: Sticky,
    /// Its destination.
    pub destination: Destination,
    /// The home of its session could not be reached.
    pub has_lost_home: bool,
    /// It got no permit here and was sent to a peer for that reason.
    pub has_been_refused: bool,
    /// It has no body, or the whole body can be sent again.
    pub is_replayable: bool,
    /// When it began to wait for the app here: at its start, after its body, or when a peer declined it.
    pub turn_began: Instant,
    /// It was sent to a peer because the app here could not take it, which happens at most once.
    pub has_failed_over: bool,
    /// The index of its route in `rules`.
    pub route: usize,
    /// A number for its part of the path, where unrelated paths share a circuit breaker; else 0.
    pub place: u64,
    /// Plain request, stream or upgrade.
    pub kind: Kind,
    /// When the head of the response must have arrived.
    pub deadline: Instant,
    /// The client asked for less time than the route allows: a timeout says nothing about the app.
    pub is_impatient: bool,
    /// Its attempts at the app or a peer.
    pub attempts: Attempts,
    /// Why Outrigger rejected it.
    pub rejection: Option<Rejection>,
    /// How the app failed.
    pub failure: Option<Failure>,
    /// The response is an event stream or a tunnel, with no end in sight.
    pub stream: Option<StreamKind>,
    /// The status of the response, once its head is known.
    pub status: u16,
    /// The response's head came from the app or a peer.
    pub answered_by_app: bool,
    /// When the response's head arrived.
    pub head_at: Option<Instant>,
    /// When the response's head was passed on to the client.
    pub first_byte_at: Option<Instant>,
    /// When the time of the app or the peer began: with the latest attempt, or with the end of the body that it got.
    pub asked_at: Instant,
    /// How long it waited in the queue, for a permit or for an app that is down.
    pub queued: Duration,
    /// Counts it as in flight until dropped.
    pub in_flight: Option<InFlight>,
    /// Counts it as unanswered until dropped: at the head of its response.
    pub unanswered: Option<Unanswered>,
    /// The mode of rate limits, bans and the concurrency limit for this client.
    pub admission: Mode,
    /// The mode of circuit breakers, retries and `app.hold` for this client.
    pub resilience: Mode,
    /// The current attempt, for the circuit breaker. If its connection closed early, it stays here until the next connect shows
    /// whether the app is down (not counted) or only that attempt failed (counted).
    pub attempt: Option<Attempt>,
    /// The app's response has `Retry-After`.
    pub says_when: bool,
    /// When it began to wait for an app that is down, for at most `app.hold`, or for the end of a pause.
    pub held_since: Option<Instant>,
    /// When the pause for which it waited ended, or ends by itself.
    pub paused_until: Option<Instant>,
    /// The indexes of the injected faults that apply to it.
    pub faults: Vec<usize>,
    /// The rate limits that the response shows.
    pub shown_limits: Shown,
    /// A rate limit in `monitor` mode would have rejected it; no monitored limit was charged.
    pub is_beyond_monitored: bool,
    /// Its permit.
    pub permit: Option<Permit>,
    /// Its place in the queue for a permit.
    pub waiting: Option<Waiting>,
    /// Facts, other than path and method, that its route depended on, for the traffic record.
    pub hints: Hints,
    /// Its trace.
    pub traced: Traced,
    /// Its unusual steps, for its receipt.
    pub steps: Steps,
    /// The rule that rejected it or by which it failed, and its numbers then.
    pub evidence: Option<Box<Evidence>>,
}

/// The listener that accepted a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listener {
    /// The public listener.
    #[default]
    Public,
    /// The listener for peers, which rejects requests without a valid hop header.
    Peers,
}

/// The destination of a request.
#[derive(Clone, Debug, Default)]
pub enum Destination {
    /// The app here.
    #[default]
    App,
    /// A peer, and the reason.
    Peer(Arc<Peer>, hop::Kind),
    /// The edge sends it to the Machine of this name.
    Replay(Box<str>),
    /// None: it is a peer's health probe.
    Probe,
    /// None: it is a health check of a healthy app.
    Healthy,
}

impl Exchange {
    /// The rules for headers that it may carry.
    pub fn sieve(&self) -> Sieve<'_> {
        let sender = self.client.sender;
        let notes_claims = sender != Sender::Peer && self.client.address == self.connected;
        let config = &self.rules.config;
        Sieve { sender, edge: &config.edge, read: &config.read_headers, notes_claims }
    }

    /// The data for the headers that Outrigger adds; `pseudonym` is this proxy's name in `Via`.
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
            trace: self.traced.peek().map(Recording::context),
            time_left: (self.kind == Kind::Plain).then(|| self.deadline.saturating_duration_since(now)),
        }
    }

    /// The exchange of a request that has just been read.
    pub fn new(rules: Arc<Snapshot>) -> Self {
        let started = clock::now();
        let last = rules.config.routes.all().len() - 1;
        Self {
            rules,
            started,
            request_id: RequestId::default(),
            connected: IpAddr::from([0, 0, 0, 0]),
            client: Client::UNKNOWN,
            listener: Listener::Public,
            hop: None,
            prefers_html: false,
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
            first_byte_at: None,
            asked_at: started,
            queued: Duration::ZERO,
            in_flight: None,
            unanswered: None,
            admission: Mode::Off,
            resilience: Mode::Off,
            attempt: None,
            says_when: false,
            held_since: None,
            paused_until: None,
            faults: Vec::new(),
            shown_limits: Shown::default(),
            is_beyond_monitored: false,
            permit: None,
            waiting: None,
            hints: Hints::default(),
            traced: Traced::No,
            steps: Steps::default(),
            evidence: None,
        }
    }

    /// Whether rate limits and bans count it here, not on the Machine that it comes from or goes to.
    pub fn is_counted_here(&self) -> bool {
        let came_for_want_of_an_app = self.hop.as_ref().is_some_and(|hop| hop.kind == hop::Kind::Failover);
        !came_for_want_of_an_app && !matches!(self.destination, Destination::Peer(_, hop::Kind::Session))
    }

    /// The rate limit that rejected it.
    pub fn violated_policy(&self) -> Option<&str> {
        match self.rejection {
            Some(Rejection::QuotaExceeded { limit, .. }) => {
                self.rules.config.limits.all.get(usize::from(limit)).map(|limit| &*limit.name)
            }
            _ => None,
        }
    }

    /// Its route.
    pub fn route(&self) -> &Route {
        &self.rules.config.routes.all()[self.route]
    }
}
