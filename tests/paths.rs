//! Rules for a path hold for the app's reading of it: no spelling reaches a handler by another route than its own.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use xtask::{Process, Program, Tool, paths as places, ports};

use crate::backend::Backend;
use crate::harness::{Answer, Client, Form, Proxy, Setup, every_form, fresh_dir, get, post, with_fields};
use crate::limits::{NO_DEFAULTS, rule};

/// A route for each handler of the apps in tests/frameworks, each with a limit that identifies it in responses.
const HANDLERS: [(&str, &str); 4] =
    [("login", "/api/login"), ("export", "/items/{id}/export"), ("item", "/items/{id}"), ("files", "/files/**")];

fn rules() -> String {
    let routes = HANDLERS.map(|(name, path)| format!("[[routes]]\nname = \"{name}\"\npath = \"{path}\"\n"));
    let limits = HANDLERS.map(|(name, _)| rule(name, "9000/1h", &format!("routes = [\"{name}\"]\n")));
    format!(
        "{NO_DEFAULTS}{}{}{}",
        rule("default", "9000/1h", "routes = [\"default\"]\n"),
        limits.concat(),
        routes.concat()
    )
}

/// An app of tests/frameworks; ended when dropped.
struct Framework {
    name: &'static str,
    address: SocketAddr,
    _process: Process,
}

impl Framework {
    fn start(name: &'static str, program: impl FnOnce(&Path, u16) -> Program) -> Self {
        let port = ports::free().expect("a free port");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let log = fresh_dir().join(format!("{name}.log"));
        let sources = places::root().join("tests/frameworks");
        let mut process = program(&sources, port).start(name, &log).expect("it can be started");
        let serves = || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        process.ready(Duration::from_secs(60), serves).expect("it serves");
        Self { name, address, _process: process }
    }

    fn starlette() -> Self {
        Self::start("starlette", |sources, port| {
            Program::new(Tool::Starlette.get().unwrap()).arg(sources.join("starlette_app.py")).arg(port.to_string())
        })
    }

    fn wsgi() -> Self {
        Self::start("wsgi", |sources, port| {
            Program::new(Tool::Starlette.get().unwrap()).arg(sources.join("wsgi_app.py")).arg(port.to_string())
        })
    }

    fn express() -> Self {
        Self::start("express", |sources, port| {
            let modules = Tool::Express.get().unwrap().parent().unwrap().to_owned();
            let program = Program::new(Tool::Node.get().unwrap()).arg(sources.join("express_app.js"));
            program.arg(port.to_string()).env("NODE_PATH", modules).env("NODE_ENV", "production")
        })
    }

    fn rack() -> Self {
        Self::start("rack", |sources, port| {
            let bind = format!("tcp://127.0.0.1:{port}");
            let program =
                Program::new(Tool::Puma.get().unwrap()).args(["--quiet", "--threads", "4:4", "--bind", &bind]);
            program.arg(sources.join("rack_app.ru")).env("RACK_ENV", "production")
        })
    }

    fn go() -> Self {
        Self::start("go", |sources, port| Program::new(built_with_go(&sources.join("go"))).arg(port.to_string()))
    }
}

/// A Go app, built once for each source: the first build takes as long as compiling net/http.
pub fn built_with_go(sources: &Path) -> PathBuf {
    let cache = places::tools().join("go-cache");
    let program = fresh_dir().join("paths");
    let go = Program::new(Tool::Go.get().unwrap()).args(["build", "-o"]).arg(&program).arg(".");
    let go = go.dir(sources).env("GOCACHE", &cache).env("GOPATH", cache.join("path")).env("GOTOOLCHAIN", "local");
    go.env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=mod")
        .without_env("GOROOT")
        .output()
        .expect("the Go app can be built");
    program
}

/// A connection that is reopened after it was closed.
struct Asker {
    address: SocketAddr,
    client: Option<Client>,
}

impl Asker {
    fn new(address: SocketAddr) -> Self {
        Self { address, client: None }
    }

