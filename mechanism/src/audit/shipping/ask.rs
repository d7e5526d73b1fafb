//! Requests of the audit log to the app.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, header};
use outrigger_rules::sections::audit::AuditRules;

use outrigger_transport::upstream::{ConnectError, Upstream};

/// The timeout of a batch.
const PATIENCE: Duration = Duration::from_secs(30);
/// The maximum size of the response, in bytes.
const ANSWER_BYTES: usize = 1 << 20;

/// Why the app has not accepted a batch.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The app is unreachable.
    #[error("the app cannot be reached: {0}")]
    Connect(#[from] ConnectError),
    /// The spool cannot be read.
    #[error("the spool cannot be read: {0}")]
    Spool(std::io::Error),
    /// The app does not speak HTTP, or has closed the connection.
    #[error("the app did not respond: {0}")]
    Http(#[from] hyper::Error),
    /// The request to be sent is invalid.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// The app has no such endpoint.
    #[error("the app does not accept the audit log (404): it needs OUTRIGGER_AUDIT_SECRET too")]
    NotThere,
    /// The secrets differ.
    #[error("the app has another OUTRIGGER_AUDIT_SECRET (401)")]
    Unknown,
    /// Another status.
    #[error("the app responded with {0}")]
    Status(StatusCode),
    /// Timeout.
    #[error("the app did not respond within {} s", PATIENCE.as_secs())]
    Late,
    /// The response cannot be read.
    #[error("the app's response cannot be read")]
    Unreadable,
    /// A deletion could not be logged.
    #[error("the audit log cannot be written")]
    Unwritable,
}

/// Sends a request to the app, with the secret.
///
/// # Errors
/// [`ShipError`]: it was not done, or the outcome is unknown.
pub async fn ask(
    audit: &AuditRules,
    app: &Upstream,
    path: &str,
    kind: &str,
    body: Vec<u8>,
) -> Result<Bytes, ShipError> {
    let Some(secret) = &audit.secret else { return Err(ShipError::Unknown) };
    let request = http::Request::post(path)
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "close")
        .header(header::CONTENT_TYPE, kind)
        .header(header::AUTHORIZATION, format!("Bearer {}", secret.expose()))
        .body(Bytes::from(body))?;
    let asked = async {
        let answer = outrigger_transport::ask::ask(app.connect().await?, request).await?;
        match answer.head.status {
            StatusCode::OK => answer.body(ANSWER_BYTES).await.map_err(|_| ShipError::Unreadable),
            StatusCode::NOT_FOUND => Err(ShipError::NotThere),
            StatusCode::UNAUTHORIZED => Err(ShipError::Unknown),
            status => Err(ShipError::Status(status)),
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(ShipError::Late))
}
