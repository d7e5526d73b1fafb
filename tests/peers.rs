//! Machines that are peers: each takes over requests that another cannot serve, other clients cannot use the peer listener, and
//! no request loops.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::Play,
    harness::{Client, Form, every_form, from_address, get, post, until, with_fields},
    machines::{Machine, cookie, machine, pair, place, with_cookie},
};

/// A request in each form that may go to a peer, so not those with a body of unknown length: it is not kept to be sent again.
fn movable(path: &str) -> [String; 5] {
    let known = [Form::Bare, Form::Sized, Form::Http10, Form::Http2].map(|form| form.request(path));
    let [bare, sized, http10, http2] = known;
    [bare, sized, http10, http2, with_fields(&Form::Http2Body.request(path), &["Content-Length: 5"])]
}

#[test]
fn only_peers_are_served_on_the_peer_listener_and_each_hop_once() {
    let (a, b) = pair("");
    let ask = |request: &str| Client::connect(a.peers).unwrap().send(request).answer();
    for form in Form::ALL {
        let request = form.request("/cart");
        // Peers use HTTP/1.1.
        if form.version() != "2" {
            ask(&request).is_problem(403, "not_a_peer");
            ask(&with_fields(&request, &["X-Outrigger-Hop: AAAA"])).is_problem(403, "not_a_peer");
            ask(&with_fields(&request, &["Fly-Client-IP: 192.0.2.1"])).is_problem(403, "not_a_peer");
        }
        // The public listener ignores the header and removes it.
        let answer = b.proxy.ask(&with_fields(&request, &["X-Outrigger-Hop: AAAA"]));
        assert_eq!((answer.status, answer.seen("x-outrigger-hop")), (200, None), "{answer:?}");
    }
    ask(&get("/.outrigger/probe")).is_problem(403, "not_a_peer");
    a.proxy.has_receipt("not_a_peer", "peers.listen");
    let nothing_came = a.app.requests_to("/cart") == 0;
    assert!(nothing_came && a.proxy.get("/.outrigger/probe").status == 200, "there it is a path like any other");
}

#[test]
fn a_peer_serves_requests_of_an_app_that_is_down() {
    let (mut a, b) = pair("app.hold = \"10s\"");
    let session = a.session();
    a.app.stop();
    let began = Instant::now();
    for request in movable("/cart").into_iter().chain([with_cookie(&get("/cart"), &session)]) {
        let answer = a.proxy.ask(&with_fields(&request, &["Fly-Client-IP: 192.0.2.9"]));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.seen("x-forwarded-for").as_deref(), Some("192.0.2.9, 127.0.0.1"), "as the sender has it");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "nobody waited for the app");
    assert_eq!(b.app.requests_to("/cart"), 6);
    a.proxy.counts("outrigger_peer_requests_total", &[("kind", "failover"), ("outcome", "answered")], 6);
    b.sees(1, "unready");
    // Once its app is back, the Machine serves its own requests.
    a.app.resume();
    b.sees(1, "ready");
    let served = a.app.requests_to("/back");
    until("the app here to be asked again", || {
        assert_eq!(a.proxy.get("/back").status, 200);
        a.app.requests_to("/back") > served
    });
}

