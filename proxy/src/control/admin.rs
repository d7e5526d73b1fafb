//! The operators' listener, on a runtime of its own: a scrape never waits behind requests, nor they behind it.
//!
//! ```text
//! access.rs        which endpoint needs what: nothing, a name of this listener in Host, or an operator
//! connections.rs   how many connections there are, and for how long
//! control.rs       limits, breakers, bans, Machines
//! audit.rs         the audit log, for the commands
//! ```

pub mod access;
pub mod audit;
pub mod connections;
pub mod control;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use crate::control::admin::access::{Endpoints, Needs};
use crate::engine::state::{Phase, State};
use crate::mechanism::exposition::{Dialect, Merged};
use crate::mechanism::limits::shared::Mode as Sharing;
use crate::transport::upstream::{ConnectError, Upstream};

/// How long the app may take for its metrics; Prometheus gives ten seconds for both.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(3);
/// The most that is read of them: Fly's scraper takes 16 MB in all.
const SCRAPE_BYTES: usize = 8 << 20;
/// The content type of Prometheus' text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The largest body of a request: an entry of the audit log, or a thousand subjects.
const BODY_BYTES: usize = 256 << 10;

const INDEX: &str = "outrigger\n\n/metrics      of this proxy\n/metrics/all  of this proxy and its app, merged\n\
                     /healthz      200 while this process serves, 503 while it leaves\n\
                     /admission    slots, queue and latency of the app\n\
                     /breakers     where each stands; POST /breakers/NAME {\"force\": \"open\"} (or \"closed\", \"automatic\")\n\
                     /limits       what each tier may ask of each limit\n\
                     /machines     this Machine and its peers\n\
                     /bans         who is banned; POST {\"client\": \"address:192.0.2.1\", \"for\": \"10m\"} bans,\n\
                     \x20             DELETE /bans/CLIENT lifts\n";

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, state: Arc<State>) {
    connections::serve(listener, router(&state), state).await;
}

/// Every endpoint, with what it needs.
pub fn endpoints(state: &Arc<State>) -> Endpoints {
    let endpoints = Endpoints::new(state)
        .get(Needs::Nothing, "/", || async { INDEX })
        .get(Needs::Nothing, "/healthz", healthz)
        .get(Needs::Nothing, "/metrics", own_metrics)
        .get(Needs::Nothing, "/metrics/all", all_metrics);
    audit::endpoints(control::endpoints(endpoints))
}

