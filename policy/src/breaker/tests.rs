use super::switch::PROBE_PATIENCE;
use super::*;
use proptest::prelude::*;
use std::fmt::Write as _;

const SECOND: u64 = 1_000_000_000;
const FAILED: Outcome = Outcome::Failure(Failure::Answered);
const AWAY: Outcome = Outcome::Failure(Failure::Away);
const SILENT: Outcome = Outcome::Failure(Failure::Silent);
const REPORTED: Outcome = Outcome::Failure(Failure::Reported);
const QUICK: Outcome = Outcome::Success(Duration::from_millis(5));
const SLOW: Outcome = Outcome::Success(Duration::from_secs(3));

fn settings() -> Settings {
    Settings {
        consecutive: 5,
        window: Span::Time(Duration::from_secs(10)),
        minimum: 20,
        failure_rate: Some(0.5),
        slow_after: Some(Duration::from_secs(2)),
        slow_rate: Some(0.8),
        open_for: Duration::from_secs(60),
        max_open_for: Duration::from_secs(600),
        jitter: 0.2,
        probes: 2,
        successes: 3,
        ramp: Duration::from_secs(10),
        min_clients: 2,
        is_shared: false,
    }
}

const fn client(client: u64) -> Caller {
    Caller { client, place: 0 }
}

/// A new client with each call.
fn somebody() -> Caller {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1 << 20);
    client(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn call_by(breaker: &mut Breaker, caller: Caller, now: u64, outcome: Outcome) -> bool {
    match breaker.ask(now, caller) {
        Ok(permit) => {
            breaker.record(permit, now, outcome, 0.0);
            true
        }
        Err(_) => false,
    }
}

/// A call by a new client.
fn call(breaker: &mut Breaker, now: u64, outcome: Outcome) -> bool {
    call_by(breaker, somebody(), now, outcome)
}

fn opened() -> Breaker {
    let mut breaker = Breaker::new(settings());
    for _ in 0..5 {
        assert!(call(&mut breaker, 0, FAILED));
    }
    assert_eq!((breaker.state(), breaker.reason()), (State::Open, Some(Reason::Consecutive)));
    breaker
}

fn half_open() -> (Breaker, Permit) {
    let mut breaker = opened();
    let probe = breaker.ask(60 * SECOND, somebody()).unwrap();
    assert_eq!(breaker.state(), State::HalfOpen);
    (breaker, probe)
}

fn on_the_ramp() -> Breaker {
    let mut breaker = opened();
    for _ in 0..3 {
        assert!(call(&mut breaker, 60 * SECOND, QUICK));
    }
    assert_eq!(breaker.state(), State::Ramp);
    breaker
}

#[test]
fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
    let mut breaker = Breaker::new(Settings { failure_rate: None, slow_rate: None, ..settings() });
    for n in 0..100 {
        assert!(call(&mut breaker, 0, if n % 5 == 4 { QUICK } else { FAILED }));
    }
    assert_eq!(breaker.state(), State::Closed);
    for n in 1..=5 {
        assert!(call(&mut breaker, 0, FAILED));
        assert_eq!(breaker.state() == State::Open, n == 5);
    }
    let refused = breaker.ask(SECOND, somebody()).unwrap_err();
    assert_eq!(refused.retry_after, Duration::from_secs(59));
}

#[test]
fn a_rate_opens_it_only_with_enough_calls_in_the_window() {
    for window in [Span::Calls(20), Span::Time(Duration::from_secs(10))] {
        for (bad, reason) in [(FAILED, Reason::FailureRate), (SLOW, Reason::SlowRate)] {
            let mut breaker = Breaker::new(Settings { window, consecutive: 0, slow_rate: Some(0.5), ..settings() });
            // 10 of 19 calls are more than half, but fewer than the minimum of 20.
            for n in 0..19 {
                assert!(call(&mut breaker, SECOND, if n % 2 == 0 { bad } else { QUICK }));
            }
            assert_eq!(breaker.state(), State::Closed, "{window:?}");
            assert!(call(&mut breaker, SECOND, bad));
            assert_eq!((breaker.state(), breaker.reason()), (State::Open, Some(reason)), "{window:?}");
        }
    }
}

