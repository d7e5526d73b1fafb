use http::{HeaderMap, HeaderName, Method};
use outrigger_wire::request::Fields;
use proptest::prelude::*;

use super::*;
use crate::sections::routes;

fn route(name: &str, path: &str) -> routes::Route {
    toml::from_str(&format!("name = {name:?}\npath = {path:?}")).unwrap()
}

fn compiled(written: &routes::Route) -> Route {
    Route {
        name: written.name.as_str().into(),
        conditions: Conditions::compile(written).unwrap(),
        priority: Priority::Medium,
        timeout: Duration::from_secs(1),
        max_body_bytes: 1,
        cost: 1,
        heeds_client_timeout: true,
        breaker: None,
        attempts: 1,
        retry_statuses: Box::default(),
        fallback: None,
        audit: outrigger_policy::audit::Declared::Off,
        addresses: None,
        resource: Box::default(),
        is_health: false,
    }
}

fn table(routes: &[routes::Route]) -> RouteTable {
    RouteTable::compile(routes.iter().map(compiled).collect(), compiled(&route("default", "/**")), "/metrics")
}

fn try_found(
    table: &RouteTable,
    method: &str,
    host: &str,
    path: &str,
    headers: &HeaderMap,
) -> Result<String, PathRefused> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = Request {
        method: &method,
        path,
        host,
        fields: Fields::Map(headers),
        is_http10: false,
        target: path,
        has_endless_body: false,
    };
    table.find(&request).map(|number| table.all()[number].name.to_string())
}

/// The label as in responses.
fn label(refused: PathRefused) -> &'static str {
    match refused {
        PathRefused::Unreadable(Unreadable::DotSegment) => "path_dot_segment",
        PathRefused::Unreadable(Unreadable::ControlCharacter) => "path_control_character",
        PathRefused::Unreadable(Unreadable::TooManyReadings) | PathRefused::Ambiguous(..) => "path_ambiguous",
        PathRefused::NotPublic => "not_public",
    }
}

fn found(table: &RouteTable, method: &str, host: &str, path: &str, headers: &HeaderMap) -> String {
    try_found(table, method, host, path, headers).unwrap_or_else(|refused| label(refused).to_owned())
}

/// The name of the route, or why none was found.
fn get(table: &RouteTable, path: &str) -> String {
    found(table, "GET", "example.com", path, &HeaderMap::new())
}

#[test]
fn the_first_match_in_file_order_wins() {
    let table = table(&[route("one", "/items/{id}"), route("all", "/items/**"), route("late", "/items/7/x")]);
    assert_eq!(get(&table, "/items/7"), "one");
    assert_eq!(get(&table, "/items/7/x"), "all");
    assert_eq!(get(&table, "/items"), "all");
    assert_eq!(get(&table, "/items/"), "all");
    assert_eq!(get(&table, "/other"), "default");
    assert_eq!(get(&table, "/health"), "health");
    assert_eq!(get(&table, "/"), "default");
}

#[test]
fn no_spelling_of_a_path_bypasses_a_route() {
    let table = table(&[route("login", "/api/login"), route("item", "/items/{id}"), route("files", "/files/**")]);
    for path in ["/api/login", "/api/login/", "/API/Login"] {
        assert_eq!(get(&table, path), "login", "{path}");
    }
    for path in ["/api", "/api/login/x", "*", "", "/other%2Fname", "//other", "/other;v=1", "/caf%C3%A9", "/o%7Ether"] {
        assert_eq!(get(&table, path), "default", "{path}");
    }
    for path in ["/files", "/files/a%2Fb", "/files//a", "/files/a;b", "/files/%61", "/FILES/x%20y"] {
        assert_eq!(get(&table, path), "files", "{path}");
    }
    for path in ["/items/7", "/items/a%20b", "/items/%C3%A9", "/items/a;v=1", "/items/a."] {
        assert_eq!(get(&table, path), "item", "{path}");
    }
    for path in [
        "/api%2Flogin",
        "/api%2flogin",
        "/api/%6Cogin",
        "/api/%256cogin",
        "//api/login",
        "/api//login",
        "/api/login//",
        "/api/login;x",
        "/api;x/login",
        "/api\\login",
        "/api%5Clogin",
        "/api/login%3Fx",
        "/api/login.",
        "/api/login%20",
        "/items/a%2Fb",
        "/items/;x",
        "/%66iles/a",
    ] {
        assert_eq!(get(&table, path), "path_ambiguous", "{path}");
    }
    for path in ["/files/../api/login", "/api/./login", "/files/%2e%2e/x", "/files/a%2f.."] {
        assert_eq!(get(&table, path), "path_dot_segment", "{path}");
    }
    assert_eq!(get(&table, "/files/a%00"), "path_control_character");
}

