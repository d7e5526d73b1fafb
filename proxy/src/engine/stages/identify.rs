//! Identifies the client and sets the request id.

use std::net::IpAddr;

use outrigger_identity::client::Client;
use outrigger_identity::clock::{seconds, unix_now};
use outrigger_identity::credentials::Who;
use outrigger_identity::verified::VerifiedKind;
use outrigger_policy::flags::{Feature, Mode, Subject};
use outrigger_rules::config::Config;
use outrigger_wire::client_address::Sender;
use outrigger_wire::headers;
use outrigger_wire::names::{FLY_REQUEST_ID, X_OUTRIGGER_HOP, X_REQUEST_ID};
use outrigger_wire::request::{Kind, Request};
use outrigger_wire::request_id::RequestId;

use crate::engine::exchange::{Destination, Exchange, Listener};
use crate::engine::receipts::steps::Step;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;
use crate::mechanism::peers::hop::{self, Hop, HopRefused};

/// Sets the request id and the client. Headers of a trusted edge are trusted; any other client has its connection's address.
///
/// # Errors
/// [`Rejection::NotAPeer`] on the listener for peers; [`Rejection::RepeatedCredential`]. Any other request gets an id and a
/// client.
pub fn client(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    exchange.client.address = exchange.connected;
    if exchange.listener == Listener::Peers {
        // A rejected request needs an id as well.
        exchange.request_id = RequestId::generate();
        exchange.hop = Some(Box::new(peer(state, request)?));
    }
    let edge = &exchange.rules.config.edge;
    let (sender, address, name) = match &exchange.hop {
        Some(hop) => (Sender::Peer, hop.client, request.fields.get(&X_REQUEST_ID)),
        None => {
            let sender = edge.sender(exchange.connected);
            let address = edge.client(sender, request.fields).unwrap_or(exchange.connected);
            let name = if sender == Sender::Fly { request.fields.get(&FLY_REQUEST_ID) } else { None };
            (sender, address, name)
        }
    };
    let who = identified(state, request, exchange, address);
    let flag = exchange.rules.config.flag(Feature::CircuitBreaker);
    exchange.resilience = flag
        .mode_for_everybody()
        .unwrap_or_else(|| with_subject(&who, |subject| flag.mode_for(Feature::CircuitBreaker, subject)));
    exchange.client = Client { sender, ..who };
    let flag = exchange.rules.config.flag(Feature::SessionAffinity);
    exchange.sticky.mode = flag
        .mode_for_everybody()
        .unwrap_or_else(|| with_subject(&exchange.client, |subject| flag.mode_for(Feature::SessionAffinity, subject)));
    exchange.request_id = name.and_then(RequestId::from_edge).unwrap_or_else(RequestId::generate);
    exchange.kind = kind(request);
    if exchange.hop.as_ref().is_some_and(|hop| hop.kind == hop::Kind::Probe) {
        exchange.destination = Destination::Probe;
    }
    if exchange.rules.config.credentials.are_repeated(request.fields) {
        return Err(Rejection::RepeatedCredential);
    }
    Ok(())
}

/// Verifies the peer that sent a request to the listener for peers.
fn peer(state: &State, request: &Request<'_>) -> Result<Hop, Rejection> {
    let peers = state.peers.as_ref().ok_or(Rejection::NotAPeer)?;
    let now = seconds();
    let sealed = request.fields.get(&X_OUTRIGGER_HOP).unwrap_or_default();
    let opened = Hop::verify(&peers.this.keys, sealed, request, peers.here(), now)
        .and_then(|hop| if peers.used.accepts(&hop.from, hop.nonce, now) { Ok(hop) } else { Err(HopRefused::Used) });
    let hop = opened.map_err(|refused| {
        state.metrics.peers.refused(refused);
        Rejection::NotAPeer
    })?;
    state.metrics.peers.received(hop.kind);
    Ok(hop)
}

/// Identifies the client for limits and flags, and sets `exchange.admission`. Skipped if rate limits, the audit log and the traffic
/// record do not need it.
fn identified(state: &State, request: &Request<'_>, exchange: &mut Exchange, address: IpAddr) -> Client {
    let mut client = Client { address, ..Client::UNKNOWN };
    let config = &exchange.rules.config;
    let flag = config.flag(Feature::PrioritizedRateLimit);
    let for_everybody = flag.mode_for_everybody();
    let is_recorded = exchange.rules.traffic.is_some() || is_audited(config);
    if for_everybody == Some(Mode::Off) && !is_recorded {
        return client;
    }
    client.address_id = Client::hash_of(address);
    client.id = client.address_id;
    if !config.credentials.is_empty() {
        let identified = config.credentials.identify(request.fields, unix_now);
        for ignored in identified.ignored() {
            state.metrics.identity.credential_refused(ignored.label());
            exchange.steps.add(exchange.started, Step::CredentialIgnored(ignored.label()));
            if ignored.is_forgery() {
                exchange.audit.forged = Some(ignored.label());
            }
        }
        match identified.who {
            Who::Address => {}
            Who::UnknownKey(hash) => client.id = hash,
            Who::Verified(verified) => {
                (client.id, client.tier) = (verified.hash, verified.tier);
                client.verified = Some(verified);
            }
        }
    }
    exchange.admission = for_everybody
        .unwrap_or_else(|| with_subject(&client, |subject| flag.mode_for(Feature::PrioritizedRateLimit, subject)));
    client
}

fn is_audited(config: &Config) -> bool {
    config.audit.is_some() && config.flag(Feature::AuditTrail).mode_for_everybody() != Some(Mode::Off)
}

/// Calls `decide` with the client as flags see it.
pub fn with_subject(client: &Client, decide: impl FnOnce(Subject<'_>) -> Mode) -> Mode {
    let shown = client.shown();
    let user = client.verified.as_ref().filter(|v| v.kind == VerifiedKind::User).map(|v| &*v.name);
    // A percentage applies by name, which is the same on every Machine.
    let id = client.verified.as_ref().map_or(shown.as_str(), |verified| &verified.name);
    decide(Subject { id, user, address: client.address })
}

fn kind(request: &Request<'_>) -> Kind {
    if headers::asks_to_switch(request.fields, request.is_http10) {
        return Kind::Upgrade;
    }
    let accept = request.fields.get(&http::header::ACCEPT);
    let accepts_events = accept.is_some_and(|accept| memchr::memmem::find(accept, b"text/event-stream").is_some());
    if accepts_events { Kind::Stream } else { Kind::Plain }
}