    /// The response; `None` if the app sends none, as for a request that it does not understand.
    fn ask(&mut self, target: &str) -> Option<Answer> {
        // A kept connection may have been closed meanwhile; then a new one is tried.
        for _ in 0..2 {
            let is_new = self.client.is_none();
            let mut client = self.client.take().or_else(|| Client::connect(self.address).ok())?;
            match client.send(get(target)).try_answer() {
                Ok(answer) => {
                    let keeps = !answer.closes() && !answer.head.starts_with("HTTP/1.0");
                    self.client = keeps.then_some(client);
                    return Some(answer);
                }
                Err(_) if is_new => return None,
                Err(_) => {}
            }
        }
        None
    }
}

/// Spellings of a path that some parser may read as that path, and of paths near it.
fn spellings() -> Vec<String> {
    let bases = ["/api/login", "/items/7/export", "/items/7", "/files/a/b", "/health", "/metrics"];
    let mut slashes =
        vec!["%2F", "%2f", "%252F", "//", "/./", "\\", "%5C", "%5c", "/;x/", ";x/", "%c0%af", "/%2e/", "/../x/../"];
    slashes.extend(["/%2F", "%2F/", "/x/../", "/%20/"]);
    let after = [
        "/", "//", ";x", "%3Bx", ";x=1%2Fy", ".", "%2E", "%20", "%00", "%0a", "%3Fx", "%23x", "/.", "/..", "/%2e%2e",
        "/..;/", "%2F", "%5C", "\\", "/x/..", "%2500", ".json", "/%2e", "%", "%zz",
    ];
    let before = [
        "/",
        "//",
        "/.",
        "/x/..",
        "/health/..",
        "/files/..",
        "/%2e%2e",
        "/;x",
        "\\",
        "/%2F",
        "/files/%2e%2e",
        "/health/%2e%2e",
    ];
    let mut all = BTreeSet::new();
    for base in bases {
        let ends: Vec<String> = after.iter().map(|after| format!("{base}{after}")).chain([base.to_owned()]).collect();
        all.extend(ends.clone());
        // Combinations of both, every fifth.
        let pairs = ends.iter().flat_map(|end| slashes.iter().map(move |slash| (end, slash)));
        for (number, (end, slash)) in pairs.enumerate() {
            if let (Some(at), true) = (base[1..].find('/'), end == base || number % 5 == 0) {
                all.insert(format!("{}{slash}{}", &end[..=at], &end[at + 2..]));
            }
        }
        for slash in &slashes {
            all.insert(base.replace('/', slash));
            all.insert(format!("/{}", base[1..].replace('/', slash)));
        }
        for before in before {
            all.extend([
                format!("{before}{base}"),
                format!("{before}{base}/"),
                format!("{before}{}", base.replace("/7", "%2F7")),
            ]);
        }
        for at in 1..base.len() {
            let byte = base.as_bytes()[at];
            all.insert(format!("{}%{byte:02x}{}", &base[..at], &base[at + 1..]));
            all.insert(format!("{}%25{byte:02X}{}", &base[..at], &base[at + 1..]));
        }
        all.extend([
            base.to_uppercase(),
            base.to_uppercase() + "/",
            format!("http://outrigger.test{base}"),
            format!("http://outrigger.test/{base}"),
        ]);
    }
    all.extend(
        ["/items/a%2Fb", "/items/a%2Fb/export", "/items/7%2Fexport", "/items/%2e%2e/export", "/items//export"]
            .map(str::to_owned),
    );
    all.extend(["/@scope%2fname", "/projects/a%2Fb/x", "/caf%C3%A9", "/a;v=1/b", "/a//b", "/a%20b"].map(str::to_owned));
    all.into_iter().collect()
}

/// Whether the proxy rejects it under any rules: an independent copy of the list in docs/operations.md.
fn is_refused_by_every_rule(spelling: &str) -> bool {
    let mut decoded = spelling.to_lowercase().replace("%25", "%");
    for (encoded, plain) in [("%2e", "."), ("%2f", "/"), ("%5c", "/"), ("\\", "/"), ("%c0%af", "/"), ("%20", " ")] {
        decoded = decoded.replace(encoded, plain);
    }
    let is_dots = |segment: &str| matches!(segment.split(';').next().unwrap_or_default().trim_end(), "." | "..");
    decoded.split('/').any(is_dots) || ["%00", "%0a"].iter().any(|control| spelling.contains(control))
}

