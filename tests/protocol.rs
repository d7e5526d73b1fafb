//! HTTP's requirements for a proxy: forwarded headers, message framing, persistent connections.

use crate::{
    backend::{Backend, Habit, Play},
    harness::{Form, Proxy, every_form, get, post, socket, with_fields},
};

#[test]
fn a_request_passes_through_unchanged() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let cases = [("PATCH", "hello"), ("GET", ""), ("GET", "hello"), ("DELETE", ""), ("OPTIONS", ""), ("QUERY", "x")];
    for (method, body) in cases {
        let length = body.len();
        let answer = proxy.ask(&format!(
            "{method} /a/b%20c//d;e/f%2Fg?x=1&y=%2F/../z HTTP/1.1\r\nHost: A.example:8080\r\nX-Mixed-Case: a\r\nx-mixed-case: b\r\n\
             Cookie: k=v\r\nAuthorization: Bearer t\r\nAccept-Encoding: gzip\r\nContent-Length: {length}\r\nX-Empty:\r\n\
             X-Text: \u{e4}\r\n\r\n{body}",
        ));
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = answer.json();
        assert_eq!(seen["method"], method);
        assert_eq!(seen["target"], "/a/b%20c//d;e/f%2Fg?x=1&y=%2F/../z");
        assert_eq!(seen["version"], "HTTP/1.1");
        assert_eq!(seen["body"]["bytes"], length);
        let fields = [
            ("host", "A.example:8080"),
            ("x-mixed-case", "a, b"),
            ("cookie", "k=v"),
            ("authorization", "Bearer t"),
            ("accept-encoding", "gzip"),
            ("content-length", &length.to_string()),
            ("x-empty", ""),
            ("x-text", "\u{e4}"),
        ];
        for (name, value) in fields {
            assert_eq!(answer.seen(name).as_deref(), Some(value), "{method}: {name}");
        }
        let head = seen["head"].as_str().unwrap();
        assert!(head.contains("X-Mixed-Case: a\r\n"), "the case of names is kept: {head}");
    }
    // A request about the server as a whole.
    assert_eq!(proxy.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").json()["target"], "*");
}

#[test]
fn a_response_passes_through_unchanged() {
    let app = Backend::start();
    app.says(
        "/",
        "HTTP/1.1 418 I'm a teapot\r\nX-Mixed-Case: a\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: teapot\r\n\
         ETag: \"x\"\r\nContent-Length: 3\r\n\r\ntea",
    );
    let proxy = Proxy::start(&app);
    for form in Form::ALL {
        let answer = form.ask(&proxy, "/");
        assert_eq!((answer.status, answer.text().as_str()), (418, "tea"), "{form:?}");
        assert_eq!(answer.header("set-cookie"), Some("a=1, b=2"));
        assert_eq!(answer.header("server"), Some("teapot"));
        assert_eq!(answer.header("etag"), Some("\"x\""));
        // HTTP/2 has names in lower case only.
        let name = if form.version() == "2" { "x-mixed-case" } else { "X-Mixed-Case" };
        assert!(answer.head.contains(&format!("{name}: a\r\n")), "{answer:?}");
        assert_eq!(answer.header("via"), None);
        assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")), "{answer:?}");
    }
}

#[test]
fn connection_headers_of_the_client_do_not_reach_the_app() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let gone = ["x-secret", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "proxy-authorization"];
    // With and without options that keep or close the connection.
    for connection in ["X-Secret, close", "x-secret", "keep-alive", "close", "Keep-Alive, X-Secret"] {
        for upgrade in ["", "Upgrade: h2c\r\n"] {
            let answer = proxy.ask(&format!(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\nX-Secret: 1\r\nKeep-Alive: timeout=9\r\n\
                 Proxy-Connection: keep-alive\r\nTE: gzip\r\nTrailer: X-T\r\n{upgrade}\
                 Proxy-Authorization: Basic eDp5\r\nX-Kept: 1\r\n\r\n",
            ));
            assert_eq!(answer.status, 200, "{answer:?}");
            let is_named = connection.to_ascii_lowercase().contains("x-secret");
            for name in &gone[usize::from(!is_named)..] {
                assert_eq!(answer.seen(name), None, "{connection}: {name}: {answer:?}");
            }
            assert_eq!(answer.seen("x-kept").as_deref(), Some("1"));
            assert!(answer.seen("connection").is_none_or(|value| !value.contains("close")), "{answer:?}");
            assert_eq!(answer.closes(), connection.contains("close"), "as the client asked: {answer:?}");
        }
    }
}

