//! HTTP/2 without TLS, on its own port.

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;

use crate::{
    backend::{Backend, Play},
    h2_conformance::{case::Connection, wire},
    harness::{Client, PATIENCE, Proxy, get},
};

/// Runs `work` with one HTTP/2 connection to the proxy, within the usual time limit.
pub(crate) fn with_h2<F: Future>(proxy: &Proxy, work: impl FnOnce(SendRequest<Bytes>) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = async {
        let stream = TcpStream::connect(proxy.h2c).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        work(sender.ready().await.unwrap()).await
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, all).await.expect("all of it in time") })
}

/// One request; returns the response's status, headers and body.
pub(crate) async fn ask(
    sender: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: &'static [u8],
) -> (http::HeaderMap, u16, Vec<u8>) {
    let (answer, mut sending) = sender.send_request(request, body.is_empty()).unwrap();
    if !body.is_empty() {
        sending.send_data(Bytes::from_static(body), true).unwrap();
    }
    let (head, mut stream) = answer.await.unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece.unwrap();
        stream.flow_control().release_capacity(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
    }
    (head.headers, head.status.as_u16(), bytes)
}

pub(crate) fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://h2.test{path}")).body(()).unwrap()
}

#[test]
fn requests_over_http_2_reach_the_app_as_http_1() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let (headers, status, body) =
        with_h2(&proxy, async |mut sender| ask(&mut sender, request("POST", "/p?x=1"), b"hello").await);
    assert_eq!(status, 200);
    assert!(headers.contains_key("x-request-id"));
    let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&seen["method"], &seen["version"]), (&"POST".into(), &"HTTP/1.1".into()));
    assert!(seen["target"].as_str().unwrap().ends_with("/p?x=1"), "{seen}");
    assert_eq!(seen["headers"]["host"], "h2.test");
    assert_eq!(seen["headers"]["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["body"]["bytes"], 5);
}

#[test]
fn forged_headers_in_any_spelling_do_not_reach_the_app() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let (_, _, body) = with_h2(&proxy, async |mut sender| {
        let mut request = request("GET", "/");
        for name in ["x-forwarded-for", "x_forwarded_for", "x-real_ip", "fly_client_ip", "x_request_timeout_ms"] {
            request.headers_mut().insert(name, "6.6.6.6".parse().unwrap());
        }
        request.headers_mut().insert("access_key", "k".parse().unwrap());
        ask(&mut sender, request, b"").await
    });
    let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert!(!seen["headers"].to_string().contains("6.6.6.6"), "{seen}");
    assert_eq!(seen["headers"]["access_key"], "k");
    proxy.counts("outrigger_forged_fields_total", &[], 1);
}

#[test]
fn many_streams_share_one_connection_and_a_hung_one_delays_no_other() {
    let app = Backend::start();
    app.at("/hang", Play::Hang);
    app.at("/large", Play::Stream(5 << 20));
    let proxy = Proxy::start(&app);
    with_h2(&proxy, async |mut sender| {
        let (hanging, _) = sender.send_request(request("GET", "/hang"), true).unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&mut sender, request("GET", "/quick"), b"").await.1, 200);
        }
        let (_, status, body) = ask(&mut sender, request("GET", "/large"), b"").await;
        assert_eq!((status, body.len()), (200, 5 << 20));
        drop(hanging);
    });
    proxy.counts("outrigger_requests_total", &[("outcome", "success")], 21);
    proxy.comes_to_rest();
}

#[test]
fn rejections_and_failures_over_http_2_have_a_problem_body() {
    let mut app = Backend::start();
    let proxy = Proxy::with(&app, "client.max_body = \"10B\"");
    let too_large =
        Request::builder().method("POST").uri("http://h2.test/").header("content-length", 20).body(()).unwrap();
    let (headers, status, body) =
        with_h2(&proxy, async |mut sender| ask(&mut sender, too_large, b"12345678901234567890").await);
    assert_eq!((status, headers["content-type"].as_bytes()), (413, &b"application/problem+json"[..]));
    assert!(String::from_utf8_lossy(&body).contains("body-too-large"));
    proxy.counts_rejections("body_too_large", 1);
    app.stop();
    let (_, status, body) = with_h2(&proxy, async |mut sender| ask(&mut sender, request("GET", "/"), b"").await);
    assert_eq!(status, 502);
    assert!(String::from_utf8_lossy(&body).contains("app-unreachable"));
}

#[test]
fn malformed_http_2_is_rejected_cleanly() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "client.head_timeout = \"300ms\"");
    for bytes in [get("/").as_str(), "GARBAGE GARBAGE GARBAGE GARBAGE", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "x"] {
        let mut client = Client::connect(proxy.h2c).unwrap();
        let answer = client.send(bytes).answer();
        answer.is_problem(505, "malformed_version");
        client.is_closed();
    }
    // Half a preface, then silence.
    for bytes in ["PRI * HTTP/2.0\r\n", ""] {
        let mut client = Client::connect(proxy.h2c).unwrap();
        client.send(bytes).is_closed();
    }
    proxy.comes_to_rest();
    assert_eq!(app.connections(), 0);
}

#[test]
fn malformed_requests_and_frames_are_counted() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut connection = Connection::greeted(proxy.h2c, PATIENCE);
    // A header of HTTP/1, and a body that is longer than it should be.
    connection.send(&wire::last_headers(1, &wire::with("/", &[("connection", "close")])));
    connection.send(&[wire::post(3, "/", &[("content-length", "1")]), wire::data(3, b"too long")].concat());
    connection.serves(5).unwrap();
    proxy.counts_rejections("malformed_stream", 2);
    connection.send(&wire::data(0, b""));
    assert!(connection.read_until(|_| false));
    proxy.counts_rejections("malformed_frame", 1);
    proxy.has_receipt("malformed_frame", "http.malformed_frame");
    proxy.has_receipt("malformed_stream", "http.malformed_stream");
    proxy.comes_to_rest();
    assert_eq!(proxy.metric("outrigger_requests_total", &[("outcome", "rejected")]), 2.0);
}

#[test]
fn h2load_sends_ten_thousand_requests_without_a_failure() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let h2load = xtask::Tool::H2load.get().expect("h2load");
    let said = xtask::Program::new(h2load)
        .args(["-n", "10000", "-c", "4", "-m", "20"])
        .arg(format!("http://{}/load", proxy.h2c))
        .output()
        .unwrap();
    assert!(said.contains("10000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    assert!(said.contains("status codes: 10000 2xx"), "{said}");
}

#[test]
fn a_draining_process_lets_streams_finish() {
    let app = Backend::start();
    let gate = app.gate("/slow");
    let mut proxy = Proxy::with(&app, "server.lame_duck = \"0s\"\n");
    let address = proxy.address;
    let pid = proxy.pid();
    // Returns the app, since it must not end inside the runtime.
    let _app = with_h2(&proxy, async |mut sender| {
        let (slow, _) = sender.send_request(request("GET", "/slow"), true).unwrap();
        let done = tokio::task::spawn_blocking(move || {
            app.gets(1, "/slow");
            xtask::process::signal(pid, xtask::Signal::TERM);
            crate::harness::until("the listener to close", || Client::connect(address).is_err());
            gate.add_permits(1);
            app
        });
        assert_eq!(slow.await.unwrap().status(), 200);
        done.await.unwrap()
    });
    let status = proxy.ends_within(PATIENCE);
    assert!(status.success(), "{status}");
}
