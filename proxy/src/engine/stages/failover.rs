//! Failover: a ready peer serves requests that the app here cannot. At most once, and never for requests from a peer.
//!
//! A peer accepts such requests only while it has free permits: its own requests take precedence. Requests that it declines
//! are served here, as without peers.

use std::sync::Arc;

use outrigger_policy::flags::Mode;
use outrigger_wire::request::Request;

use crate::engine::exchange::{Destination, Exchange, Listener};
use crate::engine::receipts::steps::Step;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::stages::breakers::{self, End};
use crate::engine::state::State;
use crate::mechanism::affinity::Keeper;
use crate::mechanism::peers::Peer;
use crate::mechanism::peers::hop::Kind;

/// Sends the request to a peer while the app here is not ready or is down.
///
/// # Errors
/// Never fails: without a ready peer, the request is served here.
pub fn choose(state: &State, _: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let Some(peers) = &state.peers else { return Ok(()) };
    if peers.local.is_unready() || state.reach.is_away() {
        takes(state, exchange);
    }
    Ok(())
}

/// Whether a peer takes the request instead of the app here; if so, changes its destination.
pub fn takes(state: &State, exchange: &mut Exchange) -> bool {
    peer_for(state, exchange, true).is_some_and(|peer| leave_for(peer, state, exchange))
}

/// Like [`takes`], for a request that got no permit here. Only a peer with an empty queue qualifies. If the peer declines
/// it, it is rejected: it has already waited.
pub fn may_serve_elsewhere(state: &State, exchange: &mut Exchange) -> bool {
    exchange.has_been_refused = peer_for(state, exchange, false).is_some_and(|peer| leave_for(peer, state, exchange));
    exchange.has_been_refused
}

/// A peer that may be asked instead of the app here, or as well, although that is not down: only one with an empty queue. Not for a request
/// of a session that lives here: other Machines may lack what the app remembers of it.
pub fn second(state: &State, exchange: &Exchange) -> Option<Arc<Peer>> {
    let sticky = &exchange.sticky;
    let lives_here = sticky.is_enforced() && sticky.at == Keeper::This && !sticky.is_new;
    if lives_here { None } else { peer_for(state, exchange, false) }
}

/// Sends the request to this peer instead.
pub fn leaves(peer: Arc<Peer>, state: &State, exchange: &mut Exchange) {
    leave_for(peer, state, exchange);
}

fn leave_for(peer: Arc<Peer>, state: &State, exchange: &mut Exchange) -> bool {
    exchange.has_failed_over = true;
    // The app here does not get the request, so the attempt does not count.
    breakers::ended(state, exchange, End::Unknown);
    exchange.permit = None;
    exchange.waiting = None;
    exchange.steps.add(exchange.started, Step::SentToPeer(Arc::clone(&peer.name), Kind::Failover));
    exchange.destination = Destination::Peer(peer, Kind::Failover);
    true
}

fn peer_for(state: &State, exchange: &Exchange, may_be_busy: bool) -> Option<Arc<Peer>> {
    let peers = state.peers.as_ref()?;
    let rules = exchange.rules.config.peers.as_ref()?;
    // A longer body could not be sent again from here if the peer declines it; here it can be held.
    let may = exchange.is_replayable
        && rules.failover == Mode::Enforce
        && exchange.resilience == Mode::Enforce
        && !exchange.has_failed_over
        && exchange.hop.is_none()
        && !exchange.route().is_health;
    if may { peers.ready(may_be_busy) } else { None }
}

/// Whether to tell the sender that it may serve the request itself: the app has not seen it.
pub fn is_given_back(exchange: &Exchange) -> bool {
    if exchange.listener == Listener::Peers && exchange.hop.is_none() {
        // Not verified as a peer, because clocks or keys differ. Only peers read this response.
        return true;
    }
    let is_failover = exchange.hop.as_ref().is_some_and(|hop| hop.kind == Kind::Failover);
    let is_untouched = matches!(
        exchange.rejection,
        Some(
            Rejection::Overloaded
                | Rejection::AppRestarting
                | Rejection::Paused { .. }
                | Rejection::Maintenance { .. }
                | Rejection::BreakerOpen { .. }
                | Rejection::Draining
                | Rejection::TooManyUploads
                | Rejection::OutOfResources
        )
    ) || exchange.failure == Some(Failure::Unreachable);
    is_failover && is_untouched
}

/// Whether a request is accepted only if a permit is free: requests from peers do not wait here.
pub fn is_guest(exchange: &Exchange) -> bool {
    exchange.hop.as_ref().is_some_and(|hop| hop.kind == Kind::Failover)
}
