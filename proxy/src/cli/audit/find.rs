//! `outrigger audit search`, and finding entries for the other commands, in the spool and in PostgreSQL.

use std::cmp::Reverse;
mod show;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use memchr::memmem;
use outrigger_policy::audit::{Class, EventType, Outcome};
use outrigger_rules::units::Span;
use outrigger_trail::entry::Entry;
use outrigger_trail::keys::{MasterKeys, WrappedKey};
use outrigger_trail::layout;
use outrigger_trail::lines::Lines;
use outrigger_trail::store::search::{self, LARGEST_PAGE, Search};
use outrigger_trail::store::subjects;
use serde_json::{Map, Value};

pub(super) use self::show::show;
use super::act::{Act, record_first};
use super::database::Database;
use super::{AuditError, By, Context, Place, Subject, text};

/// Options of `outrigger audit search`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The location.
    #[command(flatten)]
    pub place: Place,
    /// Only entries since this time: RFC 3339, or how long ago, such as 2h or 3d.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only entries before this time: RFC 3339, or how long ago.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Only this type, such as data.read; may be given several times.
    #[arg(long = "type", value_name = "TYPE", value_parser = event)]
    types: Vec<EventType>,
    /// Only this class, such as data; may be given several times.
    #[arg(long, value_parser = class)]
    class: Vec<Class>,
    /// Only entries about user:NAME, key:NAME or address:IP.
    #[arg(long)]
    subject: Option<Subject>,
    /// Only entries of this request.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Only this outcome: success, failure, error or refused.
    #[arg(long, value_parser = outcome)]
    outcome: Option<Outcome>,
    /// Only entries of this Machine.
    #[arg(long)]
    machine: Option<String>,
    /// Only entries of this route.
    #[arg(long)]
    route: Option<String>,
    /// The most entries to show.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Decrypt the actor's name and address.
    #[arg(long)]
    reveal: bool,
    /// The operator.
    #[command(flatten)]
    by: By,
}

/// Parses a time: `2026-11-24T14:00:00Z`, or `2h` for two hours ago.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(span) = text.parse::<Span>() {
        return Timestamp::now().checked_sub(span.0).map_err(|e| e.to_string());
    }
    text.parse().map_err(|_| "write a time such as 2026-11-24T14:00:00Z, or how long ago, such as 2h or 3d".to_owned())
}

pub(super) fn class(name: &str) -> Result<Class, String> {
    let all = || Class::ALL.map(Class::name).join(", ");
    Class::named(name).ok_or_else(|| format!("write one of {}", all()))
}

fn event(name: &str) -> Result<EventType, String> {
    EventType::named(name).ok_or_else(|| format!("write one of {}", EventType::ALL.map(EventType::name).join(", ")))
}

fn outcome(name: &str) -> Result<Outcome, String> {
    Outcome::named(name).ok_or_else(|| format!("write one of {}", Outcome::ALL.map(Outcome::name).join(", ")))
}

/// The conditions of a search; an entry must meet all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
    pub(super) types: Vec<EventType>,
    pub(super) classes: Vec<Class>,
    /// Pseudonyms, as actor or client.
    pub(super) subjects: Vec<String>,
    pub(super) request_id: Option<String>,
    pub(super) outcome: Option<Outcome>,
    pub(super) machine: Option<String>,
    pub(super) route: Option<String>,
    pub(super) limit: usize,
}

impl Query {
    /// Whether the line can match, decided without parsing its JSON.
    fn can_fit(&self, line: &[u8]) -> bool {
        self.subjects.is_empty() || self.subjects.iter().any(|subject| memmem::find(line, subject.as_bytes()).is_some())
    }

    fn fits(&self, entry: &Entry<'_>, time: Timestamp) -> bool {
        let is = |wanted: &Option<String>, there: Option<&str>| wanted.as_deref().is_none_or(|w| there == Some(w));
        self.since.is_none_or(|since| time >= since)
            && self.until.is_none_or(|until| time < until)
            && (self.types.is_empty() || self.types.iter().any(|event| event.name() == entry.event))
            && (self.classes.is_empty() || self.classes.iter().any(|class| class.name() == entry.class))
            && (self.subjects.is_empty()
                || self.subjects.iter().any(|s| entry.actor.id == s || entry.client == Some(s.as_str())))
            && is(&self.request_id, entry.request_id.as_deref())
            && self.outcome.is_none_or(|outcome| outcome.name() == entry.outcome)
            && is(&self.machine, Some(&entry.machine))
            && is(&self.route, entry.route.as_deref())
    }

    /// The search as recorded in the audit log: with pseudonyms instead of names.
    fn details(&self) -> Map<String, Value> {
        let mut details = Map::new();
        let mut say = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                details.insert(name.to_owned(), value);
            }
        };
        let list = |names: Vec<&str>| (!names.is_empty()).then(|| Value::from(names));
        say("since", self.since.map(|time| time.to_string().into()));
        say("until", self.until.map(|time| time.to_string().into()));
        say("types", list(self.types.iter().map(|event| event.name()).collect()));
        say("classes", list(self.classes.iter().map(|class| class.name()).collect()));
        say("subjects", list(self.subjects.iter().map(String::as_str).collect()));
        say("request_id", self.request_id.clone().map(Value::from));
        say("outcome", self.outcome.map(|outcome| outcome.name().into()));
        say("machine", self.machine.clone().map(Value::from));
        say("route", self.route.clone().map(Value::from));
        details
    }
}