#[test]
fn calls_older_than_the_window_are_not_counted() {
    let mut breaker = Breaker::new(Settings { consecutive: 0, ..settings() });
    for _ in 0..19 {
        assert!(call(&mut breaker, SECOND, FAILED));
    }
    assert!(call(&mut breaker, 12 * SECOND, FAILED));
    assert_eq!((breaker.state(), breaker.seen(12 * SECOND)), (State::Closed, (1, 1, 0)));
    let mut breaker = Breaker::new(Settings { consecutive: 0, window: Span::Calls(30), ..settings() });
    for n in 0..300 {
        assert!(call(&mut breaker, SECOND, if n % 3 == 0 { FAILED } else { QUICK }));
    }
    assert_eq!((breaker.state(), breaker.seen(SECOND)), (State::Closed, (30, 10, 0)));
}

#[test]
fn probes_are_bounded_and_an_abandoned_one_is_returned() {
    let (mut breaker, first) = half_open();
    let now = 60 * SECOND;
    let second = breaker.ask(now, somebody()).unwrap();
    assert!(breaker.ask(now, somebody()).is_err());
    breaker.record(first, now, Outcome::Ignored, 0.0);
    let third = breaker.ask(now, somebody()).unwrap();
    assert!(breaker.ask(now, somebody()).is_err());
    breaker.record(second, now, QUICK, 0.0);
    breaker.record(third, now, QUICK, 0.0);
    assert_eq!(breaker.state(), State::HalfOpen);
    // Low traffic: the third success counts even an hour later.
    assert!(call(&mut breaker, now + 3600 * SECOND, QUICK));
    assert_eq!(breaker.state(), State::Ramp);
}

#[test]
fn each_trip_in_a_row_is_twice_as_long_and_late_responses_are_ignored() {
    let mut breaker = opened();
    let mut now = 60 * SECOND;
    let mut lengths = Vec::new();
    for _ in 0..6 {
        let (probe, other) = (breaker.ask(now, somebody()).unwrap(), breaker.ask(now, somebody()).unwrap());
        breaker.record(probe, now, AWAY, 1.0);
        breaker.record(other, now, QUICK, 0.0);
        let (left, length) = breaker.open_for(now).unwrap();
        assert_eq!(left, length);
        lengths.push(length.as_secs());
        now += length.as_nanos() as u64;
    }
    // 120, 240, 480 and 600 s, each plus a fifth for a dice of 1.
    assert_eq!(lengths, [144, 288, 576, 720, 720, 720]);
}

#[test]
fn the_open_time_resets_after_a_long_time_without_trips() {
    let again = |after: u64| {
        let mut breaker = on_the_ramp();
        let now = 60 * SECOND + after;
        while breaker.state() != State::Open {
            let _ = call(&mut breaker, now, FAILED);
        }
        breaker.open_for(now).unwrap().1.as_secs()
    };
    assert_eq!((again(59 * SECOND), again(61 * SECOND)), (120, 60));
}

