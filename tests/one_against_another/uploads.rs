//! Request bodies that stall or trickle, and clients that do not read: they hold no permit, open no circuit breaker, and leave
//! memory for others.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;

use crate::backend::{Backend, PATTERN, Play};
use crate::h2c::{request, with_h2};
use crate::harness::{Client, Proxy, every_form, from_address, get, until};
use crate::memory::allow_many_files;

/// More than the initial concurrency limit of a proxy.
const ATTACKERS: usize = 40;

/// Both come through a trusted edge, so that one machine can be two clients.
const TRUSTED: &str = "identity.edge = \"fly\"\n";
const ATTACKER: &str = "198.51.100.1";
const VICTIM: &str = "203.0.113.9";

/// The framing and start of a body that an attacker never completes, and the bytes that it trickles afterwards.
const KINDS: [(&str, &str, usize); 4] = [
    ("Content-Length: 1000", "x", 1),
    ("Transfer-Encoding: chunked", "1\r\nx\r\n", 1),
    ("Content-Length: 1000000", "x", 1),
    // More than the proxy buffers before it asks for a permit.
    ("Content-Length: 1000000", "x", 100_000),
];

fn attack(proxy: &Proxy, number: usize, (framing, dribble, first): (&str, &str, usize)) -> Vec<Client> {
    (0..number)
        .map(|_| {
            let mut client = proxy.connect();
            let body = if first > 1 { "x".repeat(first) } else { dribble.to_owned() };
            let upload = format!("POST /upload HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}");
            client.send(from_address(&upload, ATTACKER));
            client
        })
        .collect()
}

/// The requests of a block: enough that its p99 is not its slowest one, which the system may have delayed.
const BLOCK: usize = 204;
/// Blocks beside an attack, with 1,000 requests together, and as many without one.
const ROUNDS: usize = 5;
/// A busy machine delays the same requests by more in one block than in another. More rounds make the medians more certain: a
/// delay that the attack causes stays, chance does not.
const MOST_ROUNDS: usize = 25;
/// A request takes about a millisecond. Each time that another program runs first, it takes a slice of the scheduler more, some
/// milliseconds: where one in a hundred requests meets two of them in one half and none in the other, that is no attack's doing.
/// An attack can cause more: a wait for a permit takes up to a second, one for a body 200 ms.
const NOISE: Duration = Duration::from_millis(5);

/// Sends as many of the victim's requests as a block has, in every form; none may fail. Returns their p99.
fn block(proxy: &Proxy, what: &str, meanwhile: &mut impl FnMut()) -> Duration {
    let mut client = proxy.connect();
    let mut latencies: Vec<Duration> = Vec::with_capacity(BLOCK);
    while latencies.len() < BLOCK {
        for request in every_form("/victim") {
            let request = from_address(&request, VICTIM);
            let asked = Instant::now();
            let answer = client.send(&request).answer();
            latencies.push(asked.elapsed());
            assert_eq!(answer.status, 200, "{what}, after {} requests: {answer:?}", latencies.len());
        }
        meanwhile();
    }
    latencies.sort();
    latencies[BLOCK * 99 / 100 - 1]
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}

/// Blocks of the victim's requests beside the attack and without it, in turn, so that a busy machine hits both: the median p99
/// beside it is at most a fifth longer. `attack` returns once it is in force, and lasts until its value is dropped.
fn is_served_beside<A>(proxy: &Proxy, what: &str, mut attack: impl FnMut() -> A, mut dribble: impl FnMut(&mut A)) {
    block(proxy, "the first requests", &mut || {});
    let (mut calm, mut beside) = (Vec::new(), Vec::new());
    for round in 1..=MOST_ROUNDS {
        calm.push(block(proxy, "before", &mut || {}));
        let mut attackers = attack();
        beside.push(block(proxy, what, &mut || dribble(&mut attackers)));
        drop(attackers);
        proxy.comes_to_rest();
        let (calm, beside) = (median(calm.clone()), median(beside.clone()));
        println!("{what}: {} requests served, p99 {beside:?}, and {calm:?} without", round * BLOCK);
        if round >= ROUNDS && beside <= calm.mul_f64(1.2) + NOISE {
            return;
        }
    }
    panic!("{what}: p99 is longer in {MOST_ROUNDS} rounds: {beside:?}, and without: {calm:?}");
}

/// Sends the victim's requests for a second; none may fail. The proxy of this test waits up to a second for a permit: half of
/// them do not.
fn is_served(proxy: &Proxy, what: &str) {
    let (began, mut latencies) = (Instant::now(), Vec::new());
    while began.elapsed() < Duration::from_secs(1) || latencies.len() < 150 {
        for request in every_form("/victim") {
            let asked = Instant::now();
            let answer = proxy.ask(&from_address(&request, VICTIM));
            assert_eq!(answer.status, 200, "{what}, after {} requests: {answer:?}", latencies.len());
            latencies.push(asked.elapsed());
        }
    }
    let median = median(latencies);
    assert!(median < Duration::from_millis(200), "{what}: {median:?}");
}

