//! Bad input is rejected with a reason before it reaches the app. Every byte is sent as written.

use std::time::{Duration, Instant};

use crate::{
    backend::Backend,
    harness::{Answer, Client, Proxy, every_form, get, post},
};

/// A request that an upstream would serve if it parsed the bytes before it differently from the proxy.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends each of these with another request behind it, and expects one rejection, a closed connection and a count; none may
/// reach the app.
#[track_caller]
fn refused(status: u16, reason: &str, requests: &[&str]) {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    for (sent, request) in requests.iter().enumerate() {
        println!("sending {request:?}");
        let mut client = proxy.connect();
        let answer = client.send(request).send(SMUGGLED).answer();
        answer.is_problem(status, reason);
        assert!(answer.closes(), "{answer:?}");
        client.is_closed();
        proxy.counts_rejections(reason, sent + 1);
    }
    assert_eq!(app.connections(), 0, "the app was contacted");
}

/// A `POST` with these headers.
fn with(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

/// In every form, and for what never becomes a request.
#[test]
fn every_rejection_has_the_same_headers() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let refused = every_form("/metrics").map(|request| (request, "not_public"));
    let malformed = (with("Content-Length: x"), "malformed_length");
    for (request, label) in refused.into_iter().chain([malformed]) {
        let answer = proxy.ask(&request);
        answer.is_problem(if label == "not_public" { 404 } else { 400 }, label);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
        assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()), "{answer:?}");
        let date = answer.header("date").unwrap_or_default();
        assert!(date.ends_with(" GMT") && date.len() == 29, "{answer:?}");
        let id = answer.header("x-request-id").map(str::to_owned);
        assert_eq!(id.as_deref(), answer.json()["request_id"].as_str(), "{answer:?}");
    }
}

#[test]
fn content_length_with_transfer_encoding_is_rejected() {
    refused(
        400,
        "malformed_length_and_encoding",
        &[
            &with("Content-Length: 5\r\nTransfer-Encoding: chunked"),
            &with("Transfer-Encoding: chunked\r\nContent-Length: 5"),
            &with("transfer-encoding: CHUNKED\r\ncontent-length: 0"),
        ],
    );
}

#[test]
fn an_ambiguous_transfer_encoding_is_rejected() {
    refused(
        400,
        "malformed_encoding",
        &[
            &with("Transfer-Encoding: gzip, chunked"),
            &with("Transfer-Encoding: chunked, identity"),
            &with("Transfer-Encoding: xchunked"),
            &with("Transfer-Encoding: \"chunked\""),
            &with("Transfer-Encoding: identity"),
            &with("Transfer-Encoding:"),
            &with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            &with("Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
    );
}

#[test]
fn a_content_length_that_is_not_one_number_is_rejected() {
    refused(
        400,
        "malformed_length",
        &[
            &with("Content-Length: 5\r\nContent-Length: 6"),
            &with("Content-Length: 5\r\nContent-Length: 5"),
            &with("Content-Length: 5, 5"),
            &with("Content-Length: +5"),
            &with("Content-Length: -5"),
            &with("Content-Length: 0x5"),
            &with("Content-Length: 5 5"),
            &with("Content-Length:"),
            &with("Content-Length: 99999999999999999999999"),
        ],
    );
}

#[test]
fn a_malformed_chunk_is_rejected() {
    let chunked = |body: &str| format!("{}{body}", with("Transfer-Encoding: chunked"));
    refused(
        400,
        "malformed_chunk",
        &[
            &chunked("zz\r\nhello\r\n0\r\n\r\n"),
            &chunked("\r\nhello\r\n0\r\n\r\n"),
            &chunked("-5\r\nhello\r\n0\r\n\r\n"),
            &chunked("0x5\r\nhello\r\n0\r\n\r\n"),
            &chunked("5\nhello\r\n0\r\n\r\n"),
            &chunked("5\rxhello\r\n0\r\n\r\n"),
            &chunked("5\r\nhello0\r\n\r\n"),
            &chunked("5\r\nhelloXX0\r\n\r\n"),
            &chunked("5;a=\0\r\nhello\r\n0\r\n\r\n"),
            &chunked("5\r\nhello\r\n0\r\nA: b\nC: d\r\n\r\n"),
            &chunked("fffffffffffffffff\r\nhello"),
            &chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"),
            &chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(2000))),
        ],
    );
}

