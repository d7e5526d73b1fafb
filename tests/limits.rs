//! Rate limits: which requests are rejected, the headers in responses, separate quotas, and the state that a config reload
//! keeps.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sfv::{List, ListEntry, Parser};

use crate::backend::Backend;
use crate::harness::{
    Answer, Client, Form, Proxy, Setup, every_form, from_address, get, post, sha256, until, with_fields,
};

/// Disables the limits by priority, so that only a test's own limits apply.
pub const NO_DEFAULTS: &str = "rate_limits.critical = \"off\"\nrate_limits.high = \"off\"\nrate_limits.medium = \"off\"\n\
                           rate_limits.low = \"off\"\nrate_limits.strict = \"off\"\n";
/// The edge through which all clients of these tests come.
pub const EDGE: &str = "identity.edge = \"fly\"\n";

/// A further limit. Its rate is per hour, so no tokens return while a test runs.
pub fn rule(name: &str, rate: &str, more: &str) -> String {
    format!("[[rate_limits.rules]]\nname = \"{name}\"\nrate = \"{rate}\"\n{more}\n")
}

pub fn route(name: &str, more: &str) -> String {
    format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\n{more}\n")
}

/// Names and numbers of a structured field, read by an independent parser.
#[track_caller]
pub fn parsed(answer: &Answer, field: &str) -> BTreeMap<String, BTreeMap<String, i64>> {
    let text = answer.header(field).unwrap_or_default();
    let list: List = Parser::new(text).parse().unwrap_or_else(|e| panic!("{field}: {text:?}: {e}"));
    let item = |entry: ListEntry| {
        let ListEntry::Item(item) = entry else { panic!("{text}: a list in it") };
        let number = |value: &sfv::BareItem| i64::from(value.as_integer().expect("a number"));
        let params = item.params.iter().map(|(key, value)| (key.as_str().to_owned(), number(value))).collect();
        (item.bare_item.as_string().expect("a string").as_str().to_owned(), params)
    };
    list.into_iter().map(item).collect()
}

/// The remaining quota under this limit, from the response headers.
#[track_caller]
pub fn left(answer: &Answer, limit: &str) -> i64 {
    let limits = parsed(answer, "ratelimit");
    *limits.get(limit).and_then(|of| of.get("r")).unwrap_or_else(|| panic!("nothing of {limit}: {answer:?}"))
}

#[track_caller]
pub fn is_refused_by(answer: &Answer, limit: &str) {
    answer.is_problem(429, "quota_exceeded");
    assert_eq!(answer.json()["violated-policies"], serde_json::json!([limit]), "{answer:?}");
    assert!(answer.number("retry-after") > 0, "{answer:?}");
    assert!(answer.stays_open(), "{answer:?}");
}

/// Sends these requests sequentially on one connection; returns how many are not rejected.
pub fn admitted(client: &mut Client, request: &str, times: usize) -> usize {
    (0..times).filter(|_| client.send(request).answer().status != 429).count()
}