/// Waits until no request holds a permit.
fn all_permits_are_free(proxy: &Proxy) {
    until("all permits to be free", || proxy.metric("outrigger_admission_in_flight", &[]) == 0.0);
}

/// Waits until the attackers' requests have arrived, and none of them holds a permit.
fn is_in_force(proxy: &Proxy) {
    proxy.counts("outrigger_requests_in_flight", &[], ATTACKERS);
    all_permits_are_free(proxy);
}

#[test]
fn slow_uploads_hold_no_permits() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, TRUSTED);
    for kind in KINDS {
        let attackers = attack(&proxy, ATTACKERS, kind);
        is_in_force(&proxy);
        drop(attackers);
        proxy.comes_to_rest();
    }
    // All kinds at once.
    let attackers = || {
        let attackers = KINDS.map(|kind| attack(&proxy, ATTACKERS / KINDS.len(), kind));
        is_in_force(&proxy);
        attackers
    };
    is_served_beside(&proxy, "dribbling uploads", attackers, |attackers| {
        for (kind, attackers) in KINDS.iter().zip(attackers) {
            attackers.iter_mut().for_each(|attacker| _ = attacker.send(kind.1));
        }
    });
    let refused = proxy.metric("outrigger_rejections_total", &[("reason", "temporary_reduced_capacity")]);
    assert_eq!(refused, 0.0);
}

/// An HTTP/2 connection with the attackers' streams, which another thread drives. Closed when dropped.
struct Attack {
    streams: Vec<Stream>,
    _runtime: tokio::runtime::Runtime,
}

impl Attack {
    fn begin<F: Future<Output = Vec<Stream>>>(proxy: &Proxy, streams: impl FnOnce(SendRequest<Bytes>) -> F) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let streams = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(proxy.h2c).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            streams(sender).await
        });
        Self { streams, _runtime: runtime }
    }
}

#[test]
fn slow_http_2_uploads_hold_no_permits() {
    const KINDS: [(Option<usize>, usize); 4] =
        [(Some(1000), 1), (None, 1), (Some(100_000), 1), (Some(100_000), 60_000)];
    let app = Backend::start();
    let proxy = Proxy::with(&app, TRUSTED);
    let attack = |kinds: &[(Option<usize>, usize)]| {
        let attack = Attack::begin(&proxy, async |sender| {
            let mut streams = Vec::new();
            for (length, first) in kinds {
                streams.extend(stalled_streams(&sender, ATTACKERS / kinds.len(), *length, *first).await);
            }
            streams
        });
        is_in_force(&proxy);
        attack
    };
    for kind in KINDS {
        drop(attack(&[kind]));
        proxy.comes_to_rest();
    }
    is_served_beside(
        &proxy,
        "dribbling streams",
        || attack(&KINDS),
        |attack| {
            for (_, body) in &mut attack.streams {
                // Fails once the stream was rejected.
                let _ = body.send_data(Bytes::from_static(b"x"), false);
            }
        },
    );
}

fn by_attacker(method: &str, path: &str) -> http::Request<()> {
    let mut request = request(method, path);
    request.headers_mut().insert("fly-client-ip", http::HeaderValue::from_static(ATTACKER));
    request
}

type Stream = (h2::client::ResponseFuture, h2::SendStream<Bytes>);

async fn stalled_streams(
    sender: &SendRequest<Bytes>,
    number: usize,
    length: Option<usize>,
    first: usize,
) -> Vec<Stream> {
    let mut streams = Vec::new();
    for _ in 0..number {
        let mut upload = by_attacker("POST", "/upload");
        if let Some(length) = length {
            upload.headers_mut().insert("content-length", length.into());
        }
        let mut sender = sender.clone().ready().await.unwrap();
        let (answer, mut body) = sender.send_request(upload, false).unwrap();
        body.send_data(Bytes::from(vec![b'x'; first]), false).unwrap();
        streams.push((answer, body));
    }
    streams
}

#[test]
fn stalled_uploads_are_408_and_open_no_breaker() {
    let app = Backend::start();
    // The app has less time for an upload than its body may pause. The victim's requests have as long as they need.
    let rules = format!(
        "client.body_timeout = \"7s\"\nbreaker.mode = \"enforce\"\nbreaker.failures = 2\nretry.attempts = 1\n{TRUSTED}\
         [[routes]]\nname = \"upload\"\npath = \"/upload\"\ntimeout = \"1500ms\"\n"
    );
    let proxy = Proxy::with(&app, &rules);
    // All kinds at once, and no more than there are permits: no request waits for one beyond the app's short timeout.
    let mut attackers: Vec<Client> = KINDS.into_iter().flat_map(|kind| attack(&proxy, 3, kind)).collect();
    let mut late = attack(&proxy, 4, KINDS[1]);
    std::thread::sleep(Duration::from_millis(1700));
    is_served(&proxy, "stalled");
    // Some of the stalled bodies end before their timeout, and are served: the app's time has just begun.
    for client in &mut late {
        let answer = client.send("0\r\n\r\n").answer();
        assert_eq!((answer.status, &answer.json()["body"]["bytes"]), (200, &1.into()));
    }
    for client in &mut attackers {
        let answer = client.answer();
        answer.is_problem(408, "body_too_slow");
        assert!(answer.closes());
    }
    with_h2(&proxy, async |sender| {
        let mut streams = stalled_streams(&sender, 6, Some(10), 1).await;
        streams.extend(stalled_streams(&sender, 6, None, 1).await);
        for (answer, _body) in streams {
            assert_eq!(answer.await.unwrap().status(), 408);
        }
    });
    assert_eq!(proxy.ask(&from_address(&get("/victim"), VICTIM)).status, 200);
    assert_eq!(proxy.metric("outrigger_app_failures_total", &[]), 0.0, "the app has failed nobody");
    assert_eq!(proxy.metric("outrigger_rejections_total", &[("reason", "breaker_open")]), 0.0);
}

