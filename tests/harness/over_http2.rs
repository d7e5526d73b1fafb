//! A client's HTTP/2 connection. A thread of all tests drives it, so the client's own thread may wait for something else.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    net::TcpStream,
    sync::LazyLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{
    RecvStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, Response};
use tokio::{runtime::Runtime, time::timeout};

use super::{Answer, PATIENCE, broken};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime for HTTP/2")
});

pub(super) struct Session {
    sender: SendRequest<Bytes>,
    /// Requests without a response so far, in the order in which they were sent.
    waiting: VecDeque<ResponseFuture>,
    /// The next response, and the interim ones before it, if they came before they were asked for.
    next: Option<(Response<RecvStream>, Vec<String>)>,
    /// The rest of the last response.
    body: Option<RecvStream>,
}

impl Session {
    pub(super) fn begin(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let begun = async {
            let stream = tokio::net::TcpStream::from_std(stream)?;
            let (sender, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(sender)
        };
        let sender = within(PATIENCE, begun)?;
        Ok(Self { sender, waiting: VecDeque::new(), next: None, body: None })
    }

    /// Sends one request, which is written like one over HTTP/1.
    pub(super) fn send(&mut self, text: &[u8]) -> io::Result<()> {
        let (request, body) = parsed(text);
        let sender = self.sender.clone();
        let sent = async {
            let mut sender = sender.ready().await.map_err(io::Error::other)?;
            let (response, mut sending) = sender.send_request(request, body.is_empty()).map_err(io::Error::other)?;
            if !body.is_empty() {
                // Fails if the response has come already.
                let _ = sending.send_data(body, true);
            }
            Ok(response)
        };
        self.waiting.push_back(within(PATIENCE, sent)?);
        Ok(())
    }

    /// The next response without its body.
    pub(super) fn head(&mut self, limit: Duration) -> io::Result<Answer> {
        self.comes(limit)?;
        let (response, interim) = self.next.take().expect("it came");
        let (parts, body) = response.into_parts();
        self.body = Some(body);
        let status = parts.status.as_u16();
        let mut answer = Answer { status, head: lines(status, &parts.headers), interim, ..Answer::default() };
        for (name, value) in &parts.headers {
            answer.add(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
        }
        Ok(answer)
    }

    /// Waits for the next response.
    pub(super) fn comes(&mut self, limit: Duration) -> io::Result<()> {
        if self.next.is_some() {
            return Ok(());
        }
        let response = self.waiting.front_mut().ok_or_else(|| broken("no request was sent"))?;
        let came = within(limit, async {
            let mut interim = Vec::new();
            while let Some(early) = poll_fn(|cx| response.poll_informational(cx)).await {
                let early = early.map_err(io::Error::other)?;
                interim.push(lines(early.status().as_u16(), early.headers()));
            }
            Ok((response.await.map_err(io::Error::other)?, interim))
        });
        if !matches!(&came, Err(e) if e.kind() == io::ErrorKind::TimedOut) {
            self.waiting.pop_front();
        }
        self.next = Some(came?);
        Ok(())
    }

    /// The next piece of the body; empty at its end.
    pub(super) fn piece(&mut self, deadline: Instant) -> io::Result<Bytes> {
        let Some(body) = &mut self.body else { return Ok(Bytes::new()) };
        within(deadline.saturating_duration_since(Instant::now()), async {
            let Some(piece) = body.data().await else { return Ok(Bytes::new()) };
            let piece = piece.map_err(io::Error::other)?;
            body.flow_control().release_capacity(piece.len()).map_err(io::Error::other)?;
            Ok(piece)
        })
    }

    /// The trailers after the body, as text.
    pub(super) fn trailers(&mut self) -> io::Result<String> {
        let Some(body) = &mut self.body else { return Ok(String::new()) };
        let trailers = within(PATIENCE, async { body.trailers().await.map_err(io::Error::other) })?;
        Ok(trailers.as_ref().map(fields).unwrap_or_default())
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    RUNTIME.block_on(async { timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) })
}

/// A request and its body. `Host` becomes the authority, unless the target has one.
fn parsed(text: &[u8]) -> (Request<()>, Bytes) {
    let end = text.windows(4).position(|window| window == b"\r\n\r\n").expect("a head that ends");
    let head = std::str::from_utf8(&text[..end]).expect("a head that is text");
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let host = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, value)| value.trim());
    let is_absolute = target.contains("://");
    let uri =
        if is_absolute { target.to_owned() } else { format!("http://{}{target}", host.unwrap_or("outrigger.test")) };
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        if is_absolute || !name.eq_ignore_ascii_case("host") {
            request = request.header(name, value.trim());
        }
    }
    let request = request.body(()).unwrap_or_else(|e| panic!("HTTP/2 cannot express this: {e}: {head}"));
    (request, Bytes::copy_from_slice(&text[end + 4..]))
}

/// A response's head as HTTP/1 would write it.
fn lines(status: u16, headers: &HeaderMap) -> String {
    format!("HTTP/2 {status} \r\n{}\r\n", fields(headers))
}

fn fields(headers: &HeaderMap) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()))).collect()
}