fn router(state: &Arc<State>) -> Router {
    endpoints(state)
        .router(|| async { (StatusCode::NOT_FOUND, INDEX) })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(Extension(Arc::<Pages>::default()))
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

async fn own_metrics(Shared(state): Shared<Arc<State>>, Extension(pages): Extension<Arc<Pages>>) -> Response {
    shared(&pages.own, off_thread(move || render(&state))).await
}

/// The proxy's metrics and the app's.
async fn all_metrics(Shared(state): Shared<Arc<State>>, Extension(pages): Extension<Arc<Pages>>) -> Response {
    let make = async {
        let of_app = ask_app(&state).await;
        off_thread(move || merge(&state, of_app)).await
    };
    shared(&pages.merged, make).await
}

/// The two metrics pages as they were made last, and when that began.
#[derive(Debug, Default)]
struct Pages {
    own: LastPage,
    merged: LastPage,
}

type LastPage = tokio::sync::Mutex<Option<(Instant, Bytes)>>;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
enum NoPage {
    #[error(transparent)]
    Rendering(#[from] prometheus::Error),
    #[error(transparent)]
    Thread(#[from] tokio::task::JoinError),
}

/// Makes a page once for all requests that wait for one; a page is never older than the request for it.
async fn shared(last: &LastPage, make: impl Future<Output = Result<Bytes, NoPage>>) -> Response {
    let arrived = Instant::now();
    let mut last = last.lock().await;
    if let Some((_, page)) = last.as_ref().filter(|(begun, _)| *begun >= arrived) {
        return exposition(page.clone());
    }
    let begun = Instant::now();
    match make.await {
        Ok(page) => {
            *last = Some((begun, page.clone()));
            exposition(page)
        }
        Err(e) => {
            tracing::error!("the metrics cannot be rendered: {e}");
            (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be rendered; the log says why\n").into_response()
        }
    }
}

/// Renders beside the listener's thread, which accepts connections and answers other requests meanwhile.
async fn off_thread(
    make: impl FnOnce() -> Result<String, prometheus::Error> + Send + 'static,
) -> Result<Bytes, NoPage> {
    Ok(tokio::task::spawn_blocking(make).await??.into())
}

/// The app's page; none if the app does not give it: that is a fact to be shown, not an error of the scrape.
async fn ask_app(state: &State) -> Option<OfApp> {
    let rules = state.rules.load_full();
    let (upstream, path) = (&rules.upstreams.metrics, &rules.config.app.metrics_path);
    let fetched = tokio::time::timeout(SCRAPE_TIMEOUT, fetch(upstream, path)).await.unwrap_or(Err(ScrapeError::Late));
    fetched.inspect_err(|e| tracing::debug!("the app's metrics cannot be fetched: {e}")).ok()
}

fn merge(state: &State, of_app: Option<OfApp>) -> Result<String, prometheus::Error> {
    let up = u8::from(of_app.is_some());
    let of_app = of_app.unwrap_or_default();
    // Once to know which families are the proxy's, and again to show what was counted.
    state.metrics.app_metrics_dropped(&Merged::new(&render(state)?).add_app(&of_app.page, of_app.dialect));
    let own = format!(
        "{}# HELP outrigger_app_metrics_up Whether the app's metrics could be fetched.\n\
         # TYPE outrigger_app_metrics_up gauge\noutrigger_app_metrics_up {up}\n",
        render(state)?
    );
    let mut merged = Merged::new(&own);
    merged.add_app(&of_app.page, of_app.dialect);
    Ok(merged.page())
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

fn exposition(text: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], text.into()).into_response()
}

/// The app's page.
#[derive(Debug, Default)]
struct OfApp {
    page: Bytes,
    dialect: Dialect,
}

/// Why the app's metrics are not there.
#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("it responds with {0}")]
    Status(StatusCode),
    #[error("its response is {0:?}, and no metrics")]
    Content(HeaderValue),
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("it takes longer than {} s", SCRAPE_TIMEOUT.as_secs())]
    Late,
}

async fn fetch(upstream: &Upstream, path: &str) -> Result<OfApp, ScrapeError> {
    ask(upstream.connect().await?, path).await
}

async fn ask(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, path: &str) -> Result<OfApp, ScrapeError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let connection = tokio::spawn(connection);
    // Also where this is given up: an app whose page has no end would be read for ever.
    let _ends = AbortOnDrop(connection);
    let request = http::Request::get(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "text/plain;version=0.0.4;q=1,*/*;q=0.1")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    if answer.status() != StatusCode::OK {
        return Err(ScrapeError::Status(answer.status()));
    }
    if let Some(content) = no_metrics(answer.headers()) {
        return Err(ScrapeError::Content(content.clone()));
    }
    let kind = answer.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default().to_owned();
    let page = Limited::new(answer.into_body(), SCRAPE_BYTES).collect().await.map_err(ScrapeError::Body)?.to_bytes();
    let is_openmetrics =
        kind.starts_with(b"application/openmetrics-text") || page.trim_ascii_end().ends_with(b"\n# EOF");
    let dialect = if is_openmetrics { Dialect::OpenMetrics } else { Dialect::Text };
    Ok(OfApp { page, dialect })
}

/// The header that says that a response cannot be read as metrics: it is compressed although nobody asked for it, or a page for
/// people.
fn no_metrics(headers: &HeaderMap) -> Option<&HeaderValue> {
    let coding = headers.get(header::CONTENT_ENCODING).filter(|coding| coding.as_bytes() != b"identity");
    let starts_with = |value: &&HeaderValue, start: &str| {
        value.as_bytes().get(..start.len()).is_some_and(|bytes| bytes.eq_ignore_ascii_case(start.as_bytes()))
    };
    coding.or_else(|| headers.get(header::CONTENT_TYPE).filter(|kind| starts_with(kind, "text/html")))
}

struct AbortOnDrop(tokio::task::JoinHandle<Result<(), hyper::Error>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::metrics::Metrics;
    use crate::mechanism::access_log::AccessLog;
    use crate::mechanism::log::LogQueue;
    use outrigger_rules::config::Config;
    use outrigger_rules::sections::log::LogFormat;

    #[test]
    fn the_documentation_says_what_each_endpoint_needs() {
        let config = Config::parse(Path::new("test"), "", &|_| None).unwrap();
        let metrics = Metrics::new().unwrap();
        let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log_dropped.clone()).unwrap();
        let state = Arc::new(State::new(config, metrics, AccessLog::new(queue)));
        let docs = include_str!("../../../docs/operations.md");
        let documented: Vec<&str> = docs
            .lines()
            .filter(|line| ["| `GET ", "| `POST ", "| `DELETE "].iter().any(|start| line.starts_with(start)))
            .filter_map(|line| line.rsplit_once(" | ").map(|(cells, _)| cells))
            .collect();
        let endpoints = endpoints(&state);
        let mut listed: Vec<String> = endpoints
            .listed()
            .iter()
            .map(|(method, path, needs)| format!("| `{method} {path}` | {}", needs.name()))
            .collect();
        let mut documented: Vec<String> = documented.into_iter().map(str::to_owned).collect();
        listed.sort_unstable();
        documented.sort_unstable();
        assert_eq!(listed, documented);
    }
}
