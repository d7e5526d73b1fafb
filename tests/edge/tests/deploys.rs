//! Deploys: their order of steps, without an effect on clients.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger_edge::settings::{Removal, Signal, Stop};
use outrigger_edge::{Code, DeployError, Edge, Settings, State, Strategy};

use crate::fake::{Fakes, edge_of, fast_checks, get, in_background, shows};

fn settings() -> Settings {
    let mut settings = Settings::default();
    fast_checks(&mut settings);
    // 10 s are 200 ms on this scale.
    settings.deploy.max_unavailable = 1.0;
    settings
}

async fn all_pass(edge: &Edge, machines: usize) {
    shows(edge, "all to pass", |now| now.machines.iter().filter(|m| m.is_routed).count() == machines).await;
}

/// Sends requests until `act` ends; returns their statuses.
async fn under_load(edge: &Edge, act: impl Future<Output = ()>) -> Vec<u16> {
    let is_over = AtomicBool::new(false);
    let statuses = Mutex::new(Vec::new());
    let load = async {
        while !is_over.load(Ordering::SeqCst) {
            let status = get(edge, "/").await.status;
            statuses.lock().unwrap().push(status);
        }
    };
    tokio::join!(load, async {
        act.await;
        is_over.store(true, Ordering::SeqCst);
    });
    statuses.into_inner().unwrap()
}

#[tokio::test]
async fn rolling_updates_one_machine_after_the_other_in_place() {
    let fleet = Fakes::of(&["a", "b", "c"]).await;
    let mut settings = settings();
    // Each is down for long enough that clients would notice.
    settings.check.as_mut().unwrap().grace_period = Duration::from_secs(3);
    let edge = edge_of(settings, &fleet, &["a", "b", "c"]).await;
    all_pass(&edge, 3).await;
    let statuses = under_load(&edge, async { edge.deploy(Strategy::Rolling).await.unwrap() }).await;
    let of = |id| [format!("stop {id} v1"), format!("start {id} v2")];
    assert_eq!(fleet.log(), ["a", "b", "c"].map(of).concat());
    assert!(!statuses.is_empty() && statuses.iter().all(|&status| status == 200), "{statuses:?}");
    let now = edge.snapshot();
    assert!(now.machines.iter().all(|m| m.machine.version == 2 && m.is_routed && !m.is_cordoned), "{now:?}");
}

#[tokio::test]
async fn max_unavailable_machines_are_updated_at_once() {
    let fleet = Fakes::of(&["a", "b", "c"]).await;
    let mut settings = settings();
    settings.deploy.max_unavailable = 0.5;
    let edge = edge_of(settings, &fleet, &["a", "b", "c"]).await;
    all_pass(&edge, 3).await;
    edge.deploy(Strategy::Rolling).await.unwrap();
    let log = fleet.log();
    let place = |what: &str| log.iter().position(|line| line == what).unwrap();
    assert!(place("stop b v1") < place("start a v2"), "{log:?}");
    assert!(place("stop c v1") > place("start a v2").max(place("start b v2")), "{log:?}");
}

#[tokio::test]
async fn a_stopped_machine_is_updated_and_stays_stopped() {
    let fleet = Fakes::of(&["a", "b"]).await;
    let edge = edge_of(settings(), &fleet, &["a"]).await;
    edge.add(fleet.get("b").machine.clone(), State::Stopped);
    edge.deploy(Strategy::Rolling).await.unwrap();
    let now = edge.snapshot();
    let b = now.machine("b").unwrap();
    assert_eq!((b.machine.version, b.state), (2, State::Stopped));
    assert_eq!(fleet.log(), ["stop a v1", "start a v2"]);
}

