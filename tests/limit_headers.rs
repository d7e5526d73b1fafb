//! Rate limit headers in responses: the app's own next to Outrigger's, and the limit that rejected the request.

use std::collections::HashMap;

use sfv::{List, Parser};

use crate::{
    backend::Backend,
    harness::{Form, Proxy, every_form},
    limits::{NO_DEFAULTS, left, parsed, route, rule},
};

/// The rate limit headers of the response to a request in each form.
fn by_each_form(proxy: &Proxy, path: &str) -> [HashMap<String, String>; Form::NUMBER] {
    Form::ALL.map(|form| {
        let mut headers = form.ask(proxy, path).headers;
        headers.retain(|name, _| name.contains("ratelimit") || name == "retry-after");
        headers
    })
}

#[test]
fn the_apps_own_limits_are_merged_alike_for_every_method() {
    let app = Backend::start();
    let says = |path: &str, remaining: u32| {
        let own = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nRateLimit: \"app\";r={remaining};t=9\r\nRateLimit-Policy: \"app\";q=10;w=60\r\n\
             X-RateLimit-Limit: 10\r\nX-RateLimit-Remaining: {remaining}\r\nX-RateLimit-Reset: 9\r\n\
             RateLimit-Limit: 10\r\nRateLimit-Remaining: {remaining}\r\nRateLimit-Reset: 9\r\n\r\nok"
        );
        app.says(path, &own);
    };
    says("/tight", 2);
    says("/loose", 5000);
    app.says("/draft-7", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRateLimit: limit=10, remaining=1, reset=9\r\n\r\n");
    let rules = format!("{NO_DEFAULTS}rate_limits.legacy_headers = true\n{}", rule("ours", "100/1h", ""));
    let proxy = Proxy::with(&app, &rules);
    let mut taken = 0;
    for headers in by_each_form(&proxy, "/tight") {
        taken += 1;
        let ours = 100 - taken;
        assert_eq!(headers["ratelimit"].split(", ").count(), 2, "{headers:?}");
        assert!(headers["ratelimit"].starts_with(&format!("\"app\";r=2;t=9, \"ours\";r={ours};t=")), "{headers:?}");
        assert_eq!(headers["ratelimit-policy"], "\"app\";q=10;w=60, \"ours\";q=100;w=3600");
        for prefix in ["x-ratelimit", "ratelimit"] {
            let numbers = ["limit", "remaining", "reset"].map(|name| headers[&format!("{prefix}-{name}")].as_str());
            assert_eq!(numbers, ["10", "2", "9"], "{headers:?}");
        }
        let list: List = Parser::new(headers["ratelimit"].as_str()).parse().unwrap();
        assert_eq!(list.len(), 2);
    }
    for headers in by_each_form(&proxy, "/loose") {
        taken += 1;
        for prefix in ["x-ratelimit", "ratelimit"] {
            assert_eq!(headers[&format!("{prefix}-limit")], "100", "{headers:?}");
            assert_eq!(headers[&format!("{prefix}-remaining")], (100 - taken).to_string(), "{headers:?}");
        }
        assert!(headers["ratelimit"].starts_with("\"app\";r=5000;t=9, \"ours\";r="), "{headers:?}");
    }
    for headers in by_each_form(&proxy, "/draft-7") {
        assert_eq!(headers["ratelimit"], "limit=10, remaining=1, reset=9", "no list, and tighter than ours");
    }
}

#[test]
fn headers_of_the_app_are_unchanged_without_limits_of_ours() {
    let app = Backend::start();
    app.says(
        "/",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-RateLimit-Remaining: 7\r\nRateLimit: limit=9, remaining=8\r\n\r\n",
    );
    for rules in ["rate_limits.mode = \"off\"\n", "rate_limits.mode = \"monitor\"\n"] {
        let proxy = Proxy::with(&app, rules);
        for headers in by_each_form(&proxy, "/") {
            assert_eq!((headers["x-ratelimit-remaining"].as_str(), headers.len()), ("7", 2), "{headers:?}");
            assert_eq!(headers["ratelimit"], "limit=9, remaining=8");
        }
    }
}

#[test]
fn a_429_always_shows_the_limit_that_rejected() {
    let app = Backend::start();
    // Eight limits apply, which is the maximum. Each in turn rejects the request, including those that responses do not show
    // otherwise.
    let kinds = [
        ("each-a", "client"),
        ("each-b", "client-and-route"),
        ("each-c", "address"),
        ("each-d", "client"),
        ("each-e", "client-and-route"),
        ("each-f", "address"),
        ("all", "route"),
        ("machine", "machine"),
    ];
    for (tight, (refuses, _)) in kinds.iter().enumerate() {
        let limits: String = kinds
            .iter()
            .enumerate()
            .map(|(index, (name, by))| {
                rule(name, if index == tight { "6/1h" } else { "1000/1h" }, &format!("by = \"{by}\""))
            })
            .collect();
        let routes = route("dear", "cost = 4");
        let proxy = Proxy::with(&app, &format!("{NO_DEFAULTS}{limits}{routes}"));
        let shown = parsed(&proxy.get("/dear"), "ratelimit");
        assert_eq!(shown.len(), 6, "all but those of others: {shown:?}");
        for request in every_form("/dear") {
            let answer = proxy.ask(&request);
            answer.is_problem(429, "quota_exceeded");
            assert_eq!(answer.json()["violated-policies"], serde_json::json!([refuses]), "{answer:?}");
            // Two are left, and the request costs four.
            assert_eq!(left(&answer, refuses), 2, "{answer:?}");
            assert_eq!(parsed(&answer, "ratelimit-policy")[*refuses]["q"], 6, "{answer:?}");
            let full_in = parsed(&answer, "ratelimit")[*refuses]["t"];
            assert!(answer.number("retry-after") <= full_in as u64, "{answer:?}");
        }
    }
}