/// A matching entry. Ordered by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hit {
    time: Timestamp,
    id: String,
    pub(super) line: String,
}

impl Hit {
    /// A line, to decrypt its values.
    pub(super) fn of(line: &str) -> Self {
        Self { time: Timestamp::UNIX_EPOCH, id: String::new(), line: line.to_owned() }
    }
}

/// Finds the newest matching entries, newest first, in the spool and in PostgreSQL. An entry in both is returned once.
pub(super) fn find(
    context: &Context,
    directory: Option<&Path>,
    database: Option<&Database>,
    query: &Query,
) -> Result<Vec<Hit>, AuditError> {
    let mut hits = match directory {
        Some(directory) => in_spool(directory, query, context.place.json)?,
        None => Vec::new(),
    };
    if let Some(database) = database {
        let known: HashSet<String> = hits.iter().map(|hit| hit.id.clone()).collect();
        let stored = context.runtime.block_on(in_database(database, query))?;
        hits.extend(stored.into_iter().filter(|hit| !known.contains(&hit.id)));
    }
    hits.sort_unstable_by(|a, b| b.cmp(a));
    hits.truncate(query.limit);
    Ok(hits)
}

fn in_spool(directory: &Path, query: &Query, json: bool) -> Result<Vec<Hit>, AuditError> {
    let segments = layout::segments(directory).map_err(AuditError::file(directory))?;
    let bar = text::progress(json, "searching");
    bar.set_length(segments.iter().filter_map(|s| s.path.metadata().ok()).map(|file| file.len()).sum());
    let mut newest: BinaryHeap<Reverse<Hit>> = BinaryHeap::new();
    for class in Class::ALL.into_iter().filter(|c| query.classes.is_empty() || query.classes.contains(c)) {
        for segment in segments.iter().rev().filter(|segment| segment.class == class) {
            let file = match std::fs::File::open(&segment.path) {
                Ok(file) => file,
                // Retention has removed it meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(AuditError::File { path: segment.path.clone(), source }),
            };
            let mut lines = Lines::new(file);
            // In this segment.
            let mut latest = None;
            while let Some(line) = lines.take().map_err(AuditError::file(&segment.path))? {
                if !line.is_whole || !line.bytes.starts_with(b"{\"seq\":") {
                    continue;
                }
                let is_timed = query.since.is_some() || newest.len() >= query.limit;
                if !query.can_fit(line.bytes) && !is_timed {
                    continue;
                }
                let Ok(entry) = Entry::parse(line.bytes) else { continue };
                let Ok(time) = entry.time.parse::<Timestamp>() else { continue };
                latest = latest.max(Some(time));
                let is_too_old =
                    newest.len() >= query.limit && newest.peek().is_some_and(|Reverse(hit)| time < hit.time);
                if is_too_old || !query.fits(&entry, time) {
                    continue;
                }
                let Ok(text) = std::str::from_utf8(line.bytes) else { continue };
                newest.push(Reverse(Hit { time, id: entry.id.to_owned(), line: text.to_owned() }));
                if newest.len() > query.limit {
                    newest.pop();
                }
            }
            bar.inc(lines.read());
            // Earlier segments are even older.
            let oldest_wanted =
                (newest.len() >= query.limit).then(|| newest.peek().map(|Reverse(hit)| hit.time)).flatten();
            if latest.is_some_and(|latest| {
                query.since.is_some_and(|since| latest < since) || oldest_wanted.is_some_and(|oldest| latest < oldest)
            }) {
                break;
            }
        }
    }
    bar.finish_and_clear();
    Ok(newest.into_iter().map(|Reverse(hit)| hit).collect())
}

async fn in_database(database: &Database, query: &Query) -> Result<Vec<Hit>, AuditError> {
    let page = i64::try_from(query.limit).unwrap_or(i64::MAX).min(LARGEST_PAGE);
    let mut search = Search {
        from: query.since,
        until: query.until,
        classes: query.classes.clone(),
        types: query.types.iter().map(|event| event.name().to_owned()).collect(),
        subjects: query.subjects.clone(),
        request_id: query.request_id.clone(),
        outcome: query.outcome,
        machine: query.machine.clone(),
        limit: page,
        after: None,
    };
    let mut hits = Vec::new();
    loop {
        let found = search::search(&database.client, &search).await?;
        let is_last = (found.len() as i64) < page;
        search.after = found.last().map(|found| found.place);
        for found in found {
            let fits = Entry::parse(found.line.as_bytes())
                .is_ok_and(|entry| query.route.as_deref().is_none_or(|route| entry.route.as_deref() == Some(route)));
            if fits {
                hits.push(Hit { time: found.place.time, id: found.place.id.to_string(), line: found.line });
            }
        }
        if is_last || hits.len() >= query.limit {
            hits.truncate(query.limit);
            return Ok(hits);
        }
    }
}