#[test]
fn a_later_malformed_chunk_never_reaches_the_app_as_a_complete_body() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut client = proxy.connect();
    client.send(with("Transfer-Encoding: chunked")).send("5\r\nhello\r\n");
    app.gets(1, "/");
    client.send("zz\r\n").send(SMUGGLED);
    client.answer().is_problem(400, "malformed_chunk");
    client.is_closed();
    proxy.comes_to_rest();
    assert_eq!((app.whole_requests(), app.requests_to("/smuggled")), (0, 0));
    proxy.counts_rejections("malformed_chunk", 1);
}

#[test]
fn a_folded_header_is_rejected() {
    refused(
        400,
        "malformed_folded_field",
        &[
            &with("X-A: b\r\n c"),
            &with("X-A: b\r\n\tc"),
            &with("X-A: b\r\n Transfer-Encoding: chunked"),
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        ],
    );
}

#[test]
fn a_bare_line_feed_is_rejected() {
    refused(
        400,
        "malformed_line_end",
        &[
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    );
}

#[test]
fn a_request_without_exactly_one_valid_host_is_rejected() {
    refused(
        400,
        "malformed_host",
        &[
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nX-Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]:%41:..\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a?b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \"a\"\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\n\r\n",
        ],
    );
}

#[test]
fn an_invalid_character_in_a_header_is_rejected() {
    refused(
        400,
        "malformed_field",
        &[
            &with("X-A: b\0c"),
            &with("X-A: b\rc"),
            &with("X-A: b\rTransfer-Encoding: chunked"),
            &with("X-A: b\x01c"),
            &with("X-A: b\x7fc"),
            &with("X-A : b"),
            &with("X A: b"),
            &with("X\0A: b"),
            &with(": b"),
            &with("Content-Length\0: 5"),
            &with("Transfer-Encoding\x0b: chunked"),
            &with("no colon"),
            &with("X(A): b"),
        ],
    );
}

#[test]
fn a_target_that_is_neither_path_nor_url_is_rejected() {
    refused(
        400,
        "malformed_target",
        &[
            "GET foo HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    );
}

#[test]
fn a_target_that_contradicts_the_host_header_is_rejected() {
    refused(
        400,
        "malformed_host_mismatch",
        &[
            "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
            "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET https://a.b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n",
        ],
    );
}

#[test]
fn an_absolute_target_for_the_same_host_is_served() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let answer = proxy.ask("GET http://A.example/x?y=1 HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["target"].as_str().unwrap().ends_with("/x?y=1"), "{answer:?}");
}

#[test]
fn an_invalid_request_line_is_rejected() {
    refused(
        400,
        "malformed_request_line",
        &[
            "hello\r\n\r\n",
            "GET\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
            "G\0T / HTTP/1.1\r\nHost: a\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\x16\x03\x01\x02\r\n\r\n",
        ],
    );
}

#[test]
fn another_version_of_http_is_rejected() {
    refused(
        505,
        "malformed_version",
        &[
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            "GET / HTTP/0.9\r\n\r\n",
            "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / http/1.1\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
    );
}

#[test]
fn connect_is_rejected() {
    refused(405, "malformed_connect", &["CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"]);
}

#[test]
fn an_oversized_head_is_rejected() {
    let field = "x".repeat(40 << 10);
    let fields: String = (0..101).map(|n| format!("X-{n}: y\r\n")).collect();
    let path = "x".repeat(40 << 10);
    refused(
        431,
        "head_too_large",
        &[
            &with(&format!("X-Big: {field}")),
            &with(fields.trim_end()),
            &format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n"),
            // The proxy rejects an oversized header section before its end.
            &format!("GET / HTTP/1.1\r\nHost: a\r\nX-Big: {field}"),
        ],
    );
}

#[test]
fn the_bounds_of_a_head_are_configurable_and_live_inside_them_is_fine() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.max_head = \"1KiB\"\nclient.max_fields = 5");
    let fields = |count: usize| (0..count).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let ask = |fields: &str| proxy.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    assert_eq!(ask(&fields(4)).status, 200);
    ask(&fields(5)).is_problem(431, "head_too_large");
    let filler = 1024 - "GET / HTTP/1.1\r\nHost: a\r\nX-A: \r\n\r\n".len();
    assert_eq!(ask(&format!("X-A: {}\r\n", "y".repeat(filler))).status, 200);
    ask(&format!("X-A: {}\r\n", "y".repeat(filler + 1))).is_problem(431, "head_too_large");
}

#[test]
fn a_slow_head_is_rejected_at_its_deadline() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.head_timeout = \"500ms\"");
    for kept in [false, true] {
        let mut client = proxy.connect();
        if kept {
            assert_eq!(client.send(get("/")).answer().status, 200);
        }
        let heads = app.requests();
        let began = Instant::now();
        let drops = "GET /drip HTTP/1.1\r\nHost: a\r\nX-A: ".bytes().chain(std::iter::repeat(b'x'));
        for drop in drops {
            client.send([drop]);
            if !client.stays_silent_for(Duration::from_millis(20)) {
                break;
            }
        }
        let took = began.elapsed();
        let answer = client.answer();
        answer.is_problem(408, "head_too_slow");
        assert!(answer.closes());
        client.is_closed();
        assert!((500..2500).contains(&took.as_millis()), "{took:?}");
        proxy.counts_rejections("head_too_slow", usize::from(kept) + 1);
        assert_eq!(app.requests(), heads);
    }
}

