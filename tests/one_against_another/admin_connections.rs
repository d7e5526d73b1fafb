//! Connections to the admin listener: one client opens as many as it can, idle, with unfinished header sections, or with
//! responses that it does not read; the public port, a scraper and an operator must not notice.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::Backend,
    harness::{Client, Proxy, get},
};

#[test]
fn others_are_served_while_one_client_fills_the_admin_listener() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let (is_over, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    let attacker = || {
        let mut held = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            let Ok(mut client) = Client::connect(proxy.admin) else { continue };
            // Idle, with half a header section, and with an unread response.
            match opened.fetch_add(1, Ordering::Relaxed) % 3 {
                0 => {}
                1 => drop(client.try_send("GET /metrics HTTP/1.1\r\nHost: ")),
                _ => drop(client.try_send("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(20))),
            }
            held.push(client);
            if held.len() > 400 {
                held.drain(..100);
            }
            thread::sleep(Duration::from_millis(1));
        }
    };
    let (mut served, mut scraped, mut operated) = (Vec::new(), 0, 0);
    let most_files = AtomicUsize::new(0);
    const ROUNDS: usize = 40;
    thread::scope(|scope| {
        scope.spawn(attacker);
        while opened.load(Ordering::Relaxed) < 300 {
            thread::sleep(Duration::from_millis(1));
        }
        let mut public = proxy.connect();
        for _ in 0..ROUNDS {
            let began = Instant::now();
            assert_eq!(public.send(get("/")).answer().status, 200);
            served.push(began.elapsed());
            // Prometheus and an operator, from other addresses of this machine.
            let scraper = Client::connect_from(Ipv4Addr::new(127, 0, 0, 2), proxy.admin).ok();
            let scrape = |mut client: Client| client.send(get("/metrics")).try_answer().is_ok_and(|a| a.status == 200);
            scraped += usize::from(scraper.is_some_and(scrape));
            let operator = Client::connect_from(Ipv4Addr::new(127, 0, 0, 3), proxy.admin).ok();
            let look = |mut client: Client| {
                let request = "GET /bans HTTP/1.1\r\nHost: localhost\r\n\r\n";
                client.send(request).try_answer().is_ok_and(|answer| answer.status == 200)
            };
            operated += usize::from(operator.is_some_and(look));
            let files = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap().count();
            most_files.fetch_max(files, Ordering::Relaxed);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    served.sort_unstable();
    let (opened, files) = (opened.into_inner(), most_files.into_inner());
    println!(
        "admin connections: {opened} opened by one client; public port {ROUNDS} of {ROUNDS}, median {:?}, slowest {:?}; scraper {scraped} \
         and operator {operated} of {ROUNDS}; at most {files} files open",
        served[ROUNDS / 2],
        served[ROUNDS - 1],
    );
    assert_eq!((scraped, operated), (ROUNDS, ROUNDS));
    assert!(files < 150, "{files} files are open");
}
