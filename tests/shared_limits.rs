//! Limits that several Machines count together in Redis: how much they admit, and what happens when Redis does not answer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xtask::{Redis, paths, wait};

use crate::backend::Backend;
use crate::harness::{PATIENCE, Proxy, Setup, fresh_dir, from_address, get, post, until};
use crate::limits::{EDGE, NO_DEFAULTS, is_refused_by, left, route, rule};

/// What becomes true "within a second" does so.
const SECOND: Duration = Duration::from_secs(1);

/// Limits are shared by so many.
fn sharing(machines: usize) -> String {
    format!("{NO_DEFAULTS}rate_limits.shared = \"redis\"\nrate_limits.redis.machines = {machines}\n")
}

fn machine(app: &Backend, url: &str, rules: &str) -> Proxy {
    Setup::new(app, rules).env("OUTRIGGER_REDIS_URL", url).start()
}

fn is_in_state(proxy: &Proxy, state: &str) -> bool {
    proxy.metric("outrigger_shared_limits_state", &[("state", state)]) == 1.0
}

#[track_caller]
fn gets_shared(proxy: &Proxy) {
    until("limits to be shared", || is_in_state(proxy, "shared"));
}

/// Waits until every Machine says so, in its metrics and its health, and gives how long that took.
#[track_caller]
fn all_become(fleet: &[Proxy], state: &str) -> Duration {
    let began = Instant::now();
    let health = format!("shared limits: {state}");
    for proxy in fleet {
        until("everybody to say so", || is_in_state(proxy, state) && proxy.admin("/healthz").body.contains(&health));
    }
    began.elapsed()
}

/// So many Machines with the same rules.
fn fleet(app: &Backend, redis: &Redis, machines: usize, rules: &str) -> Vec<Proxy> {
    let rules = format!("{}{rules}", sharing(machines));
    let fleet: Vec<Proxy> = (0..machines).map(|_| machine(app, &redis.url(), &rules)).collect();
    fleet.iter().for_each(gets_shared);
    fleet
}

/// What one client did at one Machine.
#[derive(Debug, Default)]
struct Log {
    /// When it was let through: sent, answered.
    admitted: Vec<(Instant, Instant)>,
    refused: usize,
    latencies: Vec<Duration>,
}

/// Asks a Machine at this pace until told to stop.
fn ask(address: SocketAddr, pace: Duration, stop: &AtomicBool) -> Log {
    let mut client = crate::harness::Client::connect(address).expect("the proxy takes connections");
    let (mut log, mut next) = (Log::default(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let status = client.send(get("/")).answer().status;
        let answered = Instant::now();
        log.latencies.push(answered - sent);
        match status {
            200 => log.admitted.push((sent, answered)),
            429 => log.refused += 1,
            other => panic!("an answer {other}"),
        }
        next += pace;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    log
}

/// All Machines under load, one client at each, while `meanwhile` runs.
fn under_load(fleet: &[Proxy], pace: Duration, meanwhile: impl FnOnce()) -> Vec<Log> {
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = fleet
        .iter()
        .map(|proxy| {
            let (address, stop) = (proxy.address, Arc::clone(&stop));
            thread::spawn(move || ask(address, pace, &stop))
        })
        .collect();
    meanwhile();
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().map(|client| client.join().expect("every answer was 200 or 429")).collect()
}

/// How many were let through and when, in order of their answers.
fn admitted(logs: &[Log]) -> Vec<(Instant, Instant)> {
    let mut all: Vec<_> = logs.iter().flat_map(|log| log.admitted.iter().copied()).collect();
    all.sort_by_key(|(_, answered)| *answered);
    all
}

#[test]
fn five_machines_admit_one_quota_under_ten_times_the_load() {
    let (app, redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    // 30 a second, of which 60 may come at once; 5 Machines get 60 a second each.
    let fleet = fleet(&app, &redis, 5, &rule("all", "60/2s", "by = \"client\""));
    let began = Instant::now();
    let logs = under_load(&fleet, Duration::from_millis(16), || thread::sleep(Duration::from_secs(20)));
    let took = began.elapsed().as_secs_f64();
    let all = admitted(&logs);
    let first = all[0].0;
    // What is due at the time of each answer, and at most one lease of each Machine more: a fifth of what may come at once.
    for (count, (_, answered)) in all.iter().enumerate() {
        let due = 60.0 + 30.0 * (*answered - first).as_secs_f64() + 5.0 * 12.0;
        assert!((count + 1) as f64 <= due, "{count} after {:?}", *answered - first);
    }
    let due = 60.0 + 30.0 * took;
    let refused: usize = logs.iter().map(|log| log.refused).sum();
    println!("admitted {} of {due:.1} due in {took:.1} s, refused {refused}", all.len());
    assert!(refused as f64 > 5.0 * due, "ten times the load: {refused}");
    // In the long run it is the quota: what is spent too early is waited for. In the last moment, some settle.
    assert!((due - 5.0..=due + 10.0).contains(&(all.len() as f64)), "{} of {due}", all.len());
    for log in &logs {
        assert!(log.admitted.len() > all.len() / 20, "nobody starves: {}", log.admitted.len());
    }
    let spent: f64 = fleet.iter().map(|proxy| proxy.metric("outrigger_shared_limits_tokens_total", &[])).sum();
    assert!(spent >= all.len() as f64 - 5.0, "{spent} settled of {}", all.len());
}
