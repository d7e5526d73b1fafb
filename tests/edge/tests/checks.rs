//! Checks take a Machine out of routing and back, and have no other effect.

use std::time::Duration;

use outrigger_edge::{Code, Health, Settings, State};

use crate::fake::{Fake, Fakes, edge, edge_of, fast_checks, get, in_background, post, shows, until};

fn settings() -> Settings {
    let mut settings = Settings::default();
    fast_checks(&mut settings);
    settings
}

#[tokio::test]
async fn a_failing_machine_gets_no_requests_until_it_passes() {
    let fleet = Fakes::of(&["a", "b"]).await;
    let edge = edge_of(settings(), &fleet, &["a", "b"]).await;
    shows(&edge, "both to pass", |now| now.machines.iter().all(|m| m.is_routed)).await;
    fleet.get("a").health(500);
    shows(&edge, "a to fail", |now| now.machine("a").unwrap().health == Health::Failing).await;
    for _ in 0..6 {
        assert_eq!(get(&edge, "/").await.machine(), "b");
    }
    let now = edge.snapshot();
    let a = now.machine("a").unwrap();
    assert!(a.state == State::Started && !a.is_cordoned && !a.is_routed, "{a:?}");
    fleet.get("b").health(302);
    shows(&edge, "b to fail: a redirect is not followed", |now| !now.machine("b").unwrap().is_routed).await;
    fleet.get("a").health(204);
    shows(&edge, "a to pass", |now| now.machine("a").unwrap().is_routed).await;
    assert_eq!(get(&edge, "/").await.machine(), "a");
    assert!(fleet.log().is_empty(), "nobody restarts it: {:?}", fleet.log());
}

#[tokio::test]
async fn requests_wait_for_a_healthy_machine_and_then_fail() {
    let a = Fake::running("a").await;
    a.health(503);
    let edge = edge(settings(), &[&a]).await;
    shows(&edge, "a to fail", |now| now.machine("a").unwrap().health == Health::Failing).await;
    get(&edge, "/").await.is_error(503, "PR01");
    assert_eq!(edge.snapshot().errors(Code::NoHealthyMachine), 1);

    let mut settings = settings();
    settings.routing.queue_timeout = Duration::from_secs(3600);
    let edge = crate::fake::edge(settings, &[&a]).await;
    let waiting = in_background(&edge, "/");
    shows(&edge, "the request to wait", |now| now.waiting == 1).await;
    a.health(200);
    assert_eq!(waiting.await.unwrap().machine(), "a");
}

#[tokio::test]
async fn a_new_run_is_checked_after_its_grace_period_and_gets_no_request_before() {
    let a = Fake::running("a").await;
    let mut settings = Settings::default();
    fast_checks(&mut settings).grace_period = Duration::from_secs(10);
    settings.routing.queue_timeout = Duration::from_secs(3600);
    let edge = edge(settings, &[]).await;
    for _ in 0..2 {
        let began = std::time::Instant::now();
        let before = a.checks().len();
        edge.add(a.machine.clone(), State::Started);
        let waiting = in_background(&edge, "/");
        assert_eq!(waiting.await.unwrap().machine(), "a");
        assert!(began.elapsed() >= Duration::from_millis(200), "10 s on this scale: {:?}", began.elapsed());
        assert!(a.checks().len() > before);
        edge.remove("a");
    }
}

#[tokio::test]
async fn a_restarted_machine_has_to_pass_again() {
    let a = Fake::running("a").await;
    let edge = edge(settings(), &[&a]).await;
    shows(&edge, "a to pass", |now| now.machine("a").unwrap().is_routed).await;
    edge.set_state("a", State::Stopped);
    shows(&edge, "a to be out", |now| !now.machine("a").unwrap().is_routed).await;
    a.health(500);
    edge.set_state("a", State::Started);
    shows(&edge, "a to fail", |now| now.machine("a").unwrap().health == Health::Failing).await;
}

#[tokio::test]
async fn how_many_failures_take_a_machine_out_is_a_setting() {
    for (needed, health) in [(1, Health::Failing), (3, Health::Passing)] {
        let a = Fake::running("a").await;
        let mut settings = settings();
        let check = settings.check.as_mut().unwrap();
        (check.failures_to_remove, check.successes_to_return) = (needed, u32::MAX);
        let edge = edge(settings, &[&a]).await;
        shows(&edge, "a to pass", |now| now.machine("a").unwrap().is_routed).await;
        let before = a.checks().len();
        a.next_health(&[500, 500]);
        until("the checks after both failures", || a.checks().len() >= before + 5).await;
        assert_eq!(edge.snapshot().machine("a").unwrap().health, health, "{needed}");
        a.health(500);
        shows(&edge, "a to fail", |now| now.machine("a").unwrap().health == Health::Failing).await;
    }
}

