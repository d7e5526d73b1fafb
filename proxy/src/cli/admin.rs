//! Requests of commands to the admin listener of a running proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode};
use outrigger_rules::environment::ADMIN_TOKEN;
use outrigger_rules::error::ConfigError;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::transport;

/// The longest response that is read, in bytes.
const ANSWER_BYTES: usize = 8 << 20;

/// Where the admin listener is.
#[derive(Clone, Debug, Default, Args)]
pub struct At {
    /// The proxy's admin listener. Default: admin.listen of the configuration.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
}

impl At {
    /// The address: the one named, else that of the configuration.
    pub fn address(&self, config: Option<&Path>) -> Result<SocketAddr, ConfigError> {
        match self.admin {
            Some(address) => Ok(here(address)),
            None => super::load_alone(config).map(|config| here(config.admin.listen)),
        }
    }
}

/// Why a request was not answered, or was refused.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The port is closed.
    #[error("no proxy at {0}: {1}; name its admin listener with --admin")]
    Connect(SocketAddr, std::io::Error),
    /// It does not speak HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be made.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// The response is incomplete or too long.
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The proxy refuses it.
    #[error("{0}: {1}")]
    Refused(StatusCode, String),
    /// It takes too long.
    #[error("no response within {} s", .0.as_secs())]
    Late(Duration),
    /// This process cannot ask.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// The address at which a listener of this machine is reached.
fn here(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// [`ask`] for a command that has no runtime.
pub fn request(
    address: SocketAddr,
    method: &Method,
    path: &str,
    body: Option<&Value>,
    timeout: Duration,
) -> Result<Value, AdminError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask(address, method, path, body, timeout))
}

/// Asks the admin listener at `address`, with the token of the environment if there is one; returns the JSON of the response.
pub async fn ask(
    address: SocketAddr,
    method: &Method,
    path: &str,
    body: Option<&Value>,
    timeout: Duration,
) -> Result<Value, AdminError> {
    let answered = tokio::time::timeout(timeout, exchange(address, method, path, body)).await;
    answered.map_err(|_| AdminError::Late(timeout))?
}

async fn exchange(address: SocketAddr, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, AdminError> {
    let stream = TcpStream::connect(address).await.map_err(|e| AdminError::Connect(address, e))?;
    // The listener accepts this name at every address.
    let mut request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    if let Some(token) = std::env::var(ADMIN_TOKEN).ok().filter(|token| !token.is_empty()) {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let answer = transport::ask::ask(stream, request.header("accept", "application/json").body(body)?).await?;
    let status = answer.head.status;
    let body = answer.body(ANSWER_BYTES).await.map_err(AdminError::Body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() {
        return Ok(body);
    }
    let why = body["error"].as_str().or(body["detail"].as_str()).unwrap_or("no reason given").to_owned();
    Err(AdminError::Refused(status, why))
}
