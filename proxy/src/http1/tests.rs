//! Requests to a scripted app, over sockets of this machine.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use outrigger_rules::config::Config;
use outrigger_rules::sections::log::LogFormat;
use outrigger_wire::chunks::Chunks;
use outrigger_wire::scan::{HeadScanner, Limits, inspect};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::engine::metrics::Metrics;
use crate::mechanism::log::{AccessLog, LogQueue};
use crate::transport::client_stream::ClientStream;

/// The bodies of the requests that the app has got whole, and whether they came in chunks.
type Seen = Arc<Mutex<Vec<(Vec<u8>, bool)>>>;

pub(super) fn state(app: SocketAddr, rules: &str) -> Arc<State> {
    let rules = format!("app.address = \"{app}\"\n{rules}");
    let config = Config::parse(Path::new("test"), &rules, &|_| None).unwrap();
    let metrics = Metrics::new().unwrap();
    let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log.dropped.clone()).unwrap();
    Arc::new(State::new(config, metrics, AccessLog::new(queue)))
}

/// Serves the requests of one connection as `accept` does; returns how many.
async fn serve_all(state: Arc<State>, socket: TcpStream, client: SocketAddr) -> usize {
    let mut stream = ClientStream::new(socket);
    let (mut timer, mut served) = (Timer::new(), 0);
    let origin = Origin { client: client.ip(), listener: Listener::Public };
    loop {
        let mut scanner = HeadScanner::default();
        let head = loop {
            if let Some(len) = scanner.scan(stream.pending()).unwrap() {
                let limits = Limits { max_bytes: 8 << 10, max_fields: 32 };
                break inspect(&stream.pending()[..len], limits).unwrap();
            }
            if poll_fn(|cx| stream.poll_fill(cx)).await.unwrap_or(0) == 0 {
                return served;
            }
        };
        served += 1;
        if serve(&state, ClientSide::Http1(&mut stream), &head, &mut timer, origin).await == Next::Close {
            return served;
        }
    }
}

/// Reads one request; returns its body and whether it came in chunks.
async fn request(socket: &mut TcpStream, read: &mut BytesMut) -> Option<(Vec<u8>, bool)> {
    loop {
        if let Some(end) = memchr::memmem::find(read, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            let mut body = read[end + 4..].to_vec();
            if head.contains("transfer-encoding: chunked") {
                let mut chunks = Chunks::default();
                let (taken, payload) = chunks.decode(&mut body).unwrap();
                if chunks.is_done() {
                    read.advance(end + 4 + taken);
                    return Some((body[..payload].to_vec(), true));
                }
            } else if body.len() >= length.unwrap_or(0) {
                read.advance(end + 4 + length.unwrap_or(0));
                body.truncate(length.unwrap_or(0));
                return Some((body, false));
            }
        }
        if socket.read_buf(read).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

/// An app that responds 200 to each request that it has got whole.
async fn app(listener: TcpListener, seen: Seen) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut read = BytesMut::new();
            while let Some(got) = request(&mut socket, &mut read).await {
                seen.lock().unwrap().push(got);
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        });
    }
}

/// A client's connection that Outrigger serves.
pub(super) async fn connected(state: &Arc<State>) -> (TcpStream, tokio::task::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (socket, address) = listener.accept().await.unwrap();
    (client, tokio::spawn(serve_all(Arc::clone(state), socket, address)))
}

/// Sends `pieces` and reads until `responses` have come, or the connection closes.
async fn converse(state: &Arc<State>, pieces: &[&[u8]], responses: usize) -> (String, usize) {
    let (mut client, served) = connected(state).await;
    for piece in pieces {
        if client.write_all(piece).await.is_err() {
            break;
        }
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
    let mut read = BytesMut::new();
    while memchr::memmem::find_iter(&read, b"HTTP/1.1 ").count() < responses || !read.ends_with(b"ok") {
        if client.read_buf(&mut read).await.unwrap_or(0) == 0 {
            break;
        }
    }
    drop(client);
    (String::from_utf8_lossy(&read).into_owned(), served.await.unwrap())
}

fn with_app<T>(rules: &str, test: impl AsyncFnOnce(Arc<State>, Seen) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (state, seen) = (state(listener.local_addr().unwrap(), rules), Seen::default());
        let app = tokio::spawn(app(listener, Arc::clone(&seen)));
        let result = test(state, seen).await;
        app.abort();
        result
    })
}