#[tokio::test]
async fn how_many_successes_take_it_in_again_is_a_setting() {
    for (needed, health) in [(1, Health::Passing), (3, Health::Failing)] {
        let a = Fake::running("a").await;
        a.next_health(&[500, 200, 200]);
        a.health(500);
        let mut settings = settings();
        let check = settings.check.as_mut().unwrap();
        (check.failures_to_remove, check.successes_to_return) = (u32::MAX, needed);
        let edge = edge(settings, &[&a]).await;
        until("the checks after both successes", || a.checks().len() >= 5).await;
        assert_eq!(edge.snapshot().machine("a").unwrap().health, health, "{needed}");
        a.health(200);
        shows(&edge, "a to pass", |now| now.machine("a").unwrap().is_routed).await;
    }
}

#[tokio::test]
async fn each_failure_makes_the_pause_longer() {
    let a = Fake::running("a").await;
    a.health(500);
    let mut settings = settings();
    // 20, 220, 420 ms and so on: 5 checks would take 1.2 s.
    settings.check.as_mut().unwrap().back_off = Duration::from_secs(10);
    let edge = edge(settings, &[&a]).await;
    let began = std::time::Instant::now();
    until("three checks", || a.checks().len() == 3).await;
    assert!(began.elapsed() >= Duration::from_millis(220 + 420), "{:?}", began.elapsed());
    drop(edge);
}

#[tokio::test]
async fn headers_and_source_of_checks_are_settings() {
    for agent in [None, Some("Consul Health Check")] {
        let a = Fake::running("a").await;
        let mut settings = settings();
        let check = settings.check.as_mut().unwrap();
        check.user_agent = agent.map(str::to_owned);
        check.source = agent.map(|_| "127.0.0.9".parse().unwrap());
        check.fields = vec![("x-forwarded-proto".to_owned(), "https".to_owned())];
        let edge = edge(settings, &[&a]).await;
        shows(&edge, "a to pass", |now| now.machine("a").unwrap().is_routed).await;
        let seen = a.checks().remove(0);
        assert_eq!(seen.field("user-agent").as_deref(), agent);
        assert_eq!(seen.field("x-forwarded-proto").as_deref(), Some("https"));
        assert_eq!(seen.field("fly-client-ip"), None, "a check is no client");
        let expected = if agent.is_some() { "127.0.0.9" } else { "127.0.0.1" };
        assert_eq!(seen.peer.to_string(), expected);
    }
}

#[tokio::test]
async fn a_check_without_a_response_in_time_fails() {
    let a = Fake::running("a").await;
    let mut settings = settings();
    let check = settings.check.as_mut().unwrap();
    check.path = "/hangs".to_owned();
    check.timeout = Duration::from_secs(2);
    let _gate = a.gate("/hangs");
    let edge = edge(settings, &[&a]).await;
    shows(&edge, "a to fail", |now| now.machine("a").unwrap().health == Health::Failing).await;
}

#[tokio::test]
async fn an_unhealthy_target_is_unavailable_by_preference_and_waited_for_by_name() {
    let fleet = Fakes::of(&["origin", "target"]).await;
    let (origin, target) = (fleet.get("origin"), fleet.get("target"));
    target.health(500);
    let mut settings = settings();
    settings.routing.queue_timeout = Duration::from_secs(3600);
    let edge = edge_of(settings, &fleet, &["origin", "target"]).await;
    let is_settled = |health| move |now: &outrigger_edge::Snapshot| now.machine("target").unwrap().health == health;
    shows(&edge, "the target to fail", is_settled(Health::Failing)).await;
    shows(&edge, "the origin to pass", |now| now.machine("origin").unwrap().is_routed).await;

    origin.replays("prefer_instance=target");
    assert_eq!(post(&edge, "/", b"").await.machine(), "origin");
    assert_eq!(origin.last().field("fly-preferred-instance-unavailable").as_deref(), Some("target"));

    origin.replays("instance=target;timeout=5s;fallback=force_self");
    assert_eq!(post(&edge, "/", b"").await.machine(), "origin");
    assert_eq!(origin.last().part("fly-replay-failed", "reason").as_deref(), Some("timeout"));

    origin.replays("instance=target");
    let waiting = in_background(&edge, "/");
    shows(&edge, "the request to wait", |now| now.waiting == 1).await;
    target.health(200);
    assert_eq!(waiting.await.unwrap().machine(), "target");
}