/// Decrypts values of entries.
pub(super) struct Opener {
    master: MasterKeys,
    keys: HashMap<String, WrappedKey>,
}

impl Opener {
    /// Loads only the data keys that these lines name; if `of` is given, only those of lines with one of these actors.
    pub(super) fn new(
        context: &Context,
        directory: Option<&Path>,
        database: Option<&Database>,
        hits: &[Hit],
        of: Option<&[String]>,
    ) -> Result<Self, AuditError> {
        let mut wanted = BTreeSet::new();
        for hit in hits {
            if let Ok(entry) = Entry::parse(hit.line.as_bytes())
                && of.is_none_or(|subjects| subjects.iter().any(|subject| entry.actor.id == subject))
                && let Some(id) = entry.sealed
            {
                wanted.insert(id.to_owned());
            }
        }
        let mut keys = HashMap::new();
        if let Some(directory) = directory {
            for segment in layout::segments(directory).map_err(AuditError::file(directory))? {
                let path = segment.keys();
                let content = match std::fs::read(&path) {
                    Ok(content) => content,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(source) => return Err(AuditError::File { path, source }),
                };
                let read =
                    content.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<WrappedKey>(line).ok());
                keys.extend(read.filter(|key| wanted.contains(&key.id)).map(|key| (key.id.clone(), key)));
            }
        }
        if let Some(database) = database {
            let missing: Vec<String> = wanted.into_iter().filter(|id| !keys.contains_key(id)).collect();
            for ids in missing.chunks(10_000) {
                let found = context.runtime.block_on(subjects::keys_named(&database.client, ids))?;
                keys.extend(found.into_iter().map(|key| (key.id.clone(), key)));
            }
        }
        Ok(Self { master: context.keys()?, keys })
    }

    /// Decrypts the actor and the address, if the key still exists.
    pub(super) fn open(&self, entry: &Entry<'_>) -> Option<BTreeMap<String, String>> {
        let wrapped = self.keys.get(entry.sealed?)?;
        let plain = self.master.unwrap_key(wrapped).ok()?.open(&wrapped.sealed)?;
        let mut plain: BTreeMap<String, String> = serde_json::from_slice(&plain).ok()?;
        // If the actor is the address, it is stored only once.
        if let Some(address) = plain.get("actor").and_then(|actor| actor.strip_prefix("address:")).map(str::to_owned) {
            plain.entry("address".to_owned()).or_insert(address);
        }
        Some(plain)
    }
}

/// A line with its decrypted values as the last member.
pub(super) fn with_revealed(line: &str, revealed: Option<&BTreeMap<String, String>>) -> String {
    let Some(revealed) = revealed else { return line.to_owned() };
    // Strings only: serializing them cannot fail.
    let revealed = serde_json::to_string(revealed).unwrap_or_default();
    format!("{},\"revealed\":{revealed}}}", line.strip_suffix('}').unwrap_or(line))
}

/// Runs `outrigger audit search`.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode, AuditError> {
    let subjects = match &options.subject {
        Some(subject) => context.keys()?.pseudonyms(&subject.0).unwrap_or_default(),
        None => Vec::new(),
    };
    let query = Query {
        since: options.since,
        until: options.until,
        types: options.types.clone(),
        classes: options.class.clone(),
        subjects,
        request_id: options.request_id.clone(),
        outcome: options.outcome,
        machine: options.machine.clone(),
        route: options.route.clone(),
        limit: options.limit as usize,
    };
    let (text, _) = searched(context, &query, options.reveal, &options.by)?;
    Ok(crate::cli::say(&text))
}

/// The entries of a request.
pub(super) fn of_request(context: &Context, search: super::Search) -> Result<String, AuditError> {
    let super::Search { request, since, reveal, by } = search;
    let query = Query { since: Some(since), request_id: Some(request), limit: 100, ..Query::default() };
    let (text, found) = searched(context, &query, reveal, &by)?;
    Ok(if found > 0 { text } else { String::new() })
}

/// Searches, and records that. Returns the text, and how many entries were found.
fn searched(context: &Context, query: &Query, reveal: bool, by: &By) -> Result<(String, usize), AuditError> {
    let database = context.database()?;
    let directory = context.directory.as_deref();
    if directory.is_none() && database.is_none() {
        return Err(AuditError::NoDirectory);
    }
    let hits = find(context, directory, database.as_ref(), query)?;
    let opener = match reveal {
        true => Some(Opener::new(context, directory, database.as_ref(), &hits, None)?),
        false => None,
    };
    let mut details = query.details();
    details.insert("found".to_owned(), hits.len().into());
    details.insert("revealed".to_owned(), reveal.into());
    let act = Act {
        event: EventType::AdminAction,
        action: "audit.search",
        outcome: Outcome::Success,
        by,
        subject: None,
        details,
    };
    record_first(context, &act)?;
    Ok((show(&hits, opener.as_ref(), context.place.json), hits.len()))
}

#[cfg(test)]
mod tests;
