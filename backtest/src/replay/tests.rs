use std::path::Path;

use outrigger_traffic::request::ClientKind;

use super::*;

const BASE_NS: u64 = 1_700_000_000_000_000_000;
const MS: u64 = 1_000_000;

/// Requests in memory: each with method, host, path, route, headers, reason and limit.
struct Requests(Vec<(Past, [&'static str; 7])>);

impl Source for Requests {
    fn each(
        &self,
        (from, until): (u64, u64),
        catalogue: &mut Catalogue,
        _: &mut Vec<String>,
        each: &mut dyn FnMut(&Past, &Catalogue),
    ) -> Result<(), SourceError> {
        for (past, [method, host, path, route, headers, reason, limit]) in &self.0 {
            let shape = catalogue.shape(method, host, path, route, headers).unwrap();
            let (reason, limit) = (catalogue.name_number(reason), catalogue.name_number(limit));
            if (from..until).contains(&past.at_ns) {
                each(&Past { shape, reason, limit, ..*past }, catalogue);
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }
}

fn config(text: &str) -> Config {
    Config::parse(Path::new("test"), text, &|_| None).unwrap_or_else(|e| panic!("{e}"))
}

/// A request at this time that took the app 50 ms.
fn past(at_ms: u64, client: u64) -> Past {
    let facts = Facts::ANSWERED.with(Facts::COUNTED_HERE, true).with(Facts::FOR_APP, true);
    Past { at_ns: BASE_NS + at_ms * MS, client, address: client, total_us: 50_000, facts, ..Past::BLANK }
        .served_in(Some(50_000))
}

const PLAIN: [&str; 7] = ["GET", "", "/", "default", "", "", ""];

fn to(path: &'static str, route: &'static str) -> [&'static str; 7] {
    ["GET", "", path, route, "", "", ""]
}

fn replayed(requests: Vec<(Past, [&'static str; 7])>, in_force: &str, proposed: &str) -> Report {
    let (in_force, proposed) = (config(in_force), config(proposed));
    let question = Question { in_force: &in_force, proposed: &proposed, between: (BASE_NS, u64::MAX), machines: 1 };
    run(&Requests(requests), question).unwrap()
}

const OFF: &str = "rate_limits.critical = \"off\"\nrate_limits.high = \"off\"\nrate_limits.medium = \"off\"\n\
                   rate_limits.low = \"off\"\nrate_limits.strict = \"off\"\n";

fn limit(rate: &str, more: &str) -> String {
    format!("{OFF}{more}\n[[rate_limits.rules]]\nname = \"each\"\nrate = \"{rate}\"\n")
}

#[test]
fn limits_refill_on_the_virtual_clock() {
    // Ten a second for ten seconds, with a limit of five a second and a burst of five: 5 + 9.9 × 5.
    let requests = (0..100).map(|n| (past(n * 100, 1), PLAIN)).collect();
    let report = replayed(requests, OFF, &limit("5/1s", ""));
    assert_eq!(report.requests, 100);
    assert_eq!(report.rejected, Three { recorded: 0, in_force: 0, proposed: 100 - 54 });
    assert_eq!(report.limits.len(), 1);
    assert_eq!(report.clients[0].rejected.proposed, 46);
    assert_eq!(report.over_time.rejected.proposed.iter().sum::<u64>(), 46);
    assert_eq!((report.over_time.span_s, report.over_time.requests.len()), (1, 10));
    assert!(report.fidelity.apart.is_none());
}

#[test]
fn the_same_rules_reject_the_recorded_requests() {
    let rejected =
        |past: Past| Past { facts: past.facts.with(Facts::REJECTED, true), status: 429, ..past }.served_in(None);
    let row = |n: u64| match n {
        0..10 => (past(n, 1), PLAIN),
        _ => (rejected(past(n, 1)), ["GET", "", "/", "default", "", "quota_exceeded", "each"]),
    };
    let report = replayed((0..30).map(row).collect(), &limit("10/1d", ""), &limit("20/1d", ""));
    assert_eq!(report.rejected, Three { recorded: 20, in_force: 20, proposed: 10 });
    assert_eq!(report.fidelity.apart, Some(0.0));
    assert!(report.notes.iter().any(|note| note.starts_with("20 requests were rejected then")), "{:?}", report.notes);
}

#[test]
fn rejections_for_other_reasons_stay() {
    let mut wrong = past(1, 1);
    wrong.facts = Facts::REJECTED;
    let requests = vec![(past(0, 1), PLAIN), (wrong, ["GET", "", "", "default", "", "path_ambiguous", ""])];
    let report = replayed(requests, OFF, &limit("1/1d", ""));
    assert_eq!(report.rejected, Three { recorded: 1, in_force: 1, proposed: 1 });
    assert_eq!((report.fidelity.recorded, report.fidelity.replayed), (0, 0));
}

#[test]
fn the_hour_before_brings_limits_into_their_state() {
    let mut requests: Vec<_> = (0..8).map(|n| (past(n, 1), PLAIN)).collect();
    requests.extend((0..8).map(|n| (past(60_000 + n, 1), PLAIN)));
    let (in_force, proposed) = (config(OFF), config(&limit("10/1d", "")));
    let between = (BASE_NS + 30_000 * MS, u64::MAX);
    let question = Question { in_force: &in_force, proposed: &proposed, between, machines: 1 };
    let report = run(&Requests(requests), question).unwrap();
    assert_eq!((report.requests, report.replayed, report.rejected.proposed), (8, 16, 6));
}

#[test]
fn paths_hosts_and_headers_lead_to_the_routes_of_each_file() {
    let route = |name: &str, more: &str| format!("[[routes]]\nname = \"{name}\"\n{more}\n");
    let old = [
        route("beta", "path = \"/a\"\nheaders = { \"X-Beta\" = \"1\" }"),
        route("shop", "path = \"/a\"\nhosts = [\"*.shop.example\"]"),
        route("users", "path = \"/users/{id}\""),
    ]
    .concat();
    let new = [
        route("beta", "path = \"/a\"\nheaders = { \"X-Beta\" = \"1\" }\nmethods = [\"GET\"]"),
        route("shop2", "path = \"/a\"\nhosts = [\"*.shop.example\"]"),
        route("profiles", "path = \"/users/{id}\""),
    ]
    .concat();
    let requests = vec![
        (past(0, 1), ["GET", "", "/a", "beta", "x-beta #6b86b273ff34fce1", "", ""]),
        (past(1, 1), ["POST", "", "/a", "beta", "x-beta #6b86b273ff34fce1", "", ""]),
        (past(2, 1), ["GET", "~.shop.example", "/a", "shop", "", "", ""]),
        (past(3, 1), to("/users/~", "users")),
        // Its path is not known.
        (past(4, 1), to("", "users")),
        // The recorded path leads elsewhere, so the name decides.
        (past(5, 1), to("/~/~", "beta")),
    ];
    let report = replayed(requests, &old, &new);
    let rows: Vec<_> = report.routes.iter().filter(|row| row.tier.is_none()).collect();
    let row = |name: &str| rows.iter().find(|row| row.route == name).map(|row| row.requests);
    assert_eq!(row("beta"), Some(Three { recorded: 3, in_force: 3, proposed: 2 }), "{rows:#?}");
    assert_eq!(row("shop2"), Some(Three { recorded: 0, in_force: 0, proposed: 1 }));
    assert_eq!(row("profiles"), Some(Three { recorded: 0, in_force: 0, proposed: 1 }));
    // One by POST, and one whose route has another name now and whose path is not known.
    assert_eq!(row("default"), Some(Three { recorded: 0, in_force: 0, proposed: 2 }));
    assert!(report.notes.iter().any(|note| note.starts_with("1 requests have a path")), "{:?}", report.notes);
}

#[test]
fn a_queue_serves_important_requests_first() {
    let routes = "[[routes]]\nname = \"low\"\npath = \"/low\"\npriority = \"low\"\n\
                  [[routes]]\nname = \"high\"\npath = \"/high\"\npriority = \"high\"\n";
    let one = format!(
        "{OFF}admission.min = 1\nadmission.max = 1\nadmission.initial = 1\nadmission.max_wait = \"400ms\"\n{routes}"
    );
    // Ten at once that take 50 ms each, the important ones last: 8 can be served within 400 ms.
    let requests =
        (0..10).map(|n| (past(n / 5, n), if n < 5 { to("/low", "low") } else { to("/high", "high") })).collect();
    let report = replayed(requests, &format!("{OFF}{routes}"), &one);
    let rejected = |route: &str| {
        let row = report.routes.iter().find(|row| row.route == route && row.tier.is_none()).unwrap();
        row.rejected.proposed
    };
    assert_eq!(rejected("high"), 0, "{report:#?}");
    assert!((1..=4).contains(&rejected("low")), "{report:#?}");
    assert_eq!(report.waits.in_force.requests, 0);
    assert!(report.waits.proposed.requests >= 6 && report.waits.proposed.longest_ms <= 400.0, "{:?}", report.waits);
    assert_eq!(report.reasons[0].name, "temporary_reduced_capacity");
}

#[test]
fn offences_lead_to_bans() {
    let bans = "[abuse]\nmode = \"enforce\"\nnot_found = \"5/1d\"\nban = \"1h\"\n";
    let missing = |n: u64| (Past { status: 404, ..past(n * 100, 1) }, PLAIN);
    let report = replayed((0..20).map(missing).collect(), OFF, &format!("{OFF}{bans}"));
    // The sixth is one too many; its status is known after 50 ms, before the next one.
    assert_eq!((report.rejected.proposed, report.bans.proposed), (14, Some(1)), "{report:#?}");
    assert_eq!(report.reasons[0].name, "abnormal_usage_detected");
}

#[test]
fn tiers_and_ways_to_count_are_those_of_the_rules() {
    let rules = format!(
        "{OFF}tiers.pro = \"3x\"\n[[rate_limits.rules]]\nname = \"each\"\nrate = \"5/1d\"\n\
         [[rate_limits.rules]]\nname = \"address\"\nrate = \"6/1d\"\nby = \"address\"\n"
    );
    let of = |n: u64, client, tier, kind| (Past { address: 9, tier, kind, ..past(n, client) }, PLAIN);
    let mut requests: Vec<_> = (0..20).map(|n| of(n, 1, outrigger_policy::tier::Tier::Pro, ClientKind::Key)).collect();
    requests.extend((20..40).map(|n| of(n, 9, outrigger_policy::tier::Tier::Anonymous, ClientKind::Address)));
    let report = replayed(requests, OFF, &rules);
    let rejected = |tier| report.routes.iter().find(|row| row.tier == Some(tier)).unwrap().rejected.proposed;
    // The key has 15, which are 15 of 18 for its address; that leaves 1 of 6 for the others there.
    assert_eq!((rejected("pro"), rejected("anonymous")), (5, 19), "{report:#?}");
}

#[test]
fn nothing_to_replay_is_an_error() {
    let (in_force, proposed) = (config(OFF), config(OFF));
    let question = Question { in_force: &in_force, proposed: &proposed, between: (BASE_NS, u64::MAX), machines: 1 };
    let error = run(&Requests(Vec::new()), question).unwrap_err().to_string();
    assert_eq!(error, "there are no requests of that time in memory");
}
