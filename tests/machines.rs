//! Several Machines of one app: sticky sessions stay on theirs.

use std::net::{Ipv4Addr, SocketAddr};

use xtask::{Signal, ports};

use crate::{
    backend::{Backend, Play},
    harness::{Answer, Form, Proxy, Setup, every_form, get, post, until, with_fields},
};

/// The key that all Machines of a test sign with.
pub const KEYS: &str = "a-key-of-the-tests-that-nobody-can-guess";
const COOKIE: &str = "_fly_affinity";

/// One Machine: a proxy with a name, and its own app.
#[derive(Debug)]
pub struct Machine {
    pub proxy: Proxy,
    pub app: Backend,
    pub peers: SocketAddr,
}

/// An address where a Machine listens for its peers.
pub fn place() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ports::free().expect("a free port")).into()
}

/// A Machine with these rules and with peers at `places`, the first of which is its own.
pub fn machine(name: &str, places: &[SocketAddr], rules: &str) -> Machine {
    let app = Backend::start();
    let list: Vec<String> = places[1..].iter().map(|place| format!("\"{place}\"")).collect();
    let (own, list) = (places[0], list.join(", "));
    let rules = format!(
        "server.machine = \"{name}\"\nidentity.edge = \"fly\"\n\
         peers.listen = \"{own}\"\npeers.list = [{list}]\npeers.interval = \"100ms\"\n{rules}"
    );
    let proxy = Setup::new(&app, &rules).env("OUTRIGGER_AFFINITY_KEYS", KEYS).start();
    Machine { proxy, app, peers: own }
}

/// Two Machines, `a` and `b`, that know each other.
pub fn pair(rules: &str) -> (Machine, Machine) {
    let (here, there) = (place(), place());
    let (a, b) = (machine("a", &[here, there], rules), machine("b", &[there, here], rules));
    a.sees(1, "ready");
    b.sees(1, "ready");
    (a, b)
}

impl Machine {
    /// Waits until the Machine knows this many peers in this state.
    #[track_caller]
    pub fn sees(&self, number: usize, state: &str) {
        until(&format!("{number} peers to be {state}"), || {
            self.proxy.metric("outrigger_peers", &[("state", state)]) == number as f64
        });
    }

    pub fn counts(&self, event: &str, number: usize) {
        self.proxy.counts("outrigger_affinity_total", &[("event", event)], number);
    }

    /// The cookie of a new session here.
    pub fn session(&self) -> String {
        cookie(&self.proxy.get("/new")).expect("a new session has a cookie")
    }
}

/// The part of `Set-Cookie` that a client keeps: `_fly_affinity=…`.
pub fn cookie(answer: &Answer) -> Option<String> {
    let field = answer.header("set-cookie")?;
    assert!(field.starts_with(&format!("{COOKIE}=")), "{field}");
    for attribute in ["; Path=/", "; HttpOnly", "; Secure", "; SameSite=Lax"] {
        assert!(field.contains(attribute), "{field}");
    }
    Some(field.split(';').next().unwrap().to_owned())
}

/// The request as the edge forwards it, with this cookie.
pub fn with_cookie(request: &str, cookie: &str) -> String {
    with_fields(request, &[&format!("Cookie: theme=dark; {cookie}; lang=en"), "Fly-Request-Id: 01J-ams"])
}

#[test]
fn a_session_keeps_its_machine_and_the_app_gets_its_name() {
    let (a, b) = pair("affinity.via = \"private\"");
    for request in every_form("/cart") {
        let first = a.proxy.ask(&request);
        let session = cookie(&first).unwrap();
        assert!(first.header("set-cookie").unwrap().contains("Max-Age=3600"), "{first:?}");
        assert_eq!(first.seen("x-outrigger-machine").as_deref(), Some("a"));
        // The cookie does not reveal the name, and neither app receives it; other cookies reach the app.
        let before = [a.app.requests_to("/cart"), b.app.requests_to("/cart")];
        for machine in [&a, &b, &b, &a] {
            let answer = machine.proxy.ask(&with_cookie(&request, &session));
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.seen("cookie").as_deref(), Some("theme=dark; lang=en"));
            assert_eq!(answer.seen("x-outrigger-machine").as_deref(), Some("a"));
            assert_eq!(cookie(&answer), None, "a cookie is not written anew with every answer");
            assert_eq!(answer.seen("x-outrigger-hop"), None);
        }
        let after = [a.app.requests_to("/cart"), b.app.requests_to("/cart")];
        assert_eq!([after[0] - before[0], after[1] - before[1]], [4, 0]);
    }
    let number = 2 * Form::NUMBER;
    a.counts("pinned", number);
    b.counts("forwarded", number);
    b.proxy.counts("outrigger_peer_requests_total", &[("kind", "session"), ("outcome", "answered")], number);
    a.proxy.counts("outrigger_peer_requests_received_total", &[("kind", "session")], number);
}