#[test]
fn a_silent_client_is_disconnected_and_its_partial_head_is_freed() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.head_timeout = \"300ms\"");
    let (mut silent, mut half) = (proxy.connect(), proxy.connect());
    half.send("GET / HTTP/1.1\r\nHost: a\r\n").finish_sending();
    half.is_closed();
    silent.is_closed();
    proxy.comes_to_rest();
    assert_eq!(app.connections(), 0);
}

#[test]
fn an_idle_connection_is_closed_after_its_timeout() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.idle_timeout = \"300ms\"");
    let mut client = proxy.connect();
    assert_eq!(client.send(get("/")).answer().status, 200);
    client.is_closed();
}

#[test]
fn a_body_announced_as_too_large_is_rejected_before_it_is_sent() {
    let app = Backend::start();
    let proxy = Proxy::with(
        &app,
        "client.max_body = \"1KiB\"\n[[routes]]\nname = \"big\"\npath = \"/big\"\nmax_body = \"2KiB\"",
    );
    let mut client = proxy.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\nExpect: 100-continue\r\n\r\n";
    let answer = client.send(head).answer();
    answer.is_problem(413, "body_too_large");
    assert!(answer.interim.is_empty(), "the body was asked for: {answer:?}");
    // A client that sends the body anyway reads the response, not a reset.
    let mut client = proxy.connect();
    client.send(post("/", &"x".repeat(300_000)));
    client.answer().is_problem(413, "body_too_large");
    proxy.counts_rejections("body_too_large", 2);
    assert_eq!(app.connections(), 0);
    // Bodies within the limit pass, and the route's own limit takes precedence.
    assert_eq!(proxy.ask(&post("/", &"x".repeat(1024))).status, 200);
    assert_eq!(proxy.ask(&post("/big", &"x".repeat(2048))).status, 200);
    proxy.ask(&post("/big", &"x".repeat(2049))).is_problem(413, "body_too_large");
}

#[test]
fn a_rejected_small_body_leaves_the_connection_open() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.max_body = \"10B\"");
    let mut client = proxy.connect();
    let answer = client.send(post("/", &"x".repeat(100))).answer();
    answer.is_problem(413, "body_too_large");
    assert!(!answer.closes(), "{answer:?}");
    assert_eq!(client.send(get("/next")).answer().json()["target"], "/next");
}

