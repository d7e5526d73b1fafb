//! The queue of log lines: one client causes a line with each of many rejected requests, another one is served.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::harness::{Proxy, get, until};

const ATTACKER: u8 = 10;
const VICTIM: u8 = 20;

#[test]
fn a_flood_of_rejections_delays_no_other_client_and_lost_lines_are_counted() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "x".repeat(2000));
    let (is_over, rejected) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut times = Vec::new();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let answer = proxy.connect_as(ATTACKER).send(&long).try_answer();
                    rejected.fetch_add(usize::from(answer.is_ok_and(|answer| answer.status == 400)), Ordering::Relaxed);
                }
            });
        }
        until("the attack to run", || rejected.load(Ordering::Relaxed) > 200);
        let mut victim = proxy.connect_as(VICTIM);
        for n in 0..200 {
            let began = Instant::now();
            assert_eq!(victim.send(get(&format!("/victim/{n}"))).answer().status, 200);
            times.push(began.elapsed());
        }
        is_over.store(true, Ordering::Relaxed);
    });
    times.sort_unstable();
    let rejected = rejected.into_inner();
    let lines = || proxy.log().lines().filter(|line| line.contains("\"path\":\"/victim/")).count();
    let dropped = || proxy.metric("outrigger_log_lines_dropped_total", &[]) as usize;
    until("the lines to be written", || lines() + dropped() >= 200);
    println!(
        "log queue: 200 of 200 requests of the victim served, p99 {:?}; {} of 200 lines written, {} dropped; {rejected} rejected",
        times[198],
        lines(),
        dropped()
    );
    assert!(times[198] < Duration::from_millis(500), "{:?}", times[198]);
}
