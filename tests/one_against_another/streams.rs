//! Streams of HTTP/2: what one client keeps on its connections, and on one that it shares with others behind an edge.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;

use crate::backend::{Backend, Play};
use crate::h2_conformance::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PREFACE, REFUSED_STREAM,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, block, data, frame, get, post, settings, status, with,
};
use crate::h2c::{ask, request, with_h2};
use crate::harness::{Client, PATIENCE, Proxy, get as http1_get, sum, until};

const ATTACKER: u8 = 10;
const VICTIM: u8 = 20;
/// Both come through a trusted edge, on one connection.
const TRUSTED: &str = "identity.edge = \"fly\"\n";

fn connect(proxy: &Proxy, last: u8, first: &[(u16, u32)]) -> Client {
    let mut client = Client::connect_from([127, 0, 0, last].into(), proxy.h2c).unwrap();
    client.send([PREFACE, &settings(first)].concat());
    client
}

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn next(client: &mut Client) -> std::io::Result<Self> {
        let head = client.take(9)?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all << 8 | u32::from(*byte));
        let payload = client.take(number(&head[..3]) as usize)?;
        Ok(Self { kind: head[3], flags: head[4], stream: number(&head[5..]) & 0x7fff_ffff, payload })
    }

    /// The last number in the payload: an increment or an error code.
    fn number(&self) -> u32 {
        self.payload[self.payload.len() - 4..].iter().fold(0, |all, byte| all << 8 | u32::from(*byte))
    }

    fn is_end(&self) -> bool {
        self.kind == RST_STREAM || (matches!(self.kind, HEADERS | DATA) && self.flags & END_STREAM != 0)
    }
}

/// Waits until the proxy has acknowledged the settings.
fn acknowledged(client: &mut Client) {
    loop {
        let frame = Frame::next(client).unwrap();
        if frame.kind == SETTINGS && frame.flags == ACK {
            return;
        }
    }
}

/// The status of the response on this stream.
fn served(client: &mut Client, stream: u32) -> u16 {
    loop {
        let frame = Frame::next(client).unwrap();
        assert!(frame.stream != stream || frame.kind == HEADERS, "{frame:?}");
        if frame.stream == stream {
            return status(&frame.payload).unwrap();
        }
    }
}

async fn metric(admin: SocketAddr, name: &'static str) -> f64 {
    let metrics = move || xtask::http::get(admin, "/metrics", PATIENCE).unwrap().body;
    sum(&tokio::task::spawn_blocking(metrics).await.unwrap(), name, &[])
}

async fn until_metric(admin: SocketAddr, name: &'static str, is_reached: impl Fn(f64) -> bool) {
    while !is_reached(metric(admin, name).await) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn of_client(method: &str, path: &str, address: &'static str) -> http::Request<()> {
    let mut request = request(method, path);
    request.headers_mut().insert("fly-client-ip", http::HeaderValue::from_static(address));
    request
}

type Upload = (h2::client::ResponseFuture, h2::SendStream<Bytes>);

/// Uploads of one client to an app that does not read them.
async fn stall(sender: &SendRequest<Bytes>, number: usize, bytes: usize) -> Vec<Upload> {
    let body = Bytes::from(vec![b'x'; bytes]);
    let mut uploads = Vec::new();
    for _ in 0..number {
        let mut sender = sender.clone().ready().await.unwrap();
        let (answer, mut sending) = sender.send_request(of_client("POST", "/ignore", "198.51.100.1"), false).unwrap();
        sending.send_data(body.clone(), false).unwrap();
        uploads.push((answer, sending));
    }
    uploads
}

/// An upload of another client, of more than the windows of HTTP/2.
async fn upload(sender: &SendRequest<Bytes>) {
    let body: &'static [u8] = vec![b'v'; 300_000].leak();
    let mut sender = sender.clone().ready().await.unwrap();
    let (_, status, body) = ask(&mut sender, of_client("POST", "/victim", "203.0.113.9"), body).await;
    let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &seen["body"]["bytes"]), (200, &300_000.into()));
}

