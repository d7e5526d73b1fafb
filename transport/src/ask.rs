//! A single HTTP/1.1 request on a connection of its own, off the hot path: scrapes, probes, the audit log, commands.

use bytes::Bytes;
use http::header::HOST;
use http::response::Parts;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

/// A response whose body has not been read. The connection ends when it is dropped.
#[derive(Debug)]
pub struct Response {
    /// Status and headers.
    pub head: Parts,
    body: Incoming,
    _sender: SendRequest<Full<Bytes>>,
    _connection: JoinSet<hyper::Result<()>>,
}

/// Sends `request` as it is: the caller sets `Host`. Has no timeout; dropping the future ends the connection.
///
/// # Errors
/// The other side does not speak HTTP, or has closed the connection.
pub async fn ask(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Bytes>,
) -> hyper::Result<Response> {
    let (mut sender, connection) = handshake(TokioIo::new(io)).await?;
    // Aborts the connection when dropped: otherwise an endless body would be read forever.
    let mut task = JoinSet::new();
    task.spawn(connection);
    let (head, body) = sender.send_request(request.map(Full::new)).await?.into_parts();
    Ok(Response { head, body, _sender: sender, _connection: task })
}

/// Sends a GET request for `target`, and returns the status of the response.
///
/// # Errors
/// As [`ask`].
pub async fn get_status(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &str,
) -> hyper::Result<StatusCode> {
    let mut request = Request::new(Bytes::new());
    // The configuration accepts only targets that can be parsed.
    *request.uri_mut() = target.parse().unwrap_or_default();
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    Ok(ask(io, request).await?.head.status)
}

impl Response {
    /// Reads the body.
    ///
    /// # Errors
    /// It has more than `max_bytes`, or is incomplete.
    pub async fn body(self, max_bytes: usize) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Limited::new(self.body, max_bytes).collect().await?.to_bytes())
    }
}
