//! Checks of the app with its own health check, so that Outrigger can answer the platform's.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use outrigger_rules::sections::health::{Check, HealthRules};
use outrigger_transport::app_pool::AppStream;
use outrigger_transport::ask::get_status;
use outrigger_transport::upstream::ConnectError;

/// How often the app is checked.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// After this many checks in a row without a response the app is not healthy: one slow response is tolerated.
const MOST_UNANSWERED: u8 = 2;

/// The result of the last checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There was no check yet, or no response to the last ones.
    Silent,
    /// It responds, but with another status than that of a healthy app.
    Unhealthy,
    /// It is healthy.
    Healthy,
}

/// The health of the app.
#[derive(Debug, Default)]
pub struct AppHealth(AtomicU8);

impl AppHealth {
    /// The result of the last checks.
    pub fn condition(&self) -> Condition {
        match self.0.load(Ordering::Relaxed) {
            0 => Condition::Silent,
            1 => Condition::Unhealthy,
            _ => Condition::Healthy,
        }
    }

    fn set(&self, condition: Condition) {
        if self.0.swap(condition as u8, Ordering::Relaxed) != condition as u8 {
            match condition {
                Condition::Healthy => tracing::info!(event = "app_health", healthy = true, "the app is healthy"),
                Condition::Unhealthy => {
                    tracing::warn!(event = "app_health", healthy = false, "the app's health check fails");
                }
                Condition::Silent => {
                    tracing::warn!(
                        event = "app_health",
                        healthy = false,
                        "the app does not respond to its health check"
                    );
                }
            }
        }
    }

    /// Checks the app for the life of the process, by the rules in force.
    pub async fn keep_checking<F>(&self, rules: impl Fn() -> HealthRules, connect: impl Fn() -> F)
    where
        F: Future<Output = Result<AppStream, ConnectError>>,
    {
        let mut unanswered = 0;
        loop {
            let rules = rules();
            match &rules.check {
                None => self.0.store(0, Ordering::Relaxed),
                Some(check) => match checked(check, &rules, connect()).await {
                    Some(condition) => {
                        unanswered = 0;
                        self.set(condition);
                    }
                    None => {
                        unanswered = (unanswered + 1).min(MOST_UNANSWERED);
                        if unanswered == MOST_UNANSWERED {
                            self.set(Condition::Silent);
                        }
                    }
                },
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// One check. `None`: no response.
async fn checked(
    check: &Check,
    rules: &HealthRules,
    connecting: impl Future<Output = Result<AppStream, ConnectError>>,
) -> Option<Condition> {
    let asked = async {
        let stream = connecting.await.ok()?;
        let Check::Path(path) = check else { return Some(Condition::Healthy) };
        let status = get_status(stream, path).await.ok()?;
        Some(if rules.is_healthy(status) { Condition::Healthy } else { Condition::Unhealthy })
    };
    tokio::time::timeout(rules.timeout, asked).await.ok()?
}
