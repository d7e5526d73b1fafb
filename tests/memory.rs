//! What connections at rest and bodies under way cost.

use crate::backend::Backend;
use crate::harness::{Client, Proxy, get, until};

/// So many rest at once.
const RESTING: usize = 2_000;
/// The most that one may cost. The design's bound is 24 KiB; this build is not the release's, and is held to less.
const KIB_EACH: u64 = 16;

#[test]
fn a_connection_at_rest_costs_little() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    for _ in 0..50 {
        assert_eq!(proxy.get("/").status, 200);
    }
    proxy.comes_to_rest();
    let (before, _) = proxy.memory_kib();
    let mut resting: Vec<Client> = Vec::with_capacity(RESTING);
    for _ in 0..RESTING {
        let mut client = proxy.connect();
        assert_eq!(client.send(get("/")).answer().status, 200);
        resting.push(client);
    }
    until("all to be counted", || proxy.metric("outrigger_connections", &[]) == RESTING as f64);
    let (now, _) = proxy.memory_kib();
    let each = now.saturating_sub(before) / RESTING as u64;
    assert!(each < KIB_EACH, "{each} KiB each");
    drop(resting);
    proxy.comes_to_rest();
}

#[test]
fn a_client_that_leaves_frees_everything_and_is_counted() {
    let app = Backend::start();
    let _gate = app.gate("/never");
    let proxy = Proxy::with(&app, "app.timeout = \"60s\"\n");
    for (request, number) in
        [(get("/never"), 1), ("POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx".into(), 2)]
    {
        let mut client = proxy.connect();
        client.send(request);
        app.gets(number, "/never");
        drop(client);
        proxy.counts("outrigger_requests_total", &[("outcome", "client_closed")], number);
        until("the app to be told", || app.abandoned() == number);
    }
    proxy.comes_to_rest();
    assert!(proxy.log().contains("\"status\":499"));
}
