//! The checks of a request, in order. To change the proxy's behaviour, change this file's lists.

pub mod abuse;
pub mod addresses;
pub mod admit;
pub mod affinity;
pub mod audit;
pub mod breakers;
pub mod failover;
pub mod faults;
pub mod hold;
pub mod identify;
pub mod limits;
pub mod maintenance;
pub mod route;
pub mod tally;
pub mod via;

use outrigger_wire::request::Request;

use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::Rejection;
use crate::engine::state::State;
use crate::engine::traces;

/// One check of a request: passes it on, or returns a rejection.
pub type Stage = fn(&State, &Request<'_>, &mut Exchange) -> Result<(), Rejection>;

/// All checks of a request, in order. The first rejection, or the first stage that sends the request elsewhere, ends them.
pub const STAGES: [Stage; 18] = [
    traces::choose,
    identify::client,
    via::check,
    route::choose,
    tally::begin,
    audit::choose,
    addresses::check,
    maintenance::check,
    admit::deadline,
    affinity::choose,
    admit::while_leaving,
    admit::health,
    admit::body,
    abuse::check,
    limits::check,
    audit::may_write,
    faults::choose,
    failover::choose,
];

/// The checks before the request is sent to the local app. The circuit breaker is asked again for each attempt.
const TURN: [Stage; 2] = [breakers::may_pass, admit::slot];

/// Decides whether a request is rejected, and where it is sent.
///
/// # Errors
/// A stage rejects the request.
pub fn decide(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    check(state, request, exchange)?;
    if matches!(exchange.destination, Destination::App) { take_turn(state, request, exchange) } else { Ok(()) }
}

/// The first part of [`decide`]: all checks that do not need the request's body.
///
/// # Errors
/// A stage rejects the request.
pub fn check(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    for stage in STAGES {
        stage(state, request, exchange)?;
        if !matches!(exchange.destination, Destination::App) {
            break;
        }
    }
    Ok(())
}

/// The rest of [`decide`], also for a request that a peer declined. A peer's circuit breaker may be closed while the one
/// here is open.
///
/// # Errors
/// A stage rejects the request.
pub fn take_turn(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    if exchange.has_been_refused {
        return Err(Rejection::Overloaded);
    }
    let verdict = TURN.iter().try_for_each(|stage| stage(state, request, exchange));
    match verdict {
        Err(Rejection::BreakerOpen { .. }) if failover::takes(state, exchange) => Ok(()),
        Err(Rejection::Overloaded) if failover::may_serve_elsewhere(state, exchange) => Ok(()),
        verdict => verdict,
    }
}
