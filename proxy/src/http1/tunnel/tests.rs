//! A tunnel over pipes, and a request before one, over sockets.

use std::cell::Cell;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::http1::tests::{connected, state};

const LIMITS: TunnelLimits = TunnelLimits { silence: Duration::from_secs(60), stall: Duration::from_secs(20) };

impl Side for DuplexStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(piece);
        ready!(Pin::new(self).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }
}

/// Carries a tunnel to its end; whether it was orderly, and the bytes for the client and the app.
async fn carry(mut client: impl Side, mut app: impl Side) -> (bool, u64, u64) {
    let mut tunnel = Tunnel::new(&mut client, &mut app, LIMITS);
    let mut timer = Timer::new();
    let is_orderly = poll_fn(|cx| tunnel.poll(cx, &mut timer)).await;
    let holds = tunnel.to_client.unsent.capacity() + tunnel.to_app.unsent.capacity();
    assert!(!is_orderly || holds == 0, "{holds} bytes of memory");
    (is_orderly, tunnel.to_client.sent, tunnel.to_app.sent)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[tokio::test]
async fn every_byte_and_each_end_arrive() {
    let sent = pattern(300_000);
    for (of_client, of_app) in [(7, 100_000), (100_000, 7), (4096, 4096), (1 << 20, 1 << 20)] {
        let (near_client, mut client) = duplex(of_client);
        let (near_app, mut app) = duplex(of_app);
        let client = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            got
        };
        let app = async {
            // It begins only after the client's end.
            let mut got = Vec::new();
            app.read_to_end(&mut got).await.unwrap();
            app.write_all(&got[..200_000]).await.unwrap();
            app.shutdown().await.unwrap();
            got
        };
        let (carried, by_client, by_app) = tokio::join!(carry(near_client, near_app), client, app);
        assert_eq!(carried, (true, 200_000, 300_000));
        assert!(by_app == sent && by_client == sent[..200_000]);
    }
}

#[tokio::test(start_paused = true)]
async fn only_silence_in_both_directions_ends_it() {
    let (near_client, mut client) = duplex(100);
    let (near_app, mut app) = duplex(100);
    let talk = async {
        for _ in 0..3 {
            tokio::time::sleep(LIMITS.silence * 3 / 4).await;
            client.write_all(b"x").await.unwrap();
            tokio::time::sleep(LIMITS.silence * 3 / 4).await;
            app.write_all(b"y").await.unwrap();
        }
        (client, app)
    };
    let began = Instant::now();
    let (carried, _ends) = tokio::join!(carry(near_client, near_app), talk);
    assert_eq!(carried, (true, 3, 3));
    assert_eq!((began.elapsed().as_millis() + 5) / 10 * 10, (LIMITS.silence * 11 / 2).as_millis());
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_stalls_ends_it_with_a_loss() {
    // The client may stall for less time than the app.
    for (of_client, of_app, after) in [(10, 1000, LIMITS.stall), (1000, 10, LIMITS.silence)] {
        let (near_client, mut client) = duplex(of_client);
        let (near_app, mut app) = duplex(of_app);
        let fill = async {
            tokio::time::sleep(LIMITS.silence / 2).await;
            client.write_all(&[1; 20]).await.unwrap();
            app.write_all(&[1; 20]).await.unwrap();
            (client, app)
        };
        let began = Instant::now();
        let (carried, _ends) = tokio::join!(carry(near_client, near_app), fill);
        assert!(!carried.0);
        let lasted = began.elapsed() - LIMITS.silence / 2;
        assert!(lasted >= after && lasted < after + Duration::from_millis(100), "{lasted:?}");
    }
}

#[tokio::test]
async fn bytes_sent_before_a_side_broke_still_arrive() {
    let (near_client, mut client) = duplex(100);
    let (near_app, mut app) = duplex(100);
    app.write_all(b"bye").await.unwrap();
    drop(app);
    client.write_all(b"too late").await.unwrap();
    let mut got = Vec::new();
    let (carried, _) = tokio::join!(carry(near_client, near_app), client.read_to_end(&mut got));
    assert_eq!((carried, got), ((false, 3, 0), b"bye".to_vec()));
}

/// Sends and takes without end, as long as the shared budget lasts.
struct Busy<'a>(&'a Cell<u32>);

