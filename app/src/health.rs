//! Health endpoints: liveness, readiness and details.
//!
//! | path | 200 when | checks |
//! |---|---|---|
//! | `/health` | the app is up | both databases, for `status` only |
//! | `/health/detailed` | both databases are up, 503 otherwise | both databases |
//! | `/health/ready` | it may get traffic: not draining, and at least one database is up | both databases |
//! | `/health/live` | the event loop runs | nothing |
//!
//! Requests within one second share a check, which takes at most 800 ms, so a response is never older than two
//! seconds and health requests never become load. Checks use their own connections: a database whose pool is
//! exhausted is busy, not down.
//!
//! While a circuit breaker is open, checks continue without requests ([`Health::see_to_breakers`]), so a database
//! that recovers is noticed within seconds, however long the breaker would stay open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use jiff::{Timestamp, Unit};
use outrigger_metrics::{Declare, IntGaugeVec};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::App;
use crate::chroma::Chroma;
use crate::error::Dependency;
use crate::postgres::{Postgres, Schema};

/// How long a check is valid, counted from its start.
const FRESH: Duration = Duration::from_secs(1);
/// Like [`FRESH`], while a circuit breaker is open: limits checks to less than one connection attempt per second to a
/// database that is down, since requests that probe it come on top.
const FRESH_WHILE_OPEN: Duration = Duration::from_millis(1100);
/// How often a database behind an open circuit breaker is checked without requests.
const PACE: Duration = Duration::from_secs(2);
/// Maximum time for a check.
const CHECK: Duration = Duration::from_millis(800);

/// Metrics of checks.
#[derive(Clone, Debug)]
pub struct HealthMetrics {
    up: IntGaugeVec,
}

impl HealthMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> outrigger_metrics::Result<Self> {
        let area = declare.area("Databases");
        Ok(Self {
            up: area
                .when("Is it the app or a database?")
                .of("dependency", Dependency::ALL.map(Dependency::name))
                .gauges("app_dependency_up", "1 when the last check succeeded.")?,
        })
    }
}

/// Caches the last check of both databases.
#[derive(Debug)]
pub struct Health {
    postgres: Arc<Postgres>,
    chroma: Arc<Chroma>,
    metrics: HealthMetrics,
    last: Mutex<Option<Report>>,
}

/// The result of a check: per database, an error if it is unusable.
#[derive(Clone, Debug)]
pub struct Report {
    at: Instant,
    postgres: Result<(), String>,
    chroma: Result<(), String>,
}

impl Report {
    /// The overall status.
    fn status(&self) -> &'static str {
        match (&self.postgres, &self.chroma) {
            (Ok(()), Ok(())) => "healthy",
            (Err(_), Err(_)) => "unhealthy",
            _ => "degraded",
        }
    }

    /// Some route can still serve requests.
    fn is_usable(&self) -> bool {
        self.postgres.is_ok() || self.chroma.is_ok()
    }
}

impl Health {
    /// Does not check anything until the first request.
    pub fn new(postgres: Arc<Postgres>, chroma: Arc<Chroma>, metrics: HealthMetrics) -> Self {
        Self { postgres, chroma, metrics, last: Mutex::new(None) }
    }

    /// The last report if it is recent enough, else a new one. Concurrent callers get the same report.
    pub async fn report(&self) -> Report {
        let mut last = self.last.lock().await;
        let fresh = if self.is_in_doubt() { FRESH_WHILE_OPEN } else { FRESH };
        if let Some(report) = last.as_ref().filter(|report| report.at.elapsed() < fresh) {
            return report.clone();
        }
        let at = Instant::now();
        let (postgres, chroma) = tokio::join!(self.postgres.probe(CHECK), self.chroma.probe(CHECK));
        // PostgreSQL responds, but is unusable until the tables exist.
        let postgres = postgres.and_then(|()| match self.postgres.schema() {
            Schema::Ready => Ok(()),
            Schema::Pending(why) => Err(why),
        });
        for (dependency, outcome) in [(Dependency::Postgres, &postgres), (Dependency::Chroma, &chroma)] {
            self.metrics.up.with_label_values(&[dependency.name()]).set(outcome.is_ok().into());
        }
        let report = Report { at, postgres, chroma };
        *last = Some(report.clone());
        report
    }

