//! The outermost layer: assigns every request an id and a deadline, counts it in the metrics, and writes the body of
//! every problem.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, header};
use outrigger_metrics::{Declare, HistogramVec, IntCounter, IntCounterVec, IntGauge};
use uuid::Uuid;

use crate::App;
use crate::auth::Refusal;
use crate::deadline::Deadline;
use crate::error::ApiError;

const REQUEST_ID: &str = "x-request-id";

/// Metrics of requests.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    completed: IntCounterVec,
    duration: HistogramVec,
    in_flight: IntGauge,
    pub auth_refusals: IntCounterVec,
    pub panics: IntCounter,
}

impl RequestMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> outrigger_metrics::Result<Self> {
        let area = declare.area("Requests");
        Ok(Self {
            completed: area
                .when("Which operation fails?")
                .named("route", "a path's template, or `unmatched`")
                .of("method", ["GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS", "other"])
                .named("status", "the status, such as 200")
                .counters("app_http_requests_total", "Requests completed, by path template, method and status.")?,
            duration: area
                .when("Is it the app? Compare with `outrigger_request_duration_seconds`.")
                .named("route", "a path's template, or `unmatched`")
                .histograms("app_http_request_duration_seconds", "Time from request head to response head.")?,
            in_flight: area
                .when("It grows while the rate does not: requests take longer.")
                .gauge("app_http_requests_in_flight", "Requests in progress.")?,
            auth_refusals: area
                .when("Users report 401.")
                .of("reason", Refusal::labels())
                .counters("app_auth_refusals_total", "Requests rejected with 401.")?,
            panics: area
                .when("Any increase is a bug: the log has the place.")
                .counter("app_panics_total", "Handlers that panicked; their clients got 500.")?,
        })
    }
}

/// The request's id. Stored in its extensions.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// The layer around the whole router.
pub async fn layer(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let mut entry = Entry::new(&app, route, method(request.method()));
    let mut response = match Deadline::of_request(request.headers(), app.request_timeout) {
        Ok(deadline) => {
            request.extensions_mut().insert(deadline);
            request.extensions_mut().insert(RequestId(id.clone()));
            next.run(request).await
        }
        Err(bad) => ApiError::BadRequest(bad.to_string()).into_response(),
    };
    if let Some(problem) = response.extensions_mut().remove::<ApiError>() {
        response = answer_problem(&problem, &id, &entry, response.headers_mut());
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if app.is_draining() {
        // Makes the proxy send its next request over another connection.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    entry.status = response.status().as_u16();
    tracing::debug!(
        request_id = id,
        route = entry.route,
        method = entry.method,
        status = entry.status,
        duration_ms = entry.started.elapsed().as_secs_f64() * 1000.0,
        "{} {} {}",
        entry.method,
        entry.route,
        entry.status
    );
    response
}

/// Enforces the deadline around the documents API, for all handlers.
pub async fn bounded(request: Request, next: Next) -> Response {
    let Some(deadline) = request.extensions().get::<Deadline>().copied() else {
        return ApiError::Internal("a request without a deadline".to_owned()).into_response();
    };
    deadline.run(next.run(request)).await.unwrap_or_else(|expired| ApiError::from(expired).into_response())
}

/// Converts a handler's panic to a response.
pub fn panicked(app: &App, payload: &(dyn std::any::Any + Send)) -> Response {
    app.metrics.requests.panics.inc();
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
    ApiError::Internal(format!("a handler panicked: {text}")).into_response()
}

fn answer_problem(problem: &ApiError, id: &str, entry: &Entry, headers: &mut HeaderMap) -> Response {
    if let ApiError::Internal(cause) | ApiError::Unaudited(cause) = problem {
        tracing::error!(request_id = id, route = entry.route, cause, "{} failed: {cause}", entry.route);
    } else {
        tracing::debug!(request_id = id, route = entry.route, "{} rejected: {problem}", entry.route);
    }
    let mut answer = problem.answer(id);
    // Keeps the headers set by the rejecting layer: the challenge, or the allowed methods.
    for name in [header::WWW_AUTHENTICATE, header::ALLOW] {
        if let Some(value) = headers.remove(&name) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}

/// The client's id if it is safe to log, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    given.filter(usable).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

/// A metric label for the method; unknown methods become `other`, since a client can invent them.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Counts a request in the metrics. Does so on drop, so that a client that disconnects is counted too, as 499.
struct Entry {
    app: App,
    route: String,
    method: &'static str,
    status: u16,
    started: Instant,
}

impl Entry {
    fn new(app: &App, route: String, method: &'static str) -> Self {
        app.metrics.requests.in_flight.inc();
        Self { app: app.clone(), route, method, status: 499, started: Instant::now() }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let metrics = &self.app.metrics.requests;
        metrics.in_flight.dec();
        metrics.completed.with_label_values(&[&self.route, self.method, &self.status.to_string()]).inc();
        metrics.duration.with_label_values(&[&self.route]).observe(self.started.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_cannot_be_logged_is_replaced() {
        let id = |text: &[u8]| {
            let value = HeaderValue::from_bytes(text).unwrap();
            request_id(&HeaderMap::from_iter([(REQUEST_ID.parse().unwrap(), value)]))
        };
        assert_eq!(id(b"01JABC-iad"), "01JABC-iad");
        for bad in [&b""[..], b"a b", b"\xff", &[b'x'; 129]] {
            assert_eq!(id(bad).parse::<Uuid>().unwrap().get_version_num(), 7);
        }
    }
}