#[test]
fn the_edge_replays_a_request_to_its_sessions_machine() {
    let (a, b) = pair("");
    // The edge replays no body of unknown length, such as one in chunks: see the next test.
    let replayed = [Form::Bare, Form::Sized, Form::Http10, Form::Http2].map(|form| form.request("/cart"));
    let http2 = with_fields(&Form::Http2Body.request("/cart"), &["Content-Length: 5"]);
    for request in replayed.iter().chain([&http2]) {
        let session = a.session();
        let request = with_cookie(request, &session);
        let mut client = b.proxy.connect();
        let replay = client.send(&request).answer();
        assert_eq!((replay.status, replay.body.len()), (307, 0), "{replay:?}");
        let field = replay.header("fly-replay").unwrap().to_owned();
        assert!(field.starts_with("prefer_instance=a;timeout=5000ms;fallback=force_self;state="), "{field}");
        assert_eq!(cookie(&replay), None);
        assert!(replay.stays_open(), "{replay:?}");
        // The Machine to which the edge replays it serves it; so does the fallback, with a new sticky session.
        let state = field.rsplit_once("state=").unwrap().1;
        let source = format!("fly-replay-src: instance=b;region=ams;t=1790000000000000;state={state}");
        let arrived = a.proxy.ask(&with_fields(&request, &[&source]));
        assert_eq!((arrived.status, cookie(&arrived)), (200, None), "{arrived:?}");
        let refused = ["fly-preferred-instance-unavailable: a", &source];
        let rehomed = client.send(with_fields(&request, &refused)).answer();
        assert_eq!(rehomed.seen("x-outrigger-machine").as_deref(), Some("b"));
        let session = cookie(&rehomed).unwrap();
        let stays = client.send(with_cookie(&get("/cart"), &session)).answer();
        assert_eq!((stays.status, cookie(&stays)), (200, None), "{stays:?}");
    }
    b.counts("replayed", replayed.len() + 1);
    b.counts("rehomed", replayed.len() + 1);
    b.counts("forged", 0);
}

#[test]
fn requests_that_cannot_be_replayed_use_the_private_network() {
    let (a, b) = pair("");
    a.app.at("/ws", Play::Upgrade);
    let session = a.session();
    // Five megabytes, and a body of unknown length.
    let body = "0123456789".repeat(500_000);
    let answer = b.proxy.ask(&with_cookie(&post("/upload", &body), &session));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["body"]["bytes"], body.len(), "{answer:?}");
    for form in [Form::Chunked, Form::Http2Body] {
        let answer = b.proxy.ask(&with_cookie(&form.request("/upload"), &session));
        assert_eq!(answer.json()["body"]["bytes"], 5, "{answer:?}");
    }
    // A request with a short body is replayed.
    assert_eq!(b.proxy.ask(&with_cookie(&post("/upload", "short"), &session)).status, 307);
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut client = b.proxy.connect();
    let head = client.send(with_cookie(upgrade, &session)).head().unwrap();
    assert_eq!(head.status, 101, "{head:?}");
    for n in 0..20 {
        let message = format!("message {n}");
        assert_eq!(client.send(&message).take(message.len()).unwrap(), message.as_bytes());
    }
    assert_eq!((a.app.requests_to("/ws"), b.app.requests_to("/upload"), a.app.requests_to("/upload")), (1, 0, 3));
    drop(client);
    b.counts("forwarded", 4);
    a.proxy.comes_to_rest();
    b.proxy.comes_to_rest();
}

