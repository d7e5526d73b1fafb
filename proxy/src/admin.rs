//! The operators' listener, on a runtime of its own: a scrape never waits behind requests, nor they behind it.
//!
//! What changes something ([`control`]) is for this machine itself, or for whoever knows `OUTRIGGER_ADMIN_TOKEN`.

pub mod audit;
pub mod control;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::config::Target;
use crate::exposition;
use crate::limits::shared::Mode as Sharing;
use crate::state::{Phase, State};

/// How long the app may take for its metrics; Prometheus gives ten seconds for both.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(3);
/// The most that is read of them: Fly's scraper takes 16 MB in all.
const SCRAPE_BYTES: usize = 8 << 20;
/// The content type of Prometheus' text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

const INDEX: &str = "outrigger\n\n/metrics      of this proxy\n/metrics/all  of this proxy and its app, merged\n\
                     /healthz      200 while this process serves, 503 while it leaves\n\
                     /admission    slots, queue and latency of the app\n\
                     /breakers     where each stands; POST /breakers/NAME {\"force\": \"open\"} (or \"closed\", \"automatic\")\n\
                     /limits       what each tier may ask of each limit\n\
                     /bans         who is banned; POST {\"client\": \"address:192.0.2.1\", \"for\": \"10m\"} bans,\n\
                     \x20             DELETE /bans/CLIENT lifts\n";

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, state: Arc<State>) {
    let router = Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/healthz", get(healthz))
        .route("/metrics", get(own_metrics))
        .route("/metrics/all", get(all_metrics))
        .merge(control::router(&state))
        .fallback(|| async { (StatusCode::NOT_FOUND, INDEX) })
        .with_state(state);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    if let Err(e) = axum::serve(listener, service).await {
        tracing::error!("the admin listener ended: {e}");
    }
}

async fn healthz(Shared(state): Shared<Arc<State>>) -> (StatusCode, String) {
    let (status, phase) = match state.drain.phase() {
        Phase::Serving => (StatusCode::OK, "serving"),
        Phase::LameDuck | Phase::Closing => (StatusCode::SERVICE_UNAVAILABLE, "leaving"),
    };
    // What works with less than it should have still serves: it is said, and changes no status.
    let sharing = state.shared.standpoint();
    let detail = match (sharing.mode, sharing.reason) {
        (Sharing::Degraded, Some(reason)) => format!("shared limits: degraded: {reason}\n"),
        (Sharing::Degraded | Sharing::Shared, _) => format!("shared limits: {}\n", sharing.mode.name()),
        (Sharing::Off, _) => String::new(),
    };
    (status, format!("{phase}\n{detail}"))
}

async fn own_metrics(Shared(state): Shared<Arc<State>>) -> Response {
    match render(&state) {
        Ok(text) => exposition(text),
        Err(e) => failed(&e),
    }
}

async fn all_metrics(Shared(state): Shared<Arc<State>>) -> Response {
    let own = match render(&state) {
        Ok(text) => text,
        Err(e) => return failed(&e),
    };
    let rules = state.rules.load_full();
    let (target, path) = &rules.config.app.metrics;
    // An app that is down is a fact to be shown, not an error of the scrape.
    let (up, of_app) = match tokio::time::timeout(SCRAPE_TIMEOUT, fetch(target, path)).await {
        Ok(Ok(text)) => (1, text),
        Ok(Err(e)) => {
            tracing::debug!("the app's metrics cannot be fetched: {e}");
            (0, String::new())
        }
        Err(_) => (0, String::new()),
    };
    let own = format!(
        "{own}# HELP outrigger_app_metrics_up Whether the app's metrics could be fetched.\n\
         # TYPE outrigger_app_metrics_up gauge\noutrigger_app_metrics_up {up}\n"
    );
    exposition(exposition::merge(&[("proxy", &own), ("app", &of_app)]))
}

fn render(state: &State) -> Result<String, prometheus::Error> {
    state.metrics.in_flight.set(i64::try_from(state.in_flight()).unwrap_or(i64::MAX));
    state.metrics.connections.set(i64::try_from(state.connections()).unwrap_or(i64::MAX));
    state.metrics.body_memory.set(i64::try_from(state.body_memory.held()).unwrap_or(i64::MAX));
    let now = state.nanoseconds(Instant::now());
    state.metrics.unbelieved.set(state.claims.most(now).into());
    let tokens = state.rules.load().config.credentials.cached_tokens();
    state.metrics.show_admission(&state.gate.standing(), state.limits.size(now), state.bans.held(now), tokens);
    for cell in state.breakers.all() {
        if let Some(standing) = cell.standing(now) {
            state.metrics.show_breaker(&cell.name, standing.position);
        }
    }
    let budget = state.retry_budget().left(state.rules.load().config.retry.budget);
    state.metrics.show_retry_budget(budget);
    if let Some(trail) = &state.trail {
        trail.show();
    }
    state.metrics.render()
}

fn exposition(text: String) -> Response {
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response()
}

fn failed(error: &prometheus::Error) -> Response {
    tracing::error!("the metrics cannot be rendered: {error}");
    (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be rendered; the log says why\n").into_response()
}

/// Why the app's metrics are not there.
#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

async fn fetch(target: &Target, path: &str) -> Result<String, ScrapeError> {
    match target {
        Target::Tcp(address) => ask(TcpStream::connect(address).await?, path).await,
        Target::Unix(socket) => ask(UnixStream::connect(&**socket).await?, path).await,
    }
}

async fn ask(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, path: &str) -> Result<String, ScrapeError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    if answer.status() != StatusCode::OK {
        return Err(ScrapeError::Status(answer.status()));
    }
    let body = Limited::new(answer.into_body(), SCRAPE_BYTES).collect().await.map_err(ScrapeError::Body)?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}
