//! `outrigger audit export`: all entries about one subject, for the subject (GDPR, Art. 15 and 20).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use outrigger_policy::audit::{EventType, Outcome};
use outrigger_trail::entry::Entry;
use serde_json::{Map, Value};

use super::act::{Act, record_first};
use super::find::{Hit, Opener, Query, find, moment, with_revealed};
use super::{AuditError, By, Context, Place, Subject, text};

/// The most entries that are held in memory at once.
const MOST: usize = 500_000;

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object per line: the entry as stored, and its decrypted values.
    Jsonl,
    /// CSV, for spreadsheets.
    Csv,
}

/// Options of `outrigger audit export`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The location.
    #[command(flatten)]
    pub place: Place,
    /// The subject: user:NAME, key:NAME or address:IP.
    #[arg(long)]
    subject: Subject,
    /// The output format.
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    /// The output file; it must not exist yet. Default: standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only entries since this time: RFC 3339, or how long ago, such as 2h or 3d.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only entries before this time: RFC 3339, or how long ago.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// The operator.
    #[command(flatten)]
    by: By,
}

/// Runs `outrigger audit export`. An entry is about the subject if the subject is its actor or its client. Values are
/// decrypted only if the subject is the actor: in other entries, they name somebody else.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode, AuditError> {
    let subjects = context.keys()?.pseudonyms(&options.subject.0).unwrap_or_default();
    let database = context.database()?;
    let directory = context.directory.as_deref();
    if directory.is_none() && database.is_none() {
        return Err(AuditError::NoDirectory);
    }
    let query = Query {
        since: options.since,
        until: options.until,
        subjects: subjects.clone(),
        limit: MOST + 1,
        ..Query::default()
    };
    let mut hits = find(context, directory, database.as_ref(), &query)?;
    if hits.len() > MOST {
        return Err(AuditError::Refused(format!(
            "there are more than {} entries: export them in parts, with --since and --until",
            text::grouped(MOST as u64)
        )));
    }
    hits.reverse();
    let opener = Opener::new(context, directory, database.as_ref(), &hits, Some(&subjects))?;
    let mut details = Map::new();
    details.insert("subjects".to_owned(), Value::from(subjects));
    details.insert("found".to_owned(), hits.len().into());
    let act = Act {
        event: EventType::AccessRequest,
        action: "export",
        outcome: Outcome::Success,
        by: &options.by,
        subject: Some(&options.subject),
        details,
    };
    // Before the entry is added, so that no entry claims an export that could not be written.
    let file = options.output.as_deref().map(create).transpose()?;
    if let Err(e) = record_first(context, &act) {
        if let Some(path) = &options.output {
            let _ = std::fs::remove_file(path);
        }
        return Err(e);
    }
    let content = match options.format {
        Format::Jsonl => jsonl(&hits, &opener),
        Format::Csv => csv(&hits, &opener),
    };
    let Some((mut file, path)) = file.zip(options.output.as_deref()) else {
        return Ok(crate::cli::say(&content));
    };
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(AuditError::file(path))?;
    let said = format!("{} entries in {}\n", text::grouped(hits.len() as u64), text::safe(&path.display().to_string()));
    Ok(crate::cli::say(&said))
}

/// Creates a file that only its owner can read.
pub(super) fn create(path: &Path) -> Result<std::fs::File, AuditError> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.map_err(AuditError::file(path))
}

fn jsonl(hits: &[Hit], opener: &Opener) -> String {
    let mut out = String::new();
    for hit in hits {
        let revealed = Entry::parse(hit.line.as_bytes()).ok().and_then(|entry| opener.open(&entry));
        out.push_str(&text::safe_json(&with_revealed(&hit.line, revealed.as_ref())));
        out.push('\n');
    }
    out
}

const COLUMNS: [&str; 19] = [
    "time",
    "class",
    "type",
    "action",
    "outcome",
    "status",
    "method",
    "route",
    "resource",
    "headers",
    "actor",
    "client",
    "who",
    "address",
    "reason",
    "request_id",
    "machine",
    "details",
    "id",
];

fn csv(hits: &[Hit], opener: &Opener) -> String {
    let mut out = COLUMNS.join(",");
    out.push_str("\r\n");
    for hit in hits {
        let Ok(entry) = Entry::parse(hit.line.as_bytes()) else { continue };
        let revealed = opener.open(&entry).unwrap_or_default();
        let status = entry.status.map_or_else(String::new, |status| status.to_string());
        let of = |name: &str| revealed.get(name).map_or("", String::as_str);
        let fields = [
            entry.time,
            entry.class,
            entry.event,
            &entry.action,
            entry.outcome,
            &status,
            entry.method.as_deref().unwrap_or_default(),
            entry.route.as_deref().unwrap_or_default(),
            entry.resource.map_or("", |value| value.get()),
            entry.headers.map_or("", |value| value.get()),
            entry.actor.id,
            entry.client.unwrap_or_default(),
            of("actor"),
            of("address"),
            entry.reason.as_deref().unwrap_or_default(),
            entry.request_id.as_deref().unwrap_or_default(),
            &entry.machine,
            entry.details.map_or("", |value| value.get()),
            entry.id,
        ];
        out.push_str(&fields.map(text::csv).join(","));
        out.push_str("\r\n");
    }
    out
}
