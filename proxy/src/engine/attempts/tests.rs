use super::*;
use proptest::prelude::*;
use std::collections::HashSet;
use std::fmt::Write as _;

const MS: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
const TEAPOT: StatusCode = StatusCode::IM_A_TEAPOT;

const ADMITTED: Event = Event::Admitted { most: 2, is_idempotent: true };
const REFUSED: Event = Event::Refused { waits: true, peer: false };
const CLOSED: Event = Event::Closed { is_stale: false, may_repeat: true };
const STALE: Event = Event::Closed { is_stale: true, may_repeat: true };
const UNREAD: Event = Event::Unread { is_kept: true };
const FINE: Event = Event::Answered { status: 200, wants_retry: false, retry_after: None };
const RETRIED: Event = Event::Answered { status: 503, wants_retry: true, retry_after: Some(SECOND) };
const AFFORDED: Event = Event::Bought(Some(MS));
const DENIED: Event = Event::Bought(None);

/// A machine after these events, and the last step.
fn after(events: &[Event]) -> (Attempts, Option<Step>) {
    let mut attempts = Attempts::default();
    let last = events.iter().map(|event| attempts.on(*event)).last();
    (attempts, last)
}

/// The last step after these events, and the attempts made.
fn last(events: &[Event]) -> (Step, u32) {
    let (attempts, step) = after(events);
    (step.unwrap(), attempts.made())
}

#[test]
fn a_request_that_meets_no_failure_takes_two_calls() {
    assert_eq!(last(&[ADMITTED]), (Step::Go(None, Next::Ask { pause: Duration::ZERO }), 1));
    assert_eq!(last(&[ADMITTED, FINE]), (Step::Go(None, Next::Relay), 1));
}

#[test]
fn a_dead_kept_connection_costs_no_attempt() {
    assert_eq!(last(&[ADMITTED, STALE]), (Step::Go(None, Next::Replace), 1));
    // The next close is an attempt's, and there is one left.
    assert_eq!(last(&[ADMITTED, STALE, CLOSED]), (Step::Buy(Price::Pause), 1));
    assert_eq!(last(&[ADMITTED, STALE, CLOSED, AFFORDED]), (Step::Go(None, Next::Probe { pause: MS }), 2));
    // An attempt replaces a connection once.
    assert_eq!(last(&[ADMITTED, STALE, STALE]), (Step::Buy(Price::Pause), 1));
    let last_one = [ADMITTED, CLOSED, AFFORDED, Event::Connected, AFFORDED, STALE];
    assert_eq!(last(&last_one), (Step::Go(None, Next::Replace), 2));
    // A request that may not be repeated is sent again only if the app has proved not to have read it.
    let order = Event::Admitted { most: 2, is_idempotent: false };
    assert_eq!(last(&[order, STALE]), (Step::Go(None, Next::Fail(Failure::Closed)), 1));
    assert_eq!(last(&[order, UNREAD]), (Step::Go(None, Next::Replace), 1));
    assert_eq!(last(&[order, UNREAD, CLOSED]), (Step::Go(None, Next::Fail(Failure::Closed)), 1));
    let new = Event::Unread { is_kept: false };
    assert_eq!(last(&[order, UNREAD, new, AFFORDED]), (Step::Go(None, Next::Probe { pause: MS }), 2));
    assert_eq!(last(&[order, UNREAD, new, AFFORDED, REFUSED]), (Step::Go(Some(Report::Unknown), Next::Wait), 1));
}

#[test]
fn a_wait_for_the_app_costs_no_attempt() {
    assert_eq!(last(&[ADMITTED, REFUSED]), (Step::Go(Some(Report::Unknown), Next::Wait), 0));
    let events = [ADMITTED, REFUSED, ADMITTED, REFUSED, ADMITTED, CLOSED, AFFORDED];
    assert_eq!(last(&events), (Step::Go(None, Next::Probe { pause: MS }), 2));
    // If the app went down after it closed the connection, the second attempt is still to be made.
    assert_eq!(last(&[ADMITTED, CLOSED, AFFORDED, REFUSED, ADMITTED]).1, 2);
}

