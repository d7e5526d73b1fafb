//! Health checks of the local app, every `peers.interval` and as Fly does them, so that peers know when to take its
//! requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;

use crate::peers::Peers;
use crate::peers::probe::{Unanswered, ask};
use outrigger_transport::app_pool::AppStream;
use outrigger_transport::upstream::ConnectError;

/// After this many checks in a row without a response the app is not ready: one slow response is tolerated.
const MOST_UNANSWERED: u32 = 2;

/// The state of the local app.
#[derive(Debug, Default)]
pub struct Local {
    is_unready: AtomicBool,
}

impl Local {
    /// Returns whether the app reports that it is not ready, or does not respond.
    pub fn is_unready(&self) -> bool {
        self.is_unready.load(Ordering::Relaxed)
    }
}

/// Checks the app for the life of the process. `connect` opens a connection to it.
/// Only where `is_asked`: the other health checks may make these superfluous.
pub async fn keep_probing<F>(peers: Arc<Peers>, is_asked: impl Fn() -> bool, connect: impl Fn() -> F)
where
    F: Future<Output = Result<AppStream, ConnectError>>,
{
    let mut unanswered = 0;
    loop {
        if !is_asked() {
            tokio::time::sleep(peers.rules.interval).await;
            continue;
        }
        let is_unready = match is_ready(connect(), peers.rules.timeout).await {
            Ok(is_ready) => {
                unanswered = 0;
                !is_ready
            }
            // The app was not checked, for lack of a local resource.
            Err(Unanswered::Connect(ConnectError::Exhausted { .. })) => peers.local.is_unready(),
            Err(_) => {
                unanswered += 1;
                // Until then the last result counts.
                unanswered >= MOST_UNANSWERED || peers.local.is_unready()
            }
        };
        if peers.local.is_unready.swap(is_unready, Ordering::Relaxed) != is_unready {
            let words = if is_unready { "is not ready: requests go to peers" } else { "is ready again" };
            tracing::warn!(event = "app_ready", ready = !is_unready, "the app {words}");
        }
        tokio::time::sleep(peers.rules.interval).await;
    }
}

/// Returns whether the app is ready. An app without this endpoint is ready whenever it responds.
async fn is_ready(
    connecting: impl Future<Output = Result<AppStream, ConnectError>>,
    patience: Duration,
) -> Result<bool, Unanswered> {
    let (status, _) = ask(connecting, "/health/ready", patience).await?;
    Ok(status != StatusCode::SERVICE_UNAVAILABLE)
}
