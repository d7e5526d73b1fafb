//! Faults on purpose: which of them befalls a request. What they do is done where an attempt is made.

use std::sync::Arc;
use std::time::Duration;

use outrigger_rules::sections::faults::{Effect, FaultRule};
use outrigger_rules::sections::route_table::has;
use outrigger_wire::random::dice;
use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;

/// Finds the faults whose conditions this request meets.
///
/// # Errors
/// None: a fault is the attempt's.
pub fn choose(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let rules = Arc::clone(&exchange.rules);
    if rules.config.faults.is_empty() {
        return Ok(());
    }
    let befalls = |fault: &FaultRule| {
        fault.routes.get(exchange.route).is_some_and(|befalls| *befalls)
            && fault.headers.iter().all(|(name, value)| has(request.fields, name, value.as_deref()))
    };
    // Allocates only where faults are allowed, which no production has.
    exchange.faults = rules.config.faults.iter().enumerate().filter(|(_, f)| befalls(f)).map(|(n, _)| n).collect();
    Ok(())
}

/// What happens to the next attempt: each one throws the dice again.
pub fn next(exchange: &Exchange) -> Option<(Duration, Effect)> {
    let faults = &exchange.rules.config.faults;
    let fault = exchange.faults.iter().filter_map(|number| faults.get(*number)).find(|fault| dice() < fault.share)?;
    Some((fault.delay, fault.effect))
}
