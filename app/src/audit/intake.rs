//! `/internal/audit/…`: stores the batches that proxies ship, removes entries past their retention, and notes which
//! audit entries record a removal.
//!
//! These paths require the proxy's own secret, not a client's credentials. Without a configured secret they do not
//! exist.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use outrigger_policy::audit::Class;
use outrigger_trail::store::batch::{Batch, MOST_BYTES};
use outrigger_trail::store::drops::{self, Offered, Recorded};
use outrigger_trail::store::ingest::{self, Ingested};
use outrigger_trail::store::retention::{self, Done, Resume, Retention, Steps};
use outrigger_trail::store::{StoreError, partitions};
use ring::digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::App;
use crate::body;
use crate::deadline::{Deadline, Expired};
use crate::error::ApiError;
use crate::postgres::{Lent, Postgres};

/// Maximum time for a removal. Steps not begun by then are left to the next one.
const LONGEST_RETENTION: Duration = Duration::from_secs(3600);
/// Minimum retention, in seconds: a typo must not empty the audit log.
const SHORTEST_RETENTION_S: u64 = 24 * 3600;
/// Headers of a request that came through the proxy. The proxy's own requests have none of them.
const FROM_OUTSIDE: [&str; 4] = ["x-forwarded-for", "forwarded", "x-request-id", "fly-request-id"];
/// Maximum number of removals noted per request.
const MOST_RECORDED: usize = 1000;

/// Authentication layer around these paths.
pub async fn require(State(app): State<App>, request: Request, next: Next) -> Response {
    if is_from_outside(request.headers()) {
        // Even with the right secret: clients must not see that these paths exist.
        return crate::no_such_path().into_response();
    }
    let Some(secret) = &app.audit.secret else {
        return ApiError::NotFound("no such path; OUTRIGGER_AUDIT_SECRET is not set".to_owned()).into_response();
    };
    if is_secret(request.headers(), secret.expose()) {
        return next.run(request).await;
    }
    app.metrics.requests.auth_refusals.with_label_values(&["audit_secret"]).inc();
    let refusal = "send OUTRIGGER_AUDIT_SECRET as Authorization: Bearer SECRET, with the value that the app has";
    let mut response = ApiError::Unauthorized(refusal).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"audit\""));
    response
}

fn is_from_outside(headers: &HeaderMap) -> bool {
    FROM_OUTSIDE.iter().any(|name| headers.contains_key(*name))
}

fn is_secret(headers: &HeaderMap, secret: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
    // Compares digests, which have equal lengths, so the timing reveals nothing, not even the secret's length.
    let [given, secret] = [given, secret.as_bytes()].map(|text| digest::digest(&digest::SHA256, text));
    given.as_ref().ct_eq(secret.as_ref()).into()
}

/// `POST /internal/audit/batches`: responds 200 once the whole batch is durable.
pub async fn batches(
    State(app): State<App>,
    Extension(deadline): Extension<Deadline>,
    request: Request,
) -> Result<Json<Ingested>, ApiError> {
    let stored = store(&app, deadline, request).await;
    let result = match &stored {
        Ok(_) => "ok",
        Err(ApiError::BadRequest(_) | ApiError::TooLarge(_) | ApiError::BodyTimeout) => "bad",
        Err(_) => "failed",
    };
    app.metrics.audit.batches.with_label_values(&[result]).inc();
    if let Ok(Json(done)) = &stored {
        for (result, rows) in [("stored", done.stored), ("known", done.known), ("refused", done.refused)] {
            app.metrics.audit.rows.with_label_values(&[result]).inc_by(rows);
        }
        if done.refused > 0 {
            tracing::warn!(
                lines = done.refused,
                "{} lines of the audit log could not be stored as entries; they are in the table audit_refused",
                done.refused
            );
        }
    }
    stored
}