#[test]
fn requests_wait_without_loops_while_all_apps_are_down() {
    let (mut a, mut b) = pair("app.hold = \"10s\"");
    a.app.stop();
    b.app.stop();
    let waiting: Vec<_> = every_form("/cart")
        .into_iter()
        .map(|request| {
            let mut client = a.proxy.connect();
            client.send(&request);
            client
        })
        .collect();
    until("both to know", || {
        [&a, &b].iter().all(|machine| machine.proxy.metric("outrigger_peers", &[("state", "unready")]) == 1.0)
    });
    thread::sleep(Duration::from_millis(300));
    a.app.resume();
    for mut client in waiting {
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!((a.app.requests_to("/cart"), b.app.requests_to("/cart")), (Form::NUMBER, 0));
    let sent = |machine: &Machine| machine.proxy.metric("outrigger_peer_requests_total", &[("kind", "failover")]);
    assert!(sent(&a) <= Form::NUMBER as f64 && sent(&b) == 0.0, "{} and {}", sent(&a), sent(&b));
}

#[test]
fn a_breaker_that_is_open_here_may_be_closed_there() {
    let (a, b) = pair("breaker.failures = 2\nbreaker.open = \"60s\"\nretry.attempts = 1");
    a.app.at("/sick", Play::SayAndClose(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".into()));
    for client in ["192.0.2.1", "192.0.2.2"] {
        assert_eq!(a.proxy.ask(&from_address(&get("/sick"), client)).status, 500);
    }
    for request in movable("/sick") {
        let answer = a.proxy.ask(&request);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!((a.app.requests_to("/sick"), b.app.requests_to("/sick")), (2, 5));
}

#[test]
fn a_busy_peer_rejects_requests_of_other_machines_first() {
    let (mut a, b) = pair("admission.min = 1\nadmission.max = 1\nadmission.initial = 1\napp.hold = \"10s\"");
    let gate = b.app.gate("/slow");
    let mut own = b.proxy.connect();
    own.send(get("/slow"));
    b.app.gets(1, "/slow");
    a.app.stop();
    let mut guest = a.proxy.connect();
    guest.send(get("/guest"));
    a.proxy.counts("outrigger_peer_requests_total", &[("kind", "failover"), ("outcome", "refused")], 1);
    // The guest waits on its own Machine, and b's own request in b's queue.
    let mut queued = b.proxy.connect();
    queued.send(get("/queued"));
    gate.add_permits(1);
    assert_eq!(own.answer().status, 200);
    assert_eq!(queued.answer().status, 200);
    a.app.resume();
    assert_eq!(guest.answer().status, 200);
    assert_eq!((a.app.requests_to("/guest"), b.app.requests_to("/guest")), (1, 0));
}

/// A server at a peer's address that is not a peer.
fn impostor(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 8192];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(answer);
        }
    });
    address
}

