//! Fault injection: chooses the faults that apply to a request. Each attempt applies them.

use std::sync::Arc;
use std::time::Duration;

use outrigger_rules::sections::faults::{Effect, FaultRule};
use outrigger_rules::sections::route_table::has;
use outrigger_wire::random::dice;
use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;

/// Chooses the faults whose conditions this request meets.
///
/// # Errors
/// Never fails: the attempt applies the fault.
pub fn choose(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let rules = Arc::clone(&exchange.rules);
    if rules.config.faults.is_empty() {
        return Ok(());
    }
    let befalls = |fault: &FaultRule| {
        fault.routes.get(exchange.route).is_some_and(|befalls| *befalls)
            && fault.headers.iter().all(|(name, value)| has(request.fields, name, value.as_deref()))
    };
    // Allocates only where fault injection is allowed, which it is not in production.
    exchange.faults = rules.config.faults.iter().enumerate().filter(|(_, f)| befalls(f)).map(|(n, _)| n).collect();
    Ok(())
}

/// The delay and the effect for the next attempt. Each attempt rolls the dice again.
pub fn next(exchange: &Exchange) -> Option<(Duration, Effect)> {
    let faults = &exchange.rules.config.faults;
    let fault = exchange.faults.iter().filter_map(|number| faults.get(*number)).find(|fault| dice() < fault.share)?;
    Some((fault.delay, fault.effect))
}
