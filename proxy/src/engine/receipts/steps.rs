//! The unusual steps of a request, each with its time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_policy::abuse::Offence;
use outrigger_policy::flags::Mode;

use crate::engine::attempts::{Event, Next};
use crate::engine::rejection::Rejection;
use crate::mechanism::affinity::metrics::Event as Session;
use crate::mechanism::peers::hop;

/// The most steps of a request that are kept.
pub const MOST_STEPS: usize = 24;

/// A step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// An event of its attempts that is not the usual one, and what came next.
    Attempt(Event, Next),
    /// It waited in the queue for this long, and got a permit.
    Waited(Duration),
    /// It waited for this long while an operator paused requests, and got a permit.
    Paused(Duration),
    /// A rule in `monitor` would have rejected it.
    Monitored(Rejection),
    /// Its client was banned because of it.
    Banned(Offence, Mode),
    /// Its sticky session did not stay on this Machine.
    Session(Session),
    /// A credential that it carries was ignored.
    CredentialIgnored(&'static str),
    /// It was sent to a peer.
    SentToPeer(Arc<str>, hop::Kind),
    /// It came from a peer.
    CameFromPeer(Arc<str>, hop::Kind),
    /// A fault is injected into the next attempt: it is delayed by this long, and then may fail.
    Fault(Duration),
}

/// The steps of a request. Empty and without an allocation for an ordinary one.
#[derive(Debug, Default)]
pub struct Steps(Option<Box<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    steps: Vec<(Duration, Step)>,
    /// How many more there were.
    more: u32,
}

impl Steps {
    /// Adds a step that happens now, to a request that began at `started`. The first ones are kept.
    #[cold]
    pub fn add(&mut self, started: Instant, step: Step) {
        let kept = self.0.get_or_insert_with(Box::default);
        if kept.steps.len() < MOST_STEPS {
            kept.steps.push((clock::since(started), step));
        } else {
            kept.more = kept.more.saturating_add(1);
        }
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The steps, each with the time since the request's head.
    pub fn all(&self) -> &[(Duration, Step)] {
        self.0.as_ref().map_or(&[], |kept| &kept.steps)
    }

    /// How many more there were.
    pub fn more(&self) -> u32 {
        self.0.as_ref().map_or(0, |kept| kept.more)
    }
}

/// Whether an event, and what comes next, is not the way of an ordinary request.
pub const fn is_unusual(event: Event, next: Next) -> bool {
    match event {
        Event::Admitted { .. } | Event::Connected | Event::Bought(_) | Event::PeerAnswered => false,
        // The first attempt of a request that a stage sent to a peer.
        Event::SentToPeer { .. } => false,
        // The log and the outcome say it.
        Event::ClientLeft => false,
        Event::Answered { .. } => !matches!(next, Next::Relay),
        // Looked at again and again.
        Event::Overdue { .. } => !matches!(next, Next::GoOn),
        // A kept connection that the app had closed: replaced at no cost.
        Event::Closed { is_stale: true, .. } | Event::Unread { is_kept: true } => !matches!(next, Next::Replace),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_bounded_and_the_first_are_kept() {
        let mut steps = Steps::default();
        assert!(steps.is_empty());
        for n in 0..100 {
            steps.add(Instant::now(), Step::Waited(Duration::from_secs(n)));
        }
        assert_eq!((steps.all().len(), steps.more()), (MOST_STEPS, 100 - MOST_STEPS as u32));
        assert_eq!(steps.all()[0].1, Step::Waited(Duration::ZERO));
    }

    #[test]
    fn an_ordinary_request_has_none() {
        let admitted = Event::Admitted { most: 3, is_idempotent: true };
        assert!(!is_unusual(admitted, Next::Ask { pause: Duration::ZERO }));
        let answered = Event::Answered { status: 200, wants_retry: false, retry_after: None };
        assert!(!is_unusual(answered, Next::Relay));
        assert!(is_unusual(answered, Next::Ask { pause: Duration::ZERO }), "a retry");
    }
}