#[test]
fn an_injected_delay_beyond_the_deadline_is_ours() {
    assert_eq!(last(&[ADMITTED, Event::Expired]), (Step::Go(None, Next::Reject(Rejection::Expired)), 0));
}

#[test]
fn a_retry_that_the_budget_denies_is_no_attempt() {
    let denied = [ADMITTED, CLOSED, AFFORDED, Event::Connected, DENIED];
    assert_eq!(last(&denied), (Step::Go(Some(Report::Failed), Next::Fail(Failure::Closed)), 1));
    assert_eq!(last(&[ADMITTED, RETRIED, DENIED]), (Step::Go(None, Next::Relay), 1));
}

/// A name, and the events that lead there.
type Way = (&'static str, &'static [Event]);

const STAGES: [Way; 7] = [
    ("queued", &[]),
    ("asking", &[ADMITTED]),
    ("asking, replaced", &[ADMITTED, STALE]),
    ("asking, last attempt", &[ADMITTED, RETRIED, AFFORDED]),
    ("probing", &[ADMITTED, CLOSED, AFFORDED]),
    ("at a peer", &[ADMITTED, Event::Refused { waits: true, peer: true }]),
    ("ended", &[ADMITTED, FINE]),
];

const EVENTS: [(&str, Event); 34] = [
    ("admitted", ADMITTED),
    ("not admitted", Event::NotAdmitted { rejection: Rejection::Overloaded, peer: false }),
    ("not admitted, a peer takes it", Event::NotAdmitted { rejection: Rejection::Overloaded, peer: true }),
    ("hold over", Event::HoldOver),
    ("expired", Event::Expired),
    ("breaker open", Event::BreakerOpen { retry_after: SECOND, peer: false }),
    ("breaker open, a peer takes it", Event::BreakerOpen { retry_after: SECOND, peer: true }),
    ("fault status", Event::FaultStatus { status: TEAPOT, wants_retry: false }),
    ("fault status, retried", Event::FaultStatus { status: TEAPOT, wants_retry: true }),
    ("refused", Event::Refused { waits: false, peer: false }),
    ("refused, it may wait", REFUSED),
    ("refused, a peer takes it", Event::Refused { waits: true, peer: true }),
    ("connect timed out", Event::ConnectTimedOut),
    ("no connection", Event::NoConnection(Rejection::OutOfResources)),
    ("connected", Event::Connected),
    ("closed", CLOSED),
    ("closed, stale", STALE),
    ("closed, not repeatable", Event::Closed { is_stale: true, may_repeat: false }),
    ("closed, unread", UNREAD),
    ("closed, unread, new connection", Event::Unread { is_kept: false }),
    ("overdue", Event::Overdue { may_repeat: true, peer: false }),
    ("overdue, not repeatable", Event::Overdue { may_repeat: false, peer: false }),
    ("overdue, a peer takes it", Event::Overdue { may_repeat: true, peer: true }),
    ("hedge won", Event::HedgeWon),
    ("timed out", Event::TimedOut),
    ("invalid", Event::Invalid),
    ("answered", FINE),
    ("answered, retried", RETRIED),
    ("sent to a peer", Event::SentToPeer { is_idempotent: true }),
    ("peer declined", Event::PeerDeclined),
    ("peer broke", Event::PeerBroke { failure: Failure::Closed, may_repeat: true }),
    ("peer timed out", Event::PeerTimedOut),
    ("peer answered", Event::PeerAnswered),
    ("client left", Event::ClientLeft),
];

fn shown(report: Option<Report>) -> &'static str {
    match report {
        None => "–",
        Some(Report::Answered(_)) => "the status",
        Some(Report::Failed) => "failed",
        Some(Report::NotConnected) => "not connected",
        Some(Report::Unknown) => "not counted",
    }
}