#[test]
fn a_client_cannot_remove_the_proxys_headers() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    for named in ["X-Forwarded-For", "X-Request-Id, Forwarded", "Host", "Content-Length", "Cookie"] {
        // HTTP/2 has no `Connection`.
        for request in Form::ALL.into_iter().filter(|form| form.version() != "2").map(|form| form.request("/")) {
            let request = with_fields(&request, &[&format!("Connection: {named}")]);
            // The proxy may reject the request or ignore the header.
            let answer = proxy.ask(&request);
            if answer.status == 200 {
                for kept in ["x-forwarded-for", "x-request-id", "forwarded", "host"] {
                    assert!(answer.seen(kept).is_some(), "{named} took {kept}: {answer:?}");
                }
            } else {
                answer.is_problem(400, "malformed_field");
            }
        }
    }
}

#[test]
fn connection_headers_of_the_app_do_not_reach_the_client() {
    let app = Backend::start();
    app.at(
        "/",
        Play::SayAndClose(
            "HTTP/1.1 200 OK\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=9\r\n\
             Connection: X-Also\r\nX-Also: 1\r\nHTTP2-Settings: AAMAAABk\r\nProxy-Authorization: Basic eDp5\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Kept \t: 1\r\n\
             Content-Length : 2\r\n\r\nhi"
                .into(),
        ),
    );
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    for request in every_form("/").iter().cycle().take(2 * Form::NUMBER) {
        let answer = client.send(request).answer();
        let gone = ["x-secret", "x-also", "keep-alive", "proxy-connection", "proxy-authenticate", "upgrade"];
        for gone in gone.into_iter().chain(["http2-settings", "proxy-authorization"]) {
            assert_eq!(answer.header(gone), None, "{gone}");
        }
        assert_eq!(answer.header("x-kept"), Some("1"));
        assert!(answer.stays_open(), "the app's close is not the client's");
    }
}

/// CGI, WSGI, Rack and PHP give the app one variable for all spellings of a header's name.
#[test]
fn no_spelling_of_a_header_that_only_the_proxy_may_send_reaches_the_app() {
    let app = Backend::start();
    let proxy = Proxy::with(
        &app,
        "identity.trusted = [\"127.0.0.0/8\"]\n[[routes]]\nname = \"beta\"\npath = \"/**\"\nheaders = { \"X-Beta\" = \"1\" }\n",
    );
    let names = [
        "X_Forwarded_For",
        "x-forwarded_proto",
        "X_REAL_IP",
        "X.Forwarded.Host",
        "Fly_Client_IP",
        "FLY-Client_Ip",
        "X_Request_Id",
        "X_Request_Timeout_Ms",
        "X_Outrigger_Machine",
        "X-Outrigger-Tier",
        "X_Original_URL",
        "Content_Length",
        "Transfer_Encoding",
        "X_Beta",
    ];
    for name in names {
        for request in every_form("/") {
            let answer = proxy.ask(&with_fields(&request, &[&format!("{name}: 6"), "access_key: k"]));
            let headers = answer.json()["headers"].clone();
            let taken_for_it =
                |other: &str| other.replace(['_', '.'], "-") == name.to_ascii_lowercase().replace(['_', '.'], "-");
            let forged =
                headers.as_object().unwrap().iter().find(|(other, value)| taken_for_it(other) && *value == "6");
            assert_eq!(forged, None, "{name}");
            assert_eq!(headers["access_key"], "k");
        }
    }
    proxy.counts("outrigger_forged_fields_total", &[], Form::NUMBER * names.len());
    let read = proxy.ask(&with_fields(&get("/"), &["X-Beta: 1"]));
    assert_eq!(read.seen("x-beta").as_deref(), Some("1"));
}

#[test]
fn the_app_gets_the_clients_address_protocol_and_host() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    for request in every_form("/") {
        let answer = proxy.ask(&request);
        assert_eq!(answer.seen("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert_eq!(answer.seen("x-forwarded-proto").as_deref(), Some("http"));
        assert_eq!(answer.seen("x-forwarded-host").as_deref(), Some("outrigger.test"));
        assert_eq!(answer.seen("forwarded").as_deref(), Some("for=127.0.0.1;host=\"outrigger.test\";proto=http"));
        assert_eq!(answer.seen("x-request-timeout-ms").as_deref(), Some("60000"));
    }
}

#[test]
fn added_headers_can_be_switched_off() {
    let app = Backend::start();
    let rules = "headers.forwarded = \"off\"\nheaders.request_id = false";
    let proxy = Proxy::with(&app, rules);
    for request in every_form("/") {
        let answer = proxy.ask(&request);
        for name in ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded", "x-request-id"] {
            assert_eq!(answer.seen(name), None, "{name}");
        }
        assert_eq!(answer.header("x-request-id"), None);
    }
}

