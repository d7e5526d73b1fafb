//! Detects loops: [`outrigger_wire::via`] names this process in requests that it forwards.

use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;

/// Rejects a request that this process has forwarded already.
///
/// # Errors
/// [`Rejection::Loop`]
pub fn check(state: &State, request: &Request<'_>, _: &mut Exchange) -> Result<(), Rejection> {
    if state.pseudonym.is_in(request.fields) { Err(Rejection::Loop) } else { Ok(()) }
}