#[test]
fn health_is_exempt_by_its_literal_path_alone() {
    let table = table(&[]);
    assert_eq!(get(&table, "/health/ready"), "health");
    for path in
        ["/health/", "/Health", "//health", "/health;x", "/%68ealth", "/health%2Fready", "/healthy", "/health/other"]
    {
        assert_eq!(get(&table, path), "default", "{path}");
    }
}

#[test]
fn the_apps_metrics_path_is_public_only_if_a_route_names_it() {
    let closed = table(&[route("all", "/**"), route("one", "/{x}")]);
    for path in ["/metrics", "/metrics/", "/METRICS", "//metrics", "/%6detrics", "/metrics;x", "/metrics%2f"] {
        assert_eq!(get(&closed, path), "not_public", "{path}");
    }
    for path in ["/metrics/x", "/metricsx", "/x/metrics"] {
        assert_eq!(get(&closed, path), "all", "{path}");
    }
    let mut post = route("post", "/metrics");
    post.methods = vec!["POST".into()];
    let open = table(&[post, route("all", "/**")]);
    assert_eq!(found(&open, "POST", "a", "/metrics", &HeaderMap::new()), "post");
    assert_eq!(get(&open, "/metrics"), "not_public");
    assert_eq!(get(&table(&[route("below", "/metrics/**")]), "/metrics"), "below");
    assert_eq!(get(&table(&[route("named", "/metrics")]), "//metrics"), "path_ambiguous");
}

#[test]
fn a_pattern_is_taken_encoded_and_decoded() {
    let table = table(&[route("cafe", "/café/{x}"), route("same", "/a%20b")]);
    for path in ["/caf%C3%A9/1", "/caf%c3%a9/1", "/CAF%C3%A9/a%2520"] {
        assert_eq!(get(&table, path), "cafe", "{path}");
    }
    assert_eq!(get(&table, "/a%20b"), "same");
}

#[test]
fn every_condition_must_hold() {
    let mut beta = route("beta", "/**");
    beta.methods = vec!["POST".into()];
    beta.hosts = vec!["*.example.com".into()];
    beta.headers = [("X-Beta".to_owned(), "1".to_owned())].into();
    let table = table(&[beta]);
    let with = HeaderMap::from_iter([(HeaderName::from_static("x-beta"), "1".parse().unwrap())]);
    assert_eq!(found(&table, "POST", "api.Example.com:8080", "/", &with), "beta");
    assert_eq!(found(&table, "post", "api.example.com.:8080", "/", &with), "beta");
    assert_eq!(found(&table, "GET", "api.example.com", "/", &with), "default");
    assert_eq!(found(&table, "POST", "example.com", "/", &with), "default");
    assert_eq!(found(&table, "POST", "api.example.com", "/", &HeaderMap::new()), "default");
}

#[test]
fn knows_when_a_route_can_never_match() {
    let covers = |a: &str, b: &str| {
        let compile = |path| Conditions::compile(&route("r", path)).unwrap();
        compile(a).covers(&compile(b))
    };
    assert!(covers("/**", "/a/b"));
    assert!(covers("/a/{x}", "/a/b"));
    assert!(covers("/a/**", "/a"));
    assert!(covers("/a/**", "/a/{x}/**"));
    assert!(!covers("/a/b", "/a/{x}"));
    assert!(!covers("/a/{x}", "/a/**"));
    assert!(covers("/a", "/a/") && covers("/A", "/a"));
}

#[test]
fn a_pattern_that_cannot_match_is_rejected() {
    for path in [
        "items", "/a?b", "/a*", "/a/**/b", "/{}", "/a//b", "/a/../b", "/%41", "/a/**x", "/a%2Fb", "/a;b", "/a\\b",
        "/a//**", "/./**", "/a.",
    ] {
        assert!(Conditions::compile(&route("r", path)).is_err(), "{path}");
    }
}