#[test]
fn an_app_that_hangs_after_an_upload_is_still_a_failure() {
    let app = Backend::start();
    app.at("/hang", Play::Hang);
    app.at("/ignore", Play::Ignore);
    let rules = "app.timeout = \"300ms\"\nretry.attempts = 1\nclient.body_timeout = \"5s\"\n";
    let proxy = Proxy::with(&app, rules);
    let mut client = proxy.connect();
    client.send("POST /hang HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
    std::thread::sleep(Duration::from_millis(400));
    client.send("0\r\n\r\n").answer().is_problem(504, "app_timeout");
    // An app that does not read is at fault too, not the client.
    let mut client = proxy.connect();
    client.send(format!("POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 64 << 20));
    client.gives_up_sending_after(Duration::from_millis(200));
    while client.try_send(PATTERN).is_ok() {}
    client.answer().is_problem(504, "app_timeout");
    proxy.counts("outrigger_app_failures_total", &[("reason", "app_timeout")], 2);
}

#[test]
fn clients_that_do_not_read_hold_no_permits() {
    let app = Backend::start();
    app.at("/response", Play::Stream(200 << 10));
    let proxy = Proxy::with(&app, TRUSTED);
    let attack = || {
        let attack = Attack::begin(&proxy, async |sender| {
            let mut unread = Vec::new();
            for _ in 0..ATTACKERS {
                let mut sender = sender.clone().ready().await.unwrap();
                unread.push(sender.send_request(by_attacker("GET", "/response"), true).unwrap());
            }
            unread
        });
        is_in_force(&proxy);
        attack
    };
    is_served_beside(&proxy, "unread responses, HTTP/2", attack, |_| {});
}

#[test]
fn memory_for_bodies_is_bounded_and_shared_among_addresses() {
    const UPLOADS: usize = 2_000;
    const MEMORY_KIB: u64 = 8 << 10;
    allow_many_files();
    let app = Backend::start();
    let proxy = Proxy::with(&app, &format!("client.body_memory = \"8MiB\"\n{TRUSTED}"));
    let upload = |path: &str, bytes: usize, of: usize| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {of}\r\n\r\n{}", "x".repeat(bytes))
    };
    // The connections' memory does not count as the bodies'.
    let open = |body: usize| -> Vec<Client> {
        let begin = |n: usize| {
            let mut client = proxy.connect();
            client.send(from_address(&upload("/stalled", body, 60_000), &format!("198.51.100.{}", n % 10)));
            client
        };
        (0..UPLOADS).map(begin).collect()
    };
    let idle = open(1);
    proxy.counts("outrigger_requests_in_flight", &[], UPLOADS);
    let (before, _) = proxy.memory_kib();
    drop(idle);
    proxy.comes_to_rest();

    let attackers = open(50_000);
    let began = Instant::now();
    let victim = from_address(&upload("/victim", 40_000, 40_000), VICTIM);
    let mut latencies: Vec<Duration> = (0..100)
        .map(|n| {
            let asked = Instant::now();
            assert_eq!(proxy.ask(&victim).status, 200, "upload {n}");
            asked.elapsed()
        })
        .collect();
    latencies.sort();
    let refused = proxy.metric("outrigger_rejections_total", &[("reason", "too_many_uploads")]);
    assert!(refused > 1000.0, "{refused} were refused");
    let (_, peak) = proxy.memory_kib();
    let grown = peak.saturating_sub(before);
    println!(
        "memory for bodies: 100 of 100 uploads served in {:?}, p99 {:?}; {refused} of {UPLOADS} stalled ones refused; grew by {grown} KiB of {MEMORY_KIB}",
        began.elapsed(),
        latencies[98]
    );
    assert!(grown < MEMORY_KIB, "grew by {grown} KiB, from {before} to {peak}");
    drop(attackers);
    proxy.comes_to_rest();
    assert_eq!(proxy.metric("outrigger_body_memory_bytes", &[]), 0.0);
    assert_eq!(proxy.ask(&get("/next")).status, 200);
}
