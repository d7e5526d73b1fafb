//! The table of rate limits, and the addresses that tell clients apart.

use crate::{
    backend::Backend,
    harness::{Form, Proxy, from_address, get, with_fields},
    limits::{EDGE, NO_DEFAULTS, rule},
};

#[test]
fn filling_the_table_takes_no_quota_from_others() {
    const VICTIMS: usize = 8;
    let app = Backend::start();
    app.says("/", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let rules = format!(
        "{EDGE}log.access = false\nidentity.unknown_keys = \"count\"\nabuse.mode = \"off\"\nrate_limits.max_keys = 200\n\
         {NO_DEFAULTS}{}",
        rule("each", "5/1h", "")
    );
    let proxy = Proxy::with(&app, &rules);
    // A new key with each request: the table is full, and the quota that new clients share is used up.
    let mut attacker = proxy.connect();
    let refused = (0..2000)
        .map(|n| from_address(&with_fields(&get("/"), &[&format!("X-Api-Key: {n:020}")]), "198.51.100.66"))
        .filter(|request| attacker.send(request).answer().status == 429)
        .count();
    assert!(refused > 1500, "{refused}");
    let keys = proxy.shows("/limits")["keys"].clone();
    assert_eq!(keys["used"], keys["room"], "the table is full");
    let (mut served, mut unaffected) = (0, 0);
    for n in 0..VICTIMS {
        // Each gets five and not a sixth: no client becomes unlimited.
        let request = |form: Form| from_address(&form.request("/"), &format!("203.0.113.{n}"));
        let statuses: Vec<u16> = (0..6).map(|time| proxy.ask(&request(Form::nth(n + time))).status).collect();
        let of_five = statuses[..5].iter().filter(|status| **status == 200).count();
        assert_eq!(statuses[5], 429, "{statuses:?}");
        (served, unaffected) = (served + of_five, unaffected + usize::from(of_five == 5));
    }
    println!("table of limits, 2,000 keys by one address: {served} of {} requests of others are served", 5 * VICTIMS);
    // Two victims share one of 65,536 cells once in 1,800 runs; two pairs do once in 6,000,000.
    assert!(unaffected >= VICTIMS - 1, "{unaffected} of {VICTIMS}");
}

#[test]
fn no_client_spends_the_quota_of_an_address_that_it_claims() {
    const VICTIM: &str = "203.0.113.7";
    let app = Backend::start();
    let limits = format!("{NO_DEFAULTS}{}", rule("each", "20/1h", ""));
    let behind_nginx = "identity.trusted = [\"127.0.0.1\"]\n";
    for (rules, real) in [(EDGE, "Fly-Client-IP"), (behind_nginx, "X-Forwarded-For")] {
        let proxy = Proxy::with(&app, &format!("{rules}{limits}"));
        // All headers that an attacker behind the edge can add; the edge's header names the client.
        let claims = ["Forwarded: for=203.0.113.7", "X-Real-IP: 203.0.113.7", "CF-Connecting-IP: 203.0.113.7"];
        let other = if real == "Fly-Client-IP" { "X-Forwarded-For" } else { "Fly-Client-IP" };
        let by_edge = |n: usize, client: &str, more: &[&str]| {
            let said = format!("{real}: {client}");
            with_fields(&Form::nth(n).request("/"), &[&[said.as_str()], more].concat())
        };
        let claimed = format!("{other}: {VICTIM}");
        let attack: Vec<u16> = (0..60)
            .map(|n| proxy.ask(&by_edge(n, "198.51.100.66", &[&claims[..], &[claimed.as_str()]].concat())).status)
            .collect();
        assert_eq!(attack.iter().filter(|status| **status == 200).count(), 20, "it spends its own: {attack:?}");
        let served = (0..20).filter(|n| proxy.ask(&by_edge(*n, VICTIM, &[])).status == 200).count();
        println!("claimed addresses, {real} is believed: {served} of 20 requests of the claimed one are served");
        assert_eq!(served, 20);
    }
}
