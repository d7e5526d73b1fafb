//! Clients of WebSockets, event streams and uploads, and those that leave.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, UPGRADE};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout_at};

use super::agent::Agent;
use crate::client::{Body, Connection, Trouble, collect, connect, has_status, part, whole};
use crate::content::{content, event, receipt};
use crate::judge::{Failure, Kind};
use crate::websocket::{self, KEY, Message};

const UPLOAD: usize = 1 << 20;
const CHUNK: usize = 32 << 10;

/// A failure of the exchange, once the client has done its part.
fn failure(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::Unprocessed => Failure::BrokenBefore("the connection was closed at once".to_owned()),
        Trouble::Failed(failure) => failure,
    }
}

impl Agent {
    /// A WebSocket with some messages, each of which comes back.
    pub(super) async fn talks(&mut self) {
        let from = Instant::now();
        let outcome = self.session().await;
        match outcome {
            Ok(()) => *self.results.requests.entry(Kind::WebSocket).or_default() += 1,
            Err(failure) => self.failed(Kind::WebSocket, from, failure, "/echo".to_owned()),
        }
    }

    async fn session(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + self.shared.timeout;
        let request = self.request(Method::GET, "/echo").header(HOST, "soak.test");
        let request = request.header(CONNECTION, "upgrade").header(UPGRADE, "websocket");
        let request = request.header("sec-websocket-version", "13").header("sec-websocket-key", KEY);
        let request = request.body(whole(Bytes::new())).unwrap_or_default();
        let ports = self.shared.pick();
        let opening = async {
            let mut connection = Connection::http1(ports.http1).await?;
            let response = connection.send(request).await.map_err(failure)?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                let upgraded = hyper::upgrade::on(response).await;
                return upgraded.map_err(|e| Failure::BrokenWithin(e.to_string()));
            }
            let _ = has_status(response, StatusCode::SWITCHING_PROTOCOLS).await?;
            Err(Failure::Wrong("no upgrade".to_owned()))
        };
        let upgraded = timeout_at(deadline, opening).await.unwrap_or(Err(Failure::Late))?;
        let mut stream = TokioIo::new(upgraded);
        let mut bytes = Vec::new();
        for _ in 0..self.random.u32(5..30) {
            let id = self.id();
            let message = Message::binary(content(id, self.random.usize(0..2000)));
            self.echoed(&mut stream, &mut bytes, &message).await?;
            if self.shared.is_over() {
                break;
            }
            sleep(Duration::from_millis(self.random.u64(20..200))).await;
        }
        self.echoed(&mut stream, &mut bytes, &Message::close()).await
    }

    /// Sends a message, and waits for it to come back.
    async fn echoed(
        &mut self,
        stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
        bytes: &mut Vec<u8>,
        message: &Message,
    ) -> Result<(), Failure> {
        let from = Instant::now();
        let mask = self.random.u32(..).to_be_bytes();
        let broken = |e: std::io::Error| Failure::BrokenWithin(e.to_string());
        let all = async {
            stream.write_all(&message.written(Some(mask))).await.map_err(broken)?;
            loop {
                if let Some(echo) = websocket::take(bytes) {
                    return Ok(echo);
                }
                if stream.read_buf(bytes).await.map_err(broken)? == 0 {
                    return Err(Failure::BrokenWithin("the end before the echo".to_owned()));
                }
            }
        };
        let echo = timeout_at(from + self.shared.timeout, all).await.unwrap_or(Err(Failure::Late))?;
        if echo != *message {
            return Err(Failure::Wrong(format!("an echo of {} bytes", echo.payload.len())));
        }
        self.results.messages += 1;
        self.took(Kind::WebSocket, from, Instant::now());
        Ok(())
    }

    /// An event stream, to its end.
    pub(super) async fn listens(&mut self) {
        let (id, from) = (self.id(), Instant::now());
        let (events, every) = (self.random.u32(2..20), self.random.u32(50..300));
        let path = format!("/events/{id:016x}?events={events}&every={every}");
        match self.events(id, events, &path).await {
            Ok(()) => *self.results.requests.entry(Kind::Events).or_default() += 1,
            Err(failure) => self.failed(Kind::Events, from, failure, path),
        }
    }

    async fn events(&mut self, id: u64, events: u32, path: &str) -> Result<(), Failure> {
        let from = Instant::now();
        let request = self.request(Method::GET, path).header(HOST, "soak.test");
        let request = request.body(whole(Bytes::new())).unwrap_or_default();
        let ports = self.shared.pick();
        let opening = async {
            let mut connection = Connection::http1(ports.http1).await?;
            let response = connection.send(request).await.map_err(failure)?;
            Ok((has_status(response, StatusCode::OK).await?.1, connection))
        };
        let deadline = from + self.shared.timeout;
        let (mut body, _connection) = timeout_at(deadline, opening).await.unwrap_or(Err(Failure::Late))?;
        let mut bytes = Vec::new();
        for n in 0..events {
            let wanted = event(id, n);
            while bytes.len() < wanted.len() {
                let deadline = Instant::now() + self.shared.timeout;
                match timeout_at(deadline, part(&mut body)).await.unwrap_or(Err(Failure::Late))? {
                    Some(data) => bytes.extend_from_slice(&data),
                    None => return Err(Failure::BrokenWithin("the end before the last event".to_owned())),
                }
            }
            let rest = bytes.split_off(wanted.len());
            if bytes != wanted.as_bytes() {
                return Err(Failure::Wrong(format!("event {n}: {:?}", String::from_utf8_lossy(&bytes))));
            }
            bytes = rest;
            self.results.messages += 1;
            if n == 0 {
                self.took(Kind::Events, from, Instant::now());
            }
        }
        match timeout_at(Instant::now() + self.shared.timeout, part(&mut body)).await.unwrap_or(Err(Failure::Late))? {
            None if bytes.is_empty() => Ok(()),
            _ => Err(Failure::Wrong("more than the last event".to_owned())),
        }
    }

    /// 1 MiB, with its length or in chunks.
    pub(super) async fn uploads(&mut self) {
        let (id, from) = (self.id(), Instant::now());
        let kind = if self.random.bool() { Kind::UploadSized } else { Kind::UploadChunked };
        let path = format!("/uploads/{id:016x}");
        let bytes = content(id, UPLOAD);
        let wanted = receipt(id, &bytes);
        let body = if kind == Kind::UploadSized { whole(bytes) } else { in_chunks(bytes) };
        let request = self.request(Method::POST, &path).header(HOST, "soak.test").body(body).unwrap_or_default();
        let ports = self.shared.pick();
        let all = async {
            let mut connection = Connection::http1(ports.http1).await?;
            let response = connection.send(request).await.map_err(failure)?;
            let (_, body) = has_status(response, StatusCode::OK).await?;
            let body = collect(body).await?;
            if body == wanted {
                return Ok(());
            }
            Err(Failure::Wrong(String::from_utf8_lossy(&body).into_owned()))
        };
        match timeout_at(from + self.shared.timeout, all).await.unwrap_or(Err(Failure::Late)) {
            Ok(()) => {
                self.good(kind, from, Instant::now());
                self.results.done.push(id);
            }
            Err(failure) => self.failed(kind, from, failure, path),
        }
    }

    /// Disconnects in the middle of something. Only the connection itself must not fail.
    pub(super) async fn leaves(&mut self) {
        let from = Instant::now();
        let outcome = timeout_at(from + self.shared.timeout, self.left()).await.unwrap_or(Err(Failure::Late));
        match outcome {
            Ok(()) => *self.results.requests.entry(Kind::Leaves).or_default() += 1,
            Err(failure) => self.failed(Kind::Leaves, from, failure, String::new()),
        }
    }

    async fn left(&mut self) -> Result<(), Failure> {
        let id = self.id();
        let ports = self.shared.pick();
        let soon = Duration::from_millis(self.random.u64(0..8));
        let head = |line: &str, more: &str| format!("{line} HTTP/1.1\r\nHost: soak.test\r\n{more}\r\n");
        let text = match self.random.u32(0..5) {
            0 => head(&format!("GET /items/{id:016x}?size=60000"), ""),
            1 => head(&format!("POST /orders/{id:016x}"), &format!("{CONTENT_LENGTH}: 1000\r\n")) + "the beginning",
            2 => head(&format!("POST /uploads/{id:016x}"), "Transfer-Encoding: chunked\r\n") + "5\r\nbegin\r\n",
            3 => head(&format!("GET /events/{id:016x}?events=100&every=20"), ""),
            // Over HTTP/2: the stream is reset, and the connection closed.
            _ => {
                let mut connection = Connection::http2(ports.http2).await?;
                let request = self.request(Method::GET, &format!("http://soak.test/items/{id:016x}?size=60000"));
                let request = request.body(whole(Bytes::new())).unwrap_or_default();
                let _ = timeout_at(Instant::now() + soon, connection.send(request)).await;
                return Ok(());
            }
        };
        let mut stream = connect(ports.http1).await?;
        // It may be rejected before it is written.
        let _ = stream.write_all(text.as_bytes()).await;
        sleep(soon).await;
        Ok(())
    }
}

/// A body in chunks, some of them after a moment.
fn in_chunks(bytes: Bytes) -> Body {
    let parts = stream::unfold(bytes, |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        if rest.len().is_multiple_of(8 * CHUNK) {
            sleep(Duration::from_millis(2)).await;
        }
        let next = rest.split_to(CHUNK.min(rest.len()));
        Some((Ok::<_, Infallible>(Frame::data(next)), rest))
    });
    StreamBody::new(parts).boxed_unsync()
}
