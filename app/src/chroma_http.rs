//! HTTP client for ChromaDB: its address, one connection per pool member, and the meaning of its responses.

use std::time::Duration;

use reqwest::Url;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{ChromaSettings, ConfigError};
use crate::deadline::Deadline;
use crate::error::{ApiError, Dependency};
use crate::keeper::{Backend, ConnectionError};
use crate::postgres::describe;
use crate::tls::{self, Trust};

/// Maximum time to open the TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a call to ChromaDB failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChromaError {
    /// Nothing was sent.
    #[error(transparent)]
    NotAsked(ApiError),
    /// The request was sent and may still take effect.
    #[error("{0}")]
    NoAnswer(String),
    /// Like [`Self::NoAnswer`], because the caller's deadline passed.
    #[error("no response within {} ms", .0.as_millis())]
    Silence(Duration),
    /// ChromaDB rejected the request, and would reject it again.
    #[error("ChromaDB rejected it ({status}): {message}")]
    Refused { status: u16, message: String },
    /// The collection cannot hold vectors of the configured dimension.
    #[error("{0}")]
    Misfit(String),
    /// ChromaDB responded that it failed or is overloaded, or the response was not understood.
    #[error("ChromaDB failed ({status}): {message}")]
    Failed { status: u16, message: String },
}

impl ChromaError {
    /// Whether the call may still take effect after the app stopped waiting for it.
    pub fn is_doubtful(&self) -> bool {
        matches!(self, Self::NoAnswer(_) | Self::Silence(_) | Self::Failed { .. })
    }

    /// Whether ChromaDB responded that it is overloaded: it is not down.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Failed { status: 408 | 429, .. })
    }
}

impl From<ChromaError> for ApiError {
    fn from(error: ChromaError) -> Self {
        match error {
            ChromaError::NotAsked(error) => error,
            ChromaError::Refused { .. } => Self::Internal(error.to_string()),
            ChromaError::NoAnswer(reason) | ChromaError::Misfit(reason) => {
                Self::Unavailable { dependency: Dependency::Chroma, reason }
            }
            ChromaError::Failed { .. } | ChromaError::Silence(_) => {
                Self::Unavailable { dependency: Dependency::Chroma, reason: error.to_string() }
            }
        }
    }
}

/// The error without the address, since the text reaches clients.
pub fn describe_http(error: reqwest::Error) -> String {
    describe(&error.without_url())
}

/// Sends one request and parses the response.
///
/// # Errors
/// See [`ChromaError`].
pub async fn send<T: DeserializeOwned>(
    client: &reqwest::Client,
    deadline: Deadline,
    url: Url,
    body: &impl Serialize,
) -> Result<T, ChromaError> {
    let exchange = async {
        let answer = client.post(url).json(body).send().await?;
        let status = answer.status();
        Ok::<_, reqwest::Error>((status, answer.bytes().await?))
    };
    let started = std::time::Instant::now();
    let (status, bytes) = match deadline.run(exchange).await {
        Ok(Ok(answer)) => answer,
        // Without a connection nothing was sent, so nothing can take effect later.
        Ok(Err(error)) if error.is_connect() => {
            let reason = describe_http(error);
            return Err(ChromaError::NotAsked(ApiError::Unavailable { dependency: Dependency::Chroma, reason }));
        }
        Ok(Err(error)) => return Err(ChromaError::NoAnswer(describe_http(error))),
        Err(_) => return Err(ChromaError::Silence(started.elapsed())),
    };
    if status.is_success() {
        return serde_json::from_slice(&bytes)
            .map_err(|e| ChromaError::Failed { status: status.as_u16(), message: format!("invalid response: {e}") });
    }
    let message = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|body| body.get("message").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&bytes).chars().take(200).collect());
    let status = status.as_u16();
    // 408 and 429 may succeed later; every other 4xx is permanent.
    Err(match status {
        408 | 429 | 500.. => ChromaError::Failed { status, message },
        _ => ChromaError::Refused { status, message },
    })
}

/// The error for an unusable `CHROMA_URL`.
pub fn bad_url(problem: String) -> ConfigError {
    ConfigError::setting("CHROMA_URL", problem, "write http://HOST:PORT or https://HOST")
}

