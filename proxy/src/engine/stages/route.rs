//! The stage that selects the route; [`outrigger_rules::sections::route_table`] finds it.

use outrigger_rules::sections::route_table::PathRefused;
use outrigger_wire::path::Unreadable;
use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;
use crate::engine::traffic;

/// Sets the exchange's route.
///
/// # Errors
/// The app may read the path differently, or the path is not public. The default route takes all other requests.
pub fn choose(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    exchange.route = exchange.rules.config.routes.find(request)?;
    traffic::routed(request, exchange);
    Ok(())
}

impl From<PathRefused> for Rejection {
    fn from(refused: PathRefused) -> Self {
        match refused {
            PathRefused::Unreadable(Unreadable::DotSegment) => Self::DotSegment,
            PathRefused::Unreadable(Unreadable::ControlCharacter) => Self::ControlCharacter,
            PathRefused::Unreadable(Unreadable::TooManyReadings) | PathRefused::Ambiguous(..) => Self::AmbiguousPath,
            PathRefused::NotPublic => Self::NotPublic,
        }
    }
}
