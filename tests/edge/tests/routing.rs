//! Which Machine gets a request, which one instead, and which requests wait.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_edge::settings::{ConcurrencyKind, RetryBegun};
use outrigger_edge::{Code, Settings, State};

use crate::fake::{Fake, Play, edge, get, get_with, in_background, post, shows, until};

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.concurrency.soft_limit = 2;
    settings
}

/// Long enough for an unwanted event to happen.
const MOMENT: Duration = Duration::from_millis(60);

#[tokio::test]
async fn the_least_loaded_machine_gets_the_next_request() {
    let (a, b) = (Fake::running("a").await, Fake::running("b").await);
    let (gate_a, gate_b) = (a.gate("/slow"), b.gate("/slow"));
    let edge = edge(settings(), &[&a, &b]).await;
    let slow: Vec<_> = (0..4).map(|_| in_background(&edge, "/slow")).collect();
    shows(&edge, "two requests at each", |now| now.machines.iter().all(|m| m.load == 2)).await;
    gate_b.add_permits(1);
    shows(&edge, "b to have one", |now| now.machine("b").unwrap().load == 1).await;
    for _ in 0..5 {
        assert_eq!(get(&edge, "/").await.machine(), "b");
        shows(&edge, "b to have one again", |now| now.machine("b").unwrap().load == 1).await;
    }
    gate_a.add_permits(2);
    gate_b.add_permits(1);
    for request in slow {
        assert_eq!(request.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn ties_are_broken_at_random_and_the_same_with_the_same_seed() {
    let (a, b) = (Fake::running("a").await, Fake::running("b").await);
    let choices = async |seed| {
        let edge = edge(Settings { seed, ..settings() }, &[&a, &b]).await;
        let mut text = String::new();
        for _ in 0..16 {
            text.push_str(get(&edge, "/").await.machine());
            shows(&edge, "nobody to have a request", |now| now.machines.iter().all(|m| m.load == 0)).await;
        }
        text
    };
    let first = choices(7).await;
    assert_eq!(first, choices(7).await);
    assert_ne!(first, choices(8).await);
    assert_eq!(first.chars().collect::<BTreeSet<_>>(), BTreeSet::from(['a', 'b']));
}

#[tokio::test]
async fn another_region_helps_only_at_the_hard_limit() {
    let here = Fake::running("here").await;
    let far = Fake::running("far").await.in_region("syd");
    let gate = here.gate("/slow");
    let mut settings = settings();
    settings.concurrency.hard_limit = Some(3);
    let edge = edge(settings, &[&here, &far]).await;
    let slow: Vec<_> = (0..3).map(|_| in_background(&edge, "/slow")).collect();
    shows(&edge, "three requests here, above the soft limit", |now| now.machine("here").unwrap().load == 3).await;
    assert_eq!(get(&edge, "/").await.machine(), "far");
    gate.add_permits(3);
    for request in slow {
        assert_eq!(request.await.unwrap().machine(), "here");
    }
}

#[tokio::test]
async fn at_the_hard_limit_of_all_a_request_waits_and_then_is_503() {
    let a = Fake::running("a").await;
    let gate = a.gate("/slow");
    let mut settings = settings();
    settings.concurrency.hard_limit = Some(1);
    settings.routing.queue_timeout = Duration::from_millis(100);
    let hasty = edge(settings.clone(), &[&a]).await;
    let slow = in_background(&hasty, "/slow");
    shows(&hasty, "a to be full", |now| now.machine("a").unwrap().load == 1).await;
    let began = std::time::Instant::now();
    get(&hasty, "/").await.is_error(503, "PR04");
    assert!(began.elapsed() >= Duration::from_millis(100), "it did not wait");
    gate.add_permits(1);
    assert_eq!(slow.await.unwrap().status, 200);

    settings.routing.queue_timeout = Duration::from_secs(3600);
    settings.routing.queue_length = 1;
    let edge = edge(settings, &[&a]).await;
    let slow = in_background(&edge, "/slow");
    shows(&edge, "a to be full", |now| now.machine("a").unwrap().load == 1).await;
    let waiting = in_background(&edge, "/");
    shows(&edge, "one to wait", |now| now.waiting == 1).await;
    get(&edge, "/").await.is_error(503, "PR04");
    gate.add_permits(1);
    assert_eq!(slow.await.unwrap().status, 200);
    assert_eq!(waiting.await.unwrap().machine(), "a", "who waits gets the place");
}

#[tokio::test]
async fn a_refused_connection_is_tried_at_another_machine() {
    let (down, up) = (Fake::new("down").await, Fake::running("up").await);
    let edge = edge(settings(), &[&down, &up]).await;
    for _ in 0..8 {
        let answer = post(&edge, "/", b"hello").await;
        assert_eq!((answer.machine(), &answer.body[..]), ("up", &b"hello"[..]));
    }
    let refused = edge.snapshot().errors(Code::ConnectionRefused);
    assert!((1..=8).contains(&refused), "{refused}");
}

#[tokio::test]
async fn after_ninety_retries_there_is_no_other() {
    let down = Fake::new("down").await;
    let settings = Settings { time_scale: 0.001, ..settings() };
    let edge = edge(settings, &[&down]).await;
    get(&edge, "/").await.is_error(502, "PR03");
    let now = edge.snapshot();
    assert_eq!(now.errors(Code::ConnectionRefused), 91, "one try and 90 more");
    assert_eq!(now.errors(Code::RetriesExhausted), 1);
}

#[tokio::test]
async fn a_request_that_began_is_retried_only_if_configured() {
    for (rule, get_survives, post_survives) in
        [(RetryBegun::None, false, false), (RetryBegun::Idempotent, true, false), (RetryBegun::All, true, true)]
    {
        let (bad, good) = (Fake::running("bad").await, Fake::running("good").await.in_region("syd"));
        bad.plays("/", Play::BreakOff);
        let mut settings = settings();
        settings.routing.retry_begun = rule;
        let edge = edge(settings, &[&bad, &good]).await;
        for (answer, survives) in [(get(&edge, "/").await, get_survives), (post(&edge, "/", b"x").await, post_survives)]
        {
            if survives {
                assert_eq!(answer.machine(), "good", "{rule:?}");
            } else {
                answer.is_error(502, "PU02");
            }
        }
        assert_eq!(edge.snapshot().errors(Code::Interrupted), 2);
    }
}

#[tokio::test]
async fn connections_are_kept_with_requests_and_reopened_with_connections() {
    for (kind, connections) in [(ConcurrencyKind::Requests, 1), (ConcurrencyKind::Connections, 5)] {
        let a = Fake::running("a").await;
        let mut settings = settings();
        settings.concurrency.kind = kind;
        settings.routing.pool_idle = Duration::from_secs(3600);
        let edge = edge(settings, &[&a]).await;
        for _ in 0..5 {
            assert_eq!(post(&edge, "/", b"hello").await.status, 200);
            shows(&edge, "the request to be over", |now| now.machine("a").unwrap().load == 0).await;
        }
        assert_eq!(a.connections(), connections, "{kind:?}");
        assert_eq!(edge.snapshot().machine("a").unwrap().connections, connections as u64);
    }
}

#[tokio::test]
async fn a_connection_that_is_kept_is_closed_after_a_while() {
    let a = Fake::running("a").await;
    let mut settings = settings();
    settings.concurrency.kind = ConcurrencyKind::Requests;
    // 4 s are 80 ms.
    settings.time_scale = 0.02;
    let edge = edge(settings, &[&a]).await;
    let began = std::time::Instant::now();
    assert_eq!(get(&edge, "/").await.status, 200);
    until("it to be closed", || a.open_connections() == 0).await;
    assert!(began.elapsed() >= Duration::from_millis(80), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_no_request() {
    let a = Fake::running("a").await;
    let mut settings = settings();
    settings.concurrency.kind = ConcurrencyKind::Requests;
    let edge = edge(settings, &[&a]).await;
    for _ in 0..5 {
        assert_eq!(post(&edge, "/", b"hello").await.status, 200);
        shows(&edge, "the request to be over", |now| now.machine("a").unwrap().load == 0).await;
        a.halt().await;
        a.run().await;
    }
}

#[tokio::test]
async fn a_cordoned_machine_gets_no_request_until_uncordoned() {
    let (a, b) = (Fake::running("a").await, Fake::running("b").await);
    let edge = edge(settings(), &[&a, &b]).await;
    assert!(edge.cordon("a") && !edge.cordon("nobody"));
    for _ in 0..8 {
        assert_eq!(get(&edge, "/").await.machine(), "b");
    }
    edge.uncordon("a");
    edge.cordon("b");
    assert_eq!(get(&edge, "/").await.machine(), "a");
    edge.remove("a");
    edge.uncordon("b");
    assert_eq!(get(&edge, "/").await.machine(), "b");
    assert!(edge.snapshot().machine("a").is_none());
}

/// Routing learns of a change only when `settle` is called.
fn deaf() -> Settings {
    let mut settings = settings();
    settings.routing.propagation = Duration::from_secs(3600);
    settings
}

#[tokio::test]
async fn routing_ignores_changes_that_have_not_propagated() {
    let (a, b) = (Fake::running("a").await, Fake::running("b").await.in_region("syd"));
    let edge = edge(deaf(), &[&a, &b]).await;
    edge.settle();
    assert_eq!(get(&edge, "/").await.machine(), "a");
    edge.cordon("a");
    let now = edge.snapshot();
    let cordoned = now.machine("a").unwrap();
    assert!(cordoned.is_cordoned && cordoned.is_routed, "{cordoned:?}");
    assert_eq!(get(&edge, "/").await.machine(), "a");
    edge.settle();
    assert_eq!(get(&edge, "/").await.machine(), "b");
}

#[tokio::test]
async fn a_change_reaches_routing_after_a_while() {
    let a = Fake::running("a").await;
    let mut settings = settings();
    settings.routing.propagation = Duration::from_millis(100);
    let began = std::time::Instant::now();
    let edge = edge(settings, &[&a]).await;
    assert_eq!(get(&edge, "/").await.machine(), "a", "the first request waits until routing knows a Machine");
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    let began = std::time::Instant::now();
    edge.cordon("a");
    shows(&edge, "routing to hear of it", |now| !now.machine("a").unwrap().is_routed).await;
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_machine_that_was_just_stopped_sends_requests_on() {
    let (a, b) = (Fake::running("a").await, Fake::running("b").await.in_region("syd"));
    let edge = edge(deaf(), &[&a, &b]).await;
    edge.settle();
    assert_eq!(get(&edge, "/").await.machine(), "a");
    a.halt().await;
    edge.set_state("a", State::Stopped);
    assert_eq!(get(&edge, "/").await.machine(), "b");
    let now = edge.snapshot();
    assert_eq!((now.errors(Code::RecentlyStopped), now.errors(Code::ConnectionRefused)), (1, 0), "{now:?}");
}

#[tokio::test]
async fn a_machine_stopped_long_ago_refuses_connections() {
    let (a, b) = (Fake::running("a").await, Fake::running("b").await.in_region("syd"));
    let mut settings = deaf();
    settings.routing.recently_stopped = Duration::ZERO;
    let edge = edge(settings, &[&a, &b]).await;
    edge.settle();
    a.halt().await;
    edge.set_state("a", State::Stopped);
    assert_eq!(get(&edge, "/").await.machine(), "b");
    let now = edge.snapshot();
    assert_eq!((now.errors(Code::RecentlyStopped), now.errors(Code::ConnectionRefused)), (0, 1), "{now:?}");
}

#[tokio::test]
async fn a_machine_that_was_just_stopped_gets_the_request_if_there_is_no_other() {
    let a = Fake::running("a").await;
    let mut settings = deaf();
    settings.routing.retry_pause = Duration::ZERO;
    let edge = edge(settings, &[&a]).await;
    edge.settle();
    a.halt().await;
    edge.set_state("a", State::Stopped);
    get(&edge, "/").await.is_error(502, "PR03");
    let now = edge.snapshot();
    assert_eq!((now.errors(Code::RecentlyStopped), now.errors(Code::ConnectionRefused)), (0, 91), "{now:?}");
}

#[tokio::test]
async fn clients_can_force_and_prefer_machines_and_regions() {
    let (a, b) = (Fake::running("a").await, Fake::running("b").await.in_region("syd"));
    let down = Fake::new("down").await;
    let settings = Settings { time_scale: 0.001, ..settings() };
    let edge = edge(settings, &[&a, &b, &down]).await;
    let ask = async |name: &str, value: &str| get_with(&edge, "/", &[(name, value)]).await;
    assert_eq!(ask("fly-force-instance-id", "b").await.machine(), "b");
    ask("fly-force-instance-id", "gone").await.is_error(502, "PR02");
    ask("fly-force-instance-id", "down").await.is_error(502, "PR03");
    assert_eq!(ask("fly-prefer-instance-id", "b").await.machine(), "b");
    assert_eq!(b.last().field("fly-preferred-instance-unavailable"), None);
    assert_eq!(ask("fly-prefer-instance-id", "gone").await.machine(), "a");
    assert_eq!(a.last().field("fly-preferred-instance-unavailable").as_deref(), Some("gone"));
    assert_eq!(ask("fly-force-region", "apac").await.machine(), "b");
    ask("fly-force-region", "gru").await.is_error(503, "PR01");
    assert_eq!(ask("fly-prefer-region", "gru,syd").await.machine(), "b");
    assert_eq!(ask("fly-prefer-region", "gru").await.machine(), "a");
}

#[tokio::test]
async fn a_disconnect_frees_its_concurrency() {
    let a = Fake::running("a").await;
    let _gate = a.gate("/slow");
    let edge = Arc::new(edge(settings(), &[&a]).await);
    let slow = in_background(&edge, "/slow");
    shows(&edge, "the request to arrive", |now| now.machine("a").unwrap().load == 1).await;
    slow.abort();
    shows(&edge, "its place to be free", |now| now.machine("a").unwrap().load == 0).await;
    until("the Machine to see it", || a.open_connections() == 0).await;
    tokio::time::sleep(MOMENT).await;
    assert_eq!(a.seen().len(), 1, "nobody tries for a client that has left");
}