#[test]
fn a_session_of_a_removed_machine_moves_at_once() {
    for via in ["private", "replay"] {
        let (a, b) = pair(&format!("affinity.via = \"{via}\""));
        let sessions = Form::ALL.map(|_| a.session());
        drop(a);
        // The Machine has just disappeared, and its peer does not know yet. The edge returns a failed replay.
        let lost: &[&str] = if via == "replay" { &["fly-preferred-instance-unavailable: a"] } else { &[] };
        for (request, session) in every_form("/cart").into_iter().zip(sessions) {
            let answer = b.proxy.ask(&with_fields(&with_cookie(&request, &session), lost));
            assert_eq!(answer.status, 200, "{via} {answer:?}");
            assert_eq!(answer.seen("x-outrigger-machine").as_deref(), Some("b"));
            let again = b.proxy.ask(&with_cookie(&request, &cookie(&answer).unwrap()));
            assert_eq!((again.status, cookie(&again)), (200, None), "{again:?}");
        }
        b.counts("rehomed", Form::NUMBER);
    }
}

#[test]
fn a_draining_machine_hands_over_its_sessions() {
    let (mut a, b) = pair("server.lame_duck = \"30s\"\naffinity.via = \"private\"");
    let (here, there) = (a.session(), a.session());
    a.proxy.signal(Signal::TERM);
    until("a to leave", || a.proxy.metric("outrigger_drain_phase", &[]) == 1.0);
    // While it drains, it serves its sessions, releases each with the response, and begins none.
    let answer = a.proxy.ask(&with_cookie(&get("/cart"), &here));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(cookie(&answer).as_deref(), Some("_fly_affinity="), "{answer:?}");
    assert!(answer.header("set-cookie").unwrap().contains("Max-Age=0"), "{answer:?}");
    assert_eq!(cookie(&a.proxy.get("/cart")), None);
    // Its peers know, and send it no more requests.
    b.sees(1, "leaving");
    let before = a.app.requests_to("/cart");
    let answer = b.proxy.ask(&with_cookie(&get("/cart"), &there));
    assert_eq!(answer.seen("x-outrigger-machine").as_deref(), Some("b"));
    assert!(cookie(&answer).is_some_and(|cookie| cookie.len() > 40), "{answer:?}");
    assert_eq!(a.app.requests_to("/cart"), before);
    b.counts("rehomed", 1);
}

#[test]
fn invalid_cookies_are_replaced_without_an_error() {
    let (a, _b) = pair("affinity.via = \"private\"");
    let app = Backend::start();
    let alone = |name: &str, keys: &str| {
        Setup::new(&app, &format!("server.machine = \"{name}\"")).env("OUTRIGGER_AFFINITY_KEYS", keys).start()
    };
    let own = a.session();
    let foreign = cookie(&alone("a", "another-app-has-another-key-that-is-long").get("/")).unwrap();
    // Changes one character of the value to a different one.
    let mut flipped = own.clone();
    let at = COOKIE.len() + 1 + 16;
    flipped.replace_range(at..=at, if own[at..].starts_with('x') { "y" } else { "x" });
    let forged = [
        foreign,
        own[..own.len() - 3].to_owned(),
        format!("{own}AAAA"),
        flipped,
        format!("{COOKIE}="),
        format!("{COOKIE}=a"),
        format!("{COOKIE}=%00%ff"),
        format!("{COOKIE}={}", "A".repeat(4000)),
    ];
    let number = forged.len();
    for session in forged {
        for request in every_form("/cart") {
            let answer = a.proxy.ask(&with_cookie(&request, &session));
            assert_eq!(answer.status, 200, "{session} {answer:?}");
            assert_eq!(answer.seen("cookie").as_deref(), Some("theme=dark; lang=en"), "{session}");
            assert!(cookie(&answer).is_some(), "{session} {answer:?}");
        }
    }
    a.counts("forged", Form::NUMBER * number);
    // The same key and the same name: the cookie is valid, whichever process signed it.
    assert_eq!(cookie(&alone("a", KEYS).ask(&with_cookie(&get("/"), &own))), None);
}

#[test]
fn a_cookie_for_an_unknown_machine_is_replaced() {
    let (a, _b) = pair("affinity.via = \"private\"");
    let app = Backend::start();
    let destroyed = Setup::new(&app, "server.machine = \"destroyed\"").env("OUTRIGGER_AFFINITY_KEYS", KEYS).start();
    let session = cookie(&destroyed.get("/")).unwrap();
    drop(destroyed);
    let answer = a.proxy.ask(&with_cookie(&get("/cart"), &session));
    assert_eq!((answer.status, answer.seen("x-outrigger-machine").as_deref()), (200, Some("a")), "{answer:?}");
    assert!(cookie(&answer).is_some());
    a.counts("rehomed", 1);
}

