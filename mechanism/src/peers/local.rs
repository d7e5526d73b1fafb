//! Health checks of the local app, every `peers.interval` and as Fly does them, so that peers know when to take its
//! requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::Notify;

use crate::peers::Peers;
use crate::peers::probe::{Unanswered, ask};
use outrigger_transport::app_pool::AppStream;
use outrigger_transport::upstream::ConnectError;

/// After this many checks in a row without a response the app is not ready: one slow response is tolerated.
const MOST_UNANSWERED: u32 = 2;

/// After this many attempts in a row that took too long, with no response to any request in between, the app is *silent*: it
/// counts as not ready, before health checks notice.
const MOST_OVERDUE: u32 = 3;
/// How often a silent app is checked.
const CHECK_SILENT_EVERY: Duration = Duration::from_millis(100);

/// The state of the local app.
#[derive(Debug, Default)]
pub struct Local {
    is_unready: AtomicBool,
    /// Attempts in a row that took too long.
    overdue: AtomicU32,
    /// Wakes the health check: the app has become silent.
    silent: Notify,
}

impl Local {
    /// Returns whether the app reports that it is not ready, or does not respond.
    pub fn is_unready(&self) -> bool {
        self.is_unready.load(Ordering::Relaxed) || self.is_silent()
    }

    /// Returns whether the app answers no requests.
    pub fn is_silent(&self) -> bool {
        self.overdue.load(Ordering::Relaxed) >= MOST_OVERDUE
    }

    /// Records, if `is_news`, an attempt that took longer than one may. Returns whether the app is silent.
    pub fn overdue(&self, is_news: bool) -> bool {
        if is_news && self.overdue.fetch_add(1, Ordering::Relaxed) + 1 == MOST_OVERDUE {
            tracing::warn!(event = "app_silent", "the app answers no requests: they go to peers");
            self.silent.notify_one();
        }
        self.is_silent()
    }

    /// Records a response of the app.
    #[inline]
    pub fn answered(&self) {
        if self.overdue.load(Ordering::Relaxed) != 0 {
            self.answers_again();
        }
    }

    #[cold]
    fn answers_again(&self) {
        if self.overdue.swap(0, Ordering::Relaxed) >= MOST_OVERDUE {
            tracing::warn!(event = "app_silent", "the app answers again");
        }
    }

    /// Waits until the next health check is due.
    async fn until_check(&self, interval: Duration) {
        if self.is_silent() {
            tokio::time::sleep(interval.min(CHECK_SILENT_EVERY)).await;
        } else {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.silent.notified() => {}
            }
        }
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
        // A silent app is checked even if another health check does it, too.
        if !is_asked() && !peers.local.is_silent() {
            // The other health check decides from here on.
            unanswered = 0;
            peers.local.is_unready.store(false, Ordering::Relaxed);
            peers.local.until_check(peers.rules.interval).await;
            continue;
        }
        let is_unready = match is_ready(connect(), peers.rules.timeout).await {
            Ok(is_ready) => {
                unanswered = 0;
                peers.local.answered();
                !is_ready
            }
            // The app was not checked, for lack of a local resource.
            Err(Unanswered::Connect(ConnectError::Exhausted { .. })) => peers.local.is_unready.load(Ordering::Relaxed),
            Err(_) => {
                unanswered += 1;
                // Until then the last result counts.
                unanswered >= MOST_UNANSWERED || peers.local.is_unready.load(Ordering::Relaxed)
            }
        };
        if peers.local.is_unready.swap(is_unready, Ordering::Relaxed) != is_unready {
            let words = if is_unready { "is not ready: requests go to peers" } else { "is ready again" };
            tracing::warn!(event = "app_ready", ready = !is_unready, "the app {words}");
        }
        peers.local.until_check(peers.rules.interval).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_silent_only_if_nothing_is_answered_in_between() {
        let local = Local::default();
        for _ in 0..100 {
            assert!(!local.overdue(true) && !local.overdue(true));
            local.answered();
        }
        assert!(!local.overdue(true) && !local.overdue(true) && !local.overdue(false));
        assert!(local.overdue(true) && local.is_unready());
        local.answered();
        assert!(!local.is_unready() && !local.overdue(false));
    }
}