#[test]
fn an_empty_file_limits_each_client_by_priority() {
    let app = Backend::start();
    let proxy =
        Proxy::with(&app, &format!("rate_limits.mode = \"enforce\"\n{}", route("strict", "priority = \"strict\"")));
    for (request, priority, per_minute) in
        [(get("/"), "medium", 100), (post("/strict", "hello"), "strict", 10), (get("/health/live"), "", 0)]
    {
        let mut client = proxy.connect();
        let began = Instant::now();
        // The unlimited path gets more requests than any limit allows, the others more than are given back meanwhile.
        let times = if per_minute == 0 { 150 } else { 2 * per_minute };
        let answers: Vec<Answer> = (0..times).map(|_| client.send(&request).answer()).collect();
        let took = began.elapsed();
        if priority.is_empty() {
            assert!(answers.iter().all(|answer| answer.status == 200 && answer.header("ratelimit").is_none()));
            continue;
        }
        let (first, then) = answers.split_at(per_minute);
        assert!(first.iter().all(|answer| answer.status == 200), "{priority}");
        let given_back = (took.as_nanos() * per_minute as u128 / 60_000_000_000) as usize;
        let refused: Vec<&Answer> = then.iter().filter(|answer| answer.status == 429).collect();
        assert!((then.len() - given_back..=then.len()).contains(&refused.len()), "{} in {took:?}", refused.len());
        is_refused_by(refused[0], priority);
        let policy = &parsed(refused[0], "ratelimit-policy")[priority];
        assert_eq!((policy["q"], policy["w"]), (per_minute as i64, 60));
        proxy.counts("outrigger_limit_refusals_total", &[("limit", priority), ("mode", "enforce")], refused.len());
        proxy.counts(
            "outrigger_refusals_total",
            &[("priority", priority), ("reason", "quota_exceeded")],
            refused.len(),
        );
    }
    assert_eq!(app.requests(), app.whole_requests());
}

