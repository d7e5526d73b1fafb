use super::*;
use crate::metrics::Metrics;

fn breaker(mode: Mode, open_for: Duration) -> Arc<Breaker> {
    let settings = BreakerSettings { failures: 3, open_for, mode };
    Arc::new(Breaker::new(Dependency::Postgres, settings, Metrics::new().unwrap().breaker))
}

fn opened(mode: Mode, open_for: Duration) -> Arc<Breaker> {
    let breaker = breaker(mode, open_for);
    for _ in 0..3 {
        breaker.ask().unwrap().failed("connection refused");
    }
    breaker
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn an_open_breaker_rejects_at_once_with_reason_and_retry_after() {
    let breaker = opened(Mode::Enforce, LONG);
    let error = breaker.ask().unwrap_err();
    let ApiError::BreakerOpen { dependency: Dependency::Postgres, reason, retry_after } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(reason, "connection refused");
    assert!((Duration::from_secs(50)..=LONG).contains(retry_after), "{retry_after:?}");
    let since = Instant::now();
    for _ in 0..1000 {
        assert!(breaker.ask().is_err());
    }
    assert!(since.elapsed() < Duration::from_millis(100), "a refusal takes {:?}", since.elapsed() / 1000);
}

#[test]
fn a_success_resets_the_count_and_a_disconnected_client_is_not_counted() {
    let breaker = breaker(Mode::Enforce, LONG);
    for _ in 0..10 {
        breaker.ask().unwrap().failed("x");
        drop(breaker.ask().unwrap());
        breaker.ask().unwrap().failed("x");
        breaker.ask().unwrap().succeeded();
    }
    assert!(!breaker.is_in_doubt());
    breaker.ask().unwrap().failed("x");
    drop(breaker.ask().unwrap());
    assert_eq!(breaker.report().failures, 1);
}

#[test]
fn a_successful_check_allows_probes_before_the_open_time_ends() {
    let breaker = opened(Mode::Enforce, LONG);
    assert!(breaker.ask().is_err());
    breaker.answers();
    breaker.ask().unwrap().succeeded();
    assert_eq!(breaker.report().state, "HALF_OPEN");
    breaker.ask().unwrap().succeeded();
    assert_eq!(breaker.report(), Report { state: "CLOSED", failures: 0, mode: "enforce", trouble: None });
}

#[test]
fn probes_are_limited_and_one_without_a_result_frees_its_permit() {
    let breaker = opened(Mode::Enforce, LONG);
    breaker.answers();
    let probes: Vec<Call> = (0..PROBES).map(|_| breaker.ask().unwrap()).collect();
    assert!(breaker.ask().is_err());
    drop(probes);
    breaker.ask().unwrap().failed("still away");
    let trouble = breaker.report().trouble.unwrap();
    assert_eq!((trouble.reason, trouble.last_failure.as_str()), ("failed_probe", "still away"));
    assert!(trouble.retry_after_ms > 50_000, "{trouble:?}");
}

#[test]
fn monitor_mode_counts_and_rejects_no_call() {
    let breaker = opened(Mode::Monitor, LONG);
    for _ in 0..5 {
        breaker.ask().unwrap().failed("x");
    }
    assert_eq!((breaker.report().state, breaker.report().mode), ("OPEN", "monitor"));
    let counted = |mode| breaker.metrics.refusals.with_label_values(&["postgresql", mode]).get();
    assert_eq!((counted("monitor"), counted("enforce")), (5, 0));
    // It also closes as `enforce` would.
    breaker.answers();
    for _ in 0..SUCCESSES {
        breaker.ask().unwrap().succeeded();
    }
    assert_eq!(breaker.report().state, "CLOSED");
}

#[test]
fn off_mode_counts_no_call() {
    let breaker = opened(Mode::Off, LONG);
    assert_eq!(breaker.report(), Report { state: "CLOSED", failures: 0, mode: "off", trouble: None });
}

#[test]
fn its_state_and_its_changes_are_in_the_metrics() {
    let breaker = opened(Mode::Enforce, LONG);
    breaker.answers();
    breaker.ask().unwrap().succeeded();
    breaker.publish();
    let metrics = &breaker.metrics;
    let state = |state| metrics.state.with_label_values(&["postgresql", state]).get();
    assert_eq!(["closed", "open", "half_open", "ramp"].map(state), [0, 0, 1, 0]);
    let to = |state| metrics.transitions.with_label_values(&["postgresql", state]).get();
    assert_eq!(["closed", "open", "half_open", "ramp"].map(to), [0, 1, 1, 0]);
}

#[test]
fn the_report_reads_as_the_design_says() {
    let mut report = serde_json::to_value(opened(Mode::Enforce, LONG).report()).unwrap();
    for passing in ["openForMs", "retryAfterMs"] {
        assert!(report[passing].take().is_u64(), "{report}");
    }
    insta::assert_snapshot!(report, @r#"{"failures":3,"lastFailure":"connection refused","mode":"enforce","openForMs":null,"reason":"consecutive_failures","retryAfterMs":null,"state":"OPEN"}"#);
}

#[tokio::test]
async fn no_connects_while_open_and_one_at_a_time_while_half_open() {
    let breaker = opened(Mode::Enforce, LONG);
    let soon = |work| tokio::time::timeout(Duration::from_millis(50), work);
    assert!(soon(breaker.turn_to_connect()).await.is_err());
    let waiting = tokio::spawn({
        let breaker = Arc::clone(&breaker);
        async move { breaker.turn_to_connect().await.is_some() }
    });
    breaker.answers();
    let probe = breaker.ask().unwrap();
    assert!(waiting.await.unwrap(), "the change of state wakes those who wait");
    let turn = breaker.turn_to_connect().await;
    assert!(turn.is_some());
    assert!(soon(breaker.turn_to_connect()).await.is_err());
    drop(turn);
    probe.succeeded();
    breaker.ask().unwrap().succeeded();
    assert!(breaker.turn_to_connect().await.is_none());
}
