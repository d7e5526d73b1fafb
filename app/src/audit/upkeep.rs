//! Makes the partitions of this month and the next before anything needs them, and at once when one is missed.

use std::time::Duration;

use crate::App;
use crate::audit::intake;
use crate::deadline::Deadline;
use crate::error::ApiError;

/// How often it is looked though nothing is missed: for the gauge. The next month's partition is there long before it is needed.
const PERIOD: Duration = Duration::from_secs(60);
/// After a failure, and at the least between two times.
const RETRY: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(10);

/// Until the process ends.
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
                    // Once, not every few seconds for as long as it lasts.
                    ApiError::Internal(cause) if !told => {
                        tracing::error!(cause, "the partitions of the audit trail cannot be made: {cause}");
                    }
                    // A database that is away is told of where that is noticed.
                    error => tracing::debug!(error = %error, "the partitions of the audit trail wait: {error}"),
                }
                RETRY
            }
        };
        told = made.is_err();
        tokio::time::sleep(RETRY).await;
        let _ = tokio::time::timeout(pause.saturating_sub(RETRY), app.audit.wanting.notified()).await;
    }
}