#[test]
fn replay_headers_of_a_client_are_ignored() {
    let (a, b) = pair("");
    let session = a.session();
    let request = with_cookie(&get("/cart"), &session);
    // Not replayed again; but the session's Machine is reachable, so the request goes there.
    for line in [
        "fly-replay-src: instance=b;region=ams;t=1;state=forged",
        "fly-replay-src: instance=b;region=ams;t=1",
        "fly-preferred-instance-unavailable: a",
        "fly-replay-failed: instance=a;reason=timeout;elapsed_ms=1",
    ] {
        let answer = b.proxy.ask(&with_fields(&request, &[line]));
        assert_eq!((answer.status, cookie(&answer)), (200, None), "{line}: {answer:?}");
        assert_eq!(answer.seen("x-outrigger-machine").as_deref(), Some("a"), "{line}");
    }
    b.counts("forwarded", 4);
    b.counts("forged", 2);
    assert_eq!((a.app.requests_to("/cart"), b.app.requests_to("/cart")), (4, 0));
}

#[test]
fn sessions_follow_their_flag_and_are_absent_when_off() {
    let app = Backend::start();
    let off = Setup::new(&app, "server.machine = \"a\"")
        .env("OUTRIGGER_AFFINITY_KEYS", KEYS)
        .env("FF_ENABLE_SESSION_AFFINITY", "false")
        .start();
    let answer = off.ask(&with_cookie(&get("/"), "_fly_affinity=x"));
    assert_eq!(answer.seen("cookie").as_deref(), Some("theme=dark; _fly_affinity=x; lang=en"));
    assert_eq!((cookie(&answer), answer.seen("x-outrigger-machine")), (None, None));
    let watching = Setup::new(&app, "server.machine = \"a\"\naffinity.mode = \"monitor\"")
        .env("OUTRIGGER_AFFINITY_KEYS", KEYS)
        .start();
    let answer = watching.ask(&with_cookie(&get("/"), "_fly_affinity=x"));
    assert_eq!(answer.seen("cookie").as_deref(), Some("theme=dark; _fly_affinity=x; lang=en"));
    assert_eq!((cookie(&answer), answer.seen("x-outrigger-machine")), (None, None));
    watching.counts("outrigger_affinity_total", &[("event", "forged")], 1);
}

#[test]
fn the_first_key_signs_and_all_verify() {
    const OLD: &str = "the-old-key-of-this-app-which-is-long-enough";
    const NEW: &str = "the-new-key-of-this-app-which-is-long-enough";
    let app = Backend::start();
    let with = |keys: &str| Setup::new(&app, "server.machine = \"a\"").env("OUTRIGGER_AFFINITY_KEYS", keys).start();
    let (old, both, new) = (with(OLD), with(&format!("{NEW},{OLD}")), with(NEW));
    let counts = |proxy: &Proxy, session: &str| cookie(&proxy.ask(&with_cookie(&get("/"), session))).is_none();
    let (of_old, of_both) = (cookie(&old.get("/")).unwrap(), cookie(&both.get("/")).unwrap());
    assert!(counts(&both, &of_old) && counts(&both, &of_both) && counts(&new, &of_both));
    assert!(!counts(&new, &of_old) && !counts(&old, &of_both));
}

#[test]
fn a_cacheable_response_carries_no_session_cookie() {
    let (a, _b) = pair("");
    let said = |control: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nCache-Control: {control}\r\n\r\nok").into_bytes()
    };
    for (path, control, has_session) in [
        ("/public", "public, max-age=60", false),
        ("/shared", "max-age=1, S-MaxAge=600", false),
        ("/private", "private, max-age=60", true),
        ("/none", "no-store", true),
    ] {
        a.app.at(path, Play::Say(said(control)));
        for request in every_form(path) {
            let answer = a.proxy.ask(&request);
            assert_eq!((answer.status, cookie(&answer).is_some()), (200, has_session), "{path}: {answer:?}");
        }
    }
}

#[test]
fn a_replay_is_only_requested_from_an_edge() {
    let (a, b) = pair("");
    let session = a.session();
    // From a trusted address, but without the Fly-Request-Id that the edge adds.
    let direct = with_fields(&get("/cart"), &[&format!("Cookie: {session}")]);
    assert_eq!((b.proxy.ask(&direct).status, a.app.requests_to("/cart")), (200, 1));
    assert_eq!(b.proxy.ask(&with_cookie(&get("/cart"), &session)).status, 307);
}
