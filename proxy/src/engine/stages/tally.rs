//! The stage that counts a request for the comparison of changed rules with the ones before, until it is answered.

use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;

/// Counts the request, unless it is a health check.
///
/// # Errors
/// It rejects no request.
pub fn begin(state: &State, _: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    if !exchange.route().is_health {
        exchange.unanswered = state.tally.begin(exchange.client.origin());
    }
    Ok(())
}
