//! `outrigger restart`: restarts the app of a running proxy, through its admin listener.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use outrigger_rules::environment::ADMIN_TOKEN;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::transport::ask::ask;

/// The app may take long to stop and to start, as long as it is configured.
const TIMEOUT: Duration = Duration::from_mins(15);
/// The longest response that is read, in bytes.
const ANSWER_BYTES: usize = 64 << 10;

/// Options of `outrigger restart`.
#[derive(Debug, Args)]
pub struct Options {
    /// The proxy's admin listener. Default: admin.listen of the configuration.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

/// Why the app was not restarted.
#[derive(Debug, thiserror::Error)]
enum RestartError {
    #[error("no proxy at {0}: {1}; name its admin listener with --admin")]
    Connect(SocketAddr, std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}")]
    Refused(String),
    #[error("no response within {} s", TIMEOUT.as_secs())]
    Late(#[from] tokio::time::error::Elapsed),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs the command.
pub fn run(named: Option<&Path>, options: &Options) -> ExitCode {
    let restart = |address: SocketAddr| match restarted(here(address)) {
        Ok(answer) => {
            let number = |name: &str| answer[name].as_u64().unwrap_or_default();
            let (pid, took, held) = (number("pid"), number("took_ms") as f64 / 1000.0, number("held_requests"));
            super::say(&format!("the app is restarted, as process {pid}: {took:.1} s, {held} requests waited\n"))
        }
        Err(e) => super::fail(&e),
    };
    match options.admin {
        Some(address) => restart(address),
        None => super::with_config(named, |config| restart(config.admin.listen)),
    }
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

fn restarted(address: SocketAddr) -> Result<Value, RestartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, request(address)).await? })
}

async fn request(address: SocketAddr) -> Result<Value, RestartError> {
    let stream = TcpStream::connect(address).await.map_err(|e| RestartError::Connect(address, e))?;
    // The listener accepts this name at every address.
    let mut request = http::Request::post("/app/restart").header("host", "localhost");
    if let Some(token) = std::env::var(ADMIN_TOKEN).ok().filter(|token| !token.is_empty()) {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = ask(stream, request.body(Bytes::new())?).await?;
    let status = answer.head.status;
    let body = answer.body(ANSWER_BYTES).await.map_err(RestartError::Body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() {
        return Ok(body);
    }
    let why = body["error"].as_str().unwrap_or("no reason given");
    Err(RestartError::Refused(format!("{status}: {why}")))
}