/// ChromaDB's address, and its side of the pool.
#[derive(Clone, Debug)]
pub struct ChromaBackend {
    base: Url,
    tenant: String,
    database: String,
    tls: rustls::ClientConfig,
}

impl ChromaBackend {
    /// Reads the address.
    ///
    /// # Errors
    /// It is not an HTTP URL, or there are no certificates to verify the server with.
    pub fn new(settings: &ChromaSettings) -> Result<Self, ConfigError> {
        let base: Url = settings.chroma_url.parse().map_err(|e| bad_url(format!("is not an address: {e}")))?;
        let trust = match base.scheme() {
            "http" => Trust::Nobody,
            "https" => Trust::System,
            other => return Err(bad_url(format!("speaks {other}, which ChromaDB does not"))),
        };
        if !base.has_host() || base.cannot_be_a_base() {
            return Err(bad_url("names no host".to_owned()));
        }
        let tls = tls::client_config(trust).map_err(|e| bad_url(e.to_string()))?;
        let (tenant, database) = (settings.chroma_tenant.clone(), settings.chroma_database.clone());
        Ok(Self { base, tenant, database, tls })
    }

    /// An HTTP client that keeps one idle connection.
    ///
    /// # Errors
    /// The HTTP library cannot be initialised.
    pub fn http_client(&self) -> reqwest::Result<reqwest::Client> {
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(self.tls.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(600))
            .tcp_keepalive(Duration::from_secs(15))
            .tcp_user_timeout(Duration::from_secs(10))
            .build()
    }

    /// The URL of an API path.
    pub fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v2"]).extend(path);
        }
        url
    }

    /// The URL of a path below the database's collections.
    pub fn collection_url(&self, path: &[&str]) -> Url {
        let place = ["tenants", &self.tenant, "databases", &self.database, "collections"];
        self.url(&[&place, path].concat())
    }
}

impl Backend for ChromaBackend {
    type Client = reqwest::Client;
    const DEPENDENCY: Dependency = Dependency::Chroma;

    /// Also sends a heartbeat, so that the client's connection is open and warm.
    async fn open(&self) -> Result<reqwest::Client, ConnectionError> {
        let client = self.http_client().map_err(|e| ConnectionError::Failed(describe_http(e)))?;
        self.check(&client).await?;
        Ok(client)
    }

    async fn check(&self, client: &reqwest::Client) -> Result<(), ConnectionError> {
        let failed = |e| ConnectionError::Failed(describe_http(e));
        let answer = client.get(self.url(&["heartbeat"])).send().await.map_err(failed)?;
        let status = answer.status();
        // The body must be read completely, or the connection cannot be reused.
        answer.bytes().await.map_err(failed)?;
        if status.is_success() {
            Ok(())
        } else {
            Err(ConnectionError::Failed(format!("its heartbeat has status {status}")))
        }
    }

    fn is_closed(&self, _client: &reqwest::Client) -> bool {
        // If the kept connection is gone, the HTTP client opens a new one by itself.
        false
    }

    fn interrupt(&self, _client: &reqwest::Client) {
        // Dropping an HTTP/1.1 call closes its connection.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = <crate::config::Settings as clap::Parser>::try_parse_from([
            "outrigger-app",
            "--chroma-url=http://127.0.0.1:8000/prefix/",
            "--chroma-tenant=a/b",
        ]);
        let backend = ChromaBackend::new(&settings.unwrap().chroma).unwrap();
        assert_eq!(
            backend.collection_url(&["x"]).as_str(),
            "http://127.0.0.1:8000/prefix/api/v2/tenants/a%2Fb/databases/default_database/collections/x"
        );
    }

    #[test]
    fn an_unusable_address_is_rejected() {
        for url in ["127.0.0.1:8000", "ftp://h", "http://", ""] {
            let arguments = ["outrigger-app", "--chroma-url", url];
            let settings = <crate::config::Settings as clap::Parser>::try_parse_from(arguments).unwrap();
            let error = ChromaBackend::new(&settings.chroma).unwrap_err().to_string();
            assert!(error.starts_with("CHROMA_URL: "), "{error}");
        }
    }
}
