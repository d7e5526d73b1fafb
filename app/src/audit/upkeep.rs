//! Creates this month's and next month's partitions in advance, and immediately when one is missing.

use std::time::Duration;

use crate::App;
use crate::audit::intake;
use crate::deadline::Deadline;
use crate::error::ApiError;

/// How often the partitions are counted for the gauge, and created if needed. Next month's exists long before its
/// first entry.
const PERIOD: Duration = Duration::from_secs(60);
/// Pause after a failure, and minimum pause between two runs.
const RETRY: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(10);

/// Runs until the process ends.
pub async fn go_on(app: App) {
    let mut told = false;
    loop {
        app.postgres.until_ready().await;
        let made = match intake::make_ahead(&app, Deadline::after(LIMIT)).await {
            Ok(()) => intake::count_partitions(&app, Deadline::after(LIMIT)).await,
            Err(error) => Err(error),
        };
        let pause = match &made {
            Ok(()) => PERIOD,
            Err(error) => {
                match error {
                    // Logged once per outage, not at every retry.
                    ApiError::Internal(cause) if !told => {
                        tracing::error!(cause, "the partitions of the audit log cannot be created: {cause}");
                    }
                    // The pool logs that the database is down.
                    error => {
                        tracing::debug!(error = %error, "the audit log's partitions wait for the database: {error}");
                    }
                }
                RETRY
            }
        };
        told = made.is_err();
        tokio::time::sleep(RETRY).await;
        let _ = tokio::time::timeout(pause.saturating_sub(RETRY), app.audit.wanting.notified()).await;
    }
}
