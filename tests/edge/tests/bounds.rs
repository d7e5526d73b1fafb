//! Undocumented limits of Fly: each with both settings.

use std::time::Duration;

use outrigger_edge::Settings;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::fake::{Fake, PATIENCE, Play, edge, get_with, post, raw, until};

#[tokio::test]
async fn how_large_a_body_may_be_is_a_setting() {
    for (most, status) in [(Some(2 << 20), 413), (None, 200)] {
        let a = Fake::running("a").await;
        let mut settings = Settings::default();
        settings.limits.max_body = most;
        let edge = edge(settings, &[&a]).await;
        assert_eq!(post(&edge, "/", &vec![0; 2 << 20]).await.status, 200);
        assert_eq!(post(&edge, "/", &vec![0; (2 << 20) + 1]).await.status, status);
        assert_eq!(a.seen().len(), if most.is_some() { 1 } else { 2 });

        // Of unknown length: the limit is noticed while the body arrives.
        let pieces =
            (0..3).map(|_| Ok::<_, std::io::Error>(hyper::body::Frame::data(bytes::Bytes::from(vec![0; 1 << 20]))));
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
        let request = http::Request::post("/").header("host", "app.test").body(body).unwrap();
        assert_eq!(crate::fake::send(edge.address(), request).await.status, status);
    }
}

#[tokio::test]
async fn how_large_a_head_may_be_is_a_setting() {
    for (most, status) in [(8192, 431), (64 << 10, 200)] {
        let a = Fake::running("a").await;
        let mut settings = Settings::default();
        settings.limits.max_head = most;
        let edge = edge(settings, &[&a]).await;
        assert_eq!(get_with(&edge, "/", &[("x-long", &"x".repeat(4000))]).await.status, 200);
        assert_eq!(get_with(&edge, "/", &[("x-long", &"x".repeat(16_000))]).await.status, status);
    }
}

#[tokio::test]
async fn how_long_a_connection_may_be_idle_is_a_setting() {
    for limit in [Some(Duration::from_millis(150)), None] {
        let a = Fake::running("a").await;
        a.plays("/ws", Play::Upgrade);
        let _gate = a.gate("/slow");
        let mut settings = Settings::default();
        settings.limits.idle_timeout = limit;
        let edge = edge(settings, &[&a]).await;
        let get = |path: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: app.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        };
        let patience = if limit.is_some() { PATIENCE } else { Duration::from_millis(400) };
        // A connection at rest after a response, one that waits for a response, and a tunnel.
        for (path, end) in [("/", "\r\n\r\n"), ("/slow", ""), ("/ws", "\r\n\r\n")] {
            let mut client = TcpStream::connect(edge.address()).await.unwrap();
            raw(&mut client, get(path).as_bytes(), end).await;
            let mut byte = [0];
            let closed = tokio::time::timeout(patience, client.read(&mut byte));
            assert_eq!(closed.await.is_ok(), limit.is_some(), "{path}");
        }
        if limit.is_some() {
            until("the Machine to be left", || a.open_connections() == 0).await;
        }
    }
}

#[tokio::test]
async fn clients_beyond_the_bound_on_connections_wait() {
    let a = Fake::running("a").await;
    let mut settings = Settings::default();
    settings.limits.max_connections = 1;
    let edge = edge(settings, &[&a]).await;
    let mut first = TcpStream::connect(edge.address()).await.unwrap();
    let get = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
    raw(&mut first, get, "\r\n\r\n").await;
    let waiting = crate::fake::in_background(&edge, "/");
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(a.seen().len(), 1);
    drop(first);
    assert_eq!(waiting.await.unwrap().status, 200);
}
