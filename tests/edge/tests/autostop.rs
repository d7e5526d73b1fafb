//! Idle Machines are stopped, and started when a request needs them.

use std::time::Duration;

use outrigger_edge::settings::AutostopKind;
use outrigger_edge::{Code, Settings, State};

use crate::fake::{Fakes, edge_of, get, in_background, shows};

/// A round every 50 ms.
fn settings(stops: AutostopKind, starts: bool) -> Settings {
    let mut settings = Settings::default();
    settings.autostop.interval = Duration::from_millis(50);
    settings.autostop.cordon_wait = Duration::from_millis(10);
    (settings.autostop.stops, settings.autostop.starts) = (stops, starts);
    settings.concurrency.soft_limit = 1;
    settings
}

#[tokio::test]
async fn idle_machines_are_stopped_one_after_the_other_and_started_by_a_request() {
    for (kind, state, word) in
        [(AutostopKind::Stop, State::Stopped, "stop"), (AutostopKind::Suspend, State::Suspended, "suspend")]
    {
        let fleet = Fakes::of(&["a", "b"]).await;
        let mut settings = settings(kind, true);
        // Long enough for a request to end on the Machine that it has just woken.
        settings.autostop.cordon_wait = Duration::from_millis(300);
        let edge = edge_of(settings, &fleet, &["a", "b"]).await;
        shows(&edge, "both to sleep", |now| now.machines.iter().all(|m| m.state == state)).await;
        assert_eq!(fleet.log(), [format!("{word} a v1"), format!("{word} b v1")]);
        assert_eq!(get(&edge, "/").await.status, 200);
        assert_eq!(fleet.log()[2], "start a v1");
        assert_eq!(edge.snapshot().errors(Code::ConnectionRefused), 0);
    }
}

#[tokio::test]
async fn a_machine_is_taken_out_of_routing_before_it_is_stopped() {
    let fleet = Fakes::of(&["a", "b"]).await;
    let mut settings = settings(AutostopKind::Stop, false);
    settings.autostop.cordon_wait = Duration::from_secs(1);
    settings.autostop.min_running = 1;
    let edge = edge_of(settings, &fleet, &["a", "b"]).await;
    shows(&edge, "a to be soft-cordoned", |now| now.machine("a").unwrap().is_soft_cordoned).await;
    assert_eq!(edge.snapshot().machine("a").unwrap().state, State::Started);
    for _ in 0..4 {
        assert_eq!(get(&edge, "/").await.machine(), "b");
    }
    shows(&edge, "a to be stopped", |now| now.machine("a").unwrap().state == State::Stopped).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(fleet.log(), ["stop a v1"], "the minimum is kept");
}

#[tokio::test]
async fn a_machine_with_load_is_kept() {
    let fleet = Fakes::of(&["a"]).await;
    let gate = fleet.get("a").gate("/slow");
    let edge = edge_of(settings(AutostopKind::Stop, false), &fleet, &["a"]).await;
    let slow = in_background(&edge, "/slow");
    shows(&edge, "the request to arrive", |now| now.machine("a").unwrap().load == 1).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(fleet.log().is_empty(), "{:?}", fleet.log());
    gate.add_permits(1);
    assert_eq!(slow.await.unwrap().status, 200);
    shows(&edge, "a to be stopped", |now| now.machine("a").unwrap().state == State::Stopped).await;
}

#[tokio::test]
async fn one_more_is_started_when_all_are_above_their_soft_limit() {
    let fleet = Fakes::of(&["a", "b"]).await;
    fleet.get("b").halt().await;
    let gate = fleet.get("a").gate("/slow");
    let edge = edge_of(settings(AutostopKind::Off, true), &fleet, &["a"]).await;
    edge.add(fleet.get("b").machine.clone(), State::Stopped);
    let first = in_background(&edge, "/slow");
    shows(&edge, "a to be at its soft limit", |now| now.machine("a").unwrap().load == 1).await;
    assert!(fleet.log().is_empty());
    assert_eq!(get(&edge, "/").await.machine(), "a", "nobody waits for the start");
    shows(&edge, "b to be started", |now| now.machine("b").unwrap().is_routed).await;
    assert_eq!(get(&edge, "/").await.machine(), "b");
    assert_eq!(fleet.log(), ["start b v1"]);
    gate.add_permits(1);
    first.await.unwrap();
}

#[tokio::test]
async fn without_autostart_requests_start_no_machine() {
    let fleet = Fakes::of(&["a"]).await;
    let mut settings = settings(AutostopKind::Off, false);
    settings.routing.queue_timeout = Duration::from_millis(50);
    let edge = edge_of(settings, &fleet, &[]).await;
    edge.add(fleet.get("a").machine.clone(), State::Stopped);
    get(&edge, "/").await.is_error(503, "PR01");
    assert!(fleet.log().is_empty());
}

#[tokio::test]
async fn a_machine_that_cannot_be_started_is_an_error() {
    let fleet = Fakes::of(&["a"]).await;
    fleet.broken.lock().unwrap().push("a".to_owned());
    let edge = edge_of(settings(AutostopKind::Off, true), &fleet, &[]).await;
    edge.add(fleet.get("a").machine.clone(), State::Stopped);
    get(&edge, "/").await.is_error(503, "PM07");
}
