//! The stage that rejects clients by their address: the lists of the listener, and of the route.

use outrigger_policy::flags::Mode;
use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::receipts::steps::Step;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;

/// Rejects a client whose address is not allowed. Connections that are not trusted to name another client were checked when they
/// were accepted (`accept.rs`), with the configuration of that time. Health checks are the platform's.
///
/// # Errors
/// [`Rejection::AddressNotAllowed`]
pub fn check(state: &State, _: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let (route, server) = (exchange.route(), &exchange.rules.config.server);
    if route.addresses.is_none() && server.addresses.is_none() {
        return Ok(());
    }
    let address = exchange.client.address;
    if !route.is_health && server.addresses.as_ref().is_some_and(|list| !list.allows(address)) {
        return Err(Rejection::AddressNotAllowed);
    }
    match &route.addresses {
        Some((list, Mode::Enforce)) if !list.allows(address) => Err(Rejection::AddressNotAllowed),
        Some((list, _)) if !list.allows(address) => {
            let (rejection, priority) = (Rejection::AddressNotAllowed, route.priority);
            state.metrics.rejections.refusals.monitored(rejection, priority, exchange.client.tier);
            exchange.steps.add(exchange.started, Step::Monitored(rejection));
            Ok(())
        }
        _ => Ok(()),
    }
}