/// Some frameworks decode a path once, some twice.
fn twice_decoded(spelling: &str) -> String {
    (0..2).fold(spelling.to_owned(), |text, _| {
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once('%') {
            out.push_str(before);
            let code = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(u8::is_ascii);
            out.push(code.map_or('%', char::from));
            rest = if code.is_some() { &after[2..] } else { after };
        }
        out + rest
    })
}

/// The limit that the response names, which tells the request's route.
fn route_of(answer: &Answer) -> String {
    let policy = answer.header("ratelimit-policy").unwrap_or_default();
    policy.trim_start_matches('"').split('"').next().unwrap_or_default().to_owned()
}

fn is_served_as_routed(app: &Framework) {
    let guarded = Setup::before(app.address.to_string(), &rules()).start();
    let plain = Setup::before(app.address.to_string(), "").start();
    let (mut direct, mut through, mut bare) =
        (Asker::new(app.address), Asker::new(guarded.address), Asker::new(plain.address));
    let (mut slipped, mut harmed, mut reached) = (Vec::new(), Vec::new(), BTreeSet::new());
    let spellings = spellings();
    for spelling in &spellings {
        let answer = through.ask(spelling).unwrap_or_else(|| panic!("{}: no answer to {spelling}", app.name));
        let (handler, route) = (answer.text(), route_of(&answer));
        let is_right = match (answer.status, &*handler) {
            (200, "health") => {
                let path = spelling.strip_prefix("http://outrigger.test").unwrap_or(spelling);
                route == if path.ends_with("/health") && !path.contains("//") { "" } else { "default" }
            }
            (200, "metrics") => false,
            (200, "other") => true,
            (200, handler) => handler == route,
            _ => true,
        };
        if !is_right {
            slipped.push(format!("{spelling}: {handler} by the route {route:?}"));
        }
        if answer.status == 200 {
            reached.insert(handler);
        }
        if spelling.starts_with("http:") {
            // The app receives only its path.
            continue;
        }
        // With an empty config, legitimate requests are not rejected.
        let (alone, proxied) = (direct.ask(spelling), bare.ask(spelling).expect("the proxy answers"));
        let alone = alone.map_or((502, String::new()), |answer| (answer.status, answer.text()));
        let is_refused = proxied.header("content-type") == Some("application/problem+json");
        // A target begins with a slash (RFC 9112 section 3.2.1).
        let may_be_refused = is_refused_by_every_rule(spelling)
            || !spelling.starts_with('/')
            || twice_decoded(spelling).to_lowercase().contains("metrics")
            || alone.0 >= 400;
        if (is_refused && !may_be_refused) || (!is_refused && (proxied.status, proxied.text()) != alone) {
            harmed
                .push(format!("{spelling}: {alone:?} alone, {:?} through the proxy", (proxied.status, proxied.text())));
        }
    }
    println!("{}: {} spellings, {reached:?} reached", app.name, spellings.len());
    assert!(slipped.is_empty(), "{}: {} of {}:\n{}", app.name, slipped.len(), spellings.len(), slipped.join("\n"));
    assert!(harmed.is_empty(), "{}: {} of {}:\n{}", app.name, harmed.len(), spellings.len(), harmed.join("\n"));
    let all = ["export", "files", "health", "item", "login", "other"].map(str::to_owned);
    assert_eq!(reached, BTreeSet::from(all), "{}: every handler can be reached", app.name);
}

/// Hundreds of spellings with the path handling of Python, Ruby, JavaScript and Go.
#[test]
fn paths_frameworks() {
    for start in [Framework::starlette, Framework::wsgi, Framework::express, Framework::rack, Framework::go] {
        is_served_as_routed(&start());
    }
}

/// The variables that CGI-like interfaces make of headers' names.
#[test]
fn no_spelling_of_a_guarded_header_reaches_wsgi_or_rack() {
    for app in [Framework::wsgi(), Framework::rack()] {
        let proxy = Setup::before(app.address.to_string(), "").start();
        for name in [
            "X_Forwarded_For",
            "X-Forwarded_Proto",
            "X_Real_IP",
            "X_Forwarded_Host",
            "Fly_Client_IP",
            "X_Request_Id",
            "X-Outrigger_Tier",
        ] {
            let forged = [&*format!("{name}: forged"), "X_Custom: kept"];
            // Without the proxy, the app reads the forged header: otherwise this would prove nothing.
            let alone =
                Client::connect(app.address).unwrap().send(with_fields(&get("/variables"), &forged)).answer().text();
            let is_mapped = alone.contains("forged");
            let answer = proxy.ask(&with_fields(&get("/variables"), &forged));
            assert!(
                answer.status == 200 && !answer.text().contains("forged"),
                "{}, {name}: {}",
                app.name,
                answer.text()
            );
            println!("{}: {name} alone {}", app.name, if is_mapped { "forges a variable" } else { "is not taken" });
        }
        let variables = proxy.get("/variables").text();
        assert!(
            variables.contains("HTTP_X_FORWARDED_FOR=127.0.0.1") && variables.contains("HTTP_X_FORWARDED_PROTO=http"),
            "{variables}"
        );
    }
}

