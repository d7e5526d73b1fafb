//! The memory of thousands of uploads that stall, over HTTP/1.1 and over HTTP/2.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{self, ResponseFuture},
};
use tokio::{
    net::TcpSocket,
    runtime::{Builder, Runtime},
};

use crate::{
    backend::Backend,
    harness::{Client, Form, Proxy, every_form, until},
    memory::allow_many_files,
};

const UPLOADS: usize = 2_000;
/// Addresses of the attackers, each with as many uploads; over HTTP/2 each has one connection, with fewer streams than the bound.
const ADDRESSES: usize = 40;
const VICTIM: u8 = 2;

const BODY_MEMORY: u64 = 16 << 20;
/// The most that `docs/operations.md` states for each: a connection or stream with a request, and an HTTP/2 connection without its
/// streams (bodies that are not read yet, and output that the client does not read).
const EACH: u64 = 24 << 10;
const H2_CONNECTION: u64 = (1 << 20) + (64 << 10);

/// The length of a body that is announced, and how much of it comes: all of these fit into the memory, and most of those that are
/// just short enough to be buffered whole do not.
const SHORT: (usize, usize) = (4_000, 3_000);
const LONG: (usize, usize) = (64_000, 60_000);
static BODY: [u8; LONG.1] = [b'x'; LONG.1];

/// Uploads over one protocol that do not go on.
struct Stalled {
    _clients: Vec<Client>,
    _streams: Vec<(ResponseFuture, SendStream<Bytes>)>,
    _runtime: Option<Runtime>,
}

impl Stalled {
    fn begin(proxy: &Proxy, over_http2: bool, (announced, sent): (usize, usize)) -> Self {
        let address = |n: usize| Ipv4Addr::new(127, 0, 0, 10 + u8::try_from(n % ADDRESSES).unwrap());
        if !over_http2 {
            let head = format!("POST /stalled HTTP/1.1\r\nHost: a\r\nContent-Length: {announced}\r\n\r\n");
            let upload = [head.as_bytes(), &BODY[..sent]].concat();
            let begin = |n: usize| {
                let mut client = Client::connect_from(address(n), proxy.address).unwrap();
                client.send(&upload);
                client
            };
            return Self { _clients: (0..UPLOADS).map(begin).collect(), _streams: Vec::new(), _runtime: None };
        }
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut streams = Vec::with_capacity(UPLOADS);
        for n in 0..ADDRESSES {
            runtime.block_on(async {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(SocketAddr::from((address(n), 0))).unwrap();
                let (mut sender, connection) =
                    client::handshake(socket.connect(proxy.h2c).await.unwrap()).await.unwrap();
                tokio::spawn(connection);
                for _ in 0..UPLOADS / ADDRESSES {
                    sender = sender.ready().await.unwrap();
                    let upload = http::Request::post("http://a/stalled").header("content-length", announced);
                    let (answer, mut body) = sender.send_request(upload.body(()).unwrap(), false).unwrap();
                    // Goes as far as the windows allow.
                    let _ = body.send_data(Bytes::from_static(&BODY[..sent]), false);
                    streams.push((answer, body));
                }
            });
        }
        Self { _clients: Vec::new(), _streams: streams, _runtime: Some(runtime) }
    }
}

/// All short bodies stall. The long ones would take 120 MB: most of them are rejected.
#[test]
fn stalled_uploads_use_bounded_memory_and_others_are_served() {
    allow_many_files();
    for (over_http2, body) in [(false, SHORT), (true, SHORT), (false, LONG), (true, LONG)] {
        let app = Backend::start();
        let proxy = Proxy::with(&app, &format!("client.body_memory = \"{}MiB\"\n", BODY_MEMORY >> 20));
        // The memory of the first requests does not belong to the uploads.
        for request in every_form("/").iter().cycle().take(20 * Form::NUMBER) {
            assert_eq!(proxy.ask(request).status, 200);
        }
        proxy.comes_to_rest();
        let (before, _) = proxy.memory_kib();
        let attackers = Stalled::begin(&proxy, over_http2, body);
        let in_flight = || proxy.metric("outrigger_requests_in_flight", &[]);
        let refused = || proxy.metric("outrigger_rejections_total", &[("reason", "too_many_uploads")]);
        until("all uploads to stall or be rejected", || in_flight() + refused() >= UPLOADS as f64);
        let (mut client, mut latencies) = (proxy.connect_as(VICTIM), Vec::<Duration>::new());
        for request in every_form("/victim").iter().cycle().take(20 * Form::NUMBER) {
            let asked = Instant::now();
            assert_eq!(client.send(request).answer().status, 200, "{request}");
            latencies.push(asked.elapsed());
        }
        latencies.sort();
        let (in_flight, held) = (in_flight(), proxy.metric("outrigger_body_memory_bytes", &[]));
        let (_, peak) = proxy.memory_kib();
        let grown = peak.saturating_sub(before);
        let connections = if over_http2 { ADDRESSES as u64 * H2_CONNECTION } else { 0 };
        let bound = (BODY_MEMORY + UPLOADS as u64 * EACH + connections) >> 10;
        println!(
            "stalled uploads of {body:?} bytes, {}: {in_flight} of {UPLOADS} in flight, {held} bytes of bodies; {grown} KiB more \
             of {bound}; {} of {} requests of another client served, half of them within {:?}",
            if over_http2 { "HTTP/2" } else { "HTTP/1.1" },
            latencies.len(),
            latencies.len(),
            latencies[latencies.len() / 2]
        );
        assert!(held <= BODY_MEMORY as f64, "{held}");
        assert!(grown < bound, "{grown} KiB more of {bound}, from {before} to {peak}");
        if body == LONG {
            assert!(refused() > 0.0 && held > BODY_MEMORY as f64 / 2.0, "{held}");
        } else {
            assert_eq!(in_flight, UPLOADS as f64, "none is rejected");
        }
        drop((attackers, client));
        proxy.comes_to_rest();
        assert_eq!(proxy.metric("outrigger_body_memory_bytes", &[]), 0.0);
    }
}