#[test]
fn the_app_and_the_client_get_the_request_id() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut names = std::collections::HashSet::new();
    for request in every_form("/").iter().cycle().take(2 * Form::NUMBER) {
        let answer = proxy.ask(request);
        let name = answer.header("x-request-id").unwrap();
        assert_eq!(answer.seen("x-request-id").as_deref(), Some(name));
        assert!(name.len() == 36 && names.insert(name.to_owned()), "{name}");
    }
    // Clients cannot set the id of a request, and apps cannot change it.
    app.says("/named", "HTTP/1.1 200 OK\r\nX-Request-Id: theirs\r\nContent-Length: 0\r\n\r\n");
    for path in ["/", "/named"] {
        for request in every_form(path) {
            let answer = proxy.ask(&with_fields(&request, &["X-Request-Id: mine"]));
            assert_eq!(answer.header("x-request-id").unwrap().len(), 36, "{answer:?}");
            if path == "/" {
                assert_eq!(answer.seen("x-request-id").as_deref(), answer.header("x-request-id"));
            }
        }
    }
}

#[test]
fn trace_headers_are_forwarded_unchanged_and_never_added() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for request in every_form("/") {
        let answer = proxy.ask(&request);
        assert_eq!((answer.seen("traceparent"), answer.seen("tracestate")), (None, None));
        // Invalid values too: the app's tracing decides about them.
        for value in [sent, "garbage"] {
            let lines = [format!("traceparent: {value}"), "tracestate: vendor=1,other=2".to_owned()];
            let answer = proxy.ask(&with_fields(&request, &[&lines[0], &lines[1]]));
            assert_eq!(answer.seen("traceparent").as_deref(), Some(value));
            assert_eq!(answer.seen("tracestate").as_deref(), Some("vendor=1,other=2"));
        }
    }
}