/// Every protocol rejects these with this status and reason.
#[track_caller]
fn are_refused(proxy: &Proxy, status: u16, reason: &str, targets: &[&str]) {
    for (target, number) in targets.iter().zip(1..) {
        println!("asking for {target}");
        let upgrade = with_fields(&get(target), &["Connection: upgrade", "Upgrade: websocket"]);
        for request in every_form(target).into_iter().chain([upgrade]) {
            proxy.ask(&request).is_problem(status, reason);
        }
        let mut client = proxy.connect();
        client.send(get(target)).answer().is_problem(status, reason);
        assert_eq!(client.send(get("/there")).answer().status, 200, "the connection stays");
        proxy.counts_rejections(reason, (Form::NUMBER + 2) * number);
    }
}

#[test]
fn ambiguous_paths_are_rejected_on_every_protocol() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, &rules());
    let dots = [
        "/files/../api/login",
        "/./api/login",
        "/a/%2E%2e/b",
        "/files/a%2f..%2fb?x=1",
        "/a/..;x/b",
        "/a/%252e%252e/b",
        "/..",
    ];
    are_refused(&proxy, 400, "path_dot_segment", &dots);
    are_refused(&proxy, 400, "path_control_character", &["/files/a%00", "/a%0D%0Ab", "/a%7f"]);
    let ambiguous = [
        "/api%2Flogin",
        "//api/login",
        "/api/login;x",
        "/api/%6Cogin",
        "/api/login%3Fx",
        "/items/a%2Fb",
        "/api/login.?x=1",
    ];
    are_refused(&proxy, 400, "path_ambiguous", &ambiguous);
    let metrics = ["/metrics", "/metrics?x=1", "/METRICS/", "//metrics", "/%6detrics", "/metrics;x"];
    are_refused(&proxy, 404, "not_public", &metrics);
    assert_eq!(app.requests(), app.requests_to("/there"));
}

#[test]
fn unambiguous_paths_are_forwarded_unchanged() {
    let app = Backend::start();
    for rules in ["", &rules()] {
        let proxy = Proxy::with(&app, rules);
        for target in [
            "/@scope%2fname",
            "/projects/a%2Fb?ref=x%2Fy",
            "/files/a%2Fb//c;v=1/%7Ed",
            "/a%20b/c%C3%A9",
            "/.well-known/x",
            "/a;b=c",
            "/x//y",
            "/files/",
            "/a?b=/../c&d=%2e%2e",
            "/API/Login",
            "/a%25b",
            "/files/a\\b",
            "/a%5Cb",
            "/o%7Ether",
        ] {
            for request in every_form(target) {
                let answer = proxy.ask(&request);
                assert_eq!((answer.status, &answer.json()["target"]), (200, &target.into()), "{target}: {answer:?}");
            }
        }
    }
}

#[test]
fn health_is_exempt_from_limits_and_bans_by_its_literal_path_alone() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "rate_limits.medium = \"5/1h\"\n");
    for _ in 0..10 {
        assert_eq!(proxy.get("/health").status, 200);
    }
    for path in ["/health/", "//health", "/HEALTH", "/%68ealth", "/health;x"] {
        assert_eq!(proxy.get(path).status, 200, "{path}");
    }
    for path in ["/health/", "//health", "/HEALTH", "/%68ealth", "/health;x", "/health%2Fready"] {
        for request in every_form(path) {
            proxy.ask(&request).is_problem(429, "quota_exceeded");
        }
    }
    assert_eq!(proxy.get("/health/ready").status, 200);
}

