//! The queue for permits: a client with many requests, and clients with a new key on each, against one that sends requests
//! occasionally.

use std::rc::Rc;
use std::time::Duration;

use crate::backend::Backend;
use crate::harness::{Client, Proxy, get, until, with_fields};
use crate::overload::{Load, Outcome, mixed, run, served};
use crate::pause;

fn rules() -> &'static str {
    "identity.unknown_keys = \"count\"\n[[routes]]\nname = \"all\"\npath = \"/\"\npriority = \"medium\"\n"
}

/// Requests of these clients, in turn, on both lanes of the proxy.
fn of(clients: impl Iterator<Item = String>, path: &str) -> Vec<String> {
    clients.enumerate().map(|(n, key)| with_fields(&mixed(path)[n % 4], &[&format!("X-Api-Key: {key}")])).collect()
}

/// Sends one request after the other, for this time.
async fn in_turn(load: &Rc<Load>, requests: Vec<String>, time: Duration) -> Vec<Outcome> {
    let until = tokio::time::Instant::now() + time;
    let mut outcomes = Vec::new();
    for request in requests.iter().cycle() {
        if tokio::time::Instant::now() >= until {
            break;
        }
        outcomes.push(load.ask(request).await);
    }
    outcomes
}

fn figures(outcomes: &[Outcome]) -> (usize, usize, Duration) {
    let mut took: Vec<Duration> = outcomes.iter().map(|one| one.took).collect();
    took.sort_unstable();
    (served(outcomes), outcomes.len(), took[took.len() * 99 / 100])
}

#[test]
fn a_client_that_floods_the_queue_takes_no_response_from_one_that_asks_in_turn() {
    let app = Backend::start();
    app.works(&["/"], 4, Duration::from_millis(50));
    let proxy = Proxy::with(&app, rules());
    let time = Duration::from_secs(4);
    let (victim, attacker) = run(async {
        // Five times the app's capacity.
        let flood = Load::on(&proxy);
        let attacker = flood.flow(of(["attacker".to_owned()].into_iter(), "/"), 400.0, time);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let victim = in_turn(&Load::on(&proxy), of(["victim".to_owned()].into_iter(), "/"), time / 2).await;
        (victim, attacker.await.expect("no request panics"))
    });
    let (served, asked, p99) = figures(&victim);
    println!(
        "victim: {served} of {asked} served, p99 {p99:?}; attacker: {} of {}",
        crate::overload::served(&attacker),
        attacker.len()
    );
    assert_eq!(served, asked);
    assert!(p99 < Duration::from_millis(500), "{p99:?}");
    proxy.comes_to_rest();
}

#[test]
fn a_client_whose_slow_requests_hold_all_permits_takes_no_response_from_another() {
    let app = Backend::start();
    app.works(&["/slow"], 1000, Duration::from_secs(1));
    app.works(&["/"], 1000, Duration::from_millis(5));
    let proxy = Proxy::with(&app, &format!("admission.max = 20\n{}", rules()));
    let victim = run(async {
        let load = Load::on(&proxy);
        // A hundred at any time, each for a second, for twenty permits.
        load.flow(of(["attacker".to_owned()].into_iter(), "/slow"), 100.0, Duration::from_secs(5));
        tokio::time::sleep(Duration::from_secs(1)).await;
        in_turn(&Load::on(&proxy), of(["victim".to_owned()].into_iter(), "/"), Duration::from_secs(3)).await
    });
    let (served, asked, p99) = figures(&victim);
    println!("victim: {served} of {asked} served, p99 {p99:?}");
    assert_eq!(served, asked);
    assert!(asked >= 10, "{asked} in three seconds");
}

#[test]
fn new_clients_do_not_overtake_a_request_that_waits() {
    let app = Backend::start();
    let gate = app.gate("/");
    let proxy =
        Proxy::with(&app, &format!("admission.min = 1\nadmission.max = 1\nadmission.max_wait = \"1m\"\n{}", rules()));
    let waiting = || proxy.shows("/admission")["queue"]["medium"].as_u64().expect("a number");
    let mut clients: Vec<Client> = Vec::new();
    let mut ask = |key: &str, waits: u64| {
        let mut client = proxy.connect();
        client.send(with_fields(&get("/"), &[&format!("X-Api-Key: {key}")]));
        until("the request to wait", || waiting() == waits);
        clients.push(client);
    };
    let mut first = proxy.connect();
    first.send(get("/"));
    app.gets(1, "/");
    (0..5).for_each(|n| ask(&format!("before-{n}"), n + 1));
    ask("victim", 6);
    (0..50).for_each(|n| ask(&format!("new-{n}"), n + 7));
    // The one that runs, the five that came before, and the victim.
    gate.add_permits(7);
    assert_eq!(first.answer().status, 200);
    assert_eq!(clients[5].answer().status, 200);
    // One more has the permit now, and waits at the app; it is one of those that came later.
    app.gets(8, "/");
    assert_eq!(waiting(), 49);
    gate.add_permits(1000);
    drop((first, clients));
    proxy.comes_to_rest();
}

#[test]
fn a_thousand_equal_clients_are_served_by_an_app_with_enough_capacity() {
    let app = Backend::start();
    app.works(&["/"], 8, Duration::from_millis(20));
    let proxy = Proxy::with(&app, rules());
    let time = Duration::from_secs(4);
    // Nine tenths of the app's capacity.
    let outcomes = run(async {
        let requests = of((0..1000).map(|n| format!("client-{n}")), "/");
        Load::on(&proxy).flow(requests, 360.0, time).await.expect("no request panics")
    });
    let (served, asked, p99) = figures(&outcomes);
    println!("{served} of {asked} served, p99 {p99:?}");
    assert_eq!(served, asked);
    proxy.comes_to_rest();
}

/// A pause holds at most `app.max_held`: a client that fills it makes room for others.
#[test]
fn a_client_that_fills_a_pause_takes_no_place_of_another() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "app.max_held = 20\n");
    assert_eq!(pause::act(&proxy, "/pause", "{\"for\":\"60s\"}").status, 200);
    let send = |last: u8| {
        let mut client = proxy.connect_as(last);
        client.send(get("/"));
        client
    };
    let attacker: Vec<Client> = (0..60).map(|_| send(9)).collect();
    until("all to have arrived", || proxy.metric("outrigger_rejections_total", &[("reason", "paused")]) >= 40.0);
    let mut victims: Vec<Client> = (2..7).map(send).collect();
    until("them to have arrived", || proxy.metric("outrigger_rejections_total", &[("reason", "paused")]) >= 45.0);
    assert_eq!(pause::act(&proxy, "/resume", "").status, 200);
    for victim in &mut victims {
        assert_eq!(victim.answer().status, 200);
    }
    drop(attacker);
}
