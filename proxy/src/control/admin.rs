//! The admin listener, on a runtime of its own: neither scrapes nor requests ever wait for each other.
//!
//! ```text
//! access.rs        what each endpoint requires: nothing, a known Host header, or an operator
//! connections.rs   how many connections there may be, and for how long
//! app.rs           the app's process
//! control.rs       limits, circuit breakers, bans, Machines
//! pausing.rs       pause and maintenance
//! changes.rs       changes of the configuration: reload, apply, confirm
//! audit.rs         the audit log, for the commands
//! config.rs        the configuration in force
//! receipts.rs      receipts of requests: why one was rejected
//! status.rs        the summary of everything
//! sessions.rs      operators who have logged in to the page, which is in `control/page.rs`
//! pages.rs         the metrics pages, each made once for all requests that wait for it
//! ```

pub mod access;
pub mod app;
pub mod audit;
pub mod changes;
pub mod config;
pub mod connections;
pub mod control;
mod pages;
pub mod pausing;
pub mod receipts;
pub mod sessions;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use bytes::Bytes;
use outrigger_identity::clock;
use tokio::net::TcpListener;

use crate::control::admin::access::{Endpoints, Needs};
use crate::control::admin::pages::{NoPage, Page, off_thread};
use crate::control::admin::sessions::Sessions;
use crate::control::page;
use crate::control::page::live::Live;
use crate::control::status::gather::Board;
use crate::engine::pause;
use crate::engine::state::{Phase, State};
use crate::mechanism::exposition::{Dialect, Merged, openmetrics};
use crate::mechanism::limits::shared::Mode as Sharing;
use crate::run::Handle;
use crate::transport::ask::ask;
use crate::transport::upstream::{ConnectError, Upstream};

/// Timeout for the app's metrics; Prometheus allows ten seconds for both.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(3);
/// The largest response with the app's metrics, in bytes: Fly's scraper takes 16 MB in all.
const SCRAPE_BYTES: usize = 8 << 20;
/// The content type of Prometheus's text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The largest request body, in bytes: an event for the audit log, or a thousand subjects.
const BODY_BYTES: usize = 256 << 10;

const INDEX: &str = "outrigger\n\n/             this list; a page for browsers\n\
                     /metrics      of this proxy\n/metrics/all  of this proxy and its app, merged\n\
                     /healthz      200 while this process serves, 503 while it drains\n\
                     /status       a summary of everything below\n\
                     /config       the configuration in force, without secrets\n\
                     /app          the app's process; POST /app/restart restarts it while requests wait\n\
                     /pause        POST {\"for\": \"30s\"} lets requests wait, POST /resume ends it;\n\
                     \x20             POST /maintenance {\"on\": true} refuses them\n\
                     /config/reload  POST reads the file again; POST /config/apply {\"text\": \"…\", \"confirm\": \"120s\"} brings a\n\
                     \x20             text into force, POST /config/confirm keeps it\n\
                     /admission    permits, queue and latency of the app\n\
                     /breakers     state of each circuit breaker; POST /breakers/NAME {\"force\": \"open\"} (or \"closed\", \"automatic\")\n\
                     /limits       rate limits of each tier\n\
                     /machines     this Machine and its peers\n\
                     /bans         banned clients; POST {\"client\": \"address:192.0.2.1\", \"for\": \"10m\"} bans,\n\
                     \x20             DELETE /bans/CLIENT lifts\n\
                     /requests     receipts: why requests were rejected, retried or sent elsewhere; /requests/ID one of them\n";

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, state: Arc<State>, app: Option<Handle>) {
    let board = Arc::new(Board::new(&state, app.clone()));
    tokio::spawn(Arc::clone(&board).keep_sampling());
    let live = Arc::new(Live::default());
    tokio::spawn(Arc::clone(&live).keep_rendering(Arc::clone(&state), Arc::clone(&board)));
    let router = router(&state).layer(Extension(app)).layer(Extension(board)).layer(Extension(live));
    connections::serve(listener, router, state).await;
}

/// All endpoints, with the access that each requires.
pub fn endpoints(state: &Arc<State>, sessions: Arc<Sessions>) -> Endpoints {
    let endpoints = page::endpoints(Endpoints::new(state, sessions), INDEX)
        .get(Needs::Nothing, "/healthz", healthz)
        .get(Needs::Nothing, "/metrics", own_metrics)
        .get(Needs::Nothing, "/metrics/all", all_metrics);
    let endpoints = pausing::endpoints(control::endpoints(status::endpoints(config::endpoints(endpoints))));
    receipts::endpoints(audit::endpoints(app::endpoints(changes::endpoints(endpoints))))
}

fn router(state: &Arc<State>) -> Router {
    let sessions = Arc::new(Sessions::default());
    endpoints(state, Arc::clone(&sessions))
        .router(|| async { (StatusCode::NOT_FOUND, INDEX) })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(Extension(sessions))
        .layer(Extension(Arc::new(Pages::start(state))))
}