#[test]
fn a_client_that_waits_exactly_retry_after_is_admitted() {
    let app = Backend::start();
    let rules = format!("{NO_DEFAULTS}{}", rule("each", "1/1s", "burst = 1\nby = \"client-and-route\""));
    let proxy = Proxy::with(&app, &format!("{rules}{}{}", route("one", ""), route("other", "")));
    let mut clients = [get("/one"), post("/other", "hello")].map(|request| (request, proxy.connect()));
    for (request, client) in &mut clients {
        assert_eq!(client.send(&*request).answer().status, 200);
    }
    for _ in 0..3 {
        let mut next = Instant::now();
        for (request, client) in &mut clients {
            let answer = client.send(&*request).answer();
            is_refused_by(&answer, "each");
            next = next.max(Instant::now() + Duration::from_secs(answer.number("retry-after")));
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
        for (request, client) in &mut clients {
            assert_eq!(client.send(&*request).answer().status, 200);
        }
    }
}

#[test]
fn a_client_that_does_not_wait_is_rejected_exactly_at_the_quota() {
    let app = Backend::start();
    let interval = Duration::from_millis(50);
    let rules = format!("{NO_DEFAULTS}{}", rule("each", "20/1s", "burst = 1\nby = \"client-and-route\""));
    let proxy = Proxy::with(&app, &format!("{rules}{}{}", route("one", ""), route("other", "")));
    for request in [get("/one"), post("/other", "hello")] {
        let mut client = proxy.connect();
        // Bounds of the time at which the next request is due: not before `earliest`, certainly from `latest` on.
        let began = Instant::now();
        let (mut earliest, mut latest) = (began, began);
        let (mut admitted, mut refused) = (0, 0);
        for n in 0..100_u64 {
            // Pauses from zero to slightly longer than needed.
            thread::sleep(Duration::from_millis(n * 7919 % 55));
            let sent = Instant::now();
            let status = client.send(&request).answer().status;
            let answered = Instant::now();
            if status == 200 {
                assert!(answered >= earliest, "request {n} came too early by {:?}", earliest - answered);
                (earliest, latest) = (sent.max(earliest) + interval, answered + interval);
                admitted += 1;
            } else {
                assert!(sent < latest, "request {n} came {:?} after its time, and got {status}", sent - latest);
                refused += 1;
            }
        }
        let most = 1 + (began.elapsed().as_nanos() / interval.as_nanos()) as usize;
        assert!(admitted <= most, "{admitted} of {most}");
        assert!(admitted > 20 && refused > 20, "both have to be seen: {admitted}, {refused}");
        let labels = [("limit", "each"), ("mode", "enforce")];
        until("the refusals to be counted", || {
            proxy.metric("outrigger_limit_refusals_total", &labels) >= f64::from(refused)
        });
    }
}

#[test]
fn responses_have_the_limit_and_the_remaining_quota() {
    let app = Backend::start();
    let rules = format!(
        "rate_limits.legacy_headers = true\n{NO_DEFAULTS}{}{}{}{}",
        rule("wide", "100/1h", ""),
        rule("narrow-1", "7/1d", "burst = 3"),
        rule("of_all", "50/1h", "by = \"machine\""),
        rule("shadow", "2/1h", "mode = \"monitor\"")
    );
    let proxy = Proxy::with(&app, &rules);
    for (address, form) in (10..).zip(Form::ALL) {
        let mut client = proxy.connect_as(address);
        let began = Instant::now();
        for asked in 1..=4 {
            let answer = client.send(form.request("/")).answer();
            let is_refused = asked > 3;
            let taken = asked.min(3);
            assert_eq!(answer.status, if is_refused { 429 } else { 200 });
            // Responses do not show limits shared with other clients or limits in `monitor`.
            let policies = parsed(&answer, "ratelimit-policy");
            assert_eq!(policies.keys().collect::<Vec<_>>(), ["narrow-1", "wide"]);
            assert_eq!((policies["wide"]["q"], policies["wide"]["w"]), (100, 3600));
            assert_eq!((policies["narrow-1"]["q"], policies["narrow-1"]["w"]), (3, 86_400));
            let limits = parsed(&answer, "ratelimit");
            assert_eq!(limits.keys().collect::<Vec<_>>(), ["narrow-1", "wide"]);
            let late = began.elapsed().as_secs() as i64 + 1;
            // Each request takes 36 seconds of the first limit, and a seventh of a day of the second.
            for (name, left, full_in) in
                [("wide", 100 - taken, 36 * taken), ("narrow-1", 3 - taken, 86_400 * taken / 7 + 1)]
            {
                assert_eq!(limits[name]["r"], left, "{name}: {answer:?}");
                let t = limits[name]["t"];
                assert!((full_in - late..=full_in).contains(&t), "{name}: {t} is not {full_in}");
            }
            assert_eq!(answer.number("x-ratelimit-limit"), 3);
            assert_eq!(answer.number("x-ratelimit-remaining"), 3 - taken as u64);
            assert_eq!(answer.number("x-ratelimit-reset"), limits["narrow-1"]["t"] as u64);
            if is_refused {
                is_refused_by(&answer, "narrow-1");
                let wait = answer.number("retry-after") as i64;
                assert!((86_400 / 7 + 1 - late..=86_400 / 7 + 1).contains(&wait), "{wait}");
            }
        }
    }
    proxy.changes_to(&rules.replace("rate_limits.legacy_headers = true", "rate_limits.headers = false"));
    for (address, request) in (10..).zip(every_form("/")) {
        let answer = proxy.ask_as(address, &request);
        assert_eq!(answer.status, 429);
        assert!(!answer.headers.keys().any(|name| name.contains("ratelimit")), "{answer:?}");
    }
}

#[test]
fn a_rejection_by_one_limit_is_not_charged_to_the_others() {
    let app = Backend::start();
    for (first, last) in [("tight", "wide"), ("wide", "tight")] {
        let one = |name: &str| match name {
            "tight" => rule("tight", "6/1h", "routes = [\"tight\"]"),
            name => rule(name, "100/1h", ""),
        };
        let routes = format!("{}{}", route("tight", ""), route("free", ""));
        let proxy = Proxy::with(&app, &format!("{NO_DEFAULTS}{}{}{routes}", one(first), one(last)));
        for request in every_form("/tight") {
            assert_eq!(proxy.ask(&request).status, 200);
        }
        for request in every_form("/tight").iter().cycle().take(20) {
            let answer = proxy.ask(request);
            is_refused_by(&answer, "tight");
            assert_eq!((left(&answer, "tight"), left(&answer, "wide")), (0, 94));
        }
        assert_eq!(left(&proxy.get("/free"), "wide"), 93);
        proxy.counts("outrigger_limit_refusals_total", &[("limit", "tight")], 20);
        proxy.counts("outrigger_limit_refusals_total", &[("limit", "wide")], 0);
    }
}

#[test]
fn an_expensive_route_takes_its_cost() {
    let app = Backend::start();
    let rules = format!("{NO_DEFAULTS}{}{}", rule("each", "100/1h", ""), route("export", "cost = 30"));
    let proxy = Proxy::with(&app, &rules);
    let left_after = |request: &str| left(&proxy.ask(request), "each");
    assert_eq!(left_after(&get("/export")), 70);
    assert_eq!(left_after(&post("/cheap", "hello")), 69);
    assert_eq!(left_after(&post("/export", "hello")), 39);
    assert_eq!(left_after(&get("/export")), 9);
    for request in every_form("/export") {
        let answer = proxy.ask(&request);
        is_refused_by(&answer, "each");
        // 21 more are needed, at 36 seconds each.
        let wait = answer.number("retry-after");
        assert!((735..=756).contains(&wait), "{wait}");
    }
    assert_eq!(left_after(&get("/cheap")), 8, "what is cheap goes on");
}

#[test]
fn failures_count_with_the_status_sent_and_successes_do_not() {
    let app = Backend::start();
    for status in [401, 403, 404, 500] {
        app.says(&format!("/{status}"), &format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n"));
    }
    let key = |name: &str| format!("[[identity.keys]]\nname = \"{name}\"\nsha256 = \"{}\"\n", sha256(name));
    let rules = format!(
        "{EDGE}{NO_DEFAULTS}{}{}{}",
        key("ann"),
        key("bob"),
        rule("failures", "3/1h", "by = \"address\"\ncount = \"failures\"")
    );
    let proxy = Proxy::with(&app, &rules);
    for (n, form) in Form::ALL.into_iter().enumerate() {
        let address = format!("203.0.113.{n}");
        let ask =
            |path: &str, fields: &[&str]| proxy.ask(&from_address(&with_fields(&form.request(path), fields), &address));
        for _ in 0..10 {
            assert_eq!(left(&ask("/", &[]), "failures"), 3);
            assert_eq!(ask("/500", &[]).status, 500);
        }
        // For any claimed client and any path.
        assert_eq!(ask("/401", &[]).status, 401);
        assert_eq!(ask("/403", &["X-Api-Key: ann"]).status, 403);
        assert_eq!(left(&ask("/", &[]), "failures"), 1);
        assert_eq!(ask("/404", &["X-Api-Key: bob"]).status, 404);
        let before = app.requests();
        for fields in [&[][..], &["X-Api-Key: ann"], &["X-Api-Key: bob"]] {
            is_refused_by(&ask("/", fields), "failures");
        }
        assert_eq!(app.requests(), before, "the app has rest from them");
    }
    assert_eq!(proxy.ask(&from_address(&get("/"), "203.0.113.9")).status, 200, "others are not affected");
}

#[test]
fn requests_count_together_as_configured() {
    let app = Backend::start();
    let proxy = Proxy::with(
        &app,
        &format!(
            "{EDGE}{NO_DEFAULTS}{}{}{}{}{}{}{}",
            rule("by-route", "4/1h", "by = \"route\"\nroutes = [\"shared\"]"),
            rule("by-both", "2/1h", "by = \"client-and-route\"\nroutes = [\"a\", \"b\"]"),
            rule("by-machine", "30/1h", "by = \"machine\""),
            route("shared", ""),
            route("a", ""),
            route("b", ""),
            route("c", "")
        ),
    );
    let ask = |path: &str, address: &str, n: usize| proxy.ask(&from_address(&Form::nth(n).request(path), address));
    for n in 0..4 {
        let answer = ask("/shared", &format!("203.0.113.{n}"), n);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit"), None, "what others use is not told");
    }
    for n in 0..Form::NUMBER {
        is_refused_by(&ask("/shared", "203.0.113.77", n), "by-route");
    }
    for (address, n) in [("203.0.113.1", 0), ("203.0.113.2", 3)] {
        for path in ["/a", "/b"] {
            assert_eq!(left(&ask(path, address, n), "by-both"), 1);
            assert_eq!(left(&ask(path, address, n + 1), "by-both"), 0);
            is_refused_by(&ask(path, address, n + 2), "by-both");
        }
    }
    // Twelve requests have passed, at any path.
    for n in 0..18 {
        assert_eq!(ask("/c", &format!("198.51.100.{n}"), n).status, 200);
    }
    for n in 0..Form::NUMBER {
        is_refused_by(&ask("/c", "198.51.100.99", n), "by-machine");
        is_refused_by(&ask("/nowhere", "198.51.100.99", n), "by-machine");
    }
}

#[test]
fn a_tier_multiplies_the_limits_except_for_internal() {
    let app = Backend::start();
    let key = |tier: &str| {
        format!("[[identity.keys]]\nname = \"{tier}\"\nsha256 = \"{}\"\ntier = \"{tier}\"\n", sha256(tier))
    };
    let keys: String = ["anonymous", "free", "pro", "enterprise", "internal"].iter().map(|tier| key(tier)).collect();
    let rules = format!(
        "{NO_DEFAULTS}tiers.free = \"1.5x\"\n{keys}{}{}{}",
        rule("each", "10/1h", ""),
        rule("same-for-all", "300/1h", "tiers = false\nroutes = [\"same\"]"),
        route("same", "")
    );
    let proxy = Proxy::with(&app, &rules);
    let ask = |path: &str, tier: &str, n: usize| {
        proxy.ask(&with_fields(&Form::nth(n).request(path), &[&format!("X-Api-Key: {tier}")]))
    };
    for (tier, quota) in [("anonymous", 10), ("free", 15), ("pro", 50), ("enterprise", 200)] {
        for n in 0..Form::NUMBER {
            let answer = ask("/", tier, n);
            assert_eq!(parsed(&answer, "ratelimit-policy")["each"]["q"], quota, "{tier}");
            assert_eq!(left(&answer, "each"), quota - 1 - n as i64, "{tier}");
        }
        assert_eq!(parsed(&ask("/same", tier, 0), "ratelimit-policy")["same-for-all"]["q"], 300, "{tier}");
    }
    let mut client = proxy.connect();
    let request = with_fields(&get("/"), &["X-Api-Key: internal"]);
    assert_eq!(admitted(&mut client, &request, 100), 100);
    assert_eq!(client.send(&request).answer().header("ratelimit"), None);
    assert_eq!(admitted(&mut client, &with_fields(&get("/"), &["X-Api-Key: free"]), 30), 8, "six and one before");
}

#[test]
fn a_monitored_limit_changes_no_response_and_counts() {
    let app = Backend::start();
    let limit = |mode: &str| format!("{NO_DEFAULTS}{}", rule("each", "5/1h", mode));
    let all = rule("each", "5/1h", "") + &rule("more", "100/1h", "");
    for rules in [limit("mode = \"monitor\""), format!("rate_limits.mode = \"monitor\"\n{NO_DEFAULTS}{all}")] {
        let proxy = Proxy::with(&app, &rules);
        for request in every_form("/") {
            let mut client = proxy.connect();
            for _ in 0..10 {
                let answer = client.send(&request).answer();
                assert_eq!(answer.status, 200);
                assert!(!answer.headers.keys().any(|name| name.contains("ratelimit")), "{answer:?}");
            }
        }
        proxy.counts(
            "outrigger_limit_refusals_total",
            &[("limit", "each"), ("mode", "monitor")],
            10 * Form::NUMBER - 5,
        );
        proxy.counts(
            "outrigger_refusals_total",
            &[("reason", "quota_exceeded"), ("mode", "monitor")],
            10 * Form::NUMBER - 5,
        );
        assert_eq!(proxy.metric("outrigger_refusals_total", &[("mode", "enforce")]), 0.0);
        assert_eq!(proxy.metric("outrigger_rejections_total", &[]), 0.0);
    }
    let proxy = Proxy::with(&app, &limit("mode = \"off\""));
    assert_eq!(admitted(&mut proxy.connect(), &get("/"), 20), 20);
    assert_eq!(proxy.metric("outrigger_limit_refusals_total", &[]), 0.0);
}

#[test]
fn monitor_predicts_enforce() {
    let app = Backend::start();
    let rules = format!(
        "{EDGE}{NO_DEFAULTS}{}{}{}",
        rule("each", "10/1s", "burst = 10"),
        rule("heavy", "5/1s", "burst = 12\nroutes = [\"heavy\"]"),
        route("heavy", "cost = 3")
    );
    let enforcing = Proxy::with(&app, &rules);
    let monitoring = Proxy::with(&app, &format!("rate_limits.mode = \"monitor\"\n{rules}"));
    let (mut one, mut other) = (enforcing.connect(), monitoring.connect());
    let mut refused = 0;
    for n in 0..900_usize {
        let path = if n % 7 == 0 { "/heavy" } else { "/" };
        let request = from_address(&Form::nth(n / 3).request(path), &format!("203.0.113.{}", n % 3));
        // Both proxies get it at the same moment.
        one.send(&request);
        other.send(&request);
        refused += usize::from(one.answer().status == 429);
        assert_eq!(other.answer().status, 200);
    }
    let labels = [("mode", "monitor"), ("reason", "quota_exceeded")];
    enforcing.comes_to_rest_after(one);
    monitoring.comes_to_rest_after(other);
    let predicted = monitoring.metric("outrigger_refusals_total", &labels);
    assert!(refused > 200, "{refused}");
    let off = (predicted - refused as f64).abs() / refused as f64;
    assert!(off <= 0.05, "{predicted} were predicted, {refused} were refused");
}

#[test]
fn the_flag_switches_limits_off_to_monitor_or_on_for_a_share_of_clients() {
    let app = Backend::start();
    let rules = format!("{EDGE}{NO_DEFAULTS}{}", rule("each", "1/1h", ""));
    let flagged = |value| Setup::new(&app, &rules).env("FF_ENABLE_PRIORITIZED_RATE_LIMIT", value).start();
    for (value, monitored) in [("false", 0), ("monitor", 10 * Form::NUMBER - 1)] {
        let proxy = flagged(value);
        for request in every_form("/") {
            assert_eq!(admitted(&mut proxy.connect(), &request, 10), 10, "{value}");
        }
        proxy.counts("outrigger_limit_refusals_total", &[("mode", "monitor")], monitored);
    }
    // The share is the same set of addresses on every Machine.
    let limited_at = |proxy: &Proxy, form: Form| -> HashSet<usize> {
        let mut client = proxy.connect();
        let is_limited = |n: &usize| {
            let request = from_address(&form.request("/"), &format!("198.51.{}.{}", n / 250, n % 250));
            admitted(&mut client, &request, 2) == 1
        };
        (0..300).filter(is_limited).collect()
    };
    let limited = limited_at(&flagged("10%"), Form::Bare);
    Form::at_once(&Form::ALL[1..], |form| assert_eq!(limited, limited_at(&flagged("10%"), form)));
    assert!((15..=45).contains(&limited.len()), "a tenth of 300: {}", limited.len());
    assert!(limited.is_subset(&limited_at(&flagged("50%"), Form::Bare)), "who is in stays in when the share grows");
}

#[test]
fn an_address_claimed_by_an_untrusted_sender_is_no_new_quota() {
    let app = Backend::start();
    let rules = format!("{NO_DEFAULTS}{}", rule("each", "4/1h", ""));
    let claims = |request: &str, n: usize| {
        with_fields(
            request,
            &[
                &format!("Fly-Client-IP: 203.0.113.{n}"),
                &format!("X-Forwarded-For: 203.0.113.{n}"),
                &format!("Forwarded: for=203.0.113.{n}"),
                &format!("X-Real-IP: 203.0.113.{n}"),
            ],
        )
    };
    let outside = Proxy::with(&app, &rules);
    for n in 0..10 {
        let answer = outside.ask(&claims(&Form::nth(n).request("/"), n));
        assert_eq!(answer.status, if n < 4 { 200 } else { 429 }, "request {n}");
    }
    let inside = Proxy::with(&app, &format!("{EDGE}{rules}"));
    for n in 0..10 {
        assert_eq!(left(&inside.ask(&claims(&Form::nth(n).request("/"), n)), "each"), 3, "each address has its own");
    }
    // Otherwise the client is the last untrusted address in the list, regardless of other headers.
    let behind_a_list = Proxy::with(&app, &format!("identity.trusted = [\"127.0.0.0/8\"]\n{rules}"));
    for n in 0..8 {
        let claimed = claims(&Form::nth(n).request("/"), n).replace("X-Forwarded-For: 203", "X-Other: 203");
        let listed = format!("X-Forwarded-For: 6.6.6.{n}, 192.0.2.1, 127.0.0.1");
        let answer = behind_a_list.ask(&with_fields(&claimed, &[&listed]));
        assert_eq!(answer.status, if n < 4 { 200 } else { 429 }, "request {n}");
    }
    // Fly's own list ends with the app's address, and is not read.
    for n in 0..8 {
        let listed = format!("X-Forwarded-For: 6.6.6.{n}, 192.0.2.1, 127.0.0.1");
        let answer = inside.ask(&with_fields(&Form::nth(n).request("/"), &[&listed]));
        assert_eq!(answer.status, if n < 4 { 200 } else { 429 }, "request {n}");
    }
}

#[test]
fn a_network_of_ipv6_addresses_is_one_client() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, &format!("{EDGE}{NO_DEFAULTS}{}", rule("each", "4/1h", "")));
    for n in 0..8 {
        let address = format!("2001:db8:1:2:{:x}::{n}", n * 4099);
        let answer = proxy.ask(&from_address(&Form::nth(n).request("/"), &address));
        assert_eq!(answer.status, if n < 4 { 200 } else { 429 }, "{address}");
    }
    assert_eq!(left(&proxy.ask(&from_address(&get("/"), "2001:db8:1:3::1")), "each"), 3, "the next network");
    // An IPv4 address is one client in either notation.
    assert_eq!(left(&proxy.ask(&from_address(&get("/"), "192.0.2.7")), "each"), 3);
    assert_eq!(left(&proxy.ask(&from_address(&get("/"), "::ffff:192.0.2.7")), "each"), 2);
}