async fn store(app: &App, deadline: Deadline, request: Request) -> Result<Json<Ingested>, ApiError> {
    // Acquired before reading the body, which also bounds the number of batches in memory.
    let _turn = deadline.run(app.audit.batches.acquire()).await?;
    let body = body::read(request, MOST_BYTES, "batch").await?;
    let batch = Batch::parse(&body).map_err(|bad| ApiError::BadRequest(bad.to_string()))?;
    let started = Instant::now();
    let mut lent = app.postgres.lend("audit::ingest", deadline).await?;
    let answer = deadline.run(ingest::ingest(lent.client(), &batch)).await;
    let done = settle(lent, answer)?;
    app.metrics.audit.ingest.observe(started.elapsed().as_secs_f64());
    Ok(Json(done))
}

/// Retention per class, and the caller's clock.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionRequest {
    /// Seconds, by class; classes not listed are left alone.
    retention: BTreeMap<String, u64>,
    now: Timestamp,
    /// The `more` of the previous response.
    #[serde(default)]
    resume: Option<Resume>,
}

/// Removals that the audit log does not record yet.
#[derive(Debug, Serialize)]
pub struct Removed {
    drops: Vec<Offered>,
    /// To be sent as `resume` when there is more to remove.
    more: Option<Resume>,
}

/// `POST /internal/audit/retention`: removes entries past their retention, for some seconds, and reports whether
/// there is more to remove. A removal that takes longer than the request continues in the background; the next
/// response reports it.
pub async fn retain(
    State(app): State<App>,
    Extension(deadline): Extension<Deadline>,
    request: Request,
) -> Result<Json<Removed>, ApiError> {
    let asked: RetentionRequest = json(request).await?;
    let mut retention = Retention::new();
    for (name, seconds) in asked.retention {
        let class = Class::named(&name).ok_or_else(|| ApiError::BadRequest(format!("{name:?} is not a class")))?;
        if seconds < SHORTEST_RETENTION_S {
            let hint = "keep it for a day (86400) at least, or leave it out to keep all";
            return Err(ApiError::BadRequest(format!("{name} would be kept for {seconds} seconds; {hint}")));
        }
        retention.insert(class, seconds);
    }
    let turn = Arc::clone(&app.audit.retention).try_lock_owned();
    let turn = turn.map_err(|_| ApiError::Busy("an earlier removal is still running".to_owned()))?;
    let removing = app.clone();
    let task = tokio::spawn(async move {
        let _turn = turn;
        let outcome = remove(&removing.postgres, &retention, asked.now, asked.resume).await;
        match &outcome {
            Ok(done) => {
                for of in &done.dropped {
                    let (count, class, chain, kept) = (of.count, &of.class, &of.chain, of.kept);
                    tracing::info!(
                        count,
                        class,
                        chain,
                        kept,
                        "removed {count} expired entries of {class}, chain {chain}"
                    );
                }
            }
            Err(error) => tracing::warn!(error = %error, "expired entries stay for now: {error}"),
        }
        outcome
    });
    let done = deadline.run(task).await?;
    let done = done.map_err(|panicked| ApiError::Internal(format!("a removal panicked: {panicked}")))??;
    let mut lent = app.postgres.lend("audit::offer", deadline).await?;
    let answer = deadline.run(drops::offer(lent.client())).await;
    let drops = settle(lent, answer)?;
    app.audit.wanting.notify_one();
    Ok(Json(Removed { drops, more: done.resume }))
}

/// Uses a dedicated connection: a removal may take long, and requests need those of the pool.
async fn remove(
    postgres: &Postgres,
    retention: &Retention,
    now: Timestamp,
    resume: Option<Resume>,
) -> Result<Done, ApiError> {
    let mut client = postgres.for_long_work().await?;
    let work = async {
        client.batch_execute("SET statement_timeout = 0").await?;
        retention::retain(&mut client, retention, now, resume, &Steps::default()).await
    };
    let outcome = tokio::time::timeout(LONGEST_RETENTION, work).await;
    outcome.map_err(|_| ApiError::DeadlineExceeded)?.map_err(|error| meaning("audit::retain", error))
}

/// The audit entries that record removals.
#[derive(Debug, Deserialize)]
struct Noting {
    recorded: Vec<Recorded>,
}

