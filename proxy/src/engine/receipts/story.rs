//! Receipts for people and programs: JSON, and sentences with times.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use outrigger_policy::flags::Mode;
use serde_json::{Value, json};

use crate::engine::attempts::{Event, Next};
use crate::engine::receipts::steps::Step;
use crate::engine::receipts::{Cause, Receipt};
use crate::mechanism::affinity::metrics::Event as Session;
use crate::mechanism::evidence::Evidence;
use crate::mechanism::peers::hop;

impl Receipt {
    /// The receipt as JSON. Subject, address and path only with `reveal`.
    pub fn shown(&self, reveal: bool) -> Value {
        let (cause, evidence) = self.cause.as_ref().map(|(cause, evidence)| (cause, evidence)).unzip();
        let mut shown = json!({
            "request_id": self.request_id.as_str(),
            "at": self.began().to_string(),
            "config_version": self.config_version,
            "method": self.method.as_str(),
            "route": self.route.as_deref(),
            "priority": self.priority.name(),
            "client": self.pseudonym(),
            "tier": self.client.tier.name(),
            "modes": { "admission": self.admission.name(), "resilience": self.resilience.name() },
            "status": self.status,
            "outcome": self.outcome.name(),
            "duration_ms": milliseconds(self.duration),
            "attempts": self.attempts,
            "reason": cause.map(|cause| cause.label()),
            "rule": evidence.map(Evidence::rule),
            "numbers": evidence.map(Evidence::shown_numbers),
            "steps": self.steps.all().iter().map(|(at, step)| json!({
                "at_ms": milliseconds(*at), "step": step.name(), "text": step.text(),
            })).collect::<Vec<_>>(),
            "story": self.story(),
        });
        if reveal {
            shown["subject"] = self.client.shown().into();
            shown["address"] = self.client.address.to_string().into();
            shown["path"] = (*self.path).into();
        }
        shown
    }

    /// A name for the client that shows neither address nor user, the same as long as this client is known.
    pub fn pseudonym(&self) -> String {
        format!("{:016x}", self.client.id)
    }

    fn began(&self) -> Timestamp {
        let began = self.ended.checked_sub(self.duration).unwrap_or(SystemTime::UNIX_EPOCH);
        Timestamp::try_from(began).and_then(|at| at.round(jiff::Unit::Millisecond)).unwrap_or_default()
    }

    /// The steps in order: a sentence each.
    pub fn story(&self) -> Vec<String> {
        let began = self.began();
        let route = self.route.as_ref().map_or_else(
            || "no route yet".to_owned(),
            |route| format!("route {route:?}, priority {}", self.priority.name()),
        );
        let mut story = vec![format!(
            "{began} {} for {route}; client {}, tier {}; configuration version {}",
            self.method,
            self.pseudonym(),
            self.client.tier.name(),
            self.config_version
        )];
        for (mode, what) in [
            (self.admission, "rate limits, bans and the concurrency limit"),
            (self.resilience, "circuit breakers, retries and holding"),
        ] {
            if mode != Mode::Enforce {
                story.push(format!("for this client, flags set {what} to `{}`", mode.name()));
            }
        }
        story.extend(self.steps.all().iter().map(|(at, step)| format!("{} {}", after(*at), step.text())));
        if self.steps.more() > 0 {
            story.push(format!("… and {} more steps", self.steps.more()));
        }
        if let Some((cause, evidence)) = &self.cause {
            let by = match cause {
                Cause::Rejected(_) => "Outrigger rejected it",
                Cause::Failed(_) => "the app failed it",
            };
            let (at, rule, numbers) = (after(self.duration), evidence.rule(), listed(evidence));
            story.push(format!("{at} {by}: {} ({}), by {rule}{numbers}", cause.title(), cause.label()));
        }
        let (at, outcome, attempts) = (after(self.duration), self.outcome.name(), self.attempts);
        story.push(format!(
            "{at} ended with {}: {outcome}, after {attempts} {}",
            self.status,
            plural(attempts, "attempt")
        ));
        story
    }
}

fn listed(evidence: &Evidence) -> String {
    let numbers = evidence.shown_numbers();
    if numbers.is_empty() {
        return String::new();
    }
    // In the order in which they were added, not by name.
    let numbers = evidence.numbers().iter().map(|(name, _)| format!("{name} {}", numbers[*name]));
    format!(": {}", numbers.collect::<Vec<_>>().join(", "))
}