    /// Checks databases behind open circuit breakers, and closes the breakers with a probe or two. Runs until the
    /// process ends.
    pub async fn see_to_breakers(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PACE).await;
            if !self.is_in_doubt() {
                continue;
            }
            let report = self.report().await;
            if report.postgres.is_ok() {
                self.postgres.pool().try_out().await;
            }
            if report.chroma.is_ok() {
                self.chroma.pool().try_out().await;
            }
        }
    }

    fn is_in_doubt(&self) -> bool {
        self.postgres.pool().breaker().is_in_doubt() || self.chroma.pool().breaker().is_in_doubt()
    }
}

/// `GET /health`.
pub async fn summary(State(app): State<App>) -> Response {
    let report = app.health.report().await;
    // The app itself is up, so the status is never worse than `degraded`.
    let status = if report.status() == "healthy" { "healthy" } else { "degraded" };
    envelope(StatusCode::OK, basics(&app, status))
}

/// `GET /health/detailed`.
pub async fn detailed(State(app): State<App>) -> Response {
    let report = app.health.report().await;
    let mut data = basics(&app, report.status());
    data["services"] = json!({
        "postgresql": service(&report.postgres, json!(app.postgres.pool().numbers())),
        "chromadb": service(&report.chroma, json!(app.chroma.pool().numbers())),
    });
    data["circuitBreakers"] = json!({
        "database": app.postgres.pool().breaker().report(),
        "chromadb": app.chroma.pool().breaker().report(),
    });
    data["flags"] = app.flags.iter().map(|(name, switch)| (name.clone(), json!(switch))).collect();
    data["outbox"] = json!(app.outbox.backlog());
    data["draining"] = json!(app.is_draining());
    let status = if report.status() == "healthy" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    envelope(status, data)
}

/// `GET /health/ready`.
pub async fn ready(State(app): State<App>) -> Response {
    if app.is_draining() {
        return envelope(StatusCode::SERVICE_UNAVAILABLE, basics(&app, "draining"));
    }
    let report = app.health.report().await;
    let status = if report.is_usable() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    envelope(status, basics(&app, report.status()))
}

/// `GET /health/live`. Responding at all is the check.
pub async fn live(State(app): State<App>) -> Response {
    envelope(StatusCode::OK, basics(&app, "alive"))
}

fn basics(app: &App, status: &str) -> Value {
    let now = Timestamp::now().round(Unit::Millisecond).unwrap_or(Timestamp::UNIX_EPOCH);
    json!({
        "status": status,
        "timestamp": now.to_string(),
        "uptime": (app.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

fn service(outcome: &Result<(), String>, metrics: Value) -> Value {
    let mut service = match outcome {
        Ok(()) => json!({ "status": "healthy" }),
        Err(error) => json!({ "status": "unhealthy", "error": error }),
    };
    service["metrics"] = metrics;
    service
}

fn envelope(status: StatusCode, data: Value) -> Response {
    let mut body = json!({ "ok": status.is_success() });
    body["data"] = data;
    (status, [(header::CACHE_CONTROL, "no-store")], axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(postgres: Result<(), String>, chroma: Result<(), String>) -> Report {
        Report { at: Instant::now(), postgres, chroma }
    }

    #[test]
    fn the_app_is_ready_with_one_database() {
        let down = || Err("refused".to_owned());
        assert_eq!(report(Ok(()), Ok(())).status(), "healthy");
        for one_down in [report(down(), Ok(())), report(Ok(()), down())] {
            assert_eq!(one_down.status(), "degraded");
            assert!(one_down.is_usable());
        }
        let both_down = report(down(), down());
        assert_eq!(both_down.status(), "unhealthy");
        assert!(!both_down.is_usable());
    }
}