#[test]
fn false_or_malformed_peers_get_no_request() {
    let impostors = [
        impostor(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready"),
        impostor(b"\x00\x01\x02 garbage \xff\r\n\r\n"),
        impostor(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"),
        impostor(b""),
    ];
    let places = [&[place()][..], &impostors].concat();
    let mut a = machine("a", &places, "app.hold = \"10s\"");
    // The Machine's own address is among them; it recognizes itself.
    assert_eq!(a.proxy.get("/").status, 200);
    a.app.stop();
    let mut client = a.proxy.connect();
    client.send(get("/held"));
    until("the app to be missed", || a.proxy.metric("outrigger_app_reachable", &[]) == 0.0);
    thread::sleep(Duration::from_millis(300));
    a.app.resume();
    assert_eq!(client.answer().status, 200);
    let (machines, sent) = (a.proxy.metric("outrigger_machines", &[]), "outrigger_peer_requests_total");
    assert_eq!((machines, a.proxy.metric(sent, &[])), (1.0, 0.0));
}

/// A relay without keys, which records the traffic that it forwards to `target`.
#[derive(Clone, Debug)]
struct Relay {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Relay {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let here = relay.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(target) else { continue };
                let (Ok(to_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { continue };
                let relay = here.clone();
                thread::spawn(move || relay.pump(client, to_server, true));
                let relay = here.clone();
                thread::spawn(move || relay.pump(server, to_client, false));
            }
        });
        relay
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, keeps: bool) {
        let mut piece = [0; 16 << 10];
        while let Ok(read @ 1..) = from.read(&mut piece) {
            if keeps {
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..read]);
            }
            if to.write_all(&piece[..read]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

#[test]
fn a_relay_that_forwards_probes_is_not_a_peer() {
    let (here, there) = (place(), place());
    let b = machine("b", &[there, here], "");
    let relay = Relay::to(there);
    let mut a = machine("a", &[here, relay.address], "app.hold = \"500ms\"\naffinity.via = \"private\"");
    // Logged after several probes: until then the sticky session's Machine may only be slow to appear.
    let line = a.proxy.says(r#""level":"WARN","message":"no peer at"#);
    assert!(
        line.contains(&format!("forwards the probe to a peer at {there}")) && line.contains("peers.address"),
        "{line}"
    );
    let session = b.session();
    let secret = ["Authorization: Bearer a-users-own", "Cookie: sid=a-users-own"];
    for request in every_form("/cart") {
        // The session's Machine cannot be verified, so a new session begins here.
        let answer = a.proxy.ask(&with_fields(&with_cookie(&request, &session), &secret[..1]));
        assert_eq!((answer.status, cookie(&answer).is_some()), (200, true), "{answer:?}");
    }
    a.app.stop();
    Form::at_once(&Form::ALL, |form| {
        a.proxy.ask(&with_fields(&form.request("/cart"), &secret)).is_problem(502, "app_unreachable");
    });
    assert!(!relay.seen().contains("a-users-own"), "{}", relay.seen());
    assert_eq!((b.app.requests_to("/cart"), a.proxy.metric("outrigger_machines", &[])), (0, 1.0));
}

#[test]
fn a_hop_is_accepted_once_and_only_as_it_was_sent() {
    let (here, there) = (place(), place());
    // The relay's view: addresses are translated on the way to b, and `peers.address` tells all Machines.
    let relay = Relay::to(there);
    let translated = |address: SocketAddr| format!("peers.address = \"{address}\"\napp.hold = \"10s\"");
    let b = machine("b", &[there, here], &translated(relay.address));
    let mut a = machine("a", &[here, relay.address], &translated(here));
    a.sees(1, "ready");
    b.sees(1, "ready");
    a.app.stop();
    let refused = |why: &str| b.proxy.metric("outrigger_peer_requests_refused_total", &[("why", why)]);
    let before = ["unsigned", "stale", "elsewhere", "altered", "used"].map(refused);
    assert_eq!(before, [0.0; 5]);
    for (number, request) in movable("/account").into_iter().enumerate() {
        let fields = ["Authorization: Bearer a-users-own", "Cookie: sid=1", "Content-Type: text/plain"];
        let answer = a.proxy.ask(&with_fields(&request, &fields));
        assert_eq!((answer.status, b.app.requests_to("/account")), (200, number + 1), "{answer:?}");
        let seen = relay.seen();
        let sent =
            &seen[seen.rfind(" /account HTTP/1.1").map(|at| seen[..at].rfind('\n').map_or(0, |at| at + 1)).unwrap()..];
        // The body of the request before it is not a line.
        let sent = sent.strip_prefix("hello").unwrap_or(sent);
        let end = sent.find("\r\n\r\n").unwrap() + 4;
        let length = if request.starts_with("POST") { "hello".len() } else { 0 };
        let sent = &sent[..end + length];
        let ask = |request: &str| Client::connect(there).unwrap().send(request).answer();
        for altered in [
            sent.replace("a-users-own", "of-somebody-else"),
            sent.replace("sid=1", "sid=2"),
            sent.replace("text/plain", "text/html"),
            sent.replace("/account", "/accounts"),
            with_fields(sent, &["X-Api-Key: another"]),
            with_fields(sent, &["X-Forwarded-For: 192.0.2.1"]),
            // A body where there was none, or a longer one.
            if length == 0 {
                with_fields(sent, &["Content-Length: 5"]) + "hello"
            } else {
                sent.replace("h: 5", "h: 6") + "!"
            },
        ] {
            ask(&altered).is_problem(403, "not_a_peer");
        }
        // The unchanged hop again.
        ask(sent).is_problem(403, "not_a_peer");
        for (why, times) in [("used", number + 1), ("altered", 7 * (number + 1))] {
            b.proxy.counts("outrigger_peer_requests_refused_total", &[("why", why)], times);
        }
    }
    assert_eq!(b.app.requests_to("/account"), 5);
    assert_eq!(b.app.requests_to("/accounts"), 0);
}

#[test]
fn every_kind_of_request_passes_to_a_peer_with_its_signature() {
    let (a, b) = pair("affinity.via = \"private\"");
    let session = a.session();
    let long = "x".repeat(300_000);
    let requests = [
        get("/cart?all=1&x=%2F"),
        get("/cart").replace("Host: outrigger.test", "host:   outrigger.test  \r\nX-Two: 1\r\nx-two:\t2"),
        get("http://outrigger.test/cart"),
        get("/cart").replace("GET", "HEAD"),
        get("/cart").replace("GET", "DELETE"),
        post("/cart", "hello"),
        post("/cart", &long),
        format!(
            "PUT /cart HTTP/1.1\r\nHost: outrigger.test\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
            long.len()
        ),
        with_fields(
            &get("/cart"),
            &["Connection: close, x-gone", "X-Gone: 1", "TE: trailers", "Upgrade-Insecure-Requests: 1"],
        ),
    ];
    for (number, request) in requests.iter().enumerate() {
        let mut client = b.proxy.connect();
        client.send(with_cookie(request, &session));
        let answer = if request.starts_with("HEAD") { client.answer_to_head() } else { client.answer() };
        assert_eq!((answer.status, cookie(&answer)), (200, None), "{number}: {answer:?}");
        assert_eq!(a.app.requests_to("/cart") + a.app.requests_to("/cart?all=1&x=%2F"), number + 1, "{number}");
    }
    a.proxy.counts("outrigger_peer_requests_refused_total", &[], 0);
}

#[test]
fn a_session_of_a_stopped_peer_is_served_here() {
    let (here, there) = (place(), place());
    let b = machine("b", &[there, here], "affinity.via = \"private\"");
    let a = machine("a", &[here, there], "affinity.via = \"private\"");
    b.sees(1, "ready");
    a.app.at("/cart", Play::Interrupt(b"HTTP/1.1 2".into()));
    let session = a.session();
    // a's own proxy responds with 502 for its app. b returns this response unchanged, because the session belongs to a.
    let answer = b.proxy.ask(&with_cookie(&get("/cart"), &session));
    assert_eq!((answer.status, b.app.requests_to("/cart")), (502, 0), "{answer:?}");
    drop(a);
    let answer = b.proxy.ask(&with_cookie(&get("/cart"), &session));
    assert_eq!((answer.status, answer.seen("x-outrigger-machine").as_deref()), (200, Some("b")), "{answer:?}");
}

#[test]
fn a_session_whose_app_is_down_is_served_by_a_peer_and_keeps_its_home() {
    for via in ["private", "replay"] {
        let (mut a, b) = pair(&format!("app.hold = \"10s\"\naffinity.via = \"{via}\""));
        let session = a.session();
        a.app.stop();
        // The proxy notices only with the next request.
        assert_eq!(a.proxy.ask(&with_cookie(&get("/cart"), &session)).status, 200);
        b.sees(1, "unready");
        let before = b.app.requests_to("/cart");
        for request in every_form("/cart") {
            let answer = b.proxy.ask(&with_cookie(&request, &session));
            assert_eq!((answer.status, cookie(&answer)), (200, None), "{via}: {answer:?}");
            assert_eq!(answer.seen("x-outrigger-machine").as_deref(), Some("a"));
        }
        assert_eq!(b.app.requests_to("/cart"), before + Form::NUMBER, "{via}");
        b.counts("visiting", Form::NUMBER);
        a.app.resume();
        b.sees(1, "ready");
        let answer = b.proxy.ask(&with_cookie(&get("/cart"), &session));
        assert_eq!(answer.status, if via == "private" { 200 } else { 307 }, "{answer:?}");
    }
}

#[test]
fn an_expired_request_does_not_mark_a_peer_as_down() {
    let (a, b) = pair("affinity.via = \"private\"");
    let session = a.session();
    for _ in 0..10 {
        for request in every_form("/cart") {
            let impatient = with_fields(&with_cookie(&request, &session), &["X-Request-Timeout-Ms: 0"]);
            b.proxy.ask(&impatient).is_problem(504, "deadline_exceeded");
            assert_eq!(b.proxy.metric("outrigger_peers", &[("state", "ready")]), 1.0);
        }
    }
    assert_eq!(a.app.requests_to("/cart") + b.app.requests_to("/cart"), 0);
    let answer = b.proxy.ask(&with_cookie(&get("/cart"), &session));
    assert_eq!((answer.status, cookie(&answer), a.app.requests_to("/cart")), (200, None, 1), "{answer:?}");
}

#[test]
fn an_app_cannot_imitate_a_peers_rejection() {
    let (mut a, b) = pair("app.hold = \"10s\"");
    b.app.at("/order", Play::Say(b"HTTP/1.1 200 OK\r\nX-Outrigger-Refused: 1\r\nContent-Length: 2\r\n\r\nok".into()));
    a.app.stop();
    for request in movable("/order") {
        let answer = a.proxy.ask(&request);
        assert_eq!((answer.status, answer.header("x-outrigger-refused")), (200, None), "{answer:?}");
    }
    assert_eq!(b.app.requests_to("/order"), 5);
    a.app.resume();
    assert_eq!(a.app.requests_to("/order"), 0);
}

#[test]
fn a_request_with_a_large_body_waits_for_its_own_app() {
    let (mut a, b) = pair("app.hold = \"10s\"");
    a.app.stop();
    // Short bodies go to the peer.
    assert_eq!(a.proxy.ask(&post("/upload", "short")).status, 200);
    let mut client = a.proxy.connect();
    client.send(post("/upload", &"x".repeat(200_000)));
    until("it to wait", || a.proxy.metric("outrigger_admission_queue", &[]) == 1.0);
    a.app.resume();
    assert_eq!(client.answer().status, 200);
    assert_eq!((a.app.requests_to("/upload"), b.app.requests_to("/upload")), (1, 1));
}

#[test]
fn hops_count_no_forged_headers_and_no_rejections() {
    let (mut a, b) = pair("affinity.via = \"private\"");
    let session = a.session();
    for request in every_form("/cart") {
        assert_eq!(b.proxy.ask(&with_cookie(&request, &session)).status, 200);
    }
    a.app.stop();
    assert_eq!(a.proxy.get("/elsewhere").status, 200);
    for machine in [&a, &b] {
        machine.proxy.counts("outrigger_forged_fields_total", &[], 0);
        assert_eq!(machine.proxy.metric("outrigger_rejections_total", &[("reason", "not_a_peer")]), 0.0);
    }
}

#[test]
fn a_request_without_a_permit_goes_to_a_peer_with_an_empty_queue() {
    Form::at_once(&Form::ALL, without_a_permit);
}

fn without_a_permit(form: Form) {
    let (a, b) = pair("admission.min = 1\nadmission.max = 1\nadmission.initial = 1\nadmission.max_wait = \"1s\"");
    let (gate_a, gate_b) = (a.app.gate("/slow"), b.app.gate("/slow"));
    let mut slow = a.proxy.connect();
    slow.send(get("/slow"));
    a.app.gets(1, "/slow");
    // It waits in the queue, and then goes to the peer.
    assert_eq!(form.ask(&a.proxy, "/cart").status, 200);
    assert_eq!((a.app.requests_to("/cart"), b.app.requests_to("/cart")), (0, 1));
    // If all Machines are busy, a request is rejected after one wait, not two.
    let mut slow_there = b.proxy.connect();
    slow_there.send(get("/slow"));
    b.app.gets(1, "/slow");
    let began = Instant::now();
    form.ask(&a.proxy, "/cart").is_problem(503, "temporary_reduced_capacity");
    assert!(began.elapsed() < Duration::from_millis(1900), "{:?}", began.elapsed());
    gate_a.add_permits(1);
    gate_b.add_permits(1);
    assert_eq!((slow.answer().status, slow_there.answer().status), (200, 200));
    until("every slot to be given back", || a.proxy.metric("outrigger_admission_in_flight", &[]) == 0.0);
}
