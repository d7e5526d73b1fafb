//! The items that are queued for the writer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use outrigger_identity::clock;
use outrigger_identity::verified::Verified;
use outrigger_policy::audit::{EventType, LONGEST_TEXT, MOST_PAIRS, Outcome};
use outrigger_policy::tier::Tier;
use outrigger_rules::sections::audit::AuditRules;
use outrigger_rules::sections::route_table::Route;
use outrigger_wire::request::Request;
use outrigger_wire::request_id::RequestId;

use crate::audit::receipt::Done;
use crate::evidence::Evidence;

/// An item for the audit log.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are requests, and a box would be an allocation for each")]
pub enum Item {
    /// A request that ended.
    Request(Event),
    /// Another action.
    Act(Box<Act>),
}

impl Item {
    /// Returns the type of the event.
    pub fn event(&self) -> EventType {
        match self {
            Self::Request(event) => event.event,
            Self::Act(act) => act.event,
        }
    }

    /// Returns the time of the event.
    pub fn at(&self) -> Instant {
        match self {
            Self::Request(event) => event.ended,
            Self::Act(act) => act.at,
        }
    }

    /// Returns whether a task waits until the event is on disk.
    pub fn is_awaited(&self) -> bool {
        match self {
            Self::Request(event) => event.done.is_some(),
            Self::Act(act) => act.done.is_some(),
        }
    }

    /// Takes the sender that notifies the waiting task.
    pub fn take_done(&mut self) -> Option<Done> {
        match self {
            Self::Request(event) => event.done.take(),
            Self::Act(act) => act.done.take(),
        }
    }
}

/// The client.
#[derive(Clone, Debug)]
pub struct Who {
    /// The client's address.
    pub address: IpAddr,
    /// The client's tier.
    pub tier: Tier,
    /// The user or key that was verified.
    pub verified: Option<Arc<Verified>>,
}

/// A request that ended.
#[derive(Debug)]
pub struct Event {
    /// When it ended.
    pub ended: Instant,
    /// The time since its head.
    pub duration: Duration,
    /// The type of the event.
    pub event: EventType,
    /// The outcome.
    pub outcome: Outcome,
    /// The status of the response.
    pub status: u16,
    /// The index of the route in the snapshot.
    pub route: usize,
    /// Why it was rejected or failed.
    pub reason: Option<&'static str>,
    /// The index in the snapshot of the rate limit that rejected it.
    pub limit: Option<u16>,
    /// The method.
    pub method: Method,
    /// The request id.
    pub request_id: RequestId,
    /// The trace id.
    pub trace: Option<[u8; 16]>,
    /// The client.
    pub who: Who,
    /// The headers and parameters that the configuration asks for.
    pub captured: Option<Box<Captured>>,
    /// The rule that rejected it, or by which the app failed it.
    pub evidence: Option<Box<Evidence>>,
    /// Notifies the waiting task.
    pub done: Option<Done>,
}

/// An action that is not a request.
#[derive(Debug)]
pub struct Act {
    /// When it happened.
    pub at: Instant,
    /// The type of the event.
    pub event: EventType,
    /// The name of the action.
    pub action: &'static str,
    /// The outcome.
    pub outcome: Outcome,
    /// The client concerned.
    pub who: Option<Who>,
    /// Whether an operator did it.
    pub is_operator: bool,
    /// The subject, in the form that operators use: `user:ann`.
    pub subject: Option<String>,
    /// The request during which it happened.
    pub request_id: Option<RequestId>,
    /// The reason.
    pub reason: Option<String>,
    /// Further details, as a JSON object.
    pub details: Option<String>,
    /// Notifies the waiting task.
    pub done: Option<Done>,
}

impl Act {
    /// Creates an action of Outrigger itself.
    pub fn new(event: EventType, action: &'static str, outcome: Outcome) -> Self {
        Self {
            at: clock::now(),
            event,
            action,
            outcome,
            who: None,
            is_operator: false,
            subject: None,
            request_id: None,
            reason: None,
            details: None,
            done: None,
        }
    }
}

/// Headers and parameters of a request that the configuration asks for: the index of the name in the snapshot, and the
/// value.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// Parameters of the route.
    pub resource: Vec<(usize, Box<[u8]>)>,
    /// Headers.
    pub headers: Vec<(usize, Box<[u8]>)>,
}

impl Captured {
    /// Copies them: the head is gone when the event is written. Each value is cut to what an event shows.
    pub fn of(request: &Request<'_>, route: &Route, rules: &AuditRules) -> Self {
        let shortened = |value: &[u8]| Box::from(&value[..value.len().min(LONGEST_TEXT + 1)]);
        let mut resource = Vec::new();
        if !route.resource.is_empty() {
            // The path as the app gets it: a reading with another value here would have led to another route.
            let segments: Vec<&str> = request.path.split('/').skip(1).collect();
            for (number, (at, _)) in route.resource.iter().enumerate().take(MOST_PAIRS) {
                if let Some(value) = segments.get(*at) {
                    resource.push((number, shortened(value.as_bytes())));
                }
            }
        }
        let value = |name| request.fields.get(name).map(shortened);
        let headers = rules.headers.iter().enumerate().take(MOST_PAIRS);
        let headers = headers.filter_map(|(number, name)| Some((number, value(name)?))).collect();
        Self { resource, headers }
    }
}