fn named(next: Next) -> String {
    match next {
        Next::Ask { .. } => "ask".into(),
        Next::Probe { .. } => "probe".into(),
        Next::GoOn => "wait on".into(),
        Next::Replace => "replace the connection".into(),
        Next::Wait => "wait for the app".into(),
        Next::AskPeer => "ask the peer".into(),
        Next::ComeBack => "come back".into(),
        Next::Relay => "**relay**".into(),
        Next::Reject(rejection) => format!("**reject**: `{}`", rejection.problem().label),
        Next::Fail(failure) => format!("**fail**: `{}`", failure.problem().label),
        Next::Leave => "**leave**".into(),
        Next::Nothing => "nothing".into(),
    }
}

/// Writes a row, unless the stage "asking" has the same.
fn row(table: &mut String, stage: &str, event: &str, attempts: Attempts, before: u32, step: Step) {
    let Step::Go(report, next) = step else { panic!("{stage} {event}: a price is paid once") };
    let made = match attempts.made().cmp(&before) {
        std::cmp::Ordering::Less => "−1",
        std::cmp::Ordering::Equal => "",
        std::cmp::Ordering::Greater => "+1",
    };
    let rest = format!("{event} | {} | {} | {made} |", named(next), shown(report));
    if !stage.starts_with("asking, ") || !table.contains(&format!("| asking | {rest}\n")) {
        writeln!(table, "| {stage} | {rest}").unwrap();
    }
}

/// Every event at every stage, as Markdown. Left out: events that are out of order, and end the request with `internal`.
fn table() -> String {
    let mut table =
        String::from("| stage | event | next | report to the breaker | attempts |\n|---|---|---|---|---|\n");
    for (stage, way) in STAGES {
        if stage == "ended" {
            table.push_str("| ended | any | nothing | – | |\n");
            continue;
        }
        for (name, event) in EVENTS {
            let (mut attempts, _) = after(way);
            let before = attempts.made();
            match attempts.on(event) {
                Step::Buy(price) => {
                    let (paid, denied) = match price {
                        Price::Pause => ("time", "no time"),
                        Price::Budget => ("budget", "no budget"),
                        Price::PauseAndBudget(_) => ("time and budget", "no time or budget"),
                    };
                    for (result, bought) in [(paid, AFFORDED), (denied, DENIED)] {
                        let mut then = attempts;
                        let step = then.on(bought);
                        row(&mut table, stage, &format!("{name}; {result}"), then, before, step);
                    }
                }
                Step::Go(_, Next::Fail(Failure::Internal)) => {}
                step => row(&mut table, stage, name, attempts, before, step),
            }
        }
    }
    table
}

#[test]
fn the_transition_table() {
    insta::assert_snapshot!(table());
}

#[test]
fn the_document_has_the_table() {
    let document = include_str!("../LIFECYCLE.md");
    assert!(document.contains(&table()), "put this into proxy/src/engine/LIFECYCLE.md:\n{}", table());
}

#[test]
fn an_ended_request_stays_so() {
    for (name, event) in EVENTS {
        let (mut attempts, _) = after(&[ADMITTED, FINE]);
        assert_eq!(attempts.on(event), Step::Go(None, Next::Nothing), "{name}");
    }
}

/// A driver that does what the machine says, and keeps the accounts that the proxy's drivers keep by ownership.
#[derive(Debug, Default)]
struct Driver {
    attempts: Attempts,
    /// It has a permit.
    permit: bool,
    /// The circuit breaker has let an attempt through and waits for its report.
    probe: bool,
    /// The attempt that the machine asked for last has not met the circuit breaker yet.
    enters: bool,
    /// How often an upstream may have seen the request.
    sent: u32,
    outcomes: Vec<Next>,
    paid: u32,
}

