//! The retry budget: one client's requests fail on purpose, another one's request needs a retry.

use std::sync::{Arc, atomic::AtomicUsize};

use crate::{
    backend::{Backend, Play},
    harness::{Client, Proxy, get},
};

const ATTACKER: u8 = 10;
const VICTIM: u8 = 20;

#[test]
fn a_client_whose_requests_always_fail_leaves_retries_for_another() {
    let app = Backend::start();
    let rules = "breaker.failures = 0\nbreaker.failure_rate = \"off\"\nretry.attempts = 2\n";
    let proxy = Proxy::with(&app, rules);
    app.at("/crash", Play::CloseFirst(Arc::new(AtomicUsize::new(usize::MAX))));
    // The budget has been saved.
    for _ in 0..50 {
        assert_eq!(proxy.ask_as(VICTIM, &get("/fine")).status, 200);
    }
    let mut helped = 0;
    for _ in 0..20 {
        for _ in 0..20 {
            let mut client = Client::connect_from([127, 0, 0, ATTACKER].into(), proxy.address).unwrap();
            client.send(get("/crash")).answer().is_problem(502, "app_closed");
        }
        for _ in 0..4 {
            assert_eq!(proxy.ask_as(VICTIM, &get("/fine")).status, 200);
        }
        app.at("/mine", Play::CloseFirst(Arc::new(AtomicUsize::new(1))));
        helped += usize::from(proxy.ask_as(VICTIM, &get("/mine")).status == 200);
    }
    let denied = proxy.metric("outrigger_app_retries_denied_total", &[]);
    println!("retries: another client got {helped} of 20, {denied} of the attacker's 400 were denied");
    assert!(helped == 20 && denied > 200.0, "{helped} of 20, {denied} denied");
}
