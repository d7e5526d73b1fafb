//! Requests that the app here cannot take go to a ready peer: once, and never what came from one.
//!
//! A peer takes them only while it has slots to spare: what is its own goes first. Whatever it does not take comes back, and is
//! served as if there were no peers.

use std::sync::Arc;

use outrigger_policy::flags::Mode;
use outrigger_wire::request::Request;

use crate::engine::exchange::{Destination, Exchange, Listener};
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::state::State;
use crate::mechanism::breakers::{self, End};
use crate::mechanism::peers::Peer;
use crate::mechanism::peers::hop::Kind;

/// Sends the request to a peer while the app here says that it is not ready, or does not answer.
///
/// # Errors
/// None: without a ready peer it is served here.
pub fn choose(state: &State, _: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let Some(peers) = &state.peers else { return Ok(()) };
    if peers.local.is_unready() || state.reach.is_away() {
        takes(state, exchange);
    }
    Ok(())
}

/// Whether a peer takes the request instead of the app here: then its destination is changed.
pub fn takes(state: &State, exchange: &mut Exchange) -> bool {
    peer_for(state, exchange, true).is_some_and(|peer| leave_for(peer, state, exchange))
}

/// The same for one that found no place here: only a peer at which nobody waits has something to spare. What that gives back is refused
/// after all, for it has had its wait.
pub fn spares_a_slot(state: &State, exchange: &mut Exchange) -> bool {
    exchange.has_been_refused = peer_for(state, exchange, false).is_some_and(|peer| leave_for(peer, state, exchange));
    exchange.has_been_refused
}

fn leave_for(peer: Arc<Peer>, state: &State, exchange: &mut Exchange) -> bool {
    exchange.has_failed_over = true;
    // The app here is not asked: nothing that was begun for it counts.
    breakers::ended(state, exchange, End::Unknown);
    exchange.permit = None;
    exchange.waiting = None;
    exchange.destination = Destination::Peer(peer, Kind::Failover);
    true
}

fn peer_for(state: &State, exchange: &Exchange, may_be_busy: bool) -> Option<Arc<Peer>> {
    let peers = state.peers.as_ref()?;
    let rules = exchange.rules.config.peers.as_ref()?;
    // A longer body could not come back from there, while here it can be held.
    let may = exchange.is_replayable
        && rules.failover == Mode::Enforce
        && exchange.resilience == Mode::Enforce
        && !exchange.has_failed_over
        && exchange.hop.is_none()
        && !exchange.route().is_health;
    if may { peers.ready(may_be_busy) } else { None }
}

/// Whether the sender of this request is told that it may serve it itself: nothing of it has reached the app.
pub fn is_given_back(exchange: &Exchange) -> bool {
    if exchange.listener == Listener::Peers && exchange.hop.is_none() {
        // Not known as a peer's, by clocks or keys that differ. Nobody else hears this.
        return true;
    }
    let is_failover = exchange.hop.as_ref().is_some_and(|hop| hop.kind == Kind::Failover);
    let is_untouched = matches!(
        exchange.rejection,
        Some(
            Rejection::Overloaded
                | Rejection::AppRestarting
                | Rejection::BreakerOpen { .. }
                | Rejection::Draining
                | Rejection::TooManyUploads
                | Rejection::OutOfResources
        )
    ) || exchange.failure == Some(Failure::Unreachable);
    is_failover && is_untouched
}

/// Whether a request is taken only if there is a slot for it at once: what came from a peer waits for nothing here.
pub fn is_guest(exchange: &Exchange) -> bool {
    exchange.hop.as_ref().is_some_and(|hop| hop.kind == Kind::Failover)
}
