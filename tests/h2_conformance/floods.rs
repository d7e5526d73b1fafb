//! RFC 9113 section 10.5: a client floods its connection, which must stay bounded. A neighbour's connection must not notice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::case::{Case, Connection, Expect, Step, steps};
use super::wire::*;
use super::{problems, report};
use crate::{
    backend::{Backend, Play},
    harness::{PATIENCE, Proxy},
};

/// A request of the neighbour may take this long on a busy machine.
const UNNOTICED: Duration = Duration::from_secs(3);
/// All floods together may add this much to the proxy's peak memory.
const MOST_GROWTH_KIB: u64 = 64 << 10;
const CALM: Expect = Expect::Connection(&[ENHANCE_YOUR_CALM]);

pub fn floods() -> Vec<Case> {
    let odd_streams =
        |count: u32, bytes: fn(u32) -> Vec<u8>| -> Vec<u8> { (0..count).flat_map(|n| bytes(2 * n + 1)).collect() };
    let pings = frame(PING, 0, 0, &[1; 8]).repeat(100);
    let open_block = frame(HEADERS, END_STREAM, 1, &block(&with("/", &[])));
    let flood = |name, expect, first, bytes, times| {
        steps("10.5", name, expect, vec![Step::Send(first), Step::Repeat(bytes, times)])
    };
    vec![
        steps(
            "10.5",
            "rapid reset",
            CALM,
            vec![Step::Send(odd_streams(5_000, |id| [get(id, "/"), reset(id)].concat()))],
        ),
        steps(
            "10.5",
            "rapid reset of hanging requests",
            CALM,
            vec![Step::Send(odd_streams(5_000, |id| [post(id, "/hang", &[]), reset(id)].concat()))],
        ),
        steps(
            "10.5",
            "resets that the server is made to send",
            CALM,
            vec![Step::Send(odd_streams(5_000, |id| {
                [post(id, "/hang", &[]), window_update(id, 0x7fff_ffff)].concat()
            }))],
        ),
        steps(
            "10.5",
            "malformed requests without end",
            CALM,
            vec![Step::Send(odd_streams(5_000, |id| last_headers(id, &with("/", &[("connection", "close")]))))],
        ),
        flood("PING", Expect::Bounded, vec![], pings, 200),
        steps(
            "10.5",
            "PING whose ACKs are not read",
            Expect::Bounded,
            vec![Step::Stall(frame(PING, 0, 0, &[1; 8]), 4_000_000)],
        ),
        steps("10.5", "SETTINGS whose ACKs are not read", Expect::Bounded, vec![Step::Stall(settings(&[]), 4_000_000)]),
        flood("PING ACK", Expect::Bounded, vec![], frame(PING, ACK, 0, &[1; 8]).repeat(100), 200),
        flood("SETTINGS", Expect::Bounded, vec![], settings(&[(4, 65_535)]).repeat(100), 100),
        flood("PRIORITY", Expect::Bounded, vec![], frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9]).repeat(100), 200),
        flood("unknown frames", Expect::Bounded, vec![], frame(0x7f, 0, 0, &[]).repeat(100), 200),
        flood("WINDOW_UPDATE", Expect::Bounded, vec![], window_update(0, 1).repeat(100), 200),
        flood("empty DATA", CALM, post(1, "/hang", &[]), data(1, b"").repeat(100), 1000),
        flood("DATA of one byte", Expect::Bounded, post(1, "/", &[]), data(1, b"x").repeat(100), 100),
        flood(
            "empty CONTINUATION without end",
            CALM,
            open_block.clone(),
            frame(CONTINUATION, 0, 1, &[]).repeat(100),
            100,
        ),
        flood(
            "CONTINUATION with headers without end",
            CALM,
            open_block,
            frame(CONTINUATION, 0, 1, &literal(0, "x", &"y".repeat(16_000))),
            1000,
        ),
        steps(
            "5.1.2",
            "more streams than the server allows",
            Expect::Stream(2001, &[REFUSED_STREAM, PROTOCOL_ERROR]),
            vec![
                Step::Send(odd_streams(1000, |id| post(id, "/open", &[]))),
                Step::Send(post(2001, "/open", &[])),
                Step::End(2001),
                Step::Send(odd_streams(10, reset)),
            ],
        ),
    ]
}

#[test]
fn floods_are_bounded_and_a_neighbour_does_not_notice() {
    let app = Backend::start();
    app.at("/hang", Play::Hang);
    let proxy = Proxy::with(&app, "log.access = false\n");
    let (before, _) = proxy.memory_kib();
    let done = AtomicBool::new(false);
    let (slowest, problems) = thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !done.load(Ordering::SeqCst) {
                let mut connection = Connection::greeted(proxy.h2c, PATIENCE);
                for stream in (1..20).step_by(2) {
                    let asked = Instant::now();
                    connection.serves(stream).expect("the neighbour is served");
                    slowest = slowest.max(asked.elapsed());
                }
            }
            slowest
        });
        let problems = problems(&app, proxy.h2c, &floods(), 2);
        done.store(true, Ordering::SeqCst);
        (neighbour.join().expect("the neighbour is served"), problems)
    });
    let grown = proxy.memory_kib().1 - before;
    println!("the neighbour's slowest request took {slowest:?}; the proxy grew by {grown} KiB");
    report(&problems);
    assert!(slowest < UNNOTICED, "the neighbour waited {slowest:?}");
    assert!(grown < MOST_GROWTH_KIB, "the proxy grew by {grown} KiB");
    proxy.comes_to_rest();
}

#[test]
fn a_client_that_reads_nothing_loses_its_connection() {
    let app = Backend::start();
    app.at("/large", Play::Stream(64 << 20));
    let proxy = Proxy::with(&app, "client.write_timeout = \"500ms\"\nclient.idle_timeout = \"1s\"\n");
    let mut connection = Connection::greeted(proxy.h2c, PATIENCE);
    let large = 1 << 30;
    connection.send(&[settings(&[(4, large)]), window_update(0, large), get(1, "/large")].concat());
    crate::harness::until("the request has ended", || proxy.metric("outrigger_requests_total", &[]) >= 1.0);
    proxy.comes_to_rest();
    drop(connection);
}
