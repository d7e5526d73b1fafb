use super::*;
use proptest::prelude::*;
use std::fmt::Write as _;

const SECOND: u64 = 1_000_000_000;
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
    }
}

fn call(breaker: &mut Breaker, now: u64, outcome: Outcome) -> bool {
    match breaker.ask(now) {
        Ok(permit) => {
            breaker.record(permit, now, outcome, 0.0);
            true
        }
        Err(_) => false,
    }
}

fn opened() -> Breaker {
    let mut breaker = Breaker::new(settings());
    for _ in 0..5 {
        assert!(call(&mut breaker, 0, Outcome::Failure));
    }
    assert_eq!((breaker.state(), breaker.reason()), (State::Open, Some(Reason::Consecutive)));
    breaker
}

fn half_open() -> (Breaker, Permit) {
    let mut breaker = opened();
    let probe = breaker.ask(60 * SECOND).unwrap();
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
        assert!(call(&mut breaker, 0, if n % 5 == 4 { QUICK } else { Outcome::Failure }));
    }
    assert_eq!(breaker.state(), State::Closed);
    for n in 1..=5 {
        assert!(call(&mut breaker, 0, Outcome::Failure));
        assert_eq!(breaker.state() == State::Open, n == 5);
    }
    let refused = breaker.ask(SECOND).unwrap_err();
    assert_eq!(refused.retry_after, Duration::from_secs(59));
}

