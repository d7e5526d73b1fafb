//! A thousand sticky sessions on three Machines behind Fly's edge: each keeps its Machine, through crashes and deploys.

use std::{collections::HashMap, time::Duration};

use outrigger_edge::{Code, Strategy, settings::Removal};

use crate::{
    fleet::{Crowd, Fleet, Visitor, WHO, plain},
    harness::{get, post, until},
};

/// Ten minutes in which each session is used once a minute.
const SESSIONS: usize = 1000;
const MINUTES: usize = 10;

/// A typical mix for a site: mostly reads, some writes, a few of them large.
fn mixed(number: usize) -> String {
    match number % 50 {
        7 => post(WHO, &"x".repeat(1_500_000)),
        n if n % 5 == 0 => post(WHO, "a short form"),
        _ => get(WHO),
    }
}

fn homes(visitors: &[Visitor]) -> HashMap<&str, usize> {
    let mut homes = HashMap::new();
    for visitor in visitors {
        *homes.entry(visitor.at.as_deref().unwrap_or_default()).or_default() += 1;
    }
    homes
}

/// Every visitor sends one request per minute.
#[track_caller]
fn visit(visitors: &mut [Visitor], minutes: usize) {
    for minute in 0..minutes {
        for (number, visitor) in visitors.iter_mut().enumerate() {
            visitor.visit(&mixed(number + 13 * minute)).unwrap();
        }
    }
}

#[test]
fn a_thousand_sessions_keep_their_machines_and_those_of_a_dead_one_move_once() {
    let fleet = Fleet::start(3, "", |_| {});
    let mut visitors: Vec<Visitor> = (0..SESSIONS).map(|_| fleet.visitor()).collect();
    visit(&mut visitors, MINUTES);
    assert_eq!(visitors.iter().map(|visitor| visitor.moves).sum::<usize>(), 0);
    let homes_before = homes(&visitors);
    assert!(homes_before.len() == 3 && homes_before.values().all(|number| *number > SESSIONS / 6), "{homes_before:?}");
    let replayed = fleet.machines.metric("outrigger_affinity_total", &[("event", "replayed")]);
    let forwarded = fleet.machines.metric("outrigger_affinity_total", &[("event", "forwarded")]);
    assert!(replayed > 3000.0 && forwarded > 10.0, "{replayed} were replayed, {forwarded} large ones forwarded");
    let victim = visitors[0].at.clone().unwrap();
    let of_victim = homes_before[victim.as_str()];
    fleet.kill(&victim);
    visit(&mut visitors, 3);
    let moved = visitors.iter().filter(|visitor| visitor.moves > 0).count();
    assert_eq!((moved, visitors.iter().map(|visitor| visitor.moves).sum()), (of_victim, of_victim));
    assert_eq!(homes(&visitors).len(), 2);
    let errors = fleet.edge.snapshot().counts.errors;
    assert!(!errors.contains_key(&Code::TooManyReplays), "{errors:?}");
}

#[test]
fn a_blue_green_deploy_moves_every_session_once_without_errors() {
    // It is not established whether Fly's edge still sends requests to a cordoned Machine.
    for reaches_cordoned in [false, true] {
        let fleet = Fleet::start(3, "", |settings| settings.replay.reaches_cordoned = reaches_cordoned);
        let mut visitors: Vec<Visitor> = (0..300).map(|_| fleet.visitor()).collect();
        visit(&mut visitors, 1);
        // Without large uploads: the edge cannot replay those to a Machine that is not in DNS yet.
        let crowd = Crowd::of(visitors, 400.0, |number| mixed(number % 7));
        fleet.edge.deploy(Strategy::BlueGreen).unwrap();
        let mut report = crowd.ends();
        report.is_flawless();
        visit(&mut report.visitors, 1);
        let moves: Vec<usize> = report.visitors.iter().map(|visitor| visitor.moves).collect();
        assert!(moves.iter().all(|moves| *moves == 1), "reaches_cordoned = {reaches_cordoned}: {moves:?}");
        assert_eq!(fleet.edge.snapshot().counts.errors.get(&Code::TooManyReplays), None);
    }
}