#[tokio::test]
async fn taking_a_machine_out_of_routing_before_its_signal_is_a_setting() {
    for removal in [Removal::BeforeSignal, Removal::ByCheck] {
        let fleet = Fakes::of(&["a"]).await;
        let mut settings = settings();
        settings.deploy.removal = removal;
        settings.routing.queue_timeout = Duration::from_secs(3600);
        let edge = Arc::new(edge_of(settings, &fleet, &["a"]).await);
        all_pass(&edge, 1).await;
        // Routing's view at the moment of the signal.
        let (in_test, in_fleet) = (Arc::clone(&edge), Arc::new(Mutex::new(None)));
        let seen = Arc::clone(&in_fleet);
        fleet.on_stop(move || *seen.lock().unwrap() = Some(in_test.snapshot().machine("a").unwrap().is_routed));
        edge.deploy(Strategy::Rolling).await.unwrap();
        assert_eq!(*in_fleet.lock().unwrap(), Some(removal == Removal::ByCheck));
        all_pass(&edge, 1).await;
        fleet.on_stop(|| {});
    }
}

#[tokio::test]
async fn how_machines_are_stopped_is_a_setting() {
    for (signal, last_signal) in [(Signal::Interrupt, Signal::Kill), (Signal::Terminate, Signal::Terminate)] {
        let fleet = Fakes::of(&["a"]).await;
        let mut settings = settings();
        settings.deploy.stop = Stop { signal, timeout: Duration::from_secs(50), last_signal };
        let edge = edge_of(settings, &fleet, &["a"]).await;
        edge.deploy(Strategy::Rolling).await.unwrap();
        let expected = Stop { signal, timeout: Duration::from_secs(1), last_signal };
        assert_eq!(*fleet.stops.lock().unwrap(), [expected], "scaled: 50 s × 0.02");
    }
}

#[tokio::test]
async fn a_machine_that_does_not_pass_in_time_ends_the_deploy() {
    let fleet = Fakes::of(&["a", "b"]).await;
    let mut settings = settings();
    settings.deploy.wait_timeout = Duration::from_secs(50);
    let edge = edge_of(settings, &fleet, &["a", "b"]).await;
    all_pass(&edge, 2).await;
    fleet.get("a").health(500);
    let error = edge.deploy(Strategy::Rolling).await.unwrap_err();
    assert_eq!(error.to_string(), "Machine a was not healthy within 1s");
    assert_eq!(fleet.log(), ["stop a v1", "start a v2"], "b is left as it was");
    assert_eq!(get(&edge, "/").await.machine(), "b");
}

#[tokio::test]
async fn a_machine_that_cannot_be_started_again_ends_the_deploy() {
    for removal in [Removal::BeforeSignal, Removal::ByCheck] {
        let fleet = Fakes::of(&["a", "b"]).await;
        let mut settings = settings();
        settings.deploy.removal = removal;
        let edge = edge_of(settings, &fleet, &["a", "b"]).await;
        all_pass(&edge, 2).await;
        fleet.broken.lock().unwrap().push("a".to_owned());
        let error = edge.deploy(Strategy::Rolling).await.unwrap_err();
        assert_eq!(error.to_string(), "Machine a cannot be started");
        let now = edge.snapshot();
        let a = now.machine("a").unwrap();
        assert_eq!((a.state, a.is_soft_cordoned), (State::Stopped, false));
        assert_eq!(get(&edge, "/").await.machine(), "b");
    }
}

#[tokio::test]
async fn blue_green_replaces_all_machines_without_errors() {
    let fleet = Fakes::of(&["a", "b"]).await;
    let edge = edge_of(settings(), &fleet, &["a", "b"]).await;
    all_pass(&edge, 2).await;
    let began = std::time::Instant::now();
    let statuses = under_load(&edge, async { edge.deploy(Strategy::BlueGreen).await.unwrap() }).await;
    assert!(began.elapsed() >= Duration::from_millis(400), "two pauses of 10 s on this scale");
    assert!(!statuses.is_empty() && statuses.iter().all(|&status| status == 200), "{statuses:?}");
    let log = fleet.log();
    assert_eq!(log[..4], ["create new1 v2", "create new2 v2", "start new1 v2", "start new2 v2"]);
    assert_eq!(log[4..], ["stop a v1", "stop b v1", "destroy a v1", "destroy b v1"]);
    let now = edge.snapshot();
    let of_state = |state| now.machines.iter().filter(|m| m.state == state).count();
    assert_eq!((of_state(State::Started), of_state(State::Destroyed)), (2, 2));
    assert!(now.machines.iter().all(|m| m.is_routed == (m.state == State::Started)));
    assert_eq!(now.errors(Code::ConnectionRefused), 0);
}

