//! Descriptors: one client keeps as many idle connections as it can get, another one connects again and again.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::Backend,
    harness::{Client, Setup, every_form, get},
};

#[test]
fn idle_connections_of_one_client_do_not_take_the_descriptors_of_another() {
    let app = Backend::start();
    let rules = "server.max_connections = 10000\napp.idle_timeout = \"100ms\"";
    let proxy = Setup::new(&app, rules).through(&["prlimit", "--nofile=150:150"]).start();
    let attacker = {
        let address = proxy.address;
        thread::spawn(move || {
            let began = Instant::now();
            let (mut idle, mut made) = (Vec::new(), 0);
            while began.elapsed() < Duration::from_secs(4) {
                if let Ok(mut client) = Client::connect(address) {
                    // Every other connection sends a request first, and is then idle.
                    if made % 2 == 0 {
                        let _ = client.try_send(get("/attacker"));
                    }
                    idle.push(client);
                    made += 1;
                }
                thread::sleep(Duration::from_millis(if made < 200 { 1 } else { 20 }));
            }
            made
        })
    };
    thread::sleep(Duration::from_millis(1200));
    let began = Instant::now();
    let (mut served, mut asked, mut waits) = (0, 0, Vec::new());
    while began.elapsed() < Duration::from_millis(2500) {
        for request in every_form("/victim") {
            let sent = Instant::now();
            asked += 1;
            let connected = Client::connect(proxy.address).map(|client| client.with_h2c(proxy.h2c));
            let answer = connected.and_then(|mut client| {
                client.try_send(&request)?;
                client.try_answer()
            });
            served += usize::from(answer.is_ok_and(|answer| answer.status == 200));
            waits.push(sent.elapsed());
            thread::sleep(Duration::from_millis(10));
        }
    }
    let made = attacker.join().unwrap();
    waits.sort();
    let p99 = waits[waits.len() * 99 / 100];
    println!(
        "descriptors: {made} idle connections against a limit of 150 files; victim {served} of {asked}, p99 {p99:?}"
    );
    assert_eq!(served, asked);
    assert!(made > 150, "the attacker made only {made} connections");
    assert!(!proxy.log().contains("app_away"));
}
