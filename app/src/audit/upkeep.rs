//! Creates this month's and next month's partitions in advance, and immediately when one is missing.

use std::time::Duration;

use jiff::Timestamp;
use outrigger_trail::store::{StoreError, partitions};

use crate::App;
use crate::audit::OWN_CLASSES;
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
        let made = make_ahead(&app).await;
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

/// Creates the partitions that the app's own entries will need, and sets the gauge of all.
async fn make_ahead(app: &App) -> Result<(), ApiError> {
    let deadline = Deadline::after(LIMIT);
    let mut lent = app.postgres.lend("audit::make_ahead", deadline).await?;
    let client = lent.client();
    let work = async {
        partitions::make_ahead(client, &OWN_CLASSES, Timestamp::now()).await?;
        partitions::count(client).await
    };
    let answer = deadline.run(work).await;
    let answer = answer.map(|counted| match counted {
        Err(StoreError::Database(error)) => Err(error),
        counted => Ok(counted),
    });
    let count = lent.settle(answer)?.map_err(|error| ApiError::Internal(error.to_string()))?;
    app.metrics.audit.partitions.set(count);
    Ok(())
}