impl Driver {
    fn happens(&mut self, event: Event, affordable: bool) {
        let ended = !self.outcomes.is_empty();
        if self.enters && !matches!(event, Event::BreakerOpen { .. }) {
            self.probe = true;
        }
        self.enters = false;
        match event {
            Event::Admitted { .. } if !ended => self.permit = true,
            Event::BreakerOpen { peer: true, .. }
            | Event::Refused { peer: true, .. }
            | Event::HedgeWon
            | Event::Overdue { peer: true, .. }
            | Event::NotAdmitted { peer: true, .. } => {
                self.sent += u32::from(matches!(event, Event::HedgeWon | Event::Overdue { .. }) && !ended);
                // As `failover::leave_for` does.
                (self.permit, self.probe) = (false, false);
            }
            Event::Closed { is_stale, .. } if !ended => self.sent += u32::from(!is_stale),
            Event::TimedOut | Event::Invalid | Event::Answered { .. } if !ended => self.sent += 1,
            Event::PeerBroke { .. } | Event::PeerTimedOut | Event::PeerAnswered if !ended => self.sent += 1,
            _ => {}
        }
        let mut step = self.attempts.on(event);
        if let Step::Buy(price) = step {
            self.paid += u32::from(affordable && price != Price::Pause);
            step = self.attempts.on(Event::Bought(affordable.then_some(MS)));
        }
        let Step::Go(report, next) = step else { panic!("a price is paid once") };
        if report.is_some() {
            assert!(self.probe, "a report without an attempt: {event:?}");
            self.probe = false;
        }
        match next {
            Next::Ask { .. } => {
                assert!(self.permit, "an attempt without a permit: {event:?}");
                assert!(!self.probe, "a second attempt before the first one was reported: {event:?}");
                self.enters = true;
            }
            Next::GoOn => assert!(self.probe && self.permit, "the attempt goes on: {event:?}"),
            Next::Replace | Next::Probe { .. } => assert!(self.probe, "the attempt is still to be reported: {event:?}"),
            Next::Wait => {
                self.permit = false;
                assert!(!self.probe, "a request that waits keeps its probe: {event:?}");
            }
            Next::AskPeer | Next::ComeBack => assert!(!self.probe, "a request at a peer keeps its probe: {event:?}"),
            Next::Relay | Next::Reject(_) | Next::Fail(_) | Next::Leave => {
                // The rest is reported with the outcome, and returned with the exchange.
                (self.permit, self.probe) = (false, false);
                self.outcomes.push(next);
            }
            Next::Nothing => {}
        }
    }
}

fn events(is_idempotent: bool) -> impl Strategy<Value = Event> {
    let (b, c) = (any::<bool>(), any::<bool>());
    prop_oneof![
        4 => (1..4_u32).prop_map(move |most| Event::Admitted { most, is_idempotent }),
        4 => (b, c).prop_map(|(is_stale, may_repeat)| Event::Closed { is_stale, may_repeat }),
        2 => b.prop_map(|is_kept| Event::Unread { is_kept }),
        3 => (b, c).prop_map(|(waits, peer)| Event::Refused { waits, peer }),
        3 => Just(Event::Connected),
        3 => (b, c).prop_map(|(wants_retry, asks)| Event::Answered {
            status: 503,
            wants_retry,
            retry_after: asks.then_some(SECOND),
        }),
        2 => Just(Event::ConnectTimedOut),
        1 => b.prop_map(|peer| Event::BreakerOpen { retry_after: SECOND, peer }),
        1 => b.prop_map(|peer| Event::NotAdmitted { rejection: Rejection::Overloaded, peer }),
        1 => b.prop_map(|wants_retry| Event::FaultStatus { status: TEAPOT, wants_retry }),
        2 => Just(Event::SentToPeer { is_idempotent }),
        2 => Just(Event::PeerDeclined),
        2 => b.prop_map(|may_repeat| Event::PeerBroke { failure: Failure::Closed, may_repeat }),
        2 => (b, c).prop_map(|(may_repeat, peer)| Event::Overdue { may_repeat, peer }),
        1 => prop::sample::select(vec![
            Event::HedgeWon,
            Event::HoldOver,
            Event::Expired,
            Event::NoConnection(Rejection::Loop),
            Event::TimedOut,
            Event::Invalid,
            Event::PeerTimedOut,
            Event::PeerAnswered,
            Event::ClientLeft,
        ]),
    ]
}

fn sequences(is_idempotent: bool) -> impl Strategy<Value = Vec<(Event, bool)>> {
    prop::collection::vec((events(is_idempotent), any::<bool>()), 0..40)
}