#[tokio::test]
async fn blue_and_green_serve_together_then_green_alone_then_blue_ends() {
    let fleet = Fakes::of(&["a"]).await;
    let mut settings = settings();
    // A second each, so that no step is missed.
    (settings.deploy.before_cordon, settings.deploy.before_stop) = (Duration::from_secs(50), Duration::from_secs(50));
    let edge = Arc::new(edge_of(settings, &fleet, &["a"]).await);
    all_pass(&edge, 1).await;
    fleet.next_health.store(500, Ordering::SeqCst);
    let in_deploy = Arc::clone(&edge);
    let deploy = tokio::spawn(async move { in_deploy.deploy(Strategy::BlueGreen).await });
    shows(&edge, "green to run, cordoned", |now| {
        now.machine("new1").is_some_and(|m| m.state == State::Started && m.is_cordoned)
    })
    .await;
    assert_eq!(get(&edge, "/").await.machine(), "a");
    fleet.get("new1").health(200);
    shows(&edge, "both to serve", |now| now.machines.iter().all(|m| m.is_routed)).await;
    shows(&edge, "blue to be cordoned", |now| now.machine("a").unwrap().is_cordoned).await;
    assert!(!fleet.log().contains(&"stop a v1".to_owned()), "it has time for what it has begun");
    assert_eq!(get(&edge, "/").await.machine(), "new1");
    deploy.await.unwrap().unwrap();
    assert_eq!(edge.snapshot().machine("a").unwrap().state, State::Destroyed);
}

#[tokio::test]
async fn green_that_does_not_pass_is_removed_and_blue_serves_on() {
    for is_broken in [false, true] {
        let fleet = Fakes::of(&["a"]).await;
        let mut settings = settings();
        settings.deploy.wait_timeout = Duration::from_secs(50);
        let edge = edge_of(settings, &fleet, &["a"]).await;
        all_pass(&edge, 1).await;
        fleet.next_health.store(500, Ordering::SeqCst);
        if is_broken {
            fleet.broken.lock().unwrap().push("new1".to_owned());
        }
        let error = edge.deploy(Strategy::BlueGreen).await.unwrap_err();
        match &error {
            DeployError::Fleet { id, what: "started", .. } if is_broken => assert_eq!(id, "new1"),
            DeployError::Timeout { id, what: "healthy", .. } if !is_broken => assert_eq!(id, "new1"),
            other => panic!("{other}"),
        }
        assert_eq!(get(&edge, "/").await.machine(), "a");
        assert_eq!(fleet.log().last().unwrap(), "destroy new1 v2");
        assert_eq!(edge.snapshot().machine("new1").unwrap().state, State::Destroyed);
    }
}

#[tokio::test]
async fn blue_green_without_a_check_and_deploys_without_a_fleet_are_errors() {
    let fleet = Fakes::of(&["a"]).await;
    let edge = edge_of(Settings::default(), &fleet, &["a"]).await;
    assert!(matches!(edge.deploy(Strategy::BlueGreen).await, Err(DeployError::NoCheck)));
    let edge = crate::fake::edge(Settings::default(), &[&fleet.get("a")]).await;
    assert!(matches!(edge.deploy(Strategy::Rolling).await, Err(DeployError::NoFleet)));
    assert!(in_background(&edge, "/").await.unwrap().status == 200);
}