const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";

fn post(framing: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}")
}

#[test]
fn a_body_reaches_the_app_wherever_it_is_split() {
    let requests = [
        (post("Content-Length: 11", "hello world"), false),
        (post("Transfer-Encoding: chunked", "5;x=y\r\nhello\r\n006\r\n world\r\n0\r\nT: 1\r\n\r\n"), true),
    ];
    with_app("", async |state, seen| {
        for (request, is_chunked) in requests {
            let sent = format!("{request}{NEXT}");
            for at in 1..sent.len() {
                let (first, second) = sent.as_bytes().split_at(at);
                let (responses, served) = converse(&state, &[first, second], 2).await;
                assert_eq!((served, responses.matches(" 200 ").count()), (2, 2), "at {at}: {responses}");
                let got = std::mem::take(&mut *seen.lock().unwrap());
                assert_eq!(got, [(b"hello world".to_vec(), is_chunked), (Vec::new(), false)], "at {at}");
            }
        }
    });
}

#[test]
fn a_client_that_stalls_gets_408_and_the_app_is_not_blamed() {
    with_app("client.body_timeout = \"60ms\"\n", async |state, seen| {
        // Before the app is asked; and after more than is buffered, while the app waits for the rest.
        for body in ["x".to_owned(), "x".repeat(80_000)] {
            for framing in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
                let body = if framing.starts_with('C') { body.clone() } else { format!("{:x}\r\n{body}", 100_000) };
                let (response, served) = converse(&state, &[post(framing, &body).as_bytes()], 1).await;
                assert!(response.starts_with("HTTP/1.1 408 ") && response.contains("Connection: close"), "{response}");
                assert_eq!((served, seen.lock().unwrap().len()), (1, 0));
            }
        }
    });
}

#[test]
fn a_body_that_turns_out_too_long_is_413() {
    with_app("client.max_body = \"1KiB\"\nclient.body_timeout = \"2s\"\n", async |state, seen| {
        let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
        for body in [chunk.repeat(2), chunk.repeat(200)] {
            let sent = post("Transfer-Encoding: chunked", &body);
            let (response, _) = converse(&state, &[sent.as_bytes()], 1).await;
            assert!(response.starts_with("HTTP/1.1 413 ") && response.contains("Connection: close"), "{response}");
        }
        let (response, _) = converse(&state, &[post("Transfer-Encoding: chunked", &chunk).as_bytes()], 1).await;
        assert!(!response.contains(" 413 "), "{response}");
        assert_eq!(seen.lock().unwrap().len(), 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_body_arrives_in_any_pieces(
        chunks in prop::collection::vec(1..40_000_usize, 0..6),
        size in 1000..70_000_usize,
        is_chunked in any::<bool>(),
    ) {
        let payload: Vec<u8> = (0..chunks.iter().sum::<usize>()).map(|at| (at % 251) as u8).collect();
        let mut sent = Vec::new();
        if is_chunked {
            sent.extend(post("Transfer-Encoding: chunked", "").bytes());
            let mut at = 0;
            for chunk in &chunks {
                sent.extend(format!("{chunk:x}\r\n").bytes());
                sent.extend(&payload[at..at + chunk]);
                sent.extend(b"\r\n");
                at += chunk;
            }
            sent.extend(b"0\r\n\r\n");
        } else {
            sent.extend(post(&format!("Content-Length: {}", payload.len()), "").bytes());
            sent.extend(&payload);
        }
        sent.extend(NEXT.bytes());
        let pieces: Vec<&[u8]> = sent.chunks(size).collect();
        let (responses, got) = with_app("", async |state, seen| {
            let (responses, _) = converse(&state, &pieces, 2).await;
            (responses, std::mem::take(&mut *seen.lock().unwrap()))
        });
        prop_assert_eq!(responses.matches(" 200 ").count(), 2, "{}", responses);
        prop_assert!(got.len() == 2 && got[0].0 == payload && got[0].1 == is_chunked);
    }
}
