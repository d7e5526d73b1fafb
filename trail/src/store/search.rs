//! Finding entries: newest first, a page at a time.

use jiff::Timestamp;
use outrigger_policy::audit::{Class, Outcome};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::{Param, StoreError};

/// The most entries of a page.
pub const LARGEST_PAGE: i64 = 10_000;

/// What is looked for: everything that is given must fit. The default fits all.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Not before this moment.
    pub from: Option<Timestamp>,
    /// Before this moment.
    pub until: Option<Timestamp>,
    /// Of these classes; empty: of any.
    pub classes: Vec<Class>,
    /// Of these types, as entries name them; empty: of any.
    pub types: Vec<String>,
    /// About one of these pseudonyms, as actor or client; empty: about anybody.
    pub subjects: Vec<String>,
    /// Of this request.
    pub request_id: Option<String>,
    /// That ended so.
    pub outcome: Option<Outcome>,
    /// Of this Machine.
    pub machine: Option<String>,
    /// At most so many: 1 to [`LARGEST_PAGE`].
    pub limit: i64,
    /// After the last of the page before.
    pub after: Option<Place>,
}

/// Where an entry stands among all: the page after it begins there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its time.
    pub time: Timestamp,
    /// Its name.
    pub id: Uuid,
}

/// An entry that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it stands.
    pub place: Place,
    /// Its class.
    pub class: String,
    /// Its chain; [`super::APP_CHAIN`] for what the app has entered by itself.
    pub chain: String,
    /// Its number there, if its chain has any.
    pub seq: Option<i64>,
    /// The exact line.
    pub line: String,
}

/// The newest entries that fit, newest first.
///
/// # Errors
/// The limit is out of range; PostgreSQL did not tell.
pub async fn search(client: &Client, search: &Search) -> Result<Vec<Found>, StoreError> {
    if !(1..=LARGEST_PAGE).contains(&search.limit) {
        return Err(StoreError::Invalid(format!("a page has 1 to {LARGEST_PAGE} entries, not {}", search.limit)));
    }
    let classes: Vec<&str> = match search.classes.as_slice() {
        [] => Class::ALL.iter().map(|class| class.name()).collect(),
        some => some.iter().map(|class| class.name()).collect(),
    };
    let outcome = search.outcome.map(Outcome::name);
    let (statement, params) = compose(search, &classes, &outcome);
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

/// The statement. For each class, and for each way in which a subject can be meant, the newest are read from an index, in order and
/// no more than a page; then the newest of those. So the time depends on the page's size, not on how many entries fit.
pub fn compose<'a>(
    search: &'a Search,
    classes: &'a Vec<&'a str>,
    outcome: &'a Option<&'a str>,
) -> (String, Vec<Param<'a>>) {
    let mut params: Vec<Param<'a>> = vec![(classes, Type::TEXT_ARRAY), (&search.limit, Type::INT8)];
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
    if outcome.is_some() {
        add("e.outcome = ?", outcome, Type::TEXT);
    }
    if search.machine.is_some() {
        add("e.machine = ?", &search.machine, Type::TEXT);
    }
    if let Some(place) = &search.after {
        // The first condition says the same with less, and is what an index and the partitions understand.
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
        // Not `UNION ALL`: one entry may be meant twice.
        format!("{} UNION {}", about("actor"), about("client"))
    };
    let statement =
        format!("SELECT class, time, id, chain, seq, entry FROM ({all}) AS found ORDER BY time DESC, id DESC LIMIT $2");
    (statement, params)
}
