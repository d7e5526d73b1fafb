//! The trail in PostgreSQL: everything that is asked of it. The app stores and removes, the commands search, verify and erase.
//!
//! Every function takes a connection and leaves it as it found it; what writes is one transaction, so dropping a future leaves
//! nothing half done. Several Machines may do anything at once: what must not happen at the same time is kept apart by advisory
//! locks ([`Lock`]), which end with their transaction.
//!
//! Read in this order: [`batch`] (what a proxy ships), [`ingest`] (how it is stored, once), [`partitions`] (where), [`subjects`] (keys,
//! erasures, holds), [`anchors`] (what proxies have signed for), [`retention`] (what goes), [`drops`] (what is said of it), [`search`], [`chains`] (rows for who verifies them).

pub mod anchors;
pub mod batch;
pub mod chains;
pub mod drops;
pub mod ingest;
pub mod partitions;
pub mod retention;
pub mod search;
pub mod subjects;

use jiff::Timestamp;
use outrigger_policy::audit::{Class, Time};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, Transaction};

/// The chain of what the app enters by itself. Its entries have no numbers.
pub const APP_CHAIN: &str = "app";

/// Why the store did not do it. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL refused, or is away.
    #[error("PostgreSQL did not do it")]
    Database(#[from] tokio_postgres::Error),
    /// Somebody else has to finish first.
    #[error("{0}; try again in a moment")]
    Busy(&'static str),
    /// A hold forbids it.
    #[error("hold {0} forbids it; release the hold first")]
    Held(i64),
    /// It is not what the store needs.
    #[error("{0}")]
    Invalid(String),
}

/// A value and its type.
pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// What must not happen at the same time. All of them end with their transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lock {
    /// Making partitions.
    Partitions,
    /// New keys (shared) and erasures (alone): an erasure must see every key, and their numbers must appear in their order.
    Erasures,
    /// Retention (shared) and new holds (alone).
    Holds,
    /// Storing entries of a class (shared) and removing them (alone).
    Class(Class),
}

impl Lock {
    /// The first of its two numbers, the same for all: the bytes of "audi".
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

    /// Waits for it.
    pub(crate) async fn take(self, transaction: &Transaction<'_>) -> Result<(), tokio_postgres::Error> {
        self.ask("pg_advisory_xact_lock", transaction).await.map(drop)
    }

    /// Waits for it, and shares it.
    pub(crate) async fn share(self, transaction: &Transaction<'_>) -> Result<(), tokio_postgres::Error> {
        self.ask("pg_advisory_xact_lock_shared", transaction).await.map(drop)
    }

    /// Whether it could be shared at once.
    pub(crate) async fn try_share(self, transaction: &Transaction<'_>) -> Result<bool, tokio_postgres::Error> {
        self.ask("pg_try_advisory_xact_lock_shared", transaction).await?.try_get(0)
    }

    async fn ask(self, function: &str, transaction: &Transaction<'_>) -> Result<Row, tokio_postgres::Error> {
        let statement = format!("SELECT {function}($1, $2)");
        let (space, number) = (Self::SPACE, self.number());
        transaction.query_typed_one(&statement, &[(&space, Type::INT4), (&number, Type::INT4)]).await
    }
}

/// A time as entries have it.
pub(crate) fn text_of(time: Timestamp) -> String {
    Time(time.as_microsecond()).to_string()
}