#[test]
fn a_body_that_turns_out_too_large_never_reaches_the_app_completely() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.max_body = \"100KiB\"");
    let mut client = proxy.connect();
    client.send(with("Transfer-Encoding: chunked"));
    let chunk = format!("2800\r\n{}\r\n", "x".repeat(0x2800));
    let sent = (0..1000).take_while(|_| client.try_send(&chunk).is_ok()).count();
    // The proxy stops reading, so this client may see a reset; a client that reads in time gets the response.
    println!("sent {sent} chunks");
    if let Ok(answer) = client.try_answer() {
        answer.is_problem(413, "body_too_large");
    }
    proxy.comes_to_rest();
    assert_eq!(app.whole_requests(), 0);
    proxy.counts_rejections("body_too_large", 1);

    let mut client = proxy.connect();
    client.send(with("Transfer-Encoding: chunked")).send(chunk.repeat(11));
    client.answer().is_problem(413, "body_too_large");
}

#[test]
fn a_body_that_pauses_for_too_long_is_rejected() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.body_timeout = \"300ms\"");
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let mut client = proxy.connect();
        let began = Instant::now();
        client.send(with(head)).send("5\r\nhe");
        let answer = client.answer();
        answer.is_problem(408, "body_too_slow");
        assert!(answer.closes());
        client.is_closed();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    proxy.counts_rejections("body_too_slow", 2);
    assert_eq!(app.whole_requests(), 0);
}

#[test]
fn a_client_that_does_not_read_its_response_is_disconnected() {
    let app = Backend::start();
    app.at("/large", crate::backend::Play::Stream(64 << 20));
    let proxy = Proxy::with(&app, "client.write_timeout = \"500ms\"");
    let client = proxy.connect().send(get("/large")).head().map(drop);
    assert!(client.is_ok());
    let mut client = proxy.connect();
    client.send(get("/large"));
    proxy.comes_to_rest();
    proxy.counts("outrigger_requests_total", &[("outcome", "client_closed")], 2);
}

#[test]
fn connections_beyond_the_bound_are_rejected() {
    let app = Backend::start();
    let gate = app.gate("/works");
    let proxy = Proxy::with(&app, "server.max_connections = 3");
    let mut kept: Vec<Client> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut kept {
        client.send(get("/works"));
    }
    app.gets(3, "/works");
    let mut turned_away = proxy.connect();
    let answer = turned_away.answer();
    answer.is_problem(503, "too_many_connections");
    assert!(answer.header("retry-after").is_some() && answer.closes(), "{answer:?}");
    turned_away.is_closed();
    proxy.counts_rejections("too_many_connections", 1);
    proxy.has_receipt("too_many_connections", "server.max_connections");
    // The other connections continue, and a closed one makes room for a new one.
    gate.add_permits(3);
    for client in &mut kept {
        assert_eq!(client.answer().status, 200);
    }
    drop(kept);
    proxy.comes_to_rest();
    assert_eq!(proxy.get("/").status, 200);
}

/// Headers that only an edge may set, from an untrusted client.
const FORGED: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\
    X-Forwarded-Host: bank.example\r\nX-Real-IP: 203.0.113.9\r\nForwarded: for=203.0.113.9\r\nFly-Client-IP: 203.0.113.9\r\n\
    Fly-Request-Id: forged\r\nFly-Forwarded-Proto: https\r\nX-Outrigger-Tier: internal\r\n\r\n";