#[test]
fn a_route_that_names_it_makes_the_metrics_path_public() {
    let app = Backend::start();
    let open = "[[routes]]\nname = \"metrics\"\npath = \"/metrics\"\nmethods = [\"GET\"]\n";
    let proxy = Proxy::with(&app, open);
    assert_eq!(proxy.get("/metrics").status, 200);
    proxy.ask(&post("/metrics", "x")).is_problem(404, "not_public");
    proxy.changes_to("[[routes]]\nname = \"all\"\npath = \"/**\"\n");
    proxy.get("/metrics").is_problem(404, "not_public");
    // `app.metrics` determines which path is private.
    proxy.changes_to(&format!("app.metrics = \"http://{}/internal/prometheus\"\n", app.address()));
    assert_eq!(proxy.get("/metrics").status, 200);
    proxy.get("/internal/prometheus").is_problem(404, "not_public");
}

#[test]
fn an_absolute_target_is_forwarded_as_its_path() {
    // HTTP/2 has no absolute targets: a request names its authority apart.
    let forms = || Form::ALL.into_iter().filter(|form| form.version() != "2");
    let app = Backend::start();
    let proxy = Proxy::with(&app, &rules());
    for (target, path) in [
        ("http://outrigger.test/a?b=c", "/a?b=c"),
        ("http://OUTRIGGER.test:80/a", "/a"),
        ("http://outrigger.test", "/"),
        ("http://outrigger.test?x", "/?x"),
    ] {
        for form in forms() {
            let answer = form.ask(&proxy, target);
            assert_eq!((answer.status, &answer.json()["target"]), (200, &path.into()), "{target}: {answer:?}");
        }
    }
    // Without a `Host`, that of the target counts.
    for request in [
        "GET http://other.test:81/a HTTP/1.0\r\n\r\n",
        "POST http://other.test:81?x HTTP/1.0\r\nA: b\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        let answer = proxy.ask(request);
        let headers = &answer.json()["headers"];
        assert_eq!((answer.status, &headers["host"]), (200, &"other.test:81".into()), "{request}: {answer:?}");
    }
    for (target, reason) in [
        ("http://other.test/a", "malformed_host_mismatch"),
        ("http://outrigger.test:8080/a", "malformed_host_mismatch"),
        ("http://outrigger.test/api%2Flogin", "path_ambiguous"),
        ("http://outrigger.test//api/login", "path_ambiguous"),
        ("http://outrigger.test/a/../b", "path_dot_segment"),
    ] {
        for form in forms() {
            form.ask(&proxy, target).is_problem(400, reason);
        }
    }
}

#[test]
fn explain_says_what_the_proxy_does() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, &rules());
    let config = proxy.file.to_str().unwrap().to_owned();
    for spelling in [
        "/api/login",
        "/API/login/",
        "/api%2Flogin",
        "/a/../b",
        "/a%00",
        "/metrics",
        "/files/a%2Fb",
        "/items/7;x",
        "//health",
        "/health",
    ] {
        let said = proxy.run(&["explain", "GET", spelling, "--config", &config]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let answer = proxy.get(spelling);
        if answer.status == 200 {
            let route = if route_of(&answer).is_empty() { "health".to_owned() } else { route_of(&answer) };
            assert!(said.contains(&format!("\nroute          {route}\n")), "{spelling}: {said}");
        } else {
            let reason = answer.json()["type"].as_str().unwrap().rsplit(':').next().unwrap().replace('-', "_");
            assert!(said.starts_with(&format!("refused        {} {reason}\n", answer.status)), "{spelling}: {said}");
        }
    }
}

/// The parameters in the audit log are those of the path that the app received.
#[test]
fn the_audited_path_is_the_one_that_the_app_received() {
    let app = Backend::start();
    let route = "[[routes]]\nname = \"item\"\npath = \"/items/{id}/**\"\naudit = \"data\"\n";
    let proxy = Proxy::with(&app, &format!("[audit]\ndirectory = \"audit\"\nparameters = [\"id\"]\n{route}"));
    assert_eq!(proxy.get("/items/a%2Fb/c").json()["target"], "/items/a%2Fb/c");
    crate::harness::until("the entry", || {
        let files = fs::read_dir(proxy.dir.join("audit")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_to_string(file.path()).ok()).any(|text| text.contains("\"id\":\"a%2Fb\""))
    });
}
