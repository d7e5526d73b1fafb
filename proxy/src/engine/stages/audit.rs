//! The stages for the audit log, and the event of a request that ends.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_policy::audit::{Class, Declared, Durability, EventType, Outcome as Ended};
use outrigger_policy::flags::{Feature, Mode};
use outrigger_wire::path;
use outrigger_wire::request::Request;
use tokio::sync::oneshot;

use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::Rejection;
use crate::engine::stages::identify::with_subject;
use crate::engine::state::State;
use crate::mechanism::audit::{Captured, Done, Event, Item, Trail, Who};
use crate::mechanism::evidence::Evidence;
use crate::mechanism::outcome::Outcome;

/// The path prefix of the app's endpoints for the audit log. Requests from outside are rejected.
const INTERNAL: &str = "/internal/audit/";

/// Stage: copies from the head of the request what the event will need.
///
/// # Errors
/// [`Rejection::Reserved`]: the path is reserved for Outrigger itself.
pub fn choose(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let (Some(_), Some(rules)) = (&state.trail, &exchange.rules.config.audit) else { return Ok(()) };
    if is_internal(request.path) {
        return Err(Rejection::Reserved);
    }
    let route = exchange.route();
    if route.is_health {
        return Ok(());
    }
    let flag = exchange.rules.config.flag(Feature::AuditTrail);
    let mode = flag
        .mode_for_everybody()
        .unwrap_or_else(|| with_subject(&exchange.client, |subject| flag.mode_for(Feature::AuditTrail, subject)));
    if mode == Mode::Off {
        return Ok(());
    }
    let wants = route.audit != Declared::Off;
    let captured = (wants && !(route.resource.is_empty() && rules.headers.is_empty()))
        .then(|| Box::new(Captured::of(request, route, rules)));
    let trace = exchange.traced.trace_id().map(|id| id.0.to_be_bytes());
    let noted = &mut exchange.audit;
    (noted.mode, noted.method, noted.trace, noted.captured) = (mode, request.method.clone(), trace, captured);
    Ok(())
}

