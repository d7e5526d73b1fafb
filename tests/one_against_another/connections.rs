//! Connections, and the memory of unfinished header sections.

use std::time::{Duration, Instant};

use crate::{
    backend::Backend,
    harness::{Client, Proxy, get, post},
};

const ATTACKER: u8 = 10;
const VICTIM: u8 = 20;
/// The start of an HTTP/2 connection: the preface, and empty settings.
const H2_BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// New connections of another client; returns how many were served, and the longest latency.
fn served(proxy: &Proxy, requests: usize) -> (usize, Duration) {
    let mut longest = Duration::ZERO;
    let served = (0..requests).filter(|n| {
        let began = Instant::now();
        let request = if n % 2 == 0 { get("/") } else { post("/", "hello") };
        let status = proxy.ask_as(VICTIM, &request).status;
        longest = longest.max(began.elapsed());
        status == 200
    });
    (served.count(), longest)
}

#[test]
fn idle_connections_of_one_address_do_not_block_others() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "server.max_connections = 40");
    // Idle connections that were served, that never sent a byte, that sent half a header section, and that use HTTP/2.
    for what in ["served", "silent", "half", "h2"] {
        let mut held: Vec<Client> = Vec::new();
        for _ in 0..100 {
            let address = if what == "h2" { proxy.h2c } else { proxy.address };
            let mut client = Client::connect_from([127, 0, 0, ATTACKER].into(), address).unwrap();
            match what {
                "served" => assert_eq!(client.send(get("/")).answer().status, 200, "one that rests makes room"),
                "half" => _ = client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Half: "),
                "h2" => assert!(!client.send(H2_BEGIN).piece().unwrap().is_empty()),
                _ => {}
            }
            held.push(client);
        }
        let (ok, longest) = served(&proxy, 30);
        println!(
            "connections: 100 of one address ({what}) at max_connections = 40: {ok} of 30 served, {longest:?} at most"
        );
        assert_eq!(ok, 30, "{what}");
        assert!(proxy.metric("outrigger_open_connections", &[]) <= 40.0);
        drop(held);
        proxy.comes_to_rest();
    }
    assert!(proxy.metric("outrigger_connections_evicted_total", &[]) > 100.0);
}

/// Many addresses use all connections: an idle connection makes room, one with a request in flight does not.
#[test]
fn at_max_connections_idle_connections_close_and_active_ones_stay() {
    let app = Backend::start();
    let gate = app.gate("/slow");
    let proxy = Proxy::with(&app, "server.max_connections = 40");
    let mut working: Vec<Client> = (0..10).map(|n| proxy.connect_as(100 + n)).collect();
    working.iter_mut().for_each(|client| _ = client.send(get("/slow")));
    app.gets(10, "/slow");
    let mut resting: Vec<Client> = (0..30).map(|n| proxy.connect_as(120 + n)).collect();
    resting.iter_mut().for_each(|client| assert_eq!(client.send(get("/")).answer().status, 200));
    let (ok, _) = served(&proxy, 30);
    assert_eq!(ok, 30);
    gate.add_permits(10);
    for mut client in working {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn only_an_address_at_its_bound_gets_a_503() {
    let app = Backend::start();
    let gate = app.gate("/slow");
    let proxy = Proxy::with(&app, "server.max_connections = 40\nserver.max_address_share = \"20%\"");
    let mut working: Vec<Client> = (0..8).map(|_| proxy.connect_as(ATTACKER)).collect();
    working.iter_mut().for_each(|client| _ = client.send(get("/slow")));
    app.gets(8, "/slow");
    proxy.ask_as(ATTACKER, &get("/")).is_problem(503, "too_many_connections");
    assert_eq!(served(&proxy, 10).0, 10);
    gate.add_permits(8);
    for mut client in working {
        assert_eq!(client.answer().status, 200);
    }
}

/// An edge or a load balancer represents many clients from one address.
#[test]
fn trusted_networks_have_no_bound_of_an_address() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "server.max_connections = 40\nidentity.trusted = [\"127.0.0.10/32\"]");
    let mut held: Vec<Client> = (0..30).map(|_| proxy.connect_as(ATTACKER)).collect();
    for client in &mut held {
        assert_eq!(client.send(get("/")).answer().status, 200);
    }
    assert_eq!(served(&proxy, 5).0, 5);
    for client in &mut held {
        assert_eq!(client.send(get("/")).answer().status, 200, "none of them was closed");
    }
}

/// Thousands of large, unfinished header sections: their memory is bounded, and others may send large ones in pieces.
#[test]
fn unfinished_heads_of_one_address_take_a_bounded_part_of_memory() {
    const CONNECTIONS: usize = 3000;
    let app = Backend::start();
    let proxy = Proxy::with(
        &app,
        "client.max_head = \"64KiB\"\nclient.max_unfinished_heads = \"4MiB\"\nclient.head_timeout = \"60s\"\nserver.max_connections = 4000",
    );
    assert_eq!(proxy.get("/").status, 200);
    let (before, _) = proxy.memory_kib();
    let half = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Half: {}", "x".repeat(60 << 10));
    let mut held: Vec<Client> = Vec::new();
    for n in 0..CONNECTIONS {
        // An address may use a quarter of the memory, so four of these five fill it.
        let mut client = proxy.connect_as(ATTACKER + (n % 5) as u8);
        client.send(&half);
        held.push(client);
    }
    let large = "y".repeat(20 << 10);
    for n in 0..20 {
        let mut client = proxy.connect_as(VICTIM);
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Large: {large}"));
        client.send("\r\n\r\n");
        assert_eq!(client.answer().status, 200, "{n}");
    }
    let (_, most) = proxy.memory_kib();
    let grown = (most - before) >> 10;
    println!("heads: {CONNECTIONS} unfinished ones of 60 KiB: 20 of 20 served, {grown} MiB more at most");
    // Each connection costs 8 KiB, and until it is closed about as much again in the allocator.
    assert!(grown < 100, "{grown} MiB, of {} sent", (CONNECTIONS * 60) >> 10);
    drop(held);
    proxy.comes_to_rest();
}
