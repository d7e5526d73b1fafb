//! Makes the partitions of this month and the next before anything needs them, once a day, and at once when one is missed.

use std::time::Duration;

use crate::App;
use crate::audit::intake;
use crate::deadline::Deadline;

/// How often it is done though nothing is missed. The next month's partition is there for a month by then.
const PERIOD: Duration = Duration::from_secs(86_400);
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
                // Once, not every few seconds for as long as it lasts.
                if !told {
                    tracing::warn!(error = ?error, "the partitions of the audit trail cannot be made now: {error}");
                }
                RETRY
            }
        };
        told = made.is_err();
        tokio::time::sleep(RETRY).await;
        let _ = tokio::time::timeout(pause.saturating_sub(RETRY), app.audit.wanting.notified()).await;
    }
}