#[test]
fn a_rate_opens_it_only_with_enough_calls_in_the_window() {
    for window in [Span::Calls(20), Span::Time(Duration::from_secs(10))] {
        for (bad, reason) in [(Outcome::Failure, Reason::FailureRate), (SLOW, Reason::SlowRate)] {
            let mut breaker = Breaker::new(Settings { window, consecutive: 0, slow_rate: Some(0.5), ..settings() });
            // Ten of nineteen are more than half, and too few.
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
fn what_is_older_than_the_window_is_forgotten() {
    let mut breaker = Breaker::new(Settings { consecutive: 0, ..settings() });
    for _ in 0..19 {
        assert!(call(&mut breaker, SECOND, Outcome::Failure));
    }
    assert!(call(&mut breaker, 12 * SECOND, Outcome::Failure));
    assert_eq!((breaker.state(), breaker.seen(12 * SECOND)), (State::Closed, (1, 1, 0)));
    let mut breaker = Breaker::new(Settings { consecutive: 0, window: Span::Calls(30), ..settings() });
    for n in 0..300 {
        assert!(call(&mut breaker, SECOND, if n % 3 == 0 { Outcome::Failure } else { QUICK }));
    }
    assert_eq!((breaker.state(), breaker.seen(SECOND)), (State::Closed, (30, 10, 0)));
}

#[test]
fn no_more_probes_than_allowed_are_out_and_an_abandoned_one_gives_its_place_back() {
    let (mut breaker, first) = half_open();
    let now = 60 * SECOND;
    let second = breaker.ask(now).unwrap();
    assert!(breaker.ask(now).is_err());
    breaker.record(first, now, Outcome::Ignored, 0.0);
    let third = breaker.ask(now).unwrap();
    assert!(breaker.ask(now).is_err());
    breaker.record(second, now, QUICK, 0.0);
    breaker.record(third, now, QUICK, 0.0);
    assert_eq!(breaker.state(), State::HalfOpen);
    // Traffic may be thin: the third success counts an hour later.
    assert!(call(&mut breaker, now + 3600 * SECOND, QUICK));
    assert_eq!(breaker.state(), State::Ramp);
}

#[test]
fn each_trip_in_a_row_is_twice_as_long_and_the_answer_of_before_says_nothing() {
    let mut breaker = opened();
    let mut now = 60 * SECOND;
    let mut lengths = Vec::new();
    for _ in 0..6 {
        let (probe, other) = (breaker.ask(now).unwrap(), breaker.ask(now).unwrap());
        breaker.record(probe, now, Outcome::Failure, 1.0);
        breaker.record(other, now, QUICK, 0.0);
        let (left, length) = breaker.open_for(now).unwrap();
        assert_eq!(left, length);
        lengths.push(length.as_secs());
        now += length.as_nanos() as u64;
    }
    // 120, 240, 480 and 600, each with a fifth more for a dice of 1.
    assert_eq!(lengths, [144, 288, 576, 720, 720, 720]);
}

#[test]
fn whoever_stayed_well_for_long_begins_anew() {
    let again = |after: u64| {
        let mut breaker = on_the_ramp();
        let now = 60 * SECOND + after;
        while breaker.state() != State::Open {
            let _ = call(&mut breaker, now, Outcome::Failure);
        }
        breaker.open_for(now).unwrap().1.as_secs()
    };
    assert_eq!((again(59 * SECOND), again(61 * SECOND)), (120, 60));
}

#[test]
fn traffic_comes_back_linearly() {
    let mut breaker = on_the_ramp();
    let mut passed = [0_u32; 10];
    for ms in 0..10_000_u64 {
        let now = 60 * SECOND + ms * 1_000_000;
        passed[(ms / 1000) as usize] += u32::from(call(&mut breaker, now, QUICK));
    }
    // A tenth at first, then 15 %, 25 % and so on of a thousand a second.
    assert!((99..=102).contains(&passed[0]), "{passed:?}");
    for (second, passed) in passed.iter().enumerate().skip(1) {
        let due = 100 * second as u32 + 50;
        assert!(passed.abs_diff(due) <= 2, "{second}: {passed} of {due}");
    }
    assert!(call(&mut breaker, 70 * SECOND, QUICK));
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn an_operator_comes_first() {
    let mut breaker = Breaker::new(settings());
    let before = breaker.ask(0).unwrap();
    breaker.control_by(Control::ForcedOpen, 0);
    assert_eq!(breaker.ask(0).unwrap_err().retry_after, Duration::from_secs(60));
    breaker.control_by(Control::ForcedClosed, 0);
    breaker.record(before, 0, Outcome::Failure, 0.0);
    for _ in 0..100 {
        assert!(call(&mut breaker, 0, Outcome::Failure), "whatever happens");
    }
    assert_eq!(breaker.seen(0), (100, 100, 0));
    breaker.control_by(Control::Automatic, 0);
    assert_eq!((breaker.state(), breaker.seen(0)), (State::Closed, (0, 0, 0)));
}

#[test]
fn what_others_have_seen_ends_its_time() {
    let mut breaker = opened();
    assert!(breaker.ask(SECOND).is_err());
    breaker.try_now();
    assert!(breaker.ask(SECOND).is_ok());
    assert_eq!(breaker.state(), State::HalfOpen);
}

/// Every state and everything that can happen in it.
#[test]
fn the_transition_table() {
    type Start = (&'static str, fn() -> Breaker);
    type Event = (&'static str, fn(&mut Breaker, u64));
    let states: [Start; 6] = [
        ("closed", || Breaker::new(settings())),
        ("closed, 4 failures in a row", || {
            let mut breaker = Breaker::new(settings());
            (0..4).for_each(|_| assert!(call(&mut breaker, 60 * SECOND, Outcome::Failure)));
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
    let events: [Event; 10] = [
        ("a success", |b, now| _ = call(b, now, QUICK)),
        ("a failure", |b, now| _ = call(b, now, Outcome::Failure)),
        ("a slow answer", |b, now| _ = call(b, now, SLOW)),
        ("the caller leaves", |b, now| _ = call(b, now, Outcome::Ignored)),
        ("a success 11 s later", |b, now| _ = call(b, now + 11 * SECOND, QUICK)),
        ("it may be tried at once", |b, now| {
            b.try_now();
            call(b, now, Outcome::Ignored);
        }),
        ("what it opened for was nothing", |b, now| b.forgive(now)),
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
            // An open one has half a minute left.
            let now = if name == "open" { 30 * SECOND } else { 60 * SECOND };
            happens(&mut breaker, now);
            let passes = if breaker.ask(now).is_ok() { "passes" } else { "is refused" };
            writeln!(table, "{name} | {event} | {} | the next {passes}", breaker.state().name()).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

#[derive(Clone, Debug)]
enum Step {
    Ask,
    End(usize, Outcome),
    Wait(u64),
    TryNow,
    Forgive,
    Control(Control),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Failure),
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
        6 => Just(Step::Ask),
        6 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
        2 => (0..90 * SECOND).prop_map(Step::Wait),
        1 => Just(Step::TryNow),
        1 => Just(Step::Forgive),
        1 => control.prop_map(Step::Control),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever happened: never more probes than allowed, none leaked, and a healthy other side is reached again.
    #[test]
    fn no_sequence_gets_stuck_leaks_a_probe_or_lets_too_many_through(
        steps in prop::collection::vec(step(), 0..120), by_calls in any::<bool>(), dice in 0.0..1.0f64,
    ) {
        let window = if by_calls { Span::Calls(7) } else { settings().window };
        let mut breaker = Breaker::new(Settings { window, minimum: 4, ..settings() });
        let mut now = 0;
        // Permits that are out, and whether they were probes of the present half-open phase.
        let mut out: Vec<(Permit, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Ask => {
                    let would = breaker.refuses(now).is_none();
                    match breaker.ask(now) {
                        Ok(permit) => {
                            prop_assert!(would);
                            let epoch = permit.epoch;
                            out.push((permit, epoch));
                            if breaker.state() == State::HalfOpen {
                                let probes = out.iter().filter(|(_, of)| *of == epoch).count();
                                prop_assert!(probes <= 2, "{probes} probes at the same time");
                            }
                        }
                        Err(refused) => prop_assert!(refused.retry_after > Duration::ZERO),
                    }
                }
                Step::End(which, outcome) if !out.is_empty() => {
                    let (permit, _) = out.swap_remove(which % out.len());
                    breaker.record(permit, now, outcome, dice);
                }
                Step::End(..) => {}
                Step::Wait(span) => now += span,
                Step::TryNow => breaker.try_now(),
                Step::Forgive => breaker.forgive(now),
                Step::Control(control) => breaker.control_by(control, now),
            }
        }
        // Whoever is out has left; an operator gives back; the other side is well from here on.
        for (permit, _) in out {
            breaker.record(permit, now, Outcome::Ignored, dice);
        }
        breaker.control_by(Control::Automatic, now);
        if let Some((left, _)) = breaker.open_for(now) {
            prop_assert!(left <= settings().max_open_for.mul_f64(1.2));
            now += left.as_nanos() as u64;
        }
        let mut calls = 0;
        while breaker.state() != State::Closed {
            // Thin traffic: one call in two seconds.
            now += 2 * SECOND;
            let _ = call(&mut breaker, now, QUICK);
            calls += 1;
            prop_assert!(calls <= 12, "stuck in {:?}", breaker.state());
        }
    }

    /// Five hundred clients that ask all the time, and a dead other side: fewer than one attempt a second in a minute.
    #[test]
    fn a_dead_other_side_is_left_alone(open_s in 2..90u64, probes in 1..4u32) {
        let open_for = Duration::from_secs(open_s);
        let mut breaker = Breaker::new(Settings { open_for, probes, ..settings() });
        for _ in 0..5 {
            prop_assert!(call(&mut breaker, 0, Outcome::Failure));
        }
        let mut attempts = 0;
        let mut out: Vec<(u64, Permit)> = Vec::new();
        for now in (0..60 * SECOND).step_by(10_000_000) {
            // Each attempt takes a second to fail.
            while out.first().is_some_and(|(due, _)| *due <= now) {
                breaker.record(out.remove(0).1, now, Outcome::Failure, 0.5);
            }
            for _ in 0..500 {
                let Ok(permit) = breaker.ask(now) else { break };
                out.push((now + SECOND, permit));
                attempts += 1;
            }
        }
        prop_assert!(attempts < 60, "{attempts}");
    }
}
