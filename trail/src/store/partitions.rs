//! Partitions: one per class and month, created when an entry needs it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use outrigger_policy::audit::Class;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use super::{Lock, StoreError};

/// A month in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    year: i16,
    month: i8,
}

impl Month {
    /// The month of this time.
    pub fn of(time: Timestamp) -> Self {
        let date = time.to_zoned(TimeZone::UTC).date();
        Self { year: date.year(), month: date.month() }
    }

    /// The next month.
    #[must_use]
    pub const fn next(self) -> Self {
        if self.month == 12 {
            Self { year: self.year + 1, month: 1 }
        } else {
            Self { year: self.year, month: self.month + 1 }
        }
    }

    /// Its start.
    pub fn start(self) -> Timestamp {
        let date = Date::new(self.year, self.month, 1);
        let zoned = date.and_then(|date| date.to_zoned(TimeZone::UTC));
        // The start of a month taken from a timestamp is itself a valid timestamp.
        zoned.map_or(Timestamp::MIN, |zoned| zoned.timestamp())
    }

    /// The start of the next month.
    pub fn end(self) -> Timestamp {
        self.next().start()
    }

    fn read(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('_')?;
        let (year, month) = (year.parse().ok()?, month.parse().ok()?);
        (text.len() == 7 && (1..=12).contains(&month)).then_some(Self { year, month })
    }
}

/// The partition of a class and month.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    /// The class.
    pub class: Class,
    /// The month.
    pub month: Month,
}

impl Partition {
    /// The table's name, which consists of letters, digits and `_` only.
    pub fn name(&self) -> String {
        let Month { year, month } = self.month;
        format!("{}_{year:04}_{month:02}", parent(self.class))
    }
}

pub(crate) fn parent(class: Class) -> String {
    format!("audit_events_{}", class.name())
}

/// The existing partitions of a class, oldest first.
pub(crate) async fn of_class(
    transaction: &Transaction<'_>,
    class: Class,
) -> Result<Vec<Partition>, tokio_postgres::Error> {
    const LIST: &str = "
        SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = to_regclass($1)";
    let parent = parent(class);
    let rows = transaction.query_typed(LIST, &[(&parent, Type::TEXT)]).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let name: &str = row.try_get(0)?;
        // Skips partitions created by hand, which must not be dropped.
        if let Some(month) = name.strip_prefix(&parent).and_then(|rest| rest.strip_prefix('_')).and_then(Month::read) {
            found.push(Partition { class, month });
        }
    }
    found.sort();
    Ok(found)
}

/// The partitions of a class, in order, with their size in bytes including dead rows: the cost of reading them.
pub(crate) async fn sizes(client: &Client, class: Class) -> Result<Vec<(Partition, i64)>, tokio_postgres::Error> {
    const LIST: &str = "
        SELECT relname::text, pg_relation_size(pg_class.oid) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = to_regclass($1)";
    let parent = parent(class);
    let rows = client.query_typed(LIST, &[(&parent, Type::TEXT)]).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let (name, bytes): (&str, i64) = (row.try_get(0)?, row.try_get(1)?);
        if let Some(month) = name.strip_prefix(&parent).and_then(|rest| rest.strip_prefix('_')).and_then(Month::read) {
            found.push((Partition { class, month }, bytes));
        }
    }
    found.sort();
    Ok(found)
}

/// Number of partitions of all classes.
///
/// # Errors
/// The query failed.
pub async fn count(client: &Client) -> Result<i64, StoreError> {
    const COUNT: &str = "
        SELECT count(*) FROM pg_inherits leaf JOIN pg_inherits class ON class.inhrelid = leaf.inhparent
        WHERE class.inhparent = to_regclass('audit_events')";
    Ok(client.query_typed_one(COUNT, &[]).await?.try_get(0)?)
}

/// Creates the partitions for the app's own entries, for this month and the next. Those for shipped entries are
/// created with them.
///
/// # Errors
/// PostgreSQL returned an error.
pub async fn make_ahead(client: &mut Client, classes: &[Class], now: Timestamp) -> Result<(), StoreError> {
    let transaction = client.transaction().await?;
    let this = Month::of(now);
    for class in classes {
        make(&transaction, *class, &BTreeSet::from([this, this.next()])).await?;
    }
    Ok(transaction.commit().await?)
}

/// Creates missing partitions, one Machine at a time.
pub(crate) async fn make(
    transaction: &Transaction<'_>,
    class: Class,
    months: &BTreeSet<Month>,
) -> Result<(), tokio_postgres::Error> {
    if missing(transaction, class, months).await?.is_empty() {
        return Ok(());
    }
    Lock::Partitions.take(transaction).await?;
    // Another Machine may have created them while this one waited for the lock.
    for month in missing(transaction, class, months).await? {
        let (name, parent) = (Partition { class, month }.name(), parent(class));
        let (from, to) = (month.start(), month.end());
        // Created as a table and attached, so that readers and writers are not blocked.
        let statements = format!(
            "CREATE TABLE {name} (LIKE {parent} INCLUDING ALL);
             ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}')"
        );
        transaction.batch_execute(&statements).await?;
    }
    Ok(())
}

/// The months without a partition. Queries the catalogue's tables, since `to_regclass` and similar functions may
/// cache a missing table until the transaction ends.
async fn missing(
    transaction: &Transaction<'_>,
    class: Class,
    months: &BTreeSet<Month>,
) -> Result<Vec<Month>, tokio_postgres::Error> {
    let there = of_class(transaction, class).await?;
    let is_missing = |month: &Month| !there.iter().any(|partition| partition.month == *month);
    Ok(months.iter().copied().filter(is_missing).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_begins_where_the_one_before_ends() {
        let december = Month::of("2026-12-31T23:59:59.999999Z".parse().unwrap());
        assert_eq!(december.start().to_string(), "2026-12-01T00:00:00Z");
        assert_eq!(december.end().to_string(), "2027-01-01T00:00:00Z");
        assert_eq!(december.next(), Month::of(december.end()));
    }

    #[test]
    fn a_partition_is_found_by_its_name() {
        let partition = Partition { class: Class::Data, month: Month { year: 2026, month: 3 } };
        assert_eq!(partition.name(), "audit_events_data_2026_03");
        assert_eq!(Month::read("2026_03"), Some(partition.month));
        for other in ["2026_3", "2026_13", "old_one", "2026_03_b"] {
            assert_eq!(Month::read(other), None, "{other}");
        }
    }
}
