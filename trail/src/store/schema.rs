//! The tables of the audit log. Whichever program starts first makes them: the proxy in a database without an app, or
//! the app. They have a history of their own, next to that of the app's tables.

use refinery::{Migration, Target};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// The table of the migrations that were applied.
const HISTORY: &str = "audit_schema_history";
/// Key of the advisory lock around the migrations of both programs, the same on every Machine: the bytes of "outrigge".
const LOCK: i64 = i64::from_be_bytes(*b"outrigge");

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Why the tables could not be made or updated.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// PostgreSQL is unreachable or returned an error.
    #[error("PostgreSQL failed")]
    Database(#[from] tokio_postgres::Error),
    /// A migration failed.
    #[error("a migration failed")]
    Migration(#[from] refinery::Error),
}

/// Takes the lock around all migrations, until [`unlock`] or the end of the connection.
///
/// # Errors
/// The query failed.
pub async fn lock(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.query_typed_one("SELECT pg_advisory_lock($1)", &[(&LOCK, Type::INT8)]).await.map(drop)
}

/// Releases the lock.
///
/// # Errors
/// The query failed.
pub async fn unlock(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.query_typed_one("SELECT pg_advisory_unlock($1)", &[(&LOCK, Type::INT8)]).await.map(drop)
}

/// The migrations that early versions of the app applied with their own: in databases that have them, and in those that
/// may be used by such a version again, they are in the app's history, too.
pub fn of_the_app() -> Vec<Migration> {
    let all = embedded::migrations::runner().get_migrations().clone();
    all.into_iter().filter(|migration| migration.version() <= LAST_OF_THE_APP).collect()
}

/// The last of [`of_the_app`].
pub const LAST_OF_THE_APP: i32 = 4;

/// Makes the tables, or brings them up to date. The caller has the [`lock`]. Returns the number of migrations applied.
///
/// # Errors
/// A migration failed: its part of the tables is unchanged.
pub async fn migrate(client: &mut Client) -> Result<usize, SchemaError> {
    const MADE: &str = "
        SELECT CASE WHEN to_regclass('audit_anchors') IS NOT NULL THEN 4
            WHEN to_regclass('audit_events') IS NOT NULL THEN 3 ELSE 0 END";
    let runner = || {
        let mut runner = embedded::migrations::runner();
        runner.set_migration_table_name(HISTORY);
        runner
    };
    // An early version of the app has made these.
    let made: i32 = client.query_typed_one(MADE, &[]).await?.try_get(0)?;
    if made > 0 {
        runner().set_target(Target::FakeVersion(made)).run_async(client).await?;
    }
    Ok(runner().run_async(client).await?.applied_migrations().len())
}
