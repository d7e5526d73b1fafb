//! The service check: it takes a Machine out of routing and back, and never restarts it.
//!
//! Source: docs:reference/health-checks.html.markerb, docs:reference/configuration.html.markerb,
//! docs:getting-started/troubleshooting.html.md (facts: 5).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::time::{Instant, timeout};

use crate::BoxError;
use crate::registry::Run;
use crate::settings::Check;
use crate::shared::Shared;

/// The longest wait; a stopped Machine is checked again after it, or when its state changes.
const LONG: Duration = Duration::from_secs(3600);
/// The longest pause (facts: 1.2).
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Checks one Machine until it is removed.
pub(crate) async fn watch(shared: Arc<Shared>, id: String, birth: u64) {
    let Some(check) = shared.settings.check.clone() else { return };
    let Shared { registry, settings, .. } = &*shared;
    loop {
        let run = registry.until(Instant::now() + LONG, || match registry.run_of(&id, birth) {
            Run::NotNow => None,
            other => Some(other),
        });
        let (run, machine) = match run.await {
            Some(Run::Number(run, machine)) => (run, machine),
            Some(_) => return,
            None => continue,
        };
        let is_another = || match registry.run_of(&id, birth) {
            Run::Number(now, _) if now == run => None,
            _ => Some(()),
        };
        let mut pause = settings.scaled(check.grace_period);
        let mut failures = 0;
        while registry.until(Instant::now() + pause, is_another).await.is_none() {
            let answer = timeout(settings.scaled(check.timeout), probe(machine.public, &check)).await;
            let passed = matches!(answer, Ok(Ok(status)) if status.is_success());
            registry.checked(&id, run, passed, check.failures_to_remove, check.successes_to_return);
            failures = if passed { 0 } else { failures + 1 };
            pause = settings.scaled((check.interval + check.back_off * failures).min(LONGEST_PAUSE));
        }
    }
}

/// One check on its own connection; redirects are not followed.
async fn probe(address: SocketAddr, check: &Check) -> Result<StatusCode, BoxError> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = check.source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(address).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let mut request = Request::get(&check.path).header("host", address.to_string());
    for (name, value) in &check.fields {
        request = request.header(name, value);
    }
    if let Some(user_agent) = &check.user_agent {
        request = request.header("user-agent", user_agent);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        Ok(status)
    };
    tokio::select! {
        status = exchange => status,
        end = connection => {
            end?;
            Err("the connection ended before the response".into())
        }
    }
}
