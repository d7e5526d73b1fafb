//! Receipts in memory: one client that is refused all the time.

use crate::backend::Backend;
use crate::harness::{Proxy, from_address, get, until};
use crate::limits::{EDGE, NO_DEFAULTS, rule};
use crate::receipts::id;

#[test]
fn a_client_that_is_refused_all_the_time_pushes_out_no_receipt_of_another() {
    let app = Backend::start();
    let rules = format!("{EDGE}{NO_DEFAULTS}receipts.max = 64\n{}", rule("few", "1/1h", ""));
    let proxy = Proxy::with(&app, &rules);
    // One in 64 victims shares the attacker's shard: that more than three of seven do has a chance of 2 in a million.
    let victims: Vec<String> = (1..=7)
        .map(|n| {
            let request = from_address(&get("/a"), &format!("198.51.100.{n}"));
            assert_eq!(proxy.ask(&request).status, 200);
            id(&proxy.ask(&request))
        })
        .collect();
    let mut attacker = proxy.connect();
    for _ in 0..2000 {
        attacker.send(from_address(&get("/a"), "203.0.113.1")).answer();
    }
    let in_memory = || proxy.shows("/requests?limit=500")["in_memory"].as_u64();
    until("the attacker's receipts", || in_memory() >= Some(56));
    let left = victims.iter().filter(|id| proxy.admin(&format!("/requests/{id}")).status == 200).count();
    println!("receipts: {left} of 7 receipts of others are there after 2,000 rejections of one client; room for 64");
    assert!(left >= 4, "{left} of 7");
    assert!(in_memory() <= Some(64));
}