impl Side for Busy<'_> {
    fn poll_receive(&mut self, _: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.0.get() == 0 {
            return Poll::Pending;
        }
        self.0.set(self.0.get() - 1);
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_send(&mut self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_direction_does_not_hold_up_the_other_one() {
    let budget = Cell::new(128);
    let (_, to_client, to_app) = carry(Busy(&budget), Busy(&budget)).await;
    assert!(to_client == to_app && to_client > 0, "{to_client} {to_app}");
}

/// An app that switches protocols when it has `after` bytes of the body, and echoes the bytes behind `body` bytes.
async fn switching_app(listener: TcpListener, body: usize, after: usize) -> String {
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut read = BytesMut::new();
    let head_ends = |read: &BytesMut| memchr::memmem::find(read, b"\r\n\r\n").map(|at| at + 4);
    while head_ends(&read).is_none_or(|head| read.len() < head + after) {
        if socket.read_buf(&mut read).await.unwrap() == 0 {
            return String::new();
        }
    }
    let head = read.split_to(head_ends(&read).unwrap());
    socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nhi ").await.unwrap();
    while read.len() < body {
        if socket.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return "no body".to_owned();
        }
    }
    assert_eq!(read.split_to(body), pattern(body), "the body is passed on before the tunnel's bytes");
    loop {
        socket.write_all(&read).await.unwrap();
        read.clear();
        if socket.read_buf(&mut read).await.unwrap() == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&head).to_ascii_lowercase()
}

fn upgrade(body: usize) -> Vec<u8> {
    let framing = if body == 0 { String::new() } else { format!("Content-Length: {body}\r\n") };
    let head =
        format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: x/1, y\r\n{framing}\r\n");
    [head.as_bytes(), &pattern(body)].concat()
}

/// Sends the pieces of a request to [`switching_app`], with a pause before each but the first; returns what the client and the
/// app have got.
async fn switched(rules: &str, pieces: &[&[u8]], body: usize, after: usize) -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let state = state(listener.local_addr().unwrap(), rules);
    let app = tokio::spawn(switching_app(listener, body, after));
    let (mut client, served): (TcpStream, _) = connected(&state).await;
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        client.write_all(piece).await.unwrap();
    }
    let mut got = Vec::new();
    if rules.is_empty() {
        client.shutdown().await.unwrap();
    }
    client.read_to_end(&mut got).await.unwrap();
    drop(client);
    assert_eq!(served.await.unwrap(), 1);
    (String::from_utf8_lossy(&got).into_owned(), app.await.unwrap())
}

#[tokio::test]
async fn the_bytes_of_a_tunnel_follow_the_body() {
    for (body, after) in [(0, 0), (5, 0), (5, 5), (100_000, 0), (100_000, 70_000), (100_000, 100_000)] {
        let request = [&upgrade(body)[..], b"early"].concat();
        for at in [request.len(), 10, request.len() - 5, request.len() - 7] {
            let (first, second) = request.split_at(at);
            let (got, head) = switched("", &[first, second, b" late"], body, after).await;
            let response = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
            assert_eq!(got, format!("{response}hi early late"), "{body} {after} {at}");
            assert!(head.contains("\r\nupgrade: x/1, y\r\n") && head.contains("\r\nconnection: upgrade\r\n"), "{head}");
            assert!(!head.contains("keep-alive") && !head.contains("x-request-timeout"), "{head}");
        }
    }
}

#[tokio::test]
async fn before_the_whole_body_a_101_begins_no_tunnel() {
    let request = upgrade(100_000);
    let rules = "client.body_timeout = \"300ms\"";
    let (got, app) = switched(rules, &[&request[..90_000]], 100_000, 1000).await;
    assert!(got.starts_with("HTTP/1.1 408 ") && !got.contains("hi "), "{got}");
    assert_eq!(app, "no body");
}
