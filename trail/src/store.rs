//! All queries to the audit log in PostgreSQL. The proxy stores and removes entries; the commands search, verify and
//! erase; the app makes partitions for its own entries.
//!
//! Every function takes a connection and leaves its settings unchanged. Writes use one transaction, so a dropped
//! future leaves no partial result. Several Machines may call any of them at once: advisory locks ([`Lock`]), held
//! until the transaction ends, serialise operations that conflict.
//!
//! Read in this order: [`address`] (connecting), [`schema`] (the tables), [`batch`] (shipped batches), [`ingest`] (storing each entry once), [`partitions`] (where
//! entries are stored), [`subjects`] (keys, erasures, holds), [`anchors`] (the proxies' signed `HEAD`s),
//! [`retention`] (removing old entries), [`drops`] (records of removals), [`search`], [`chains`] (rows for
//! verification).

pub mod address;
pub mod anchors;
pub mod batch;
pub mod chains;
pub mod drops;
pub mod ingest;
pub mod partitions;
pub mod retention;
pub mod schema;
pub mod search;
pub mod subjects;

use jiff::Timestamp;
use outrigger_policy::audit::{Class, Time};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, Transaction};

/// The chain of the app's own entries, which have no numbers.
pub const APP_CHAIN: &str = "app";

/// Why an operation failed. It changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL is unreachable or returned an error.
    #[error("PostgreSQL failed")]
    Database(#[from] tokio_postgres::Error),
    /// A conflicting operation is in progress.
    #[error("{0}; try again in a moment")]
    Busy(&'static str),
    /// A hold forbids it.
    #[error("hold {0} forbids it; release the hold first")]
    Held(i64),
    /// The input is invalid.
    #[error("{0}")]
    Invalid(String),
}

/// A value and its type.
pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Advisory locks for conflicting operations. They are released when their transaction ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lock {
    /// Creating partitions.
    Partitions,
    /// Storing keys (shared) and erasures (exclusive): an erasure must see every key, and erasure numbers must become
    /// visible in order.
    Erasures,
    /// Retention (shared) and new holds (exclusive).
    Holds,
    /// Storing entries of a class (shared) and removing them (exclusive).
    Class(Class),
}

impl Lock {
    /// The first of the lock's two numbers, the same for all locks: the bytes of "audi".
    const SPACE: i32 = i32::from_be_bytes(*b"audi");

    fn number(self) -> i32 {
        match self {
            Self::Partitions => 0,
            Self::Erasures => 1,
            Self::Holds => 2,
            Self::Class(Class::Security) => 10,
            Self::Class(Class::Authentication) => 11,
            Self::Class(Class::Data) => 12,
            Self::Class(Class::Administration) => 13,
            Self::Class(Class::Deletion) => 14,
        }
    }

    /// Waits for the exclusive lock.
    pub(crate) async fn take(self, transaction: &Transaction<'_>) -> Result<(), tokio_postgres::Error> {
        self.ask("pg_advisory_xact_lock", transaction).await.map(drop)
    }

    /// Waits for the shared lock.
    pub(crate) async fn share(self, transaction: &Transaction<'_>) -> Result<(), tokio_postgres::Error> {
        self.ask("pg_advisory_xact_lock_shared", transaction).await.map(drop)
    }

    /// Takes the shared lock unless that would block; returns whether it did.
    pub(crate) async fn try_share(self, transaction: &Transaction<'_>) -> Result<bool, tokio_postgres::Error> {
        self.ask("pg_try_advisory_xact_lock_shared", transaction).await?.try_get(0)
    }

    async fn ask(self, function: &str, transaction: &Transaction<'_>) -> Result<Row, tokio_postgres::Error> {
        let statement = format!("SELECT {function}($1, $2)");
        let (space, number) = (Self::SPACE, self.number());
        transaction.query_typed_one(&statement, &[(&space, Type::INT4), (&number, Type::INT4)]).await
    }
}

/// A time in the format of entries.
pub(crate) fn text_of(time: Timestamp) -> String {
    Time(time.as_microsecond()).to_string()
}
