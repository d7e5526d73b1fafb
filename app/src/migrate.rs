//! Brings the tables up to date, whoever starts first, as soon as PostgreSQL is there.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use outrigger_trail::store::{StoreError, partitions};

use crate::audit::OWN_CLASSES;
use crate::error::ApiError;
use crate::postgres::{Postgres, Schema, describe};

/// Any number will do, as long as every Machine uses the same: the bytes of "outrigge".
const LOCK: i64 = i64::from_be_bytes(*b"outrigge");
/// Longest time for one try; a Machine that hangs in the middle must not keep the others for ever.
const ATTEMPT: Duration = Duration::from_secs(300);
/// How often an open breaker is asked, which costs nothing.
const WHILE_OPEN: Duration = Duration::from_millis(250);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(5);

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Tries until the tables are up to date, then ends.
pub async fn until_done(postgres: Arc<Postgres>) {
    let mut wait = FIRST_RETRY;
    loop {
        let problem = match tokio::time::timeout(ATTEMPT, once(&postgres)).await {
            Ok(Ok(applied)) => {
                tracing::info!(applied, "the schema is up to date");
                postgres.set_schema(Schema::Ready);
                return;
            }
            // What it has failed for is said already.
            Ok(Err(MigrateError::Connection(ApiError::BreakerOpen { .. }))) => {
                tokio::time::sleep(WHILE_OPEN).await;
                continue;
            }
            Ok(Err(error)) => describe(&error),
            Err(_) => format!("not done within {} s", ATTEMPT.as_secs()),
        };
        let said = Schema::Pending(format!("migrations have not run: {problem}"));
        if postgres.schema() != said {
            tracing::warn!(problem, "migrations have not run, retrying: {problem}");
            postgres.set_schema(said);
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_RETRY);
    }
}

#[derive(Debug, thiserror::Error)]
enum MigrateError {
    #[error(transparent)]
    Connection(#[from] ApiError),
    #[error("cannot take the lock")]
    Lock(#[from] tokio_postgres::Error),
    #[error("a migration failed")]
    Migration(#[from] refinery::Error),
    #[error("the audit trail has no partitions")]
    Partitions(#[from] StoreError),
}

/// One try, on a connection of its own. The lock ends with the connection, however this ends.
async fn once(postgres: &Postgres) -> Result<usize, MigrateError> {
    let mut client = postgres.dedicated().await?;
    // Waiting for another Machine's migration, or running a long one, is no runaway statement.
    client.batch_execute("SET statement_timeout = 0").await?;
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;
    let report = embedded::migrations::runner().run_async(&mut client).await?;
    // The first request has to be entered into the trail already.
    partitions::make_ahead(&mut client, &OWN_CLASSES, Timestamp::now()).await?;
    Ok(report.applied_migrations().len())
}