#[test]
fn uploads_that_the_app_does_not_read_keep_no_others_waiting() {
    const STALLED: usize = 40;
    let app = Backend::start();
    app.at("/ignore", Play::Ignore);
    let proxy = Proxy::with(&app, &format!("admission.min = 200\nadmission.initial = 200\n{TRUSTED}"));
    let (admin, h2c) = (proxy.admin, proxy.h2c);
    with_h2(&proxy, async |sender| {
        let stalled = stall(&sender, STALLED, 4 << 20).await;
        // Of each, a window of its stream is received and not read, and as much waits for the app.
        until_metric(admin, "outrigger_body_memory_bytes", |held| held >= (STALLED * 2 * 65_535) as f64).await;
        upload(&sender).await;
        let stream = tokio::net::TcpStream::connect(h2c).await.unwrap();
        let (other, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        upload(&other).await;
        drop(stalled);
    });
    proxy.comes_to_rest();
    assert_eq!(proxy.metric("outrigger_body_memory_bytes", &[]), 0.0);
}

#[test]
fn memory_for_bodies_on_streams_is_bounded_and_shared() {
    const MOST: f64 = (1 << 20) as f64;
    let app = Backend::start();
    app.at("/ignore", Play::Ignore);
    let rules = format!("client.body_memory = \"1MiB\"\nadmission.min = 200\nadmission.initial = 200\n{TRUSTED}");
    let proxy = Proxy::with(&app, &rules);
    let (before, _) = proxy.memory_kib();
    let admin = proxy.admin;
    with_h2(&proxy, async |sender| {
        // All but the victim's stream, of a hundred.
        let stalled = stall(&sender, 99, 1 << 20).await;
        until_metric(admin, "outrigger_rejections_total", |refused| refused >= 1.0).await;
        for _ in 0..5 {
            upload(&sender).await;
            let held = metric(admin, "outrigger_body_memory_bytes").await;
            assert!(held <= MOST, "{held}");
        }
        drop(stalled);
    });
    let grown = proxy.memory_kib().1 - before;
    println!("99 uploads that the app does not read, 1 MiB for bodies: grew by {grown} KiB");
    proxy.comes_to_rest();
    assert_eq!(proxy.metric("outrigger_body_memory_bytes", &[]), 0.0);
}

/// Responses that come before the body has arrived, and that the client does not read.
#[test]
fn unread_responses_keep_no_bodies() {
    const STREAMS: u32 = 100;
    const BODY: u32 = 60_000;
    /// See `transport/src/http2.rs`.
    const UNREPORTED: u32 = 512 << 10;
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.max_body = \"1KB\"");
    for extra in [&[("content-length", "60000")][..], &[]] {
        let mut client = connect(&proxy, ATTACKER, &[(4, 0)]);
        let granted = |client: &mut Client| loop {
            let frame = Frame::next(client).unwrap();
            assert!(!frame.is_end(), "{frame:?}");
            if frame.kind == WINDOW_UPDATE && frame.stream == 0 {
                return frame.number();
            }
        };
        // The first window of the connection holds the bodies of all streams.
        assert!(granted(&mut client) >= STREAMS * 65_535);
        for stream in (1..2 * STREAMS).step_by(2) {
            client.send([post(stream, "/", extra), data(stream, &[b'x'; BODY as usize / 4]).repeat(4)].concat());
        }
        // The rest of the window is given back once there is more of it.
        let mut returned = 0;
        while returned < STREAMS * BODY - UNREPORTED {
            returned += granted(&mut client);
        }
        proxy.counts("outrigger_requests_in_flight", &[], STREAMS as usize);
        assert_eq!(proxy.metric("outrigger_body_memory_bytes", &[]), 0.0);
        proxy.comes_to_rest_after(client);
    }
}

#[test]
fn requests_of_one_address_over_http_2_are_bounded_as_its_connections_are() {
    let app = Backend::start();
    let gate = app.gate("/slow");
    let proxy = Proxy::with(&app, "server.max_connections = 40\n");
    // A quarter of 40.
    let mut attackers: Vec<Client> = (0..5).map(|_| connect(&proxy, ATTACKER, &[(1, 0)])).collect();
    for attacker in &mut attackers {
        attacker.send([1, 3, 5, 7].map(|stream| get(stream, "/slow")).concat());
    }
    app.gets(10, "/slow");
    proxy.counts("outrigger_refused_streams_total", &[("bound", "address")], 10);
    let mut victim = connect(&proxy, VICTIM, &[(1, 0)]);
    for stream in (1..20).step_by(2) {
        assert_eq!(served(victim.send(get(stream, "/")), stream), 200);
        assert_eq!(proxy.ask_as(VICTIM, &http1_get("/")).status, 200);
    }
    gate.add_permits(10);
    let mut refused = 0;
    for attacker in &mut attackers {
        let mut ended = 0;
        while ended < 4 {
            let frame = Frame::next(attacker).unwrap();
            ended += u32::from(frame.is_end());
            refused += u32::from(frame.kind == RST_STREAM && frame.number() == REFUSED_STREAM);
        }
    }
    assert_eq!(refused, 10);
    until("all to have ended", || proxy.metric("outrigger_requests_in_flight", &[]) == 0.0);
    // The bound is one on requests at a time.
    gate.add_permits(1);
    assert_eq!(served(attackers[0].send(get(9, "/slow")), 9), 200);
    // Those beyond a hundred of a connection are counted as well.
    let mut edge = connect(&proxy, VICTIM + 1, &[]);
    proxy.changes_to("server.max_connections = 4000\n");
    edge.send((0..120).map(|n| get(2 * n + 1, "/slow")).collect::<Vec<_>>().concat());
    proxy.counts("outrigger_refused_streams_total", &[("bound", "connection")], 20);
}

