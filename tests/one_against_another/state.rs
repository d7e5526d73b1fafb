//! Snapshots: a client that fills the table of rate limits cannot push another client's ban, or an open breaker, out of the file.

use std::fs;

use outrigger_policy::saved::{SMALLEST, Saved};
use xtask::Signal;

use crate::{
    abuse::ban,
    backend::Backend,
    harness::{PATIENCE, Proxy, from_address, get, until},
    limits::{EDGE, NO_DEFAULTS, rule},
};

/// More keys than fit into the smallest file.
const CLIENTS: usize = SMALLEST / 16 + 400;

#[test]
fn a_client_with_many_addresses_cannot_push_a_ban_out_of_the_snapshot() {
    let app = Backend::start();
    let rules = format!(
        "{EDGE}state.directory = \"state\"\nstate.every = \"100ms\"\nstate.max_size = \"64KiB\"\nlog.access = false\n\
         rate_limits.mode = \"enforce\"\n{NO_DEFAULTS}{}",
        rule("few", "100/1h", "")
    );
    let proxy = Proxy::with(&app, &rules);
    ban(&proxy, "address:203.0.113.7", "5m");
    // Each address is a client of its own, whose key is in the file until its quota is full.
    let mut attacker = proxy.connect();
    for n in 0..CLIENTS {
        let address = format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255);
        assert_eq!(attacker.send(from_address(&get("/"), &address)).answer().status, 200);
    }
    let left_out = || proxy.metric("outrigger_state_left_out_total", &[("kind", "limits")]);
    until("keys to be left out", || left_out() > 0.0);
    let file = proxy.dir.join("state/snapshot");
    let read = || Saved::decode(&fs::read(&file).ok()?).ok();
    until("a full file", || read().is_some_and(|saved| saved.limits.len() > 3000));
    let saved = read().unwrap();
    assert_eq!(saved.bans.len(), 1);
    assert_eq!(proxy.metric("outrigger_state_left_out_total", &[("kind", "bans")]), 0.0);
    let bytes = fs::metadata(&file).unwrap().len();
    println!(
        "snapshots, {CLIENTS} addresses of one client: the ban is one of {} entries in {bytes} bytes",
        saved.limits.len() + 1
    );
    assert!(bytes <= SMALLEST as u64);
    let setup = (*proxy).clone();
    let mut proxy = proxy;
    proxy.signal(Signal::KILL);
    proxy.ends_within(PATIENCE);
    let proxy = setup.start();
    proxy.ask(&from_address(&get("/"), "203.0.113.7")).is_problem(403, "abnormal_usage_detected");
}
