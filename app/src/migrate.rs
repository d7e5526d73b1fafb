//! Runs the migrations as soon as PostgreSQL is reachable; the first Machine to start applies them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use outrigger_trail::store::schema::{self, SchemaError};
use outrigger_trail::store::{StoreError, partitions};
use refinery::{Runner, Target};

use crate::audit::OWN_CLASSES;
use crate::error::ApiError;
use crate::postgres::{Postgres, Schema, describe};

/// Maximum time for one attempt; a Machine that hangs must not block the others for ever.
const ATTEMPT: Duration = Duration::from_secs(300);
/// Retry interval while the circuit breaker is open; asking it is cheap.
const WHILE_OPEN: Duration = Duration::from_millis(250);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The last migration before those of the audit log, which this app's first versions had among their own.
const LAST_BEFORE_AUDIT: i32 = 2;

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Retries until the tables are up to date, then returns.
pub async fn until_done(postgres: Arc<Postgres>) {
    let mut wait = FIRST_RETRY;
    loop {
        let problem = match tokio::time::timeout(ATTEMPT, once(&postgres)).await {
            Ok(Ok(applied)) => {
                tracing::info!(applied, "the schema is up to date");
                postgres.set_schema(Schema::Ready);
                return;
            }
            // The failure that opened the breaker is already logged.
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
    #[error("the audit log has no tables")]
    Audit(#[from] SchemaError),
    #[error("the audit log has no partitions")]
    Partitions(#[from] StoreError),
}

/// One attempt, on a dedicated connection. Closing the connection releases the lock, also after an error. The proxy may
/// have made the tables of the audit log before.
async fn once(postgres: &Postgres) -> Result<usize, MigrateError> {
    let mut client = postgres.dedicated().await?;
    // Waiting for another Machine's migration or running a long one must not hit the statement timeout.
    client.batch_execute("SET statement_timeout = 0").await?;
    schema::lock(&client).await?;
    let mut all = embedded::migrations::runner().get_migrations().clone();
    all.extend(schema::of_the_app());
    let runner = |target| Runner::new(&all).set_target(target);
    let first = runner(Target::Version(LAST_BEFORE_AUDIT)).run_async(&mut client).await?;
    let audit = schema::migrate(&mut client).await?;
    runner(Target::FakeVersion(schema::LAST_OF_THE_APP)).run_async(&mut client).await?;
    let last = runner(Target::Latest).run_async(&mut client).await?;
    // The first request already needs a partition for its audit entry.
    partitions::make_ahead(&mut client, &OWN_CLASSES, Timestamp::now()).await?;
    Ok(first.applied_migrations().len() + audit + last.applied_migrations().len())
}