async fn healthz(Shared(state): Shared<Arc<State>>) -> (StatusCode, String) {
    let (status, phase) = match state.drain.phase() {
        Phase::Serving => (StatusCode::OK, "serving"),
        Phase::LameDuck | Phase::Closing => (StatusCode::SERVICE_UNAVAILABLE, "leaving"),
    };
    // A degraded process still serves: the body says so, and the status stays the same.
    let sharing = state.shared.standpoint();
    let detail = match (sharing.mode, sharing.reason) {
        (Sharing::Degraded, Some(reason)) => format!("shared limits: degraded: {reason}\n"),
        (Sharing::Degraded | Sharing::Shared, _) => format!("shared limits: {}\n", sharing.mode.name()),
        (Sharing::Off, _) => String::new(),
    };
    (status, format!("{phase}\n{detail}"))
}

/// The two metrics pages: the proxy's, and the proxy's and the app's merged.
#[derive(Debug)]
struct Pages {
    own: Formats,
    merged: Formats,
}

impl Pages {
    fn start(state: &Arc<State>) -> Self {
        let (own, merged) = (Arc::clone(state), Arc::clone(state));
        let own = Page::start(move || {
            let state = Arc::clone(&own);
            off_thread(move || render(&state))
        });
        let merged = Page::start(move || {
            let state = Arc::clone(&merged);
            async move {
                let of_app = ask_app(&state).await;
                off_thread(move || merge(&state, of_app)).await
            }
        });
        Self { own: Formats::of(own, state), merged: Formats::of(merged, state) }
    }
}

/// Recorded requests, as examples of durations.
fn exemplars(state: &State) -> openmetrics::Exemplars {
    let mut exemplars = openmetrics::Exemplars::new();
    for route in &state.rules.load().route_metrics {
        route.each_exemplar(|sample, exemplar| drop(exemplars.insert(sample, exemplar)));
    }
    exemplars
}

/// A page in both formats.
#[derive(Debug)]
struct Formats {
    text: Arc<Page>,
    openmetrics: Arc<Page>,
}

impl Formats {
    fn of(text: Arc<Page>, state: &Arc<State>) -> Self {
        let (source, state) = (Arc::clone(&text), Arc::clone(state));
        let openmetrics = Page::start(move || {
            let (source, state) = (Arc::clone(&source), Arc::clone(&state));
            async move {
                let page = source.get().await.ok_or(NoPage::Source)?;
                off_thread(move || Ok(openmetrics::translate(&String::from_utf8_lossy(&page), &exemplars(&state))))
                    .await
            }
        });
        Self { text, openmetrics }
    }

    /// The response in the format that the request asks for.
    async fn respond(&self, headers: &HeaderMap) -> Response {
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let (page, content_type) = match openmetrics::is_wanted(accept) {
            true => (&self.openmetrics, openmetrics::CONTENT_TYPE),
            false => (&self.text, TEXT_FORMAT),
        };
        exposition(page.get().await, content_type)
    }
}

async fn own_metrics(Extension(pages): Extension<Arc<Pages>>, headers: HeaderMap) -> Response {
    pages.own.respond(&headers).await
}

async fn all_metrics(Extension(pages): Extension<Arc<Pages>>, headers: HeaderMap) -> Response {
    pages.merged.respond(&headers).await
}

/// Fetches the app's page. `None` if the app does not provide it: a metric reports that, and the scrape succeeds.
async fn ask_app(state: &State) -> Option<OfApp> {
    let rules = state.rules.load_full();
    let (upstream, path) = (&rules.upstreams.metrics, &rules.config.app.metrics_path);
    let fetched = tokio::time::timeout(SCRAPE_TIMEOUT, fetch(upstream, path)).await.unwrap_or(Err(ScrapeError::Late));
    fetched.inspect_err(|e| tracing::debug!("the app's metrics cannot be fetched: {e}")).ok()
}

fn merge(state: &State, of_app: Option<OfApp>) -> Result<String, outrigger_metrics::Error> {
    let up = u8::from(of_app.is_some());
    let of_app = of_app.unwrap_or_default();
    // The first pass finds the proxy's own families and counts what is dropped; the second renders that count, too.
    state.metrics.exposition.dropped(&Merged::new(&render(state)?).add_app(&of_app.page, of_app.dialect));
    let own = format!(
        "{}# HELP outrigger_app_metrics_up Whether the app's metrics could be fetched.\n\
         # TYPE outrigger_app_metrics_up gauge\noutrigger_app_metrics_up {up}\n",
        render(state)?
    );
    let mut merged = Merged::new(&own);
    merged.add_app(&of_app.page, of_app.dialect);
    Ok(merged.page())
}