/// Returns whether a path, in any reading, is one to which events are shipped.
fn is_internal(path: &str) -> bool {
    let is_below =
        |path: &[u8]| path.get(..INTERNAL.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(INTERNAL.as_bytes()));
    if path::scan(path.as_bytes()).is_plain {
        return is_below(path.as_bytes());
    }
    let mut is_internal = false;
    let read = path::each_reading(path.as_bytes(), |reading| {
        is_internal = is_below(reading);
        if is_internal { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    // Only a route that accepts all readings lets such a path get here.
    is_internal || read.is_err()
}

/// Stage: rejects a request before the app sees it, if its event must be on disk before the response and cannot be.
///
/// # Errors
/// [`Rejection::AuditUnavailable`]
pub fn may_write(state: &State, _: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    let (Some(trail), Mode::Enforce) = (&state.trail, exchange.audit.mode) else { return Ok(()) };
    let Some(class) = exchange.route().audit.event(exchange.audit.method.as_str(), 200).map(EventType::class) else {
        return Ok(());
    };
    let is_sure = durability(exchange, class) == Durability::BeforeResponse;
    if is_sure && !trail.is_writable(class) { Err(Rejection::AuditUnavailable) } else { Ok(()) }
}

fn durability(exchange: &Exchange, class: Class) -> Durability {
    exchange.rules.config.audit.as_ref().map_or(Durability::Group, |rules| rules.durability[class as usize])
}

/// Returns the type of the event for a request that ends now; `None` if it has no event.
fn event_of(exchange: &Exchange) -> Option<EventType> {
    let declared = || exchange.route().audit.event(exchange.audit.method.as_str(), exchange.status);
    match exchange.rejection {
        Some(Rejection::QuotaExceeded { .. }) => Some(EventType::RateLimited),
        Some(Rejection::Banned { .. }) => Some(EventType::Banned),
        Some(Rejection::BreakerOpen { .. }) => Some(EventType::Breaker),
        Some(
            Rejection::Overloaded
            | Rejection::AppRestarting
            | Rejection::Paused { .. }
            | Rejection::Maintenance { .. }
            | Rejection::Expired,
        ) => Some(EventType::Shed),
        Some(Rejection::NotAPeer | Rejection::Reserved) => Some(EventType::Forged),
        _ => declared(),
    }
}

/// Returns whether a peer or the edge has the request: its event is logged where the response is made.
fn is_elsewhere(exchange: &Exchange) -> bool {
    !matches!(exchange.destination, Destination::App) && exchange.rejection.is_none() && exchange.failure.is_none()
}

/// Called when a response is about to be sent, and its status is known. If the event's class requires it, waits until
/// the event is on disk.
///
/// # Errors
/// [`Rejection::AuditUnavailable`]: it is not on disk in time.
pub async fn before_response(state: &State, exchange: &mut Exchange) -> Result<(), Rejection> {
    let (Some(trail), Mode::Enforce, false) = (&state.trail, exchange.audit.mode, exchange.audit.is_entered) else {
        return Ok(());
    };
    if exchange.rejection == Some(Rejection::AuditUnavailable) {
        return Ok(());
    }
    let Some(event) = event_of(exchange) else { return Ok(()) };
    let class = event.class();
    if durability(exchange, class) == Durability::Group || is_elsewhere(exchange) {
        return Ok(());
    }
    exchange.audit.is_entered = true;
    let patience = exchange.rules.config.audit.as_ref().map_or(Duration::ZERO, |rules| rules.commit_timeout);
    let (done, receipt) = oneshot::channel();
    let ended = clock::now();
    let outcome = match (exchange.rejection, exchange.failure) {
        (Some(_), _) => Ended::Refused,
        (None, Some(_)) => Ended::Error,
        (None, None) => Ended::of_status(exchange.status),
    };
    // It is needed again if this fails.
    let captured = exchange.audit.captured.clone();
    // The app has responded: another request gets the permit during the wait for the disk.
    exchange.permit = None;
    let evidence = exchange.evidence.clone();
    enter(trail, exchange, Entry { event, outcome, ended, reason: None, captured, done: Some(done), evidence });
    match tokio::time::timeout(patience, receipt).await {
        Ok(Ok(_)) => Ok(()),
        late_or_failed => {
            if late_or_failed.is_err() {
                trail.is_late(class);
            }
            // The rejection gets an event of its own.
            exchange.audit.is_entered = false;
            Err(Rejection::AuditUnavailable)
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The outcome.
    pub outcome: Outcome,
    /// Its client disconnected.
    pub client_left: bool,
    /// When.
    pub at: Instant,
}

/// Called when a request has ended.
pub fn ended(state: &State, exchange: &mut Exchange, end: End) {
    let End { outcome, client_left, at: ended } = end;
    let Some(trail) = &state.trail else { return };
    if matches!(exchange.rejection, Some(Rejection::NotAPeer | Rejection::Reserved)) {
        // It was rejected before the mode was set.
        exchange.audit.mode =
            exchange.rules.config.flag(Feature::AuditTrail).mode_for_everybody().unwrap_or(Mode::Enforce);
    }
    if exchange.audit.mode == Mode::Off {
        return;
    }
    if let Some(what) = exchange.audit.forged {
        if exchange.audit.mode == Mode::Monitor {
            trail.metrics.monitored(Class::Security);
        } else {
            let event = Event { reason: Some(what), ..request(exchange, EventType::Forged, Ended::Refused, ended) };
            push(trail, exchange, event);
        }
    }
    if is_elsewhere(exchange) {
        return;
    }
    if exchange.audit.is_entered {
        return;
    }
    let Some(event) = event_of(exchange) else { return };
    if exchange.audit.mode == Mode::Monitor {
        trail.metrics.monitored(event.class());
        return;
    }
    let ended_as = match outcome {
        // The app has served the request, or may have.
        Outcome::Rejected
            if exchange.attempts.made() > 0 && exchange.rejection == Some(Rejection::AuditUnavailable) =>
        {
            Ended::Error
        }
        Outcome::Rejected => Ended::Refused,
        Outcome::Success | Outcome::Redirect => Ended::Success,
        Outcome::ClientError => Ended::Failure,
        _ => Ended::Error,
    };
    let reason = (client_left && exchange.rejection.is_none()).then_some("client_closed");
    let captured = exchange.audit.captured.take();
    let evidence = exchange.evidence.clone();
    enter(trail, exchange, Entry { event, outcome: ended_as, ended, reason, captured, done: None, evidence });
}

/// The event of a request, as passed to [`enter`].
struct Entry {
    event: EventType,
    outcome: Ended,
    ended: Instant,
    /// Replaces the reason of the rejection or failure.
    reason: Option<&'static str>,
    captured: Option<Box<Captured>>,
    done: Option<Done>,
    evidence: Option<Box<Evidence>>,
}

fn enter(trail: &Trail, exchange: &Exchange, entry: Entry) {
    let Entry { event, outcome, ended, reason, captured, done, evidence } = entry;
    let refused = || exchange.rejection.map(|r| r.problem().label);
    let reason = reason.or_else(refused).or_else(|| exchange.failure.map(|f| f.problem().label));
    let event = Event { reason, captured, done, evidence, ..request(exchange, event, outcome, ended) };
    push(trail, exchange, event);
}

fn push(trail: &Trail, exchange: &Exchange, event: Event) {
    if let Some(basis) = &exchange.rules.audit {
        trail.push(basis, Item::Request(event));
    }
}

fn request(exchange: &Exchange, event: EventType, outcome: Ended, ended: Instant) -> Event {
    Event {
        ended,
        duration: ended.saturating_duration_since(exchange.started),
        event,
        outcome,
        status: exchange.status,
        route: exchange.route,
        reason: None,
        limit: match exchange.rejection {
            Some(Rejection::QuotaExceeded { limit, .. }) => Some(limit),
            _ => None,
        },
        method: exchange.audit.method.clone(),
        request_id: exchange.request_id,
        trace: exchange.audit.trace,
        who: Who {
            address: exchange.client.address,
            tier: exchange.client.tier,
            verified: exchange.client.verified.clone(),
        },
        captured: None,
        evidence: None,
        done: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_paths_are_recognised_in_every_spelling() {
        for path in [
            "/internal/audit/batches",
            "//internal/audit/drops",
            "/%69nternal/%61udit/x",
            "/internal%2Faudit/x",
            "/internal;a/audit;b/x",
            "/internal%5Caudit%5cbatches",
            "/INTERNAL/audit/x",
        ] {
            assert!(is_internal(path), "{path}");
        }
        for path in ["/internal", "/internal/other", "/api/internal/audit/x", "/", ""] {
            assert!(!is_internal(path), "{path}");
        }
    }
}