#[test]
fn a_rolling_deploy_loses_and_delays_no_request() {
    // It is not established whether Fly's edge stops routing before the signal or only through the check.
    for removal in [Removal::BeforeSignal, Removal::ByCheck] {
        let fleet = Fleet::start(3, "", |settings| settings.deploy.removal = removal);
        let crowd = Crowd::of((0..100).map(|_| fleet.visitor()).collect(), 500.0, plain);
        fleet.edge.deploy(Strategy::Rolling).unwrap();
        let report = crowd.ends();
        report.is_flawless();
        assert!(report.requests > 300, "{}", report.requests);
        assert!(report.longest < Duration::from_secs(10), "the deadline is 60 s: {:?}", report.longest);
    }
}

#[test]
#[ignore = "cargo xtask soak --tests: most of a minute"]
fn twenty_rolling_deploys_lose_no_request() {
    let fleet = Fleet::start(3, "", |_| {});
    let crowd = Crowd::of((0..100).map(|_| fleet.visitor()).collect(), 500.0, mixed);
    for deploy in 0..20 {
        fleet.edge.deploy(Strategy::Rolling).unwrap();
        println!("deploy {deploy} is done");
    }
    let report = crowd.ends();
    println!("{} requests, the longest took {:?}", report.requests, report.longest);
    report.is_flawless();
    assert!(report.longest < Duration::from_secs(30), "{:?}", report.longest);
}

#[test]
fn apps_that_restart_one_after_the_other_cause_no_errors() {
    let fleet = Fleet::start(3, "", |_| {});
    let crowd = Crowd::of((0..100).map(|_| fleet.visitor()).collect(), 300.0, plain);
    for name in fleet.names() {
        fleet.machines.with(&name, |_, app| app.stop());
        // Requests that still arrive there go to peers, and requests for its sessions are served by the Machine that receives
        // them.
        let stood_in = || {
            fleet.machines.metric("outrigger_peer_requests_total", &[("kind", "failover")])
                + fleet.machines.metric("outrigger_affinity_total", &[("event", "visiting")])
        };
        let before = stood_in();
        until("peers to stand in for it", || stood_in() >= before + 20.0);
        fleet.machines.with(&name, |_, app| app.resume());
        until("the app to be back", || {
            fleet.machines.metric("outrigger_app_reachable", &[]) == 3.0
                && fleet.machines.metric("outrigger_peers", &[("state", "ready")]) == 6.0
        });
    }
    let report = crowd.ends();
    report.is_flawless();
    assert!(report.longest < Duration::from_secs(3), "{:?}", report.longest);
}

#[test]
fn forcing_one_machine_does_not_overload_it() {
    // Any client may send fly-force-instance-id. It overrides the sticky session only for that client.
    let fleet = Fleet::start(2, "", |_| {});
    let (mut visitor, names) = (fleet.visitor(), fleet.names());
    visitor.visit(&get(WHO)).unwrap();
    let home = visitor.at.clone().unwrap();
    let other = names.iter().find(|name| **name != home).unwrap();
    let aimed = |target: &str| format!("GET {WHO} HTTP/1.1\r\nHost: a\r\nfly-force-instance-id: {target}\r\n\r\n");
    for _ in 0..5 {
        visitor.visit(&aimed(other)).unwrap();
    }
    assert_eq!((visitor.moves, visitor.at.as_ref()), (0, Some(&home)));
    // The edge rejects a Machine that does not exist.
    assert!(fleet.visitor().ask(&aimed("destroyed")).unwrap().status >= 500);
}

#[test]
fn machines_briefly_missing_from_dns_stay_known() {
    use outrigger_edge::DnsFault;
    let fleet = Fleet::start(2, "affinity.via = \"private\"", |_| {});
    for fault in [DnsFault::Silent, DnsFault::ServFail] {
        fleet.edge.dns_fails(fault);
        until("the proxies to say so", || {
            fleet
                .names()
                .iter()
                .all(|name| fleet.machines.with(name, |proxy, _| proxy.log().contains("cannot be looked up")))
        });
        let mut visitors: Vec<Visitor> = (0..20).map(|_| fleet.visitor()).collect();
        visit(&mut visitors, 3);
        assert_eq!(visitors.iter().map(|visitor| visitor.moves).sum::<usize>(), 0);
        fleet.edge.dns_fails(DnsFault::None);
    }
}
