//! Long transfers: large bodies, event streams, WebSockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use outrigger_edge::{Code, Settings};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::fake::{Fake, PATIENCE, Play, edge, raw, shows, until};

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: app.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
    let a = Fake::running("a").await;
    let (events, receiver) = mpsc::unbounded_channel();
    a.plays("/events", Play::Stream(Arc::new(tokio::sync::Mutex::new(receiver))));
    let edge = edge(Settings::default(), &[&a]).await;
    let mut client = TcpStream::connect(edge.address()).await.unwrap();
    let head = raw(&mut client, b"GET /events HTTP/1.1\r\nHost: app.test\r\n\r\n", "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    for number in 0..5 {
        let event = format!("data: {number}\n\n");
        events.send(Bytes::from(event.clone())).unwrap();
        raw(&mut client, b"", &event).await;
    }
    assert_eq!(edge.snapshot().machine("a").unwrap().load, 1, "a stream counts as long as it lasts");
    drop(events);
    raw(&mut client, b"", "0\r\n\r\n").await;
    shows(&edge, "the stream to be over", |now| now.machine("a").unwrap().load == 0).await;
}

#[tokio::test]
async fn a_big_upload_is_passed_on_while_it_comes() {
    let a = Fake::running("a").await;
    let count = Arc::new(AtomicUsize::new(0));
    a.plays("/", Play::Count(Arc::clone(&count)));
    let edge = edge(Settings::default(), &[&a]).await;
    let stream = TokioIo::new(TcpStream::connect(edge.address()).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let (pieces, receiver) = mpsc::channel::<Bytes>(1);
    let body = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (Ok::<_, std::io::Error>(Frame::data(piece)), receiver))
    });
    let request = Request::post("/").header("host", "app.test").body(StreamBody::new(Box::pin(body))).unwrap();
    let answer = tokio::spawn(sender.send_request(request));
    let piece = Bytes::from(vec![7; 1 << 20]);
    for number in 1..=16 {
        pieces.send(piece.clone()).await.unwrap();
        until("the Machine to have this piece", || count.load(Ordering::SeqCst) == number << 20).await;
    }
    drop(pieces);
    let answer = answer.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(answer, (16 << 20).to_string());
}

#[tokio::test]
async fn a_large_response_is_read_no_faster_than_its_client_reads() {
    const PIECES: usize = 1024;
    let a = Fake::running("a").await;
    let taken = Arc::new(AtomicUsize::new(0));
    let in_machine = Arc::clone(&taken);
    a.says("/", move |_| {
        let taken = Arc::clone(&in_machine);
        let pieces = (0..PIECES).map(move |number| {
            taken.fetch_add(1, Ordering::SeqCst);
            Ok(Frame::data(Bytes::from(vec![number as u8; 64 << 10])))
        });
        http::Response::new(StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync())
    });
    let edge = edge(Settings::default(), &[&a]).await;
    let stream = TokioIo::new(TcpStream::connect(edge.address()).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(crate::fake::request("GET", "/", &[], b"")).await.unwrap();
    // Sockets hold a few MB; this is time for more to arrive if the edge buffered it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let held = taken.load(Ordering::SeqCst);
    assert!(held < PIECES * 3 / 4, "{held} pieces of {PIECES} that nobody has read");
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), PIECES << 16);
    assert!(body.chunks(64 << 10).enumerate().all(|(at, piece)| piece.iter().all(|&byte| byte == at as u8)));
}

#[tokio::test]
async fn an_incomplete_response_is_incomplete_for_the_client() {
    let a = Fake::running("a").await;
    let (pieces, receiver) = mpsc::unbounded_channel();
    a.plays("/", Play::Stream(Arc::new(tokio::sync::Mutex::new(receiver))));
    let edge = edge(Settings::default(), &[&a]).await;
    pieces.send(Bytes::from_static(b"the beginning")).unwrap();
    let mut client = TcpStream::connect(edge.address()).await.unwrap();
    raw(&mut client, b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n", "the beginning").await;
    a.halt().await;
    let rest = raw(&mut client, b"", "never").await;
    assert!(!rest.contains("0\r\n\r\n"), "it must not look whole: {rest:?}");
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_that_counts_until_its_end() {
    let a = Fake::running("a").await;
    a.plays("/ws", Play::Upgrade);
    let edge = edge(Settings::default(), &[&a]).await;
    let mut client = TcpStream::connect(edge.address()).await.unwrap();
    let head = raw(&mut client, UPGRADE.as_bytes(), "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("upgrade: websocket"), "{head}");
    assert_eq!(a.last().field("connection").as_deref(), Some("Upgrade"));
    for bytes in [&b"\x81\x05hello"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        raw(&mut client, bytes, std::str::from_utf8(&bytes[2..]).unwrap()).await;
    }
    assert_eq!(edge.snapshot().machine("a").unwrap().load, 1);
    client.shutdown().await.unwrap();
    shows(&edge, "the tunnel to end", |now| now.machine("a").unwrap().load == 0).await;
    until("the Machine to see its end", || a.open_connections() == 0).await;
}

#[tokio::test]
async fn an_upgrade_can_be_replayed_and_tunnels_then() {
    let origin = Fake::running("origin").await;
    let target = Fake::running("target").await.in_region("syd");
    origin.plays("/ws", Play::SayEarly("fly-replay", "instance=target;state=s".to_owned()));
    target.plays("/ws", Play::Upgrade);
    let edge = edge(Settings::default(), &[&origin, &target]).await;
    let mut client = TcpStream::connect(edge.address()).await.unwrap();
    let head = raw(&mut client, UPGRADE.as_bytes(), "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(target.last().part("fly-replay-src", "state").as_deref(), Some("s"));
    raw(&mut client, b"there and back", "there and back").await;
    let now = edge.snapshot();
    assert_eq!((now.machine("origin").unwrap().load, now.machine("target").unwrap().load), (0, 1));
}

#[tokio::test]
async fn a_declined_upgrade_is_an_ordinary_response() {
    let a = Fake::running("a").await;
    let edge = edge(Settings::default(), &[&a]).await;
    let mut client = TcpStream::connect(edge.address()).await.unwrap();
    let answer = raw(&mut client, UPGRADE.as_bytes(), "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let next = raw(&mut client, b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n", "\r\n\r\n").await;
    assert!(next.starts_with("HTTP/1.1 200"), "the connection goes on: {next}");
}

#[tokio::test]
async fn a_machine_that_dies_under_an_upload_is_a_502_for_a_client_that_still_sends() {
    let a = Fake::running("a").await;
    let count = Arc::new(AtomicUsize::new(0));
    a.plays("/", Play::Count(Arc::clone(&count)));
    let edge = edge(Settings::default(), &[&a]).await;
    let mut client = TcpStream::connect(edge.address()).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000\r\n\r\n0123456789";
    client.write_all(head.as_bytes()).await.unwrap();
    until("the Machine to have some of it", || count.load(Ordering::SeqCst) == 10).await;
    a.halt().await;
    let answer = tokio::time::timeout(PATIENCE, raw(&mut client, &[b'x'; 990], "\r\n\r\n")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("x-edge-error: PU02"), "{answer}");
    assert_eq!(edge.snapshot().errors(Code::Interrupted), 1);
}
