//! Searches entries, newest first, a page at a time.

use jiff::Timestamp;
use outrigger_policy::audit::{Class, Outcome};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::{Param, StoreError};

/// Maximum number of entries per page.
pub const LARGEST_PAGE: i64 = 10_000;

/// Search criteria. An entry must match all of them; the default matches every entry.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// At or after this time.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
    /// One of these classes; empty: any.
    pub classes: Vec<Class>,
    /// One of these types, as named in entries; empty: any.
    pub types: Vec<String>,
    /// One of these pseudonyms is the actor or client; empty: any.
    pub subjects: Vec<String>,
    /// This request.
    pub request_id: Option<String>,
    /// This outcome.
    pub outcome: Option<Outcome>,
    /// This Machine.
    pub machine: Option<String>,
    /// Maximum number of results: 1 to [`LARGEST_PAGE`].
    pub limit: i64,
    /// After this position, the last one of the previous page.
    pub after: Option<Place>,
}

/// An entry's position in the order of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its time.
    pub time: Timestamp,
    /// Its id.
    pub id: Uuid,
}

/// A search result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its position.
    pub place: Place,
    /// Its class.
    pub class: String,
    /// Its chain; [`super::APP_CHAIN`] for the app's own entries.
    pub chain: String,
    /// Its number, if its chain has numbers.
    pub seq: Option<i64>,
    /// The exact line.
    pub line: String,
}

/// Returns the newest matching entries, newest first.
///
/// # Errors
/// The limit is out of range, or the query failed.
pub async fn search(client: &Client, search: &Search) -> Result<Vec<Found>, StoreError> {
    if !(1..=LARGEST_PAGE).contains(&search.limit) {
        return Err(StoreError::Invalid(format!("a page has 1 to {LARGEST_PAGE} entries, not {}", search.limit)));
    }
    let names = Names::of(search);
    let (statement, params) = compose(search, &names);
    let rows = client.query_typed(&statement, &params).await?;
    let found = |row: &tokio_postgres::Row| {
        Ok(Found {
            class: row.try_get(0)?,
            place: Place { time: row.try_get(1)?, id: row.try_get(2)? },
            chain: row.try_get(3)?,
            seq: row.try_get(4)?,
            line: row.try_get(5)?,
        })
    };
    rows.iter().map(found).collect()
}

/// PostgreSQL's plan from `EXPLAIN (ANALYZE)`, for slow searches.
///
/// # Errors
/// The query failed.
pub async fn explain(client: &Client, search: &Search) -> Result<Vec<String>, StoreError> {
    let names = Names::of(search);
    let (statement, params) = compose(search, &names);
    let rows = client.query_typed(&format!("EXPLAIN (ANALYZE) {statement}"), &params).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// The search's names, as stored in the tables.
struct Names {
    classes: Vec<&'static str>,
    outcome: Option<&'static str>,
}

impl Names {
    fn of(search: &Search) -> Self {
        let classes = if search.classes.is_empty() { &Class::ALL } else { search.classes.as_slice() };
        Self { classes: classes.iter().map(|class| class.name()).collect(), outcome: search.outcome.map(Outcome::name) }
    }
}

/// Composes the statement. For each class, and for a subject as actor and as client, it reads at most a page of the
/// newest entries from an index, and returns the newest of those. The time therefore depends on the page's size, not
/// on the number of matches.
fn compose<'a>(search: &'a Search, names: &'a Names) -> (String, Vec<Param<'a>>) {
    let mut params: Vec<Param<'a>> = vec![(&names.classes, Type::TEXT_ARRAY), (&search.limit, Type::INT8)];
    let mut fits = String::from("e.class = of.class");
    let mut add = |text: &str, value: &'a (dyn ToSql + Sync), kind: Type| {
        params.push((value, kind));
        fits.push_str(" AND ");
        fits.push_str(&text.replace('?', &format!("${}", params.len())));
    };
    if search.from.is_some() {
        add("e.time >= ?", &search.from, Type::TIMESTAMPTZ);
    }
    if search.until.is_some() {
        add("e.time < ?", &search.until, Type::TIMESTAMPTZ);
    }
    if !search.types.is_empty() {
        add("e.type = ANY(?)", &search.types, Type::TEXT_ARRAY);
    }
    if search.request_id.is_some() {
        add("e.request_id = ?", &search.request_id, Type::TEXT);
    }
    if names.outcome.is_some() {
        add("e.outcome = ?", &names.outcome, Type::TEXT);
    }
    if search.machine.is_some() {
        add("e.machine = ?", &search.machine, Type::TEXT);
    }
    if let Some(place) = &search.after {
        // Redundant, but usable by indexes and for partition pruning.
        add("e.time <= ?", &place.time, Type::TIMESTAMPTZ);
        add("(e.time < ?", &place.time, Type::TIMESTAMPTZ);
        fits.push_str(" OR ");
        params.push((&place.id, Type::UUID));
        fits.push_str(&format!("e.id < ${})", params.len()));
    }
    let newest = |and: &str| {
        format!(
            "LATERAL (SELECT e.class, e.time, e.id, e.chain, e.seq, e.entry FROM audit_events e WHERE {fits}{and}
             ORDER BY e.time DESC, e.id DESC LIMIT $2) AS found"
        )
    };
    let of = "SELECT found.* FROM unnest($1) AS of (class)";
    let all = if search.subjects.is_empty() {
        format!("{of}, {}", newest(""))
    } else {
        params.push((&search.subjects, Type::TEXT_ARRAY));
        let about = |column: &str| {
            let meant = format!(" AND e.{column} = about.subject");
            format!("{of}, unnest(${}) AS about (subject), {}", params.len(), newest(&meant))
        };
        // Not `UNION ALL`: an entry may match as actor and as client.
        format!("{} UNION {}", about("actor"), about("client"))
    };
    let statement =
        format!("SELECT class, time, id, chain, seq, entry FROM ({all}) AS found ORDER BY time DESC, id DESC LIMIT $2");
    (statement, params)
}