#[test]
fn a_change_of_one_limit_under_load_keeps_the_state_of_others() {
    let app = Backend::start();
    let rules = |rate: &str| {
        format!(
            "{EDGE}{NO_DEFAULTS}{}{}",
            rule("kept", "100/1h", ""),
            rule("changed", rate, "by = \"client-and-route\"")
        )
    };
    let proxy = Proxy::with(&app, &rules("50/1h"));
    let address = |n: i64| format!("203.0.113.{n}");
    let taken = |n: i64| 1 + n % 10;
    for n in 0..30 {
        let request = from_address(&get("/"), &address(n));
        let mut client = proxy.connect();
        (0..taken(n)).for_each(|_| assert_eq!(client.send(&request).answer().status, 200));
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 0..2 {
            let (proxy, stop) = (&proxy, &stop);
            scope.spawn(move || {
                let mut client = proxy.connect();
                for request in every_form("/").iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let request = from_address(request, &format!("198.51.100.{n}"));
                    let status = client.send(&request).answer().status;
                    assert!(matches!(status, 200 | 429), "{status}");
                }
            });
        }
        for rate in ["70/1h", "20/1h", "60/1h"] {
            proxy.changes_to(&rules(rate));
        }
        for n in 0..30 {
            let answer = proxy.ask(&from_address(&Form::nth(n as usize).request("/"), &address(n)));
            assert_eq!(left(&answer, "kept"), 100 - taken(n) - 1, "client {n}: {answer:?}");
            assert_eq!(parsed(&answer, "ratelimit-policy")["changed"]["q"], 60);
            // Spent tokens stay spent, as time: 72 seconds for each before, and a minute for this one.
            let minutes = (72 * taken(n) + 59) / 60 + 1;
            assert_eq!(left(&answer, "changed"), 60 - minutes, "client {n}: {answer:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn any_number_of_keys_uses_bounded_memory_and_all_are_limited() {
    const KEYS: usize = 200_000;
    const ROOM: usize = 2000;
    const AT_ONCE: usize = 100;
    let app = Backend::start();
    app.says("/", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    // Receipts have a bound of their own.
    let proxy = Proxy::with(
        &app,
        &format!(
            "log.access = false\nidentity.unknown_keys = \"count\"\nabuse.mode = \"off\"\n\
             receipts.max = 0\nrate_limits.max_keys = {ROOM}\n{NO_DEFAULTS}{}",
            rule("each", "1/1h", "")
        ),
    );
    let request = |n: usize| with_fields(&get("/"), &[&format!("X-Api-Key: {n:020}")]);
    // Requests with these keys from two clients, a hundred at a time; returns how many were not rejected.
    let flood = |from: usize, to: usize| -> usize {
        let half = |from: usize, to: usize| {
            let mut client = proxy.connect();
            let mut admitted = 0;
            for first in (from..to).step_by(AT_ONCE) {
                let together: String = (first..first + AT_ONCE).map(request).collect();
                client.send(together);
                admitted += (0..AT_ONCE).filter(|_| client.answer().status == 200).count();
            }
            admitted
        };
        let middle = from + (to - from) / 2;
        thread::scope(|scope| {
            let other = scope.spawn(|| half(middle, to));
            half(from, middle) + other.join().unwrap()
        })
    };
    let first = flood(0, 10_000);
    let (before, _) = proxy.memory_kib();
    let later = flood(10_000, KEYS);
    let (_, peak) = proxy.memory_kib();
    assert!(peak.saturating_sub(before) < 2 << 10, "grew from {before} KiB to {peak} KiB");
    // At least nine tenths of its size fit, and at most a quarter more.
    let cells = proxy.shows("/limits")["keys"]["room"].as_u64().unwrap() as usize;
    assert!((ROOM..=ROOM * 5 / 4 + 4).contains(&cells), "{cells}");
    assert!((ROOM * 9 / 10..=cells + 2).contains(&(first + later)), "{first} and {later} of {KEYS} in {cells} cells");
    assert_eq!(proxy.shows("/limits")["keys"]["used"], cells);
    // The first keys are known, and new ones share one quota, which is used up.
    assert_eq!(flood(0, 200), 0);
    assert_eq!(flood(KEYS, KEYS + 200), 0);
    proxy.counts("outrigger_limit_refusals_total", &[("limit", "each")], KEYS + 400 - first - later);
}

#[test]
fn every_request_that_does_not_fit_the_table_is_counted() {
    const KEYS: usize = 200;
    let app = Backend::start();
    let limits = format!("rate_limits.max_keys = 4\n{NO_DEFAULTS}{}", rule("each", "1/1h", ""));
    let proxy = Proxy::with(&app, &format!("abuse.mode = \"off\"\n{EDGE}{limits}"));
    let mut client = proxy.connect();
    for n in 0..KEYS {
        client.send(from_address(&get("/"), &format!("203.0.113.{n}"))).answer();
    }
    let used = proxy.shows("/limits")["keys"]["used"].as_u64().unwrap() as usize;
    proxy.counts("outrigger_limit_overflow_total", &[], KEYS - used);
}