#[test]
fn forged_forwarding_headers_are_removed_and_counted() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    for (sent, method) in ["GET", "POST"].into_iter().enumerate() {
        let answer = proxy.ask(&FORGED.replace("GET", method));
        assert_eq!(answer.status, 200, "forged fields are no reason for an error page");
        assert_eq!(answer.seen("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert_eq!(answer.seen("x-forwarded-proto").as_deref(), Some("http"));
        assert_eq!(answer.seen("x-forwarded-host").as_deref(), Some("a"));
        assert_eq!(answer.seen("forwarded").as_deref(), Some("for=127.0.0.1;host=\"a\";proto=http"));
        for gone in ["x-real-ip", "fly-client-ip", "fly-request-id", "fly-forwarded-proto", "x-outrigger-tier"] {
            assert_eq!(answer.seen(gone), None, "{gone}");
        }
        assert_ne!(answer.header("x-request-id"), Some("forged"));
        proxy.counts("outrigger_forged_fields_total", &[], sent + 1);
    }
    assert!(proxy.says("\"path\":\"/\"").contains("127.0.0.1"));
}

#[test]
fn only_the_configured_header_of_a_trusted_sender_is_used() {
    let app = Backend::start();
    // Every request has a client's own entries to the left, and other headers that proxies pass on.
    let forged = FORGED
        .replace("X-Forwarded-For: ", "X-Forwarded-For: 6.6.6.6, ")
        .replace("X-Real-IP: 203.0.113.9", "X-Real-IP: 6.6.6.6\r\nCF-Connecting-IP: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6")
        .replace("Forwarded: for=203", "Forwarded: for=6.6.6.6;proto=http, for=203");
    let each = |rules: &str, check: &dyn Fn(&str, &Answer)| {
        let proxy = Proxy::with(&app, rules);
        for method in ["GET", "POST"] {
            let answer = proxy.ask(&forged.replace("GET", method));
            check(method, &answer);
            assert_eq!(answer.seen("x-outrigger-tier"), None, "nobody outside may say that");
            assert!(!answer.text().contains("6.6.6.6"), "{method}: {}", answer.text());
        }
        assert!(proxy.says("\"path\":\"/\"").contains("203.0.113.9"));
        assert_eq!(proxy.metric("outrigger_forged_fields_total", &[]), 2.0, "X-Outrigger-Tier alone");
    };
    each("identity.edge = \"fly\"", &|method, answer| {
        let seen = |name| answer.seen(name);
        assert_eq!(seen("x-forwarded-for").as_deref(), Some("203.0.113.9, 127.0.0.1"), "{method}");
        assert_eq!(seen("x-forwarded-proto").as_deref(), Some("https"));
        assert_eq!(seen("x-forwarded-host").as_deref(), Some("a"), "Fly's edge does not set it: it is the client's");
        let forwarded = "for=203.0.113.9;host=\"a\";proto=https, for=127.0.0.1";
        assert_eq!(seen("forwarded").as_deref(), Some(forwarded));
        assert_eq!(seen("fly-client-ip").as_deref(), Some("203.0.113.9"));
        assert_eq!(seen("x-request-id").as_deref(), Some("forged"), "the edge's name for it");
    });
    each("identity.trusted = [\"127.0.0.0/8\"]", &|method, answer| {
        let seen = |name| answer.seen(name);
        assert_eq!(seen("x-forwarded-for").as_deref(), Some("203.0.113.9, 127.0.0.1"), "{method}");
        assert_eq!(seen("x-forwarded-proto").as_deref(), Some("https"));
        assert_eq!(seen("x-forwarded-host").as_deref(), Some("bank.example"));
        assert_eq!((seen("fly-client-ip"), seen("fly-request-id"), seen("fly-forwarded-proto")), (None, None, None));
        assert_eq!(seen("x-request-id").map(|id| id.len()), Some(36), "a name of the proxy's own");
    });
    each("identity.edge = \"Forwarded\"\nidentity.trusted = [\"127.0.0.1\"]", &|method, answer| {
        let seen = |name| answer.seen(name);
        assert_eq!(seen("x-forwarded-for").as_deref(), Some("203.0.113.9, 127.0.0.1"), "{method}");
        assert_eq!(seen("forwarded").as_deref(), Some("for=203.0.113.9;host=\"a\";proto=http, for=127.0.0.1"));
    });
}

#[test]
fn a_service_survives_a_flood_of_bad_input() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let bad = [
        "\r\n\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGARBAGE\r\n\r\n",
        "{}\n",
        "\u{1F6F6}\r\n\r\n",
    ];
    for round in 0..300 {
        let mut client = proxy.connect();
        client.send(bad[round % bad.len()]);
    }
    assert_eq!(proxy.get("/").status, 200);
    proxy.comes_to_rest();
}
