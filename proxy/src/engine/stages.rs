//! Every check of a request, in order. To change what the proxy does, change this file's lists.

pub mod admit;
pub mod failover;
pub mod faults;
pub mod hold;
pub mod identify;
pub mod route;
pub mod via;

use outrigger_wire::request::Request;

use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::Rejection;
use crate::engine::state::State;
use crate::mechanism::{abuse, affinity, audit, breakers, limits};

/// One check of a request: lets it pass, or says why not.
pub type Stage = fn(&State, &Request<'_>, &mut Exchange) -> Result<(), Rejection>;

/// Every check a request passes, in order; the first that refuses answers, and the first that sends it elsewhere is the last.
pub const STAGES: [Stage; 13] = [
    identify::client,
    via::check,
    route::choose,
    audit::choose,
    admit::deadline,
    affinity::choose,
    admit::while_leaving,
    admit::body,
    abuse::check,
    limits::check,
    audit::may_write,
    faults::choose,
    failover::choose,
];

/// What comes before the app's turn, for a request that stays here. The breaker is asked once more for each attempt.
const TURN: [Stage; 2] = [breakers::may_pass, admit::slot];

/// Decides about a request: whether it is refused, and where it goes.
///
/// # Errors
/// The refusal of a stage.
pub fn decide(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    check(state, request, exchange)?;
    if matches!(exchange.destination, Destination::App) { take_turn(state, request, exchange) } else { Ok(()) }
}

/// The first part of [`decide`]: everything that can be said before the request's body is there.
///
/// # Errors
/// The refusal of a stage.
pub fn check(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    for stage in STAGES {
        stage(state, request, exchange)?;
        if !matches!(exchange.destination, Destination::App) {
            break;
        }
    }
    Ok(())
}

/// The rest of [`decide`], also for a request that comes back from a peer. A breaker that is open here may not be so there.
///
/// # Errors
/// The refusal of a stage.
pub fn take_turn(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    if exchange.has_been_refused {
        return Err(Rejection::Overloaded);
    }
    let verdict = TURN.iter().try_for_each(|stage| stage(state, request, exchange));
    match verdict {
        Err(Rejection::BreakerOpen { .. }) if failover::takes(state, exchange) => Ok(()),
        Err(Rejection::Overloaded) if failover::spares_a_slot(state, exchange) => Ok(()),
        verdict => verdict,
    }
}