proptest! {
    #[test]
    fn the_tree_finds_what_trying_one_by_one_finds(
        patterns in prop::collection::vec("(/(a|b|c|\\{x\\})){1,3}(/\\*\\*)?", 0..12),
        path in "(/(a|b|c|d|A)){1,4}/?",
    ) {
        let routes: Vec<_> = patterns.iter().enumerate().map(|(i, p)| route(&format!("r{i}"), p)).collect();
        let table = table(&routes);
        let lower = path.to_ascii_lowercase();
        let segments: Vec<&str> = lower.trim_end_matches('/').split('/').skip(1).collect();
        let fits = |pattern: &PathPattern| {
            let (own, theirs) = (pattern.segments.len(), segments.len());
            (own == theirs || own < theirs && pattern.and_below)
                && pattern.segments.iter().zip(&segments).all(|(own, text)| *own == Segment::Any || own.sent() == text.as_bytes())
        };
        let expected = table.all().iter().position(|r| fits(&r.conditions.path)).unwrap();
        prop_assert_eq!(get(&table, &path), &*table.all()[expected].name);
    }

    /// No reading of a path by an app reaches another route.
    #[test]
    fn no_reading_of_a_path_belongs_to_another_route(
        patterns in prop::collection::vec("(/(a|b|ab|\\{x\\})){1,3}(/\\*\\*)?", 0..6),
        path in "/(a|b|/|;|%2f|%61|%2561|%5c|\\.|A|%3f){1,8}",
    ) {
        let routes: Vec<_> = patterns.iter().enumerate().map(|(i, p)| route(&format!("r{i}"), p)).collect();
        let table = table(&routes);
        if let Ok(name) = try_found(&table, "GET", "a", &path, &HeaderMap::new()) {
            for reading in some_readings(&path) {
                // The reading itself may be rejected, but never has another route.
                if let Ok(other) = try_found(&table, "GET", "a", &reading, &HeaderMap::new()) {
                    prop_assert_eq!(&other, &name, "{} read as {}", path, reading);
                }
            }
        }
    }
}

/// How frameworks may read a path, written independently of [`path`].
fn some_readings(path: &str) -> Vec<String> {
    let decode = |text: &str| {
        text.replace("%2f", "/").replace("%61", "a").replace("%5c", "\\").replace("%3f", "?").replace("%25", "%")
    };
    let once = decode(path);
    let mut readings = vec![path.to_owned(), once.clone(), decode(&once), path.replace("%61", "a")];
    for reading in readings.clone() {
        readings.push(reading.replace('\\', "/"));
        readings.push(reading.split('/').map(|s| s.split(';').next().unwrap()).collect::<Vec<_>>().join("/"));
        readings.push(reading.split('?').next().unwrap().to_owned());
        readings.push(reading.replace("//", "/"));
        readings.push(reading.to_lowercase());
    }
    readings
}

#[test]
fn routes_for_one_host_each_keep_their_order_among_the_others() {
    let with_hosts = |name: &str, path: &str, hosts: &[&str]| {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        routes::Route { hosts, ..route(name, path) }
    };
    let mut all = vec![
        with_hosts("early", "/**", &["t1.example.com"]),
        with_hosts("wild", "/**", &["*.example.org"]),
        with_hosts("hidden", "/**", &["t2.example.org"]),
        with_hosts("two", "/**", &["t3.example.com", "t4.example.com"]),
    ];
    all.extend((0..1_000).map(|n| with_hosts(&format!("t{n}"), "/**", &[&format!("t{n}.example.com")])));
    all.push(route("late", "/**"));
    let table = table(&all);
    for (host, wanted) in [
        ("t1.example.com", "early"),
        ("t2.example.org", "wild"),
        ("t4.example.com", "two"),
        ("t999.example.com", "t999"),
        ("T999.Example.COM.:8080", "t999"),
        ("t1000.example.com", "late"),
        ("", "late"),
    ] {
        assert_eq!(found(&table, "GET", host, "/x/y", &HeaderMap::new()), wanted, "{host}");
    }
}
