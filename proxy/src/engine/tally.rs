//! Tells the tally how a request ended, as its client saw it.

use std::net::IpAddr;
use std::time::Duration;

use outrigger_identity::client::Client;
use outrigger_policy::probation::measures::Ending;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::state::State;
use crate::mechanism::outcome::Outcome;
use crate::mechanism::tally::Ended;

/// Counts a request that has ended.
pub fn ended(state: &State, exchange: &Exchange, (outcome, duration): (Outcome, Duration)) {
    if exchange.route().is_health || !exchange.faults.is_empty() {
        return;
    }
    let Some(ending) = ending(exchange, outcome) else { return };
    // One that waited for an app that was down, or for the end of a pause, does not count for the latency.
    let is_timed = exchange.rejection.is_none() && exchange.held_since.is_none() && exchange.stream.is_none();
    let to_head = exchange.head_at.map_or(duration, |at| at.saturating_duration_since(exchange.started));
    let (version, priority) = (exchange.rules.version, Some(exchange.route().priority));
    let took = is_timed.then_some(to_head);
    state.tally.end(exchange.client.origin(), Ended { ending, version, priority, took });
}

/// Counts a request that was rejected before it was parsed, or a connection that was closed before.
pub fn rejected_unparsed(state: &State, version: u64, address: IpAddr) {
    let client = Client { address, ..Client::UNKNOWN }.origin();
    state.tally.end(client, Ended { ending: Ending::Refused, version, priority: None, took: None });
}

/// Absent if it was refused on purpose, by an operator or for a shutdown.
fn ending(exchange: &Exchange, outcome: Outcome) -> Option<Ending> {
    if let Some(rejection) = exchange.rejection {
        return match rejection {
            Rejection::Draining
            | Rejection::Unhealthy
            | Rejection::Paused { .. }
            | Rejection::Maintenance { .. }
            | Rejection::FaultInjected { .. }
            | Rejection::NotAPeer => None,
            Rejection::QuotaExceeded { .. } => Some(Ending::RateLimited),
            Rejection::Banned { .. } => Some(Ending::Banned),
            Rejection::Overloaded => Some(Ending::Overloaded),
            Rejection::AppRestarting => Some(Ending::Unreachable),
            Rejection::BreakerOpen { .. } => Some(Ending::BreakerOpen),
            Rejection::Expired => Some(Ending::Late),
            _ => Some(Ending::Refused),
        };
    }
    Some(match outcome {
        // Streams usually end when their client leaves.
        _ if exchange.stream.is_some() => Ending::Fine,
        Outcome::Success => Ending::Fine,
        Outcome::Redirect => Ending::Redirect,
        Outcome::ClientError => Ending::ClientError,
        Outcome::ServerError | Outcome::Internal => Ending::ServerError,
        Outcome::Rejected => Ending::Refused,
        Outcome::ClientClosed => Ending::Abandoned,
        Outcome::Truncated => Ending::BadGateway,
        Outcome::BadGateway | Outcome::Unavailable | Outcome::GatewayTimeout => match exchange.failure {
            Some(Failure::Unreachable | Failure::ConnectTimeout) => Ending::Unreachable,
            Some(Failure::Timeout) => Ending::Late,
            _ => Ending::BadGateway,
        },
    })
}
