//! Is there room for this request?

use crate::exchange::{Exchange, Request};
use crate::rejection::Rejection;
use crate::state::{Phase, State};

/// Health fails first when the process is about to leave, so that traffic goes elsewhere while it can still be served.
///
/// # Errors
/// [`Rejection::Draining`], for readiness and general health only.
pub fn while_leaving(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let asks_for_traffic = exchange.route().is_health && matches!(request.path, "/health" | "/health/ready");
    if asks_for_traffic && state.drain.phase() != Phase::Serving { Err(Rejection::Draining) } else { Ok(()) }
}

/// A body that says how long it is can be refused before it is sent; others are counted on their way.
///
/// # Errors
/// [`Rejection::BodyTooLarge`]
pub fn body(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let announced = request
        .fields
        .get(&http::header::CONTENT_LENGTH)
        .and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > exchange.route().max_body_bytes) {
        return Err(Rejection::BodyTooLarge);
    }
    Ok(())
}
