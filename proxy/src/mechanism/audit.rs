//! The audit log on the hot path: what is recorded about a request, and how it gets to the writer.
//!
//! ```text
//! stages: choose ─ may_write          record: ended ──────────┐ queue of this worker, bounded
//!                                     answer: before_response ┴──► writer (a thread): hashes, writes, fdatasync
//!                                              ◄── on disk, or not within commit_timeout: 503
//! ```
//!
//! Requests do not wait for the disk, except those whose class requires it. Events that do not fit into the queue are
//! counted, and the writer adds the count to the chain.

pub mod acts;
mod event;
mod identities;
pub mod metrics;
mod queue;
mod refusals;
pub mod shipping;
pub mod upkeep;
mod writer;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use http::{HeaderName, Method};
use outrigger_policy::audit::{Class, Declared, Durability, EventType, Outcome as Ended};
use outrigger_policy::flags::{Feature, Mode};
use outrigger_rules::sections::audit::AuditRules;
use outrigger_trail::keys::{KEYS, MasterKeys};
use outrigger_trail::local;
use outrigger_wire::path;
use outrigger_wire::request::Request;
use tokio::sync::oneshot;

use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::Rejection;
use crate::engine::stages::identify::with_subject;
use crate::engine::state::State;
pub use crate::mechanism::audit::event::{Act, Captured, Event, Item, Who};
use crate::mechanism::audit::queue::Done;
pub use crate::mechanism::audit::queue::{Authority, Command, ForgetError, Receipt, Trail, is_worker};
use crate::mechanism::audit::writer::Writer;
use crate::mechanism::outcome::Outcome;

/// The path prefix of the app's endpoints for the audit log. Requests from outside are rejected.
const INTERNAL: &str = "/internal/audit/";

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Data about a request that its event needs.
#[derive(Debug, Default)]
pub struct Noted {
    /// The mode of the audit log for this request.
    pub mode: Mode,
    /// The event is on disk, or on its way there.
    pub is_entered: bool,
    method: Method,
    trace: Option<[u8; 16]>,
    captured: Option<Box<Captured>>,
    /// A signed value that did not verify.
    pub forged: Option<&'static str>,
}

/// Why the audit log has no keys.
#[derive(Debug, thiserror::Error)]
pub enum NoKeys {
    /// The system provides no random bytes.
    #[error("the system provides no random bytes for a key of the audit log: set {KEYS}")]
    NoRandomness,
}

/// Starts the writer, if the audit log is configured.
///
/// # Errors
/// There are no keys, or the system gives no thread.
pub fn start<E: From<NoKeys> + From<io::Error>>(
    state: &Arc<State>,
    commands: Option<Receiver<Command>>,
) -> Result<(), E> {
    let rules = state.rules.load();
    let (Some(commands), Some(audit)) = (commands, &rules.config.audit) else { return Ok(()) };
    let keys = match &audit.keys {
        Some(keys) => local::behind(&audit.directory, keys.clone()),
        None => local_key(audit)?,
    };
    if let Some(trail) = &state.trail {
        // Set only here.
        let _ = trail.keys.set(keys.clone());
    }
    let before = upkeep::flags_before(audit);
    let writer = Writer::new(Arc::clone(state), keys, commands);
    std::thread::Builder::new().name("audit".into()).spawn(move || writer.run())?;
    acts::process(state, "start");
    acts::flags_changed(state, before.unwrap_or_default(), &rules.config);
    upkeep::keep_flags(&rules.config);
    Ok(())
}

/// Without configured master keys, one is kept next to the audit log. This does not protect it from a reader of the
/// disk.
fn local_key(rules: &AuditRules) -> Result<MasterKeys, NoKeys> {
    tracing::warn!(
        "the audit log's key is in its directory, readable with it: set {KEYS} (`openssl rand -base64 32`); \
         see docs/audit.md"
    );
    match local::keys(&rules.directory) {
        Ok(keys) => Ok(keys),
        Err(e) => {
            tracing::error!("the audit log's own key cannot be stored, it lasts as long as this process: {e}");
            local::passing_keys().ok_or(NoKeys::NoRandomness)
        }
    }
}

/// Formats the id of an event, as events contain it.
pub fn shown_id(id: u128) -> String {
    let mut hexed = Vec::new();
    outrigger_policy::audit::hex(&mut hexed, &id.to_be_bytes());
    let text = String::from_utf8_lossy(&hexed).into_owned();
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

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
    let trace = request.fields.get(&TRACEPARENT).and_then(event::trace_id);
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
        Some(Rejection::Overloaded | Rejection::AppRestarting | Rejection::Expired) => Some(EventType::Shed),
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
    let ended = Instant::now();
    let outcome = match (exchange.rejection, exchange.failure) {
        (Some(_), _) => Ended::Refused,
        (None, Some(_)) => Ended::Error,
        (None, None) => Ended::of_status(exchange.status),
    };
    // It is needed again if this fails.
    let captured = exchange.audit.captured.clone();
    // The app has responded: another request gets the permit during the wait for the disk.
    exchange.permit = None;
    enter(trail, exchange, Entry { event, outcome, ended, reason: None, captured, done: Some(done) });
    match tokio::time::timeout(patience, receipt).await {
        Ok(Ok(_)) => Ok(()),
        late_or_failed => {
            if late_or_failed.is_err() {
                // Until the writer succeeds, other requests need not wait for the same timeout.
                trail.writable[class as usize].store(false, Ordering::Relaxed);
            }
            // The rejection gets an event of its own.
            exchange.audit.is_entered = false;
            Err(Rejection::AuditUnavailable)
        }
    }
}

/// Called when a request has ended.
pub fn ended(state: &State, exchange: &mut Exchange, outcome: Outcome, client_left: bool, ended: Instant) {
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
            trail.push(&exchange.rules, Item::Request(event));
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
    enter(trail, exchange, Entry { event, outcome: ended_as, ended, reason, captured, done: None });
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
}

fn enter(trail: &Trail, exchange: &Exchange, entry: Entry) {
    let Entry { event, outcome, ended, reason, captured, done } = entry;
    let refused = || exchange.rejection.map(|r| r.problem().label);
    let reason = reason.or_else(refused).or_else(|| exchange.failure.map(|f| f.problem().label));
    let event = Event { reason, captured, done, ..request(exchange, event, outcome, ended) };
    trail.push(&exchange.rules, Item::Request(event));
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
