//! What is queued for the writer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use outrigger_identity::verified::Verified;
use outrigger_policy::audit::{EventType, LONGEST_TEXT, MOST_PAIRS, Outcome};
use outrigger_policy::tier::Tier;
use outrigger_rules::sections::audit::AuditRules;
use outrigger_rules::sections::route_table::Route;
use outrigger_wire::request::Request;
use outrigger_wire::request_id::RequestId;

use crate::mechanism::audit::Done;

/// Something for the trail.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are requests, and a box for each would be an allocation on its way"
)]
pub enum Item {
    /// A request that ended.
    Request(Event),
    /// Something else that was done.
    Act(Box<Act>),
}

impl Item {
    /// What was done.
    pub fn event(&self) -> EventType {
        match self {
            Self::Request(event) => event.event,
            Self::Act(act) => act.event,
        }
    }

    /// When.
    pub fn at(&self) -> Instant {
        match self {
            Self::Request(event) => event.ended,
            Self::Act(act) => act.at,
        }
    }

    /// Whether somebody waits until it is on disk.
    pub fn is_awaited(&self) -> bool {
        match self {
            Self::Request(event) => event.done.is_some(),
            Self::Act(act) => act.done.is_some(),
        }
    }

    /// Who waits.
    pub fn take_done(&mut self) -> Option<Done> {
        match self {
            Self::Request(event) => event.done.take(),
            Self::Act(act) => act.done.take(),
        }
    }
}

/// Who asked.
#[derive(Clone, Debug)]
pub struct Who {
    /// From where.
    pub address: IpAddr,
    /// What it may multiply.
    pub tier: Tier,
    /// The user or key that was verified.
    pub verified: Option<Arc<Verified>>,
}

/// A request that ended.
#[derive(Debug)]
pub struct Event {
    /// When.
    pub ended: Instant,
    /// Since its head.
    pub duration: Duration,
    /// What it was.
    pub event: EventType,
    /// How it ended.
    pub outcome: Outcome,
    /// Its answer's status.
    pub status: u16,
    /// The number of its route in the rules.
    pub route: usize,
    /// Why.
    pub reason: Option<&'static str>,
    /// The number in the rules of the limit that refused it.
    pub limit: Option<u16>,
    /// Its method.
    pub method: Method,
    /// Its name.
    pub request_id: RequestId,
    /// Its trace.
    pub trace: Option<[u8; 16]>,
    /// Who asked.
    pub who: Who,
    /// What the rules want to have of it.
    pub captured: Option<Box<Captured>>,
    /// Who waits for it.
    pub done: Option<Done>,
}

/// Something that was done otherwise than by a request.
#[derive(Debug)]
pub struct Act {
    /// When.
    pub at: Instant,
    /// What.
    pub event: EventType,
    /// In a word.
    pub action: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// The client that it is about.
    pub who: Option<Who>,
    /// The operator who did it.
    pub is_operator: bool,
    /// The subject, where it is named as operators do: `user:ann`.
    pub subject: Option<String>,
    /// The request during which it happened.
    pub request_id: Option<RequestId>,
    /// Why.
    pub reason: Option<String>,
    /// What else there is, as a JSON object.
    pub details: Option<String>,
    /// Who waits for it.
    pub done: Option<Done>,
}

impl Act {
    /// Something that the program did.
    pub fn new(event: EventType, action: &'static str, outcome: Outcome) -> Self {
        Self {
            at: Instant::now(),
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

/// Fields and parameters of a request that the rules want to have: the number of the name in the rules, and the value.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// Of the route's parameters.
    pub resource: Vec<(usize, Box<[u8]>)>,
    /// Of the rules' fields.
    pub headers: Vec<(usize, Box<[u8]>)>,
}

impl Captured {
    /// Copies them: the head is gone when it is entered. No more of each than an entry shows.
    pub fn of(request: &Request<'_>, route: &Route, rules: &AuditRules) -> Self {
        let shortened = |value: &[u8]| Box::from(&value[..value.len().min(LONGEST_TEXT + 1)]);
        let mut resource = Vec::new();
        if !route.resource.is_empty() {
            // As the app gets it: every reading that could put another value there led to another route.
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

/// The trace of a `traceparent` (W3C Trace Context, version 00); `None` when it is none.
pub fn trace_id(field: &[u8]) -> Option<[u8; 16]> {
    let digits = field.get(3..35)?;
    if field.len() < 55 || field[2] != b'-' || field[35] != b'-' {
        return None;
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (id != [0; 16]).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_traceparent_names_a_trace() {
        let good = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(trace_id(good).map(u128::from_be_bytes), Some(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c));
        for bad in [&b""[..], b"00-xyz", &good[..54], b"00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            assert_eq!(trace_id(bad), None);
        }
    }
}