fn render(state: &State) -> Result<String, outrigger_metrics::Error> {
    state.metrics.requests.in_flight.set(i64::try_from(state.in_flight()).unwrap_or(i64::MAX));
    state.metrics.connections.open.set(i64::try_from(state.connections()).unwrap_or(i64::MAX));
    state.metrics.body_memory.bytes.set(i64::try_from(state.body_memory.held()).unwrap_or(i64::MAX));
    let now = state.nanoseconds(clock::now());
    state.metrics.claims.unbelieved.set(state.claims.most(now).into());
    let tokens = state.rules.load().config.credentials.cached_tokens();
    state.metrics.identity.tokens.set(i64::try_from(tokens).unwrap_or(i64::MAX));
    state.metrics.gate.show(&state.gate.standing());
    state.metrics.limits.show(state.limits.size(now));
    state.metrics.bans.banned.set(i64::try_from(state.bans.held(now)).unwrap_or(i64::MAX));
    for cell in state.breakers.all() {
        if let Some(standing) = cell.standing(now) {
            state.metrics.breakers.show(&cell.name, standing.position);
        }
    }
    state.metrics.pause.show(state.reach.is_paused(), pause::is_maintenance(state));
    let budget = state.budgets().retries.left(state.rules.load().config.retry.budget);
    state.metrics.attempts.retry_budget.set(budget);
    state.metrics.saved.show(&state.snapshots.standing());
    if let Some(trail) = &state.trail {
        trail.show();
    }
    state.metrics.render()
}

fn exposition(page: Option<Bytes>, content_type: &'static str) -> Response {
    match page {
        Some(page) => {
            ([(header::CONTENT_TYPE, content_type), (header::VARY, header::ACCEPT.as_str())], page).into_response()
        }
        None => {
            (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be rendered; the log says why\n").into_response()
        }
    }
}

/// The app's metrics page.
#[derive(Debug, Default)]
struct OfApp {
    page: Bytes,
    dialect: Dialect,
}

/// Why the app's metrics are unavailable.
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
    #[error("its response has the type {0:?} and no metrics")]
    Content(HeaderValue),
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("it did not respond within {} s", SCRAPE_TIMEOUT.as_secs())]
    Late,
}

async fn fetch(upstream: &Upstream, path: &str) -> Result<OfApp, ScrapeError> {
    let request = http::Request::get(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "text/plain;version=0.0.4;q=1,*/*;q=0.1")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::CONNECTION, "close")
        .body(Bytes::new())?;
    let answer = ask(upstream.connect().await?, request).await?;
    if answer.head.status != StatusCode::OK {
        return Err(ScrapeError::Status(answer.head.status));
    }
    let headers = &answer.head.headers;
    if let Some(content) = no_metrics(headers) {
        return Err(ScrapeError::Content(content.clone()));
    }
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default().to_owned();
    let page = answer.body(SCRAPE_BYTES).await.map_err(ScrapeError::Body)?;
    let is_openmetrics =
        kind.starts_with(b"application/openmetrics-text") || page.trim_ascii_end().ends_with(b"\n# EOF");
    let dialect = if is_openmetrics { Dialect::OpenMetrics } else { Dialect::Text };
    Ok(OfApp { page, dialect })
}

/// The header which shows that a response has no metrics: it is compressed, although identity was requested, or it is HTML.
fn no_metrics(headers: &HeaderMap) -> Option<&HeaderValue> {
    let coding = headers.get(header::CONTENT_ENCODING).filter(|coding| coding.as_bytes() != b"identity");
    let starts_with = |value: &&HeaderValue, start: &str| {
        value.as_bytes().get(..start.len()).is_some_and(|bytes| bytes.eq_ignore_ascii_case(start.as_bytes()))
    };
    coding.or_else(|| headers.get(header::CONTENT_TYPE).filter(|kind| starts_with(kind, "text/html")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::metrics::Metrics;
    use crate::mechanism::log::{AccessLog, LogQueue};
    use outrigger_rules::config::Config;
    use outrigger_rules::sections::log::LogFormat;

    #[test]
    fn the_documentation_says_what_each_endpoint_needs() {
        let config = Config::parse(Path::new("test"), "", &|_| None).unwrap();
        let metrics = Metrics::new().unwrap();
        let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log.dropped.clone()).unwrap();
        let state = Arc::new(State::new(config, metrics, AccessLog::new(queue)));
        let docs = include_str!("../../../docs/operations.md");
        let documented: Vec<&str> = docs
            .lines()
            .filter(|line| ["| `GET ", "| `POST ", "| `DELETE "].iter().any(|start| line.starts_with(start)))
            .filter_map(|line| line.rsplit_once(" | ").map(|(cells, _)| cells))
            .collect();
        let endpoints = endpoints(&state, Arc::default());
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