#[test]
fn traffic_ramps_up_linearly() {
    let mut breaker = on_the_ramp();
    let mut passed = [0_u32; 10];
    for ms in 0..10_000_u64 {
        let now = 60 * SECOND + ms * 1_000_000;
        passed[(ms / 1000) as usize] += u32::from(call(&mut breaker, now, QUICK));
    }
    // At 1,000 calls per second: a tenth in the first second, then 15 %, 25 % and so on.
    assert!((99..=102).contains(&passed[0]), "{passed:?}");
    for (second, passed) in passed.iter().enumerate().skip(1) {
        let due = 100 * second as u32 + 50;
        assert!(passed.abs_diff(due) <= 2, "{second}: {passed} of {due}");
    }
    assert!(call(&mut breaker, 70 * SECOND, QUICK));
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn an_operators_setting_takes_precedence() {
    let mut breaker = Breaker::new(settings());
    let before = breaker.ask(0, somebody()).unwrap();
    breaker.control_by(Control::ForcedOpen, 0);
    assert_eq!(breaker.ask(0, somebody()).unwrap_err().retry_after, Duration::from_secs(60));
    breaker.control_by(Control::ForcedClosed, 0);
    breaker.record(before, 0, FAILED, 0.0);
    for _ in 0..100 {
        assert!(call(&mut breaker, 0, FAILED), "whatever happens");
    }
    assert_eq!(breaker.seen(0), (100, 100, 0));
    breaker.control_by(Control::Automatic, 0);
    assert_eq!((breaker.state(), breaker.seen(0)), (State::Closed, (0, 0, 0)));
}

#[test]
fn try_now_ends_the_open_time() {
    let mut breaker = opened();
    assert!(breaker.ask(SECOND, somebody()).is_err());
    breaker.try_now();
    assert!(breaker.ask(SECOND, somebody()).is_ok());
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[test]
fn failures_of_several_clients_open_it_and_those_of_one_client_do_not() {
    for (window, consecutive) in
        [(Span::Calls(50), 0), (Span::Time(Duration::from_secs(10)), 0), (settings().window, 5)]
    {
        for bad in [FAILED, SILENT, SLOW] {
            let limits = Settings { window, consecutive, slow_rate: Some(0.5), ..settings() };
            let mut breaker = Breaker::new(limits);
            for _ in 0..1000 {
                let _ = call_by(&mut breaker, client(1), SECOND, bad);
            }
            // Another client sees one failure.
            assert!(call_by(&mut breaker, client(2), SECOND, bad));
            assert_eq!(breaker.state(), State::Closed, "{window:?} {bad:?}");
            let mut breaker = Breaker::new(limits);
            let mut calls = 0;
            while breaker.state() == State::Closed && calls < 100 {
                let _ = call_by(&mut breaker, client(calls % 2), SECOND, bad);
                calls += 1;
            }
            let enough = if consecutive > 0 && bad != SLOW { 5 } else { 20 };
            assert_eq!((breaker.state(), calls), (State::Open, enough), "{window:?} {bad:?}");
        }
    }
}

#[test]
fn a_client_whose_requests_all_fail_is_rejected_and_probed_alone() {
    for bad in [SILENT, FAILED] {
        let mut breaker = Breaker::new(settings());
        for _ in 0..5 {
            assert!(call_by(&mut breaker, client(1), 0, bad));
        }
        assert_eq!(breaker.refuses(0, client(1)).unwrap().retry_after, Duration::from_secs(60));
        assert!(call_by(&mut breaker, client(2), 0, QUICK) && !breaker.is_calm());
        assert_eq!((breaker.state(), breaker.clients_refused()), (State::Closed, 1));
        let now = 60 * SECOND;
        let (one, two) = (breaker.ask(now, client(1)).unwrap(), breaker.ask(now, client(1)).unwrap());
        assert!(breaker.ask(now, client(1)).is_err(), "two probes at a time");
        breaker.record(one, now, bad, 0.0);
        breaker.record(two, now, QUICK, 0.0);
        assert_eq!(breaker.refuses(now, client(1)).unwrap().retry_after, Duration::from_secs(120));
        for _ in 0..3 {
            assert!(call_by(&mut breaker, client(1), now + 120 * SECOND, QUICK));
        }
        assert!(breaker.is_calm());
    }
}

#[test]
fn a_client_with_successes_between_failures_is_not_rejected() {
    let mut breaker = Breaker::new(settings());
    for n in 0..100 {
        assert!(call_by(&mut breaker, client(1), 0, if n % 5 == 4 { QUICK } else { FAILED }));
    }
}

#[test]
fn a_shared_breaker_rejects_only_at_the_place_that_fails() {
    for bad in [FAILED, SILENT, REPORTED, SLOW] {
        let limits = Settings { is_shared: true, slow_rate: Some(0.5), ..settings() };
        let mut breaker = Breaker::new(limits);
        for n in 0..200 {
            let _ = call_by(&mut breaker, Caller { client: n % 20, place: 1 }, 0, bad);
            assert!(call_by(&mut breaker, Caller { client: n % 20, place: 2 }, 0, QUICK), "{bad:?}");
        }
        assert_eq!(breaker.state(), State::Open, "{bad:?}");
        assert!(breaker.refuses(0, Caller { client: 77, place: 1 }).is_some());
        assert!(breaker.refuses(0, Caller { client: 77, place: 3 }).is_none());
    }
    // No response at several places opens it for all; responses of any kind do not.
    for (bad, is_refused) in [(SILENT, true), (AWAY, true), (FAILED, false)] {
        let mut breaker = Breaker::new(Settings { is_shared: true, ..settings() });
        for n in 0..5 {
            assert!(call_by(&mut breaker, Caller { client: n, place: n }, 0, bad));
        }
        assert_eq!(breaker.refuses(0, Caller { client: 77, place: 77 }).is_some(), is_refused, "{bad:?}");
    }
}

#[test]
fn more_places_than_are_tracked_use_no_more_memory() {
    let mut breaker = Breaker::new(Settings { is_shared: true, ..settings() });
    for n in 0..10_000 {
        let _ = call_by(&mut breaker, Caller { client: n % 7, place: n }, n, FAILED);
    }
    assert!(breaker.places.all().count() <= 32);
}

#[test]
fn more_clients_than_are_tracked_count_as_several() {
    for consecutive in [0, 200] {
        let mut breaker = Breaker::new(Settings { consecutive, minimum: 200, ..settings() });
        for n in 0..200 {
            assert!(call_by(&mut breaker, client(n), SECOND, FAILED));
        }
        assert_eq!(breaker.state(), State::Open);
    }
}

/// Every event in every state.
#[test]
fn the_transition_table() {
    type Start = (&'static str, fn() -> Breaker);
    type Event = (&'static str, fn(&mut Breaker, u64));
    let states: [Start; 6] = [
        ("closed", || Breaker::new(settings())),
        ("closed, 4 failures in a row", || {
            let mut breaker = Breaker::new(settings());
            (0..4).for_each(|_| assert!(call(&mut breaker, 60 * SECOND, FAILED)));
            breaker
        }),
        ("open", opened),
        ("half_open", || half_open().0),
        ("half_open, 2 successes", || {
            let mut breaker = opened();
            (0..2).for_each(|_| assert!(call(&mut breaker, 60 * SECOND, QUICK)));
            breaker
        }),
        ("ramp", on_the_ramp),
    ];
    let events: [Event; 11] = [
        ("a success", |b, now| _ = call(b, now, QUICK)),
        ("a failure", |b, now| _ = call(b, now, FAILED)),
        ("no connection", |b, now| _ = call(b, now, AWAY)),
        ("a slow answer", |b, now| _ = call(b, now, SLOW)),
        ("the caller leaves", |b, now| _ = call(b, now, Outcome::Ignored)),
        ("a success 11 s later", |b, now| _ = call(b, now + 11 * SECOND, QUICK)),
        ("it may be tried at once", |b, now| {
            b.try_now();
            call(b, now, Outcome::Ignored);
        }),
        ("what it opened for was nothing", |b, now| b.forgive(now, Duration::MAX)),
        ("forced open", |b, now| b.control_by(Control::ForcedOpen, now)),
        ("forced closed", |b, now| b.control_by(Control::ForcedClosed, now)),
        ("forced, and given back", |b, now| {
            b.control_by(Control::ForcedOpen, now);
            b.control_by(Control::Automatic, now);
        }),
    ];
    let mut table = String::new();
    for (name, make) in states {
        for (event, happens) in events {
            let mut breaker = make();
            // An open breaker has 30 s left.
            let now = if name == "open" { 30 * SECOND } else { 60 * SECOND };
            happens(&mut breaker, now);
            let passes = if breaker.ask(now, somebody()).is_ok() { "passes" } else { "is refused" };
            writeln!(table, "{name} | {event} | {} | the next {passes}", breaker.state().name()).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

#[derive(Clone, Debug)]
enum Step {
    Ask(Caller),
    End(usize, Outcome),
    Wait(u64),
    TryNow,
    Forgive,
    Control(Control),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        2 => Just(FAILED),
        2 => Just(SILENT),
        1 => Just(REPORTED),
        1 => Just(AWAY),
        2 => Just(QUICK),
        1 => Just(SLOW),
        1 => Just(Outcome::Ignored),
    ];
    let control = prop_oneof![
        3 => Just(Control::Automatic),
        1 => Just(Control::ForcedOpen),
        1 => Just(Control::ForcedClosed),
    ];
    prop_oneof![
        6 => (0..4_u64, 0..3_u64).prop_map(|(client, place)| Step::Ask(Caller { client, place })),
        6 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
        2 => (0..90 * SECOND).prop_map(Step::Wait),
        1 => Just(Step::TryNow),
        1 => Just(Step::Forgive),
        1 => control.prop_map(Step::Control),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// After any sequence of events: never more probes than allowed, no probe leaked, a healthy upstream is reached again.
    #[test]
    fn no_sequence_gets_stuck_leaks_a_probe_or_lets_too_many_through(
        steps in prop::collection::vec(step(), 0..120), by_calls in any::<bool>(), is_shared in any::<bool>(),
        dice in 0.0..1.0f64,
    ) {
        let window = if by_calls { Span::Calls(7) } else { settings().window };
        let mut breaker = Breaker::new(Settings { window, minimum: 4, is_shared, ..settings() });
        let mut now = 0;
        let mut out: Vec<Permit> = Vec::new();
        for step in steps {
            match step {
                Step::Ask(caller) => {
                    let would = breaker.refuses(now, caller).is_none();
                    match breaker.ask(now, caller) {
                        Ok(permit) => {
                            prop_assert!(would);
                            let epoch = permit.epoch;
                            out.push(permit);
                            if breaker.state() == State::HalfOpen && !is_shared {
                                let is_in_time = |at: u64| now - at < PROBE_PATIENCE.as_nanos() as u64;
                                let probes = out.iter().filter(|p| p.epoch == epoch && is_in_time(p.at)).count();
                                prop_assert!(probes <= 2, "{probes} probes at the same time");
                            }
                        }
                        Err(refused) => prop_assert!(refused.retry_after > Duration::ZERO),
                    }
                }
                Step::End(which, outcome) if !out.is_empty() => {
                    let permit = out.swap_remove(which % out.len());
                    breaker.record(permit, now, outcome, dice);
                }
                Step::End(..) => {}
                Step::Wait(span) => now += span,
                Step::TryNow => breaker.try_now(),
                Step::Forgive => breaker.forgive(now, Duration::MAX),
                Step::Control(control) => breaker.control_by(control, now),
            }
        }
        // All clients disconnect, the control is automatic again, and the upstream is healthy from here on.
        for permit in out {
            breaker.record(permit, now, Outcome::Ignored, dice);
        }
        breaker.control_by(Control::Automatic, now);
        if let Some((left, _)) = breaker.open_for(now) {
            prop_assert!(left <= settings().max_open_for.mul_f64(1.2));
        }
        now += settings().max_open_for.mul_f64(1.2).as_nanos() as u64;
        let mut calls = 0;
        while breaker.state() != State::Closed {
            // Low traffic: one call every two seconds.
            now += 2 * SECOND;
            for place in 0..3 {
                let _ = call_by(&mut breaker, Caller { place, ..somebody() }, now, QUICK);
            }
            calls += 1;
            prop_assert!(calls <= 12, "stuck in {:?}", breaker.state());
        }
        // Clients that were refused alone are served again, too.
        now += settings().max_open_for.mul_f64(1.2).as_nanos() as u64;
        for caller in (0..4_u64).flat_map(|client| (0..3_u64).map(move |place| Caller { client, place })) {
            for _ in 0..4 {
                prop_assert!(call_by(&mut breaker, caller, now, QUICK), "{caller:?}");
            }
        }
        prop_assert!(breaker.is_calm());
    }

    /// An attacker with one client, any number of places and any outcome except a refused connection or a reported failure
    /// never opens the breaker for the others.
    #[test]
    fn one_client_never_opens_it_for_the_others(
        steps in prop::collection::vec((0..3_u64, 0..4_usize, 0..2 * SECOND, 0..8_u8), 1..400), is_shared in any::<bool>(),
    ) {
        let limits = Settings { minimum: 4, failure_rate: Some(0.2), slow_rate: Some(0.2), is_shared, ..settings() };
        let mut breaker = Breaker::new(limits);
        let (mut now, mut refused) = (0, 0);
        for (place, what, pause, others) in steps {
            now += pause;
            let outcome = [FAILED, SILENT, SLOW, Outcome::Ignored][what];
            let _ = call_by(&mut breaker, Caller { client: 1, place }, now, outcome);
            if others == 0 {
                refused += u32::from(!call_by(&mut breaker, Caller { client: 2, place }, now, QUICK));
            }
            prop_assert_eq!(breaker.state(), State::Closed);
        }
        prop_assert_eq!(refused, 0);
    }

    /// Reported failures of one client open it for a second at most, and not at all while other clients are served.
    #[test]
    fn failures_reported_to_one_client_reject_others_for_a_second_at_most(pauses in prop::collection::vec(1..SECOND, 10..200)) {
        let mut breaker = Breaker::new(settings());
        let (mut now, mut refused_for, mut last) = (0, 0, None);
        for pause in pauses {
            now += pause;
            let _ = call_by(&mut breaker, client(1), now, REPORTED);
            match breaker.refuses(now, client(2)) {
                Some(refused) => {
                    prop_assert!(refused.retry_after <= BRIEFLY);
                    refused_for += last.map_or(0, |last| now - last);
                    last = Some(now);
                }
                None => last = None,
            }
        }
        // Then its own breaker refuses the client, for one minute at first.
        let openings = 1 + now / (60 * SECOND);
        prop_assert!(refused_for <= openings * SECOND, "{refused_for} ns of {now}");
        prop_assert!(call_by(&mut breaker, client(2), now + SECOND, QUICK));
        for _ in 0..20 {
            let _ = call_by(&mut breaker, client(3), now + 2 * SECOND, REPORTED);
        }
        prop_assert!(breaker.refuses(now + 2 * SECOND, client(2)).is_none());
        prop_assert!(breaker.refuses(now + 2 * SECOND, client(3)).is_some());
    }

    /// It opened because the app was unreachable, which is over. One client fails or stalls every probe that it gets; another
    /// client with two requests per second is still served within seconds.
    #[test]
    fn failed_probes_of_one_client_do_not_keep_it_open_for_others(
        what in prop::collection::vec(0..4_usize, 100), probes in 1..4_u32, connections in 1..6_usize,
    ) {
        let mut breaker = Breaker::new(Settings { probes, ..settings() });
        for _ in 0..5 {
            prop_assert!(call(&mut breaker, 0, AWAY));
        }
        let mut now = 60 * SECOND;
        let mut kept = Vec::new();
        let mut served = 0;
        for what in what {
            for _ in 0..connections {
                match breaker.ask(now, client(1)) {
                    Ok(permit) if what == 0 => kept.push(permit),
                    Ok(permit) => breaker.record(permit, now, [FAILED, SILENT, REPORTED][what - 1], 0.0),
                    Err(_) => {}
                }
            }
            now += SECOND / 2;
            served += u32::from(call_by(&mut breaker, client(2), now, QUICK));
            if served >= settings().successes {
                break;
            }
        }
        prop_assert_eq!(breaker.state(), State::Ramp);
        prop_assert!(now <= 68 * SECOND, "{now}");
    }

    /// A dead upstream and a constant 20 requests per 10 ms, from one client or many: fewer than 70 attempts in a minute.
    #[test]
    fn a_dead_upstream_gets_few_attempts(open_s in 2..90u64, probes in 1..4u32, clients in prop::sample::select(vec![1_u64, 2, 500])) {
        let open_for = Duration::from_secs(open_s);
        let mut breaker = Breaker::new(Settings { open_for, probes, ..settings() });
        let mut attempts = 0;
        let mut out: Vec<(u64, Permit)> = Vec::new();
        for now in (0..60 * SECOND).step_by(10_000_000) {
            // Each attempt fails after 100 ms.
            while out.first().is_some_and(|(due, _)| *due <= now) {
                breaker.record(out.remove(0).1, now, SILENT, 0.5);
            }
            for connection in 0..20 {
                if out.len() < 10
                    && let Ok(permit) = breaker.ask(now, client((now / 10_000_000 * 20 + connection) % clients))
                {
                    out.push((now + SECOND / 10, permit));
                    attempts += 1;
                }
            }
        }
        prop_assert!(attempts < 70, "{attempts}");
    }
}