#[test]
fn an_http_1_0_client_gets_no_chunks_and_no_kept_connection() {
    let app = Backend::start();
    app.says("/chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
    app.at("/close", Play::SayAndClose("HTTP/1.1 200 OK\r\n\r\nhi".into()));
    app.says("/length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let proxy = Proxy::start(&app);
    for path in ["/chunks", "/close", "/length"] {
        let mut client = proxy.connect();
        let answer = client.send(format!("GET {path} HTTP/1.0\r\n\r\n")).answer();
        assert_eq!(answer.header("transfer-encoding"), None, "{answer:?}");
        assert_eq!((answer.status, answer.text().as_str()), (200, "hi"), "{path}");
        client.is_closed();
    }
}

#[test]
fn apaches_ab_speaks_http_1_0_through_the_proxy() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let ab = xtask::Tool::Ab.get().expect("ab");
    let url = format!("http://{}/ab", proxy.address);
    for keep_alive in [&["-q"][..], &["-q", "-k"]] {
        let said = xtask::Program::new(&ab).args(["-n", "200", "-c", "8"]).args(keep_alive).arg(&url).output().unwrap();
        assert!(said.contains("Complete requests:      200"), "{said}");
        assert!(said.contains("Failed requests:        0") && !said.contains("Non-2xx"), "{said}");
    }
}

#[test]
fn a_response_to_head_has_a_length_and_no_body() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    app.says("/chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    app.says("/unknown", "HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n");
    // Without and with an option of `Connection`.
    for special in ["", "Connection: X-A\r\n"] {
        for path in ["/", "/chunks", "/unknown"] {
            let answer = client.send(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n{special}\r\n")).answer_to_head();
            assert_eq!(answer.status, 200);
            assert!(path != "/" || answer.header("content-length").is_some_and(|length| length != "0"), "{answer:?}");
            assert!(!answer.closes(), "{path}: {answer:?}");
            // The next response follows the header section immediately, or this would fail.
            assert_eq!(client.send(get("/next")).answer().json()["target"], "/next");
        }
    }

    // The same holds for Outrigger's own responses.
    drop(app);
    let answer = client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").answer_to_head();
    assert_eq!(answer.status, 502);
}

#[test]
fn responses_without_a_body_keep_the_connection_in_step() {
    let app = Backend::start();
    app.says("/204", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n");
    app.says("/304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nETag: \"x\"\r\n\r\n");
    app.says("/empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    for (path, status) in [("/204", 204), ("/304", 304), ("/empty", 200), ("/204", 204)] {
        for request in every_form(path) {
            let answer = client.send(request).answer();
            assert_eq!(answer.status, status);
            assert!(answer.body.is_empty() && answer.stays_open(), "{answer:?}");
            if status == 204 {
                assert_eq!(answer.header("transfer-encoding"), None, "{answer:?}");
                assert_eq!(answer.header("content-length"), None, "{answer:?}");
            }
            assert_eq!(client.send(get("/next")).answer().json()["target"], "/next");
        }
    }
}

#[test]
fn a_client_that_waits_for_100_gets_it_from_the_app() {
    let app = Backend::start();
    app.at("/", Play::Continue);
    app.at("/refused", Play::Interrupt(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_vec()));
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    let head = "Host: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    client.send(format!("POST / HTTP/1.1\r\n{head}"));
    let interim = client.take_through(b"\r\n\r\n").expect("an interim answer before the body is sent");
    assert!(interim.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&interim));
    let answer = client.send("hello").answer();
    assert_eq!((answer.status, &answer.json()["body"]["bytes"]), (200, &5.into()));
    // An app that does not want the body says so, and the client does not wait.
    let answer = proxy.ask(&format!("POST /refused HTTP/1.1\r\n{head}"));
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    assert!(answer.interim.is_empty());
}

#[test]
fn early_hints_reach_the_client_before_the_response() {
    let app = Backend::start();
    app.says(
        "/",
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    );
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    for form in Form::ALL.into_iter().cycle().take(2 * Form::NUMBER) {
        let answer = client.send(form.request("/")).answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hi"));
        if form == Form::Http10 {
            assert!(answer.interim.is_empty(), "HTTP/1.0 has no interim responses: {answer:?}");
            continue;
        }
        assert_eq!(answer.interim.len(), 1, "{form:?}");
        assert!(answer.interim[0].contains(" 103 ") && answer.interim[0].contains("</a.css>"), "{answer:?}");
    }
    proxy.counts("outrigger_requests_total", &[("outcome", "success")], 2 * Form::NUMBER);
}

#[test]
fn a_chunked_request_arrives_complete_and_the_next_one_is_separate() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    for round in 0..3 {
        client.send("POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send("5;ext=\"1\"\r\nhello\r\n1\r\n \r\n0005\r\nworld\r\n0\r\nX-Trailer: 1\r\n\r\n");
        let seen = client.answer().json();
        assert_eq!((&seen["body"]["bytes"], &seen["target"]), (&11.into(), &"/c".into()), "round {round}: {seen}");
        assert_eq!(seen["body"]["hash"], crate::harness::Hash::of(b"hello world"));
    }
    // Chunks sent byte by byte.
    for byte in "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".bytes() {
        client.send([byte]);
    }
    assert_eq!(client.answer().json()["body"]["bytes"], 3);
}

#[test]
fn a_chunked_response_arrives_complete() {
    let app = Backend::start();
    app.says(
        "/",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5;a=b\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\
         X-T: 1\r\n\r\n",
    );
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    for _ in 0..3 {
        let answer = client.send(get("/")).answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello world"));
        assert_eq!(answer.header("content-length"), None);
    }
    assert_eq!(app.connections(), 1, "trailers do not cost the connection");
    for request in every_form("/") {
        let answer = client.send(&request).answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello world"), "{request}");
    }
}

#[test]
fn a_response_that_ends_with_its_connection_arrives_complete() {
    let app = Backend::start();
    app.at("/", Play::SayAndClose("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end".into()));
    let proxy = Proxy::start(&app);
    app.at("/1.0", Play::SayAndClose("HTTP/1.0 200 OK\r\n\r\nto the end".into()));
    app.at("/nothing", Play::SayAndClose("HTTP/1.1 200 OK\r\n\r\n".into()));
    let mut client = proxy.connect();
    for (path, body) in [("/", "to the end"), ("/1.0", "to the end"), ("/nothing", "")] {
        for request in every_form(path) {
            let answer = client.send(request).answer();
            assert_eq!((answer.status, answer.text().as_str()), (200, body));
            assert!(answer.stays_open(), "the client's connection is framed: {answer:?}");
        }
    }
}

#[test]
fn unsolicited_bytes_of_the_app_are_never_a_response() {
    let app = Backend::start();
    let stray = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray";
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    app.says("/more", &format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi{stray}"));
    app.says("/chunks", &format!("{chunks}{stray}"));
    app.says("/204", &format!("HTTP/1.1 204 No Content\r\n\r\n{stray}"));
    app.says("/304", &format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nstray{stray}"));
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    for path in ["/more", "/chunks", "/204", "/304"] {
        for request in every_form(path) {
            let answer = client.send(request).answer();
            assert!(answer.body.is_empty() || answer.text() == "hi", "{answer:?}");
            for next in every_form("/next") {
                assert_eq!(client.send(next).answer().json()["target"], "/next", "after {path}");
            }
        }
    }
    let head = client.send("HEAD /more HTTP/1.1\r\nHost: a\r\n\r\n").answer_to_head();
    assert_eq!(head.status, 200);
    assert_eq!(client.send(get("/next")).answer().json()["target"], "/next");
}

#[test]
fn pipelined_requests_get_responses_in_order() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    let chunked = "POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let ahead: String =
        (0..20).map(|n| format!("{}{}{chunked}", get(&format!("/{n}")), post(&format!("/{n}/p"), "12345"))).collect();
    client.send(&ahead);
    for n in 0..20 {
        assert_eq!(client.answer().json()["target"], format!("/{n}"));
        let posted = client.answer().json();
        assert_eq!((&posted["target"], &posted["body"]["bytes"]), (&format!("/{n}/p").into(), &5.into()));
        let chunked = client.answer().json();
        assert_eq!((&chunked["target"], &chunked["body"]["bytes"]), (&"/chunked".into(), &3.into()));
    }
    // Empty lines before a request are ignored (RFC 9112 section 2.2).
    assert_eq!(client.send("\r\n\r\n").send(get("/last")).answer().json()["target"], "/last");
}

#[test]
fn connections_are_kept_on_both_sides() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    for _ in 0..50 {
        let answer = client.send(get("/")).answer();
        assert!(answer.status == 200 && !answer.closes(), "{answer:?}");
    }
    assert_eq!(app.connections(), 1);
    proxy.counts("outrigger_connections_total", &[], 1);
    proxy.counts("outrigger_app_attempts_total", &[("connection", "new")], 1);
    proxy.counts("outrigger_app_attempts_total", &[("connection", "reused")], 49);
    let answer = client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").answer();
    assert!(answer.closes(), "{answer:?}");
    client.is_closed();
}

#[test]
fn the_app_may_listen_on_a_unix_socket() {
    let dir = crate::harness::fresh_dir();
    let mut app = Backend::start_unix(&socket(&dir));
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    for _ in 0..10 {
        assert_eq!(client.send(get("/unix")).answer().json()["target"], "/unix");
    }
    assert_eq!(app.connections(), 1);
    let answer = client.send(post("/post", "12345")).answer();
    assert_eq!(answer.json()["body"]["bytes"], 5);
    app.stop();
    client.send(get("/")).answer().is_problem(502, "app_unreachable");
    app.resume();
    assert_eq!(proxy.get("/").status, 200);
}

/// Forms of HTTP/1 that are rarer than those of [`Form`].
fn rare_forms(path: &str) -> [String; 7] {
    let (get, post) = (get(path), post(path, "hello"));
    let chunked = "5;x=y\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n";
    [
        with_fields(&get, &["Connection: close"]),
        with_fields(&post, &["Connection: X-Hop, close", "X-Hop: 1"]),
        with_fields(&post, &["Expect: 100-continue"]),
        format!("PUT {path} HTTP/1.1\r\nHost: outrigger.test\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        format!("POST {path} HTTP/1.0\r\nHost: outrigger.test\r\nContent-Length: 5\r\n\r\nhello"),
        format!("POST {path} HTTP/1.1\r\nHost: outrigger.test\r\n\r\n"),
        format!("GET {path} HTTP/1.0\r\n\r\n"),
    ]
}

#[test]
fn a_response_does_not_depend_on_the_form_of_its_request() {
    let app = Backend::start();
    app.says("/length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    app.says(
        "/chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;x\r\ni\r\n0\r\nX-T: 1\r\n\r\n",
    );
    app.at("/close", Play::SayAndClose("HTTP/1.1 200 OK\r\n\r\nhi".into()));
    app.says("/none", "HTTP/1.1 204 No Content\r\n\r\n");
    app.says("/hints", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    app.at("/nothing", Play::SayAndClose(Vec::new()));
    app.at("/garbage", Play::SayAndClose(b"garbage\r\n\r\n".to_vec()));
    app.at("/hang", Play::Hang);
    // The others have as long as they need.
    let hang = "[[routes]]\nname = \"hang\"\npath = \"/hang\"\ntimeout = \"300ms\"\n";
    let proxy = Proxy::with(&app, &format!("retry.attempts = 1\nbreaker.mode = \"off\"\n{hang}"));
    let cases = [
        ("/length", 200, "hi"),
        ("/chunks", 200, "hi"),
        ("/close", 200, "hi"),
        ("/none", 204, ""),
        ("/hints", 200, "hi"),
        ("/nothing", 502, "app-closed"),
        ("/garbage", 502, "app-invalid"),
        ("/hang", 504, "app-timeout"),
    ];
    for (path, status, part) in cases {
        for request in every_form(path).into_iter().chain(rare_forms(path)) {
            let answer = proxy.ask(&request);
            assert!(answer.status == status && answer.text().contains(part), "{request}: {answer:?}");
            let is_old = request.contains("HTTP/1.0");
            let closes = is_old || request.contains("close\r\n");
            assert_eq!(
                (answer.closes(), answer.interim.is_empty()),
                (closes, is_old || path != "/hints"),
                "{answer:?}"
            );
            assert!(!is_old || answer.header("transfer-encoding").is_none(), "{answer:?}");
        }
    }
}

#[test]
fn every_form_of_a_request_reaches_the_app_as_http_1_1_with_its_body() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    for request in every_form("/a?b=c").into_iter().chain(rare_forms("/a?b=c")) {
        let answer = proxy.ask(&request);
        let seen = answer.json();
        assert_eq!((&seen["version"], &seen["target"]), (&"HTTP/1.1".into(), &"/a?b=c".into()), "{request}");
        let bytes = if request.contains("hello") { 5 } else { 0 };
        assert_eq!(seen["body"]["bytes"], bytes, "{request}: {seen}");
        let host = answer.seen("host").unwrap();
        assert!(if request.contains("Host:") { host == "outrigger.test" } else { host.starts_with("127.0.0.1:") });
        for name in ["x-hop", "x-trailer", "connection"] {
            assert_eq!(answer.seen(name), None, "{request}: {name}");
        }
    }
}

#[test]
fn a_client_that_has_sent_all_and_says_so_gets_its_response() {
    let app = Backend::start();
    app.at(
        "/slow",
        Play::Drip(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_vec(), std::time::Duration::from_millis(10)),
    );
    let proxy = Proxy::start(&app);
    // HTTP/2 says so with each request.
    let http1 = Form::ALL.into_iter().filter(|form| form.version() != "2").map(|form| form.request("/slow"));
    for request in http1.chain(rare_forms("/slow")) {
        let mut client = proxy.connect();
        client.send(&request).finish_sending();
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hi"), "{request}");
    }
    proxy.comes_to_rest();
    proxy.counts("outrigger_requests_total", &[("outcome", "client_closed")], 0);
}

/// Over a Unix socket the kernel proves that a request was not read, so a POST shares the app's connections.
#[test]
fn posts_to_a_unix_socket_share_connections_and_are_sent_once() {
    let dir = crate::harness::fresh_dir();
    for habit in [Habit::CloseSoon, Habit::Close, Habit::Keep] {
        let app = Backend::start_unix(&socket(&dir));
        app.habit(habit);
        let proxy = Proxy::start(&app);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let proxy = &proxy;
                scope.spawn(move || {
                    let mut client = proxy.connect();
                    for n in 0..150 {
                        let answer = client.send(post(&format!("/{worker}/{n}"), "an order")).answer();
                        assert_eq!(answer.status, 200, "{answer:?}");
                    }
                });
            }
        });
        for (worker, n) in (0..4).flat_map(|worker| (0..150).map(move |n| (worker, n))) {
            assert_eq!(app.requests_to(&format!("/{worker}/{n}")), 1, "{habit:?}");
        }
        assert!(app.connections() < 10 || !matches!(habit, Habit::Keep), "{}", app.connections());
    }
}