/// The start of a header section of about 20 KiB that its client does not finish.
fn half(stream: u32, path: &str) -> (Vec<u8>, Vec<u8>) {
    let value = "x".repeat(10 << 10);
    let all = block(&with(path, &[("x-half", &value), ("x-other-half", &value)]));
    let (first, second) = all.split_at(16_000);
    let rest = frame(CONTINUATION, END_HEADERS, stream, &second[4000..]);
    ([frame(HEADERS, END_STREAM, stream, first), frame(CONTINUATION, 0, stream, &second[..4000])].concat(), rest)
}

#[test]
fn unfinished_header_sections_over_http_2_make_room_for_others() {
    /// Of each address: more than fit into its quarter of the memory.
    const CONNECTIONS: usize = 80;
    const BUSY: usize = 5;
    let app = Backend::start();
    let gate = app.gate("/slow");
    let rules = "client.max_head = \"64KiB\"\nclient.max_unfinished_heads = \"1MiB\"\nclient.head_timeout = \"60s\"\n\
                 server.max_connections = 4000\nadmission.min = 200\nadmission.initial = 200\n";
    let proxy = Proxy::with(&app, rules);
    let (mut held, mut busy) = (Vec::new(), Vec::new());
    let mut most = 0;
    for address in ATTACKER..ATTACKER + 4 {
        for n in 0..CONNECTIONS {
            let mut client = connect(&proxy, address, &[(1, 0)]);
            if n < BUSY {
                client.send([get(1, "/slow"), half(3, "/").0].concat());
                acknowledged(&mut client);
                busy.push(client);
            } else {
                client.send(half(1, "/").0);
                held.push(client);
            }
        }
        // A quarter of 1 MiB holds no more than twelve of 20 KiB.
        most += 12 + BUSY;
        until("the address to have its quarter", || proxy.metric("outrigger_open_connections", &[]) <= most as f64);
    }
    app.gets(4 * BUSY, "/slow");
    // Together they need more than is left.
    let mut victims: Vec<(Client, Vec<u8>)> = (0..6)
        .map(|_| {
            let (first, rest) = half(1, "/");
            let mut victim = connect(&proxy, VICTIM, &[(1, 0)]);
            victim.send(first);
            (victim, rest)
        })
        .collect();
    until("room to be made", || busy.iter_mut().any(|client| !client.stays_silent_for(Duration::from_millis(1))));
    let mut http1 = proxy.connect_as(VICTIM + 1);
    http1.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Large: {}", "y".repeat(20 << 10)));
    for (victim, rest) in &mut victims {
        assert_eq!(served(victim.send(rest), 1), 200);
    }
    assert_eq!(http1.send("\r\n\r\n").answer().status, 200);
    // Requests in flight are served, also on connections that had to give up a header section.
    gate.add_permits(4 * BUSY);
    let mut told = 0;
    for client in &mut busy {
        loop {
            let frame = Frame::next(client).unwrap();
            told += usize::from(frame.kind == GOAWAY && frame.number() == ENHANCE_YOUR_CALM);
            if frame.stream == 1 {
                assert_eq!((frame.kind, status(&frame.payload)), (HEADERS, Some(200)));
                break;
            }
        }
    }
    println!("{told} of {} connections with a request in flight gave up an unfinished header section", busy.len());
    assert!(told > 0);
    drop((held, busy, victims, http1));
    proxy.comes_to_rest();
}