fn plural(count: u32, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn after(time: Duration) -> String {
    format!("+{:.1} ms", time.as_secs_f64() * 1e3)
}

impl Step {
    /// The kind of the step.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Attempt(_, Next::Ask { .. } | Next::Probe { .. } | Next::Replace) => "retry",
            Self::Attempt(_, Next::Wait) => "hold",
            Self::Attempt(_, Next::AskPeer) => "failover",
            Self::Attempt(..) => "attempt",
            Self::Waited(_) => "queue",
            Self::Paused(_) => "pause",
            Self::Monitored(_) => "monitor",
            Self::Banned(..) => "ban",
            Self::Session(_) => "session",
            Self::CredentialIgnored(_) => "identity",
            Self::SentToPeer(..) | Self::CameFromPeer(..) => "peer",
            Self::Fault(_) => "fault",
        }
    }

    /// A sentence.
    pub fn text(&self) -> String {
        match self {
            Self::Attempt(event, next) => format!("{}; {}", happened(*event), follows(*next)),
            Self::Waited(time) => format!("waited {:.1} ms in the queue for a permit", milliseconds(*time)),
            Self::Paused(time) => {
                format!("waited {:.1} ms, since an operator had paused requests", milliseconds(*time))
            }
            Self::Monitored(rejection) => {
                format!("a rule in `monitor` would have rejected it here: {}", rejection.problem().label)
            }
            Self::Banned(offence, Mode::Enforce) => format!("its client was banned for too many {}", offence.name()),
            Self::Banned(offence, _) => {
                format!("its client would have been banned for too many {}; bans are in `monitor`", offence.name())
            }
            Self::Session(session) => sticky(*session).to_owned(),
            Self::CredentialIgnored(why) => format!("its credential was ignored: {why}"),
            Self::SentToPeer(peer, kind) => format!("sent to the Machine {peer}, {}", reason(*kind)),
            Self::CameFromPeer(peer, kind) => format!("came from the Machine {peer}, {}", reason(*kind)),
            Self::Fault(delay) => format!("a fault was injected, after {:.1} ms", milliseconds(*delay)),
        }
    }
}

const fn reason(kind: hop::Kind) -> &'static str {
    match kind {
        hop::Kind::Session => "the home of its session",
        hop::Kind::Failover => "since the app on the other one could not take it",
        hop::Kind::Probe => "as a probe",
    }
}

const fn sticky(session: Session) -> &'static str {
    match session {
        Session::New => "its session began here",
        Session::Pinned => "its session lives here",
        Session::Replayed => "the edge replays it on the Machine where its session lives",
        Session::Forwarded => "forwarded to the Machine where its session lives",
        Session::Rehomed => "its session moved here, since its Machine is gone",
        Session::Visiting => "served here, since the Machine of its session cannot be reached now",
        Session::Expired => "its session had expired",
        Session::Forged => "its session cookie or replay mark has no valid signature",
    }
}

fn happened(event: Event) -> String {
    let text = match event {
        Event::Admitted { .. } => "it got a permit",
        Event::NotAdmitted { rejection, .. } => return format!("it got no permit: {}", rejection.problem().label),
        Event::HoldOver => "the app stayed away for all of `app.hold`",
        Event::Expired => "its time was over before it could be sent",
        Event::BreakerOpen { retry_after, .. } => {
            return format!("its circuit breaker was open, for another {:.1} s", retry_after.as_secs_f64());
        }
        Event::FaultStatus { status, .. } => return format!("an injected fault answered {}", status.as_u16()),
        Event::Refused { .. } => "the app took no connection",
        Event::ConnectTimedOut => "the app took no connection within `app.connect_timeout`",
        Event::NoConnection(rejection) => return format!("no connection could be made: {}", rejection.problem().label),
        Event::Connected => "the app took a connection",
        Event::Closed { is_stale: true, .. } => "a kept connection had been closed by the app",
        Event::Closed { .. } => "the app closed the connection before its response",
        Event::Unread { .. } => "the app closed the connection and had read nothing",
        Event::Overdue { .. } => "the response did not begin within the time for an attempt",
        Event::HedgeWon => "a peer that was asked as well responded first",
        Event::TimedOut => "the response did not begin in time",
        Event::Invalid => "the response was not valid HTTP",
        Event::Answered { status, .. } => return format!("the app answered {status}, which the route retries"),
        Event::SentToPeer { .. } => "it was sent to a peer",
        Event::PeerDeclined => "the peer declined it",
        Event::PeerBroke { .. } => "the peer broke off",
        Event::PeerTimedOut => "the peer did not answer in time",
        Event::PeerAnswered => "the peer answered",
        Event::ClientLeft => "the client disconnected",
        Event::Bought(_) => "a retry was paid for",
    };
    text.to_owned()
}

fn follows(next: Next) -> String {
    let text = match next {
        Next::Ask { pause } | Next::Probe { pause } if pause.is_zero() => "asked again at once",
        Next::Ask { pause } | Next::Probe { pause } => {
            return format!("asked again after {:.1} ms", milliseconds(pause));
        }
        Next::GoOn => "it waits on",
        Next::Replace => "asked again on a new connection",
        Next::Wait => "it waits until the app is back",
        Next::AskPeer => "a peer is asked",
        Next::ComeBack => "it is served here after all",
        Next::Relay => "the response was forwarded",
        Next::Reject(rejection) => return format!("rejected: {}", rejection.problem().label),
        Next::Fail(failure) => return format!("no further attempt: {}", failure.problem().label),
        Next::Leave => "it ends",
        Next::Nothing => "nothing follows",
    };
    text.to_owned()
}
