//! The scripted app: it echoes, streams, takes uploads, and fails as it is told.
//!
//! Each order (POST) is appended to a file that survives the process, so that a second execution of one shows.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::time::sleep;
use xtask::Result;
use xtask::error::While;

use crate::content::{Checksum, content, event};
use crate::websocket::{self, ACCEPT};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Command line arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    #[arg(long)]
    pub listen: SocketAddr,
    /// The file to which executed orders are appended.
    #[arg(long)]
    pub orders: PathBuf,
}

struct App {
    /// Milliseconds that each request takes in addition.
    slow: AtomicU64,
    /// Requests whose connections will be reset.
    resets: AtomicU64,
    /// Requests that arrived, other than health checks and those for this program.
    arrived: AtomicU64,
    orders: File,
}

/// How long a request takes.
const WORK: Duration = Duration::from_millis(3);

/// The connection is to be reset.
#[derive(Debug)]
struct Reset;

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is reset, as ordered")
    }
}

impl std::error::Error for Reset {}

/// Serves until it is killed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let orders = OpenOptions::new().create(true).append(true).open(&arguments.orders);
    let orders = orders.while_(format_args!("opening {}", arguments.orders.display()))?;
    let (slow, resets, arrived) = Default::default();
    let app = Arc::new(App { slow, resets, arrived, orders });
    let runtime = Builder::new_current_thread().enable_all().build().while_("starting a runtime")?;
    runtime.block_on(async {
        let listening = format!("listening on {}", arguments.listen);
        let listener = TcpListener::bind(arguments.listen).await.while_(listening)?;
        loop {
            let (stream, _) = listener.accept().await.while_("accepting")?;
            tokio::spawn(serve(Arc::clone(&app), stream));
        }
    })
}

async fn serve(app: Arc<App>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    // A second descriptor of the same socket, for a reset once the server has dropped the first one.
    let Ok((stream, twin)) = twin(stream) else { return };
    let is_reset = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_reset);
    let service = service_fn(move |request| {
        let (app, flag) = (Arc::clone(&app), Arc::clone(&flag));
        async move {
            let response = respond(&app, request).await;
            flag.store(response.is_err(), Ordering::Relaxed);
            response
        }
    });
    // As with threads, a request is executed even if its client has left, and counts.
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).half_close(true);
    let connection = server.serve_connection(TokioIo::new(stream), service);
    // A client that disconnects is no error.
    let _ = connection.with_upgrades().await;
    if is_reset.load(Ordering::Relaxed) {
        let _ = twin.set_zero_linger();
    }
}

fn twin(stream: TcpStream) -> std::io::Result<(TcpStream, TcpStream)> {
    let stream = stream.into_std()?;
    let twin = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, TcpStream::from_std(twin)?))
}

async fn respond(app: &App, request: Request<Incoming>) -> std::result::Result<Response<Body>, Reset> {
    let path = request.uri().path().to_owned();
    let query = |name: &str| number(request.uri().query().unwrap_or_default(), name);
    match (request.method(), path.as_str()) {
        (_, "/health" | "/health/ready" | "/health/live") => return Ok(say("fine")),
        (_, "/metrics") => {
            let arrived = app.arrived.load(Ordering::Relaxed);
            return Ok(say(format!("# TYPE soak_requests_total counter\nsoak_requests_total {arrived}\n")));
        }
        (&Method::PUT, "/control") => {
            app.slow.store(query("slow").unwrap_or_default(), Ordering::Relaxed);
            app.resets.store(query("resets").unwrap_or_default(), Ordering::Relaxed);
            return Ok(say("noted"));
        }
        _ => {}
    }
    app.arrived.fetch_add(1, Ordering::Relaxed);
    if app.resets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        return Err(Reset);
    }
    let (size, events, every) = (query("size"), query("events"), query("every"));
    sleep(WORK + Duration::from_millis(app.slow.load(Ordering::Relaxed))).await;
    if path == "/echo" {
        return Ok(echo(request));
    }
    let id = path.rsplit('/').next().and_then(|id| u64::from_str_radix(id, 16).ok());
    let Some(id) = id else { return Ok(not_found()) };
    let response = match (request.method(), path.split('/').nth(1).unwrap_or_default()) {
        (&Method::GET, "items") => Response::new(whole(content(id, size.unwrap_or(100) as usize))),
        (&Method::GET, "events") => {
            events_of(id, events.unwrap_or(1) as u32, Duration::from_millis(every.unwrap_or(1)))
        }
        (&Method::PUT, "items") => say(received(id, request).await?),
        (&Method::POST, "orders" | "uploads") => {
            let receipt = received(id, request).await?;
            // One write of a few bytes at the end of the file: those of several processes do not mix.
            let _ = (&app.orders).write_all(&id.to_le_bytes());
            say(receipt)
        }
        _ => not_found(),
    };
    Ok(response)
}

/// The checksum of the whole body. A body that breaks off is not executed.
async fn received(id: u64, request: Request<Incoming>) -> std::result::Result<String, Reset> {
    let mut body = request.into_body();
    let mut sum = Checksum::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|_| Reset)?.into_data() {
            sum.add(&data);
        }
    }
    Ok(sum.receipt(id))
}

/// Events with pauses.
fn events_of(id: u64, events: u32, every: Duration) -> Response<Body> {
    let all = stream::unfold(0, move |n| async move {
        if n >= events {
            return None;
        }
        if n > 0 {
            sleep(every).await;
        }
        Some((Ok(Frame::data(Bytes::from(event(id, n)))), n + 1))
    });
    let mut response = Response::new(StreamBody::new(all).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/event-stream"));
    response
}

/// Switches to WebSocket, and echoes each message.
fn echo(request: Request<Incoming>) -> Response<Body> {
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut bytes = Vec::new();
        loop {
            match websocket::take(&mut bytes) {
                Some(frame) => {
                    let is_last = frame.is_close();
                    if stream.write_all(&frame.written(None)).await.is_err() || is_last {
                        break;
                    }
                }
                None => {
                    if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                        break;
                    }
                }
            }
        }
        let _ = stream.shutdown().await;
    });
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let response = response.header(CONNECTION, "upgrade").header(UPGRADE, "websocket");
    response.header("sec-websocket-accept", ACCEPT).body(whole(Bytes::new())).unwrap_or_else(|_| not_found())
}

fn number(query: &str, name: &str) -> Option<u64> {
    query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name)?.1.parse().ok())
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

fn say(words: impl Into<Bytes>) -> Response<Body> {
    Response::new(whole(words))
}

fn not_found() -> Response<Body> {
    let mut response = say("there is no such resource");
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_the_query() {
        assert_eq!(number("slow=12&resets=3", "resets"), Some(3));
        assert_eq!((number("", "slow"), number("slow=x", "slow")), (None, None));
    }
}
