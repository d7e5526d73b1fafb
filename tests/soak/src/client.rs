//! A connection to a proxy, over HTTP/1.1 or HTTP/2.

use std::convert::Infallible;
use std::error::Error as _;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::judge::Failure;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// Why there is no response.
#[derive(Debug)]
pub enum Trouble {
    /// The proxy certainly did not process the request: the connection was closed before it was sent (RFC 9112, 9.3.1), or it
    /// was beyond a GOAWAY or refused (RFC 9113, 8.7). Each client sends such a request again.
    Unprocessed,
    Failed(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Cheap to clone over HTTP/2 only.
#[derive(Debug)]
pub enum Connection {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

pub async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).await.map_err(|e| Failure::NotConnected(e.to_string()))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

impl Connection {
    pub async fn http1(address: SocketAddr) -> Result<Self, Failure> {
        let stream = connect(address).await?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|e| Failure::NotConnected(said(&e)))?;
        // Its errors are those of its requests.
        tokio::spawn(connection.with_upgrades());
        Ok(Self::One(sender))
    }

    pub async fn http2(address: SocketAddr) -> Result<Self, Failure> {
        let stream = connect(address).await?;
        let builder = http2::Builder::new(TokioExecutor::new()).timer(TokioTimer::new()).clone();
        let shaken = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|e| Failure::NotConnected(said(&e)))?;
        tokio::spawn(connection);
        Ok(Self::Two(sender))
    }

    /// Another one that sends on the same connection, over HTTP/2.
    pub fn twin(&self) -> Option<Self> {
        match self {
            Self::One(_) => None,
            Self::Two(sender) => Some(Self::Two(sender.clone())),
        }
    }

    /// Sends a request and waits for the head of its response.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, Trouble> {
        let sent = match self {
            Self::One(sender) => {
                sender.ready().await.map_err(|_| Trouble::Unprocessed)?;
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                sender.ready().await.map_err(|_| Trouble::Unprocessed)?;
                sender.send_request(request).await
            }
        };
        sent.map_err(|e| if is_unprocessed(&e) { Trouble::Unprocessed } else { Failure::BrokenBefore(said(&e)).into() })
    }
}

fn is_unprocessed(error: &hyper::Error) -> bool {
    if error.is_canceled() {
        return true;
    }
    let inner = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    inner.is_some_and(|e| {
        let is_refused = e.reason() == Some(h2::Reason::REFUSED_STREAM);
        is_refused || (e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR))
    })
}

/// An error with its causes.
fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The whole body.
pub async fn collect(body: Incoming) -> Result<Bytes, Failure> {
    let body = body.collect().await.map_err(|e| Failure::BrokenWithin(said(&e)))?;
    Ok(body.to_bytes())
}

/// The next part of a body; `None` at its end.
pub async fn part(body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|e| Failure::BrokenWithin(said(&e)))?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Fails unless the response has this status.
pub async fn has_status(response: Response<Incoming>, wanted: StatusCode) -> Result<(Parts, Incoming), Failure> {
    let (head, body) = response.into_parts();
    if head.status == wanted {
        return Ok((head, body));
    }
    let words = collect(body).await.unwrap_or_default();
    let by = problem(&head.headers, &words).unwrap_or_else(|| "the app".to_owned());
    Err(Failure::Rejected(head.status.as_u16(), by))
}

/// The name of the problem, if Outrigger made the response.
fn problem(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    field(headers, CONTENT_TYPE.as_str()).filter(|kind| kind.starts_with("application/problem+json"))?;
    let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(problem["type"].as_str()?.rsplit(['/', ':']).next()?.to_owned())
}

pub fn field<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
