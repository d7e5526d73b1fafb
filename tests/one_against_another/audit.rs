//! The audit log's queue and disk, and the log's queue.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::audit::entries;
use crate::backend::Backend;
use crate::harness::{Client, Proxy, get, post, until, with_fields};
use crate::limits::{EDGE, NO_DEFAULTS};

const VICTIM: &str = "192.0.2.8";
const ATTACKER: &str = "192.0.2.7";
const LIMIT: &str = "[[rate_limits.rules]]\nname = \"each\"\nby = \"client\"\nrate = \"100/1s\"\n";

/// Latencies of the victim's requests, all of which succeed, while `attack` is repeated on eight connections; and how many of
/// the attacker's requests were rejected.
fn under_attack(proxy: &Proxy, attack: &str, requests: usize) -> (Vec<Duration>, usize) {
    let (stop, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = proxy.connect();
                while !stop.load(Ordering::Relaxed) {
                    if client.send(attack).answer().status == 429 {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        until("the attack to be refused", || refused.load(Ordering::Relaxed) > 500);
        let request = with_fields(&post("/documents", "{}"), &[&format!("Fly-Client-IP: {VICTIM}")]);
        let mut client: Client = proxy.connect();
        let mut times: Vec<Duration> = (0..requests)
            .map(|number| {
                let began = Instant::now();
                let answer = client.send(&request).answer();
                let took = began.elapsed();
                if answer.status != 200 {
                    stop.store(true, Ordering::Relaxed);
                }
                assert_eq!(answer.status, 200, "request {number} of the victim: {}", answer.text());
                took
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        times.sort();
        (times, refused.load(Ordering::Relaxed))
    })
}

#[test]
fn a_flood_of_rejections_and_long_entries_delays_no_other_clients_entry() {
    let app = Backend::start();
    let names: Vec<String> = (0..16).map(|number| format!("X-Long-{number}")).collect();
    let rules = format!(
        "{EDGE}audit.directory = \"trail\"\naudit.default = \"data\"\naudit.durability.data = \"before-response\"\n\
         audit.max_size = \"16MiB\"\naudit.segment_size = \"1MiB\"\naudit.headers = {names:?}\n{NO_DEFAULTS}{LIMIT}"
    );
    let proxy = Proxy::with(&app, &rules);
    let long: Vec<String> = names.iter().map(|name| format!("{name}: {}", "\"".repeat(300))).collect();
    let mut fields: Vec<&str> = long.iter().map(String::as_str).collect();
    let from = format!("Fly-Client-IP: {ATTACKER}");
    fields.push(&from);
    let (times, refused) = under_attack(&proxy, &with_fields(&get("/documents"), &fields), 100);
    println!(
        "audit log: {} of 100 requests of the victim entered before their response, median {:?}, longest {:?}; {refused} refusals of the attacker",
        times.len(),
        times[50],
        times[99]
    );
    assert!(times[99] < Duration::from_secs(2), "longer than a commit may take: {:?}", times[99]);
    // Each rejection is counted, and few of them have their own entry.
    let of_attack = || {
        let found = entries(&proxy).into_iter().filter(|entry| entry["type"] == "security.rate_limited");
        found.map(|entry| entry["details"]["count"].as_u64().unwrap_or(1)).collect::<Vec<_>>()
    };
    until("all refusals to be entered", || of_attack().iter().sum::<u64>() >= refused as u64);
    let own = of_attack().iter().filter(|count| **count == 1).count();
    assert!(own < refused / 2, "{own} entries for {refused} refusals");
    let named = entries(&proxy).into_iter().filter(|entry| entry["type"] == "security.rate_limited");
    assert!(named.into_iter().all(|entry| entry["details"]["limit"] == "each"), "each names the limit that refused");
}