/// A driver that reports only what can happen to the machine.
fn can_happen(attempts: &Attempts, event: Event) -> bool {
    let stage = attempts.stage;
    if matches!(event, Event::Overdue { peer: true, .. } | Event::HedgeWon) && !attempts.may_leave() {
        return false;
    }
    let at_any_time = matches!(event, Event::ClientLeft);
    let here = match stage {
        Stage::Queued => matches!(
            event,
            Event::Admitted { .. }
                | Event::NotAdmitted { .. }
                | Event::HoldOver
                | Event::Expired
                | Event::SentToPeer { .. }
        ),
        Stage::Asking => matches!(
            event,
            Event::BreakerOpen { .. }
                | Event::NotAdmitted { peer: false, .. }
                | Event::HoldOver
                | Event::Expired
                | Event::FaultStatus { .. }
                | Event::Refused { .. }
                | Event::ConnectTimedOut
                | Event::NoConnection(_)
                | Event::Closed { .. }
                | Event::Overdue { .. }
                | Event::HedgeWon
                | Event::TimedOut
                | Event::Invalid
                | Event::Answered { .. }
        ),
        Stage::Probing => {
            matches!(event, Event::Refused { .. } | Event::ConnectTimedOut | Event::NoConnection(_) | Event::Connected)
        }
        Stage::AtPeer => matches!(
            event,
            Event::PeerDeclined | Event::PeerBroke { .. } | Event::PeerTimedOut | Event::PeerAnswered | Event::Expired
        ),
        Stage::Buying(_) | Stage::Ended => true,
    };
    at_any_time || here
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_sequence_ends_in_one_outcome_and_releases_all(sequence in sequences(true)) {
        let mut driver = Driver::default();
        for (event, affordable) in sequence {
            if can_happen(&driver.attempts, event) {
                driver.happens(event, affordable);
            }
        }
        driver.happens(Event::ClientLeft, false);
        prop_assert!(driver.attempts.has_ended());
        prop_assert_eq!(driver.outcomes.len(), 1, "{:?}", driver.outcomes);
        prop_assert!(!driver.permit && !driver.probe);
    }

    /// Also events out of order end a request, once.
    #[test]
    fn even_nonsense_ends_in_one_outcome(sequence in sequences(true)) {
        let mut attempts = Attempts::default();
        let mut outcomes = HashSet::new();
        let mut count = 0;
        let events = sequence.into_iter().flat_map(|(event, affordable)| [event, Event::Bought(affordable.then_some(MS))]);
        for event in events.chain([Event::ClientLeft]) {
            if let Step::Go(_, next @ (Next::Relay | Next::Reject(_) | Next::Fail(_) | Next::Leave)) = attempts.on(event) {
                outcomes.insert(named(next));
                count += 1;
            }
        }
        prop_assert!(attempts.has_ended());
        prop_assert_eq!(count, 1, "{:?}", outcomes);
    }

    #[test]
    fn a_request_that_is_not_idempotent_is_sent_once(sequence in sequences(false)) {
        let mut driver = Driver::default();
        for (event, affordable) in sequence {
            if can_happen(&driver.attempts, event) {
                let stale = matches!(event, Event::Closed { is_stale: true, .. });
                // An app may have read what it was sent on a connection that looks dead.
                driver.sent += u32::from(stale && !driver.attempts.has_ended());
                driver.happens(event, affordable);
            }
        }
        prop_assert!(driver.sent <= 1, "sent {} times", driver.sent);
    }

    /// The app gets at most the attempts that the route allows, and retries are paid for, however often it is down in
    /// between.
    #[test]
    fn no_more_attempts_are_sent_than_allowed(sequence in sequences(true), most in 1..4_u32) {
        let mut driver = Driver::default();
        for (event, affordable) in sequence {
            let event = match event {
                Event::Admitted { is_idempotent, .. } => Event::Admitted { most, is_idempotent },
                other => other,
            };
            let at_peer = matches!(
                event,
                Event::PeerBroke { .. } | Event::PeerTimedOut | Event::PeerAnswered | Event::HedgeWon
            );
            if !at_peer && can_happen(&driver.attempts, event) {
                driver.happens(event, affordable);
                prop_assert!(driver.attempts.made() <= most);
            }
        }
        prop_assert!(driver.sent <= most, "sent {} times", driver.sent);
    }
}
