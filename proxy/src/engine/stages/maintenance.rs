//! The stage that refuses requests for maintenance: by an operator's order, or by the file.

use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;

/// Refuses all requests in maintenance, except health checks and those that the file lets pass.
///
/// # Errors
/// [`Rejection::Maintenance`]
pub fn check(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let rules = &exchange.rules.config.maintenance;
    if !rules.is_on && !state.reach.is_in_maintenance() {
        return Ok(());
    }
    if exchange.route().is_health || rules.lets_pass(exchange.client.address, request.path) {
        return Ok(());
    }
    Err(Rejection::Maintenance { retry_after: rules.retry_after })
}
