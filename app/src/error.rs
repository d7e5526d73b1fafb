//! Maps every error to the client's response: status, code, title and advice.
//!
//! A handler returns an [`ApiError`]. It is carried in the response's extensions until the outermost layer
//! ([`crate::exchange`]), which knows the request id, writes the `application/problem+json` body (RFC 9457).

use std::fmt;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// The database that an error concerns. The names are those in the health report and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dependency {
    Postgres,
    Chroma,
}

impl Dependency {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Postgres, Self::Chroma];

    /// The label in metrics and the key in health reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql",
            Self::Chroma => "chromadb",
        }
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::Chroma => "ChromaDB",
        })
    }
}

/// Why a request failed or was rejected.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// The request cannot be parsed: invalid JSON, id or cursor.
    #[error("{0}")]
    BadRequest(String),
    /// The body is JSON, but not a valid document or search.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unauthorized(&'static str),
    #[error("{0}")]
    NotFound(String),
    #[error("this path takes other methods; see the Allow header")]
    MethodNotAllowed,
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("send the body as application/json")]
    UnsupportedMediaType,
    /// The body did not arrive before the deadline.
    #[error("the body did not arrive in time; send it faster, or allow more time in X-Request-Timeout-Ms")]
    BodyTimeout,
    /// Every connection is in use, and no connection became free in time.
    #[error("all connections to {0} are in use; retry after the time in Retry-After")]
    PoolExhausted(Dependency),
    /// A database does not respond.
    #[error("{dependency} is not available ({reason}); retry after the time in Retry-After")]
    Unavailable { dependency: Dependency, reason: String },
    /// A database's circuit breaker is open.
    #[error("{dependency} has failed, and its circuit breaker is open ({reason}); retry after the time in Retry-After")]
    BreakerOpen { dependency: Dependency, reason: String, retry_after: Duration },
    #[error("too many writes wait for ChromaDB; retry after the time in Retry-After")]
    OutboxFull,
    /// The audit log cannot be written, so the operation was not performed. The cause appears only in the log.
    #[error(
        "this operation has to be recorded in the audit log, which is not possible now; retry after the time in Retry-After"
    )]
    Unaudited(String),
    /// The request's deadline passed. Whether a write took effect is unknown.
    #[error("no response within the deadline; retry, or allow more time in X-Request-Timeout-Ms")]
    DeadlineExceeded,
    /// An internal error. The cause appears only in the log.
    #[error("the request failed inside the app; the log has the cause under this request_id")]
    Internal(String),
}

/// The fixed part of a problem.
struct Kind {
    status: StatusCode,
    /// Last part of the problem's `type`; stable once released.
    code: &'static str,
    title: &'static str,
    retry_after: Option<Duration>,
}

impl ApiError {
    /// Maps an error to status, code, title and `Retry-After`.
    fn kind(&self) -> Kind {
        let seconds = Duration::from_secs;
        let (status, code, title, retry_after) = match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad-request", "The request cannot be read", None),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The content is not acceptable", None),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "unauthorized", "Who are you?", None),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not-found", "There is nothing here", None),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Not with this method", None)
            }
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict", "It exists already", None),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The content is too large", None),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Not this kind of content", None)
            }
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "body-timeout", "The body came too slowly", None),
            Self::PoolExhausted(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "pool-exhausted", "All connections are busy", Some(seconds(1)))
            }
            Self::Unavailable { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "dependency-unavailable",
                "A database does not answer",
                Some(seconds(2)),
            ),
            Self::BreakerOpen { retry_after, .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "dependency-breaker-open",
                "A database is recovering",
                Some(*retry_after),
            ),
            Self::OutboxFull => {
                (StatusCode::SERVICE_UNAVAILABLE, "outbox-full", "Too many writes are waiting", Some(seconds(10)))
            }
            Self::Unaudited(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "audit-unavailable",
                "The audit trail cannot be written",
                Some(seconds(5)),
            ),
            Self::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "deadline-exceeded", "Out of time", None),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The app failed", None),
        };
        Kind { status, code, title, retry_after }
    }

    /// The complete response, including the body.
    pub fn answer(&self, request_id: &str) -> Response {
        let kind = self.kind();
        let problem = Problem {
            kind: format!("urn:outrigger:problem:{}", kind.code),
            title: kind.title,
            status: kind.status.as_u16(),
            detail: self.to_string(),
            request_id,
        };
        // Serialising a struct of strings and a number cannot fail.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (kind.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = kind.retry_after {
            // Rounded up, so that clients do not retry too early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    request_id: &'a str,
}

impl IntoResponse for ApiError {
    /// Status and error only; the body is written once the request id is known.
    fn into_response(self) -> Response {
        let mut response = self.kind().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<crate::deadline::Expired> for ApiError {
    fn from(_: crate::deadline::Expired) -> Self {
        Self::DeadlineExceeded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_503_has_retry_after() {
        let unavailable = ApiError::Unavailable { dependency: Dependency::Chroma, reason: "refused".into() };
        let (dependency, reason) = (Dependency::Chroma, "refused".to_owned());
        let open = ApiError::BreakerOpen { dependency, reason, retry_after: Duration::from_millis(1) };
        let unaudited = ApiError::Unaudited("why".to_owned());
        let full = ApiError::PoolExhausted(Dependency::Postgres);
        for error in [full, unavailable, open, ApiError::OutboxFull, unaudited] {
            let answer = error.answer("r1");
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(answer.headers().contains_key(header::RETRY_AFTER), "{error}");
        }
    }

    #[test]
    fn retry_after_is_never_too_early() {
        for (ms, told) in [(1, "1"), (1000, "1"), (1001, "2"), (59_001, "60")] {
            let (dependency, reason) = (Dependency::Postgres, "refused".to_owned());
            let open = ApiError::BreakerOpen { dependency, reason, retry_after: Duration::from_millis(ms) };
            assert_eq!(open.answer("r1").headers()[header::RETRY_AFTER], told, "{ms} ms");
        }
    }

    #[test]
    fn an_internal_cause_is_not_sent_to_the_client() {
        let error = ApiError::Internal("relation \"documents\" does not exist".into());
        assert!(!error.to_string().contains("relation"));
    }

    #[tokio::test]
    async fn a_problem_reads_as_rfc_9457_wants_it() {
        let answer = ApiError::NotFound("no document has this id".into()).answer("r1");
        let body = axum::body::to_bytes(answer.into_body(), 4096).await.unwrap();
        insta::assert_snapshot!(String::from_utf8(body.to_vec()).unwrap(), @r#"{"type":"urn:outrigger:problem:not-found","title":"There is nothing here","status":404,"detail":"no document has this id","request_id":"r1"}"#);
    }
}