/// How many of them were not noted before.
#[derive(Debug, Serialize)]
pub struct Noted {
    noted: u64,
}

/// `POST /internal/audit/drops`: notes which audit entries record a removal.
pub async fn note(
    State(app): State<App>,
    Extension(deadline): Extension<Deadline>,
    request: Request,
) -> Result<Json<Noted>, ApiError> {
    let noting: Noting = json(request).await?;
    if noting.recorded.len() > MOST_RECORDED {
        return Err(ApiError::BadRequest(format!("send at most {MOST_RECORDED} at once")));
    }
    let mut lent = app.postgres.lend("audit::note", deadline).await?;
    let answer = deadline.run(drops::note(lent.client(), &noting.recorded)).await;
    Ok(Json(Noted { noted: settle(lent, answer)? }))
}

async fn json<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let bytes = body::read(request, MOST_BYTES, "body").await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::BadRequest(format!("the body cannot be read: {error}")))
}

/// Returns the connection to the pool and reports the result of the store.
fn settle<T>(lent: Lent<'_>, answer: Result<Result<T, StoreError>, Expired>) -> Result<T, ApiError> {
    let what = lent.what();
    let answer = match answer {
        Ok(Err(StoreError::Database(error))) if !is_about_others(&error) => Ok(Err(error)),
        // The connection is still usable: a failed transaction was rolled back.
        Ok(outcome) => Ok(Ok(outcome)),
        Err(expired) => Err(expired),
    };
    lent.settle(answer)?.map_err(|error| meaning(what, error))
}

/// Whether the error is a deadlock or a lock held by another session: the database itself is healthy.
fn is_about_others(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| matches!(code.code().get(..2), Some("40" | "55")))
}

fn meaning(what: &'static str, error: StoreError) -> ApiError {
    match error {
        StoreError::Database(error) if is_about_others(&error) => {
            ApiError::Busy("the audit log is in use by another operation".to_owned())
        }
        StoreError::Database(error) => crate::postgres::judge(what, &error),
        StoreError::Busy(_) => ApiError::Busy(error.to_string()),
        StoreError::Held(_) | StoreError::Invalid(_) => ApiError::BadRequest(error.to_string()),
    }
}

/// Counts the partitions and sets their gauge.
///
/// # Errors
/// As [`Postgres::query`].
pub async fn count_partitions(app: &App, deadline: Deadline) -> Result<(), ApiError> {
    let mut lent = app.postgres.lend("audit::count", deadline).await?;
    let answer = deadline.run(partitions::count(lent.client())).await;
    app.metrics.audit.partitions.set(settle(lent, answer)?);
    Ok(())
}

/// Creates the partitions that the app's own entries will need.
///
/// # Errors
/// As [`Postgres::query`].
pub async fn make_ahead(app: &App, deadline: Deadline) -> Result<(), ApiError> {
    let mut lent = app.postgres.lend("audit::make_ahead", deadline).await?;
    let answer = deadline.run(partitions::make_ahead(lent.client(), &super::OWN_CLASSES, Timestamp::now())).await;
    settle(lent, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_secret_is_the_secret() {
        let secret = "0123456789abcdef0123456789abcdef";
        let with =
            |value: &str| is_secret(&HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]), secret);
        assert!(with(&format!("Bearer {secret}")));
        for bad in
            [secret, "Bearer ", "Bearer 0123456789abcdef", &format!("Bearer {secret}0"), &format!("Basic {secret}")]
        {
            assert!(!with(bad), "{bad:?} was taken");
        }
        assert!(!is_secret(&HeaderMap::new(), secret));
    }

    #[test]
    fn requests_through_the_proxy_are_recognised_by_its_headers() {
        let with = |name: &'static str| {
            is_from_outside(&HeaderMap::from_iter([(name.parse().unwrap(), "x".parse().unwrap())]))
        };
        for name in ["X-Forwarded-For", "Forwarded", "X-Request-Id", "Fly-Request-Id"] {
            assert!(with(name), "{name}");
        }
        assert!(!with("Authorization") && !with("Content-Type") && !is_from_outside(&HeaderMap::new()));
    }
}
