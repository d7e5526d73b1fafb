//! The stage that gives a request its route; [`outrigger_rules::sections::route_table`] finds it.

use outrigger_rules::sections::route_table::PathRefused;
use outrigger_wire::path::Unreadable;
use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;

/// Gives the exchange its route. The stage of the same name.
///
/// # Errors
/// A path that the app may read in another way, or that is not public. The default route takes what no other does.
pub fn choose(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    exchange.route = exchange.rules.config.routes.find(request)?;
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
