//! `outrigger audit erase`: destroys the data keys of a subject and prints a receipt.
//!
//! Entries about the subject stay, so the audit log still verifies; but the subject's name can no longer be decrypted,
//! neither here nor in any copy or backup of the audit log. (Backups of the *keys* have to be destroyed as well.)

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;
use outrigger_policy::audit::{EventType, Outcome};
use outrigger_trail::holds::Holds;
use outrigger_trail::layout;
use outrigger_trail::spool;
use outrigger_trail::store::StoreError;
use outrigger_trail::store::subjects::{self, Erasure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::act::{Act, Recorded, Writer, chain_of};
use super::database::Database;
use super::{AuditError, By, Context, Place, Subject, now, text};

/// Options of `outrigger audit erase`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The location.
    #[command(flatten)]
    pub place: Place,
    /// The subject: user:NAME, key:NAME or address:IP.
    #[arg(long)]
    subject: Subject,
    /// Confirm that entries are not shipped to PostgreSQL; otherwise, shipped keys would remain there.
    #[arg(long, conflicts_with = "database")]
    without_database: bool,
    /// Erase even if no key of the subject is found: another Machine may have keys that it has not shipped.
    #[arg(long)]
    even_if_unknown: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    /// The operator.
    #[command(flatten)]
    by: By,
}

/// The number of destroyed keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destroyed {
    /// In PostgreSQL; `None` without a database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<u64>,
    /// In the spool, and in the program that writes it.
    pub spool: u64,
}

/// The proof of an erasure: signed, and recorded in the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The version of the format: 1.
    pub receipt: u32,
    /// The subject's pseudonyms.
    pub subjects: Vec<String>,
    /// The destroyed keys.
    pub keys: Destroyed,
    /// The operator.
    pub by: String,
    /// The reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The time, RFC 3339.
    pub at: String,
    /// The id of the entry about it.
    pub entry: String,
    /// The entry's chain.
    pub chain: String,
    /// The entry's class.
    pub class: String,
    /// The entry's number.
    pub seq: u64,
    /// The entry's hash.
    pub hash: String,
    /// The id of the key that signs.
    pub key: String,
}

/// Runs `outrigger audit erase`.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode, AuditError> {
    let keys = context.keys()?;
    let chain = chain_of(context)?;
    let subjects = keys.pseudonyms(&options.subject.0).unwrap_or_default();
    if context.place.database.is_none() && !options.without_database {
        return Err(AuditError::Refused(
            "shipped keys are in PostgreSQL: name it with --database, or use --without-database".to_owned(),
        ));
    }
    let mut database = context.database()?;
    let not_entered = |e| AuditError::NotRecorded(Box::new(e));
    if let Some(refusal) = refusal(context, options, &subjects, database.as_ref())? {
        let mut writer = Writer::find(context).map_err(not_entered)?;
        writer.enter(context, &ended(options, &subjects, &refusal)).map_err(not_entered)?;
        writer.close()?;
        return Err(AuditError::Refused(refusal.problem));
    }
    if !options.yes {
        confirm(&options.subject, &subjects)?;
    }

    // First: without an entry, no erasure.
    let begun = begun(options, &subjects);
    let mut writer = Writer::find(context).map_err(not_entered)?;
    writer.enter(context, &begun).map_err(not_entered)?;

    let mut erasures = Vec::new();
    let destroyed = destroy(context, options, &subjects, database.as_mut(), &mut writer, &mut erasures);
    let destroyed = match destroyed {
        Ok(destroyed) => destroyed,
        Err(failed) => {
            // The start has its entry already; add one about the failure, if possible.
            let entered = writer.enter(context, &ended(options, &subjects, &failed));
            let problem = match entered {
                Ok(_) => failed.problem,
                Err(e) => format!("{}; this result could not be recorded: {e}", failed.problem),
            };
            writer.close()?;
            return Err(AuditError::Refused(problem));
        }
    };
    let at = now().to_string();
    let done = done(options, &subjects, &destroyed, &at);
    let Recorded { id, class, seq, hash } = writer.enter(context, &done).map_err(|e| {
        AuditError::Refused(format!(
            "the keys are destroyed, but there is no receipt, since the entry cannot be written: {e}; run it again"
        ))
    })?;
    writer.close()?;
    let receipt = Receipt {
        receipt: 1,
        subjects,
        keys: destroyed,
        by: options.by.by.clone(),
        reason: options.by.reason.clone(),
        at,
        entry: id,
        chain,
        class,
        seq,
        hash,
        key: keys.current_id().to_owned(),
    };
    let line = String::from_utf8_lossy(&layout::sign(&receipt, &keys)).into_owned();
    if let Some(database) = &database {
        let numbers: Vec<i64> = erasures.iter().map(|erasure| erasure.erased.number).collect();
        context.runtime.block_on(subjects::set_receipt(&database.client, &numbers, &line))?;
    }
    Ok(crate::cli::say(&show(&receipt, &line, context.place.json)))
}

/// The entry before the erasure.
fn begun<'a>(options: &'a Options, subjects: &[String]) -> Act<'a> {
    let mut details = Map::new();
    details.insert("subjects".to_owned(), Value::from(subjects));
    details.insert("step".to_owned(), Value::from("asked for"));
    Act {
        event: EventType::AdminAction,
        action: "audit.erase",
        outcome: Outcome::Success,
        by: &options.by,
        subject: None,
        details,
    }
}

/// The entry about the erasure, to which the receipt refers.
fn done<'a>(options: &'a Options, subjects: &[String], destroyed: &Destroyed, at: &str) -> Act<'a> {
    let mut details = Map::new();
    details.insert("subjects".to_owned(), Value::from(subjects));
    details.insert("keys".to_owned(), serde_json::to_value(destroyed).unwrap_or_default());
    details.insert("at".to_owned(), Value::from(at));
    Act {
        event: EventType::ErasureRequest,
        action: "erase",
        outcome: Outcome::Success,
        by: &options.by,
        subject: None,
        details,
    }
}

/// Why no keys, or only some, were destroyed.
struct Ended {
    outcome: Outcome,
    problem: String,
}

/// Why the erasure must not start: a hold, or no keys to destroy.
fn refusal(
    context: &Context,
    options: &Options,
    subjects: &[String],
    database: Option<&Database>,
) -> Result<Option<Ended>, AuditError> {
    let directory = context.directory()?;
    if let Some(hold) = Holds::read(directory)?.keeps_subject(subjects) {
        let problem = format!(
            "hold {} of {} covers this subject ({}); release it first, if that is permitted",
            hold.id, hold.by, hold.reason
        );
        return Ok(Some(Ended { outcome: Outcome::Refused, problem }));
    }
    if spool::count_keys(directory, subjects)? > 0 || options.even_if_unknown {
        return Ok(None);
    }
    let mut earlier = None;
    if let Some(Database { client }) = database {
        if !context.runtime.block_on(subjects::keys_of(client, subjects))?.is_empty() {
            return Ok(None);
        }
        earlier = context.runtime.block_on(subjects::erasures_of(client, subjects))?.pop();
    }
    let at =
        if database.is_some() { "neither the spool here nor PostgreSQL has" } else { "the spool here does not have" };
    let before = earlier.map_or(String::new(), |earlier| format!("; it was already erased at {}", earlier.erased.at));
    let problem = format!(
        "{} ({}) is unknown: {at} a data key of this subject{before}; no key was destroyed. If another Machine may have entries about it \
         that it has not shipped yet, use --even-if-unknown",
        options.subject.0,
        subjects.join(", ")
    );
    Ok(Some(Ended { outcome: Outcome::Failure, problem }))
}

/// The entry about an erasure that did not complete.
fn ended<'a>(options: &'a Options, subjects: &[String], ended: &Ended) -> Act<'a> {
    let mut details = Map::new();
    details.insert("subjects".to_owned(), Value::from(subjects));
    details.insert("problem".to_owned(), Value::from(ended.problem.as_str()));
    Act {
        event: EventType::ErasureRequest,
        action: "audit.erase",
        outcome: ended.outcome,
        by: &options.by,
        subject: None,
        details,
    }
}

fn destroy(
    context: &Context,
    options: &Options,
    subjects: &[String],
    database: Option<&mut Database>,
    writer: &mut Writer,
    erasures: &mut Vec<Erasure>,
) -> Result<Destroyed, Ended> {
    let mut postgres: Option<u64> = None;
    if let Some(database) = database {
        let By { by, reason } = &options.by;
        let done = context.runtime.block_on(subjects::erase(&mut database.client, subjects, by, reason.as_deref()));
        *erasures = done.map_err(|e| Ended {
            outcome: if matches!(e, StoreError::Held(_)) { Outcome::Refused } else { Outcome::Error },
            problem: AuditError::from(e).to_string(),
        })?;
        postgres = Some(erasures.iter().map(|erasure| u64::try_from(erasure.keys).unwrap_or_default()).sum());
    }
    // A subject with keys in PostgreSQL is known, even if the spool here has no key.
    let known = postgres.unwrap_or(0).max(options.even_if_unknown.into());
    let spool = writer.forget(context, subjects, &options.by, known).map_err(|e| {
        let done = match postgres {
            Some(keys) => format!("the {keys} keys in PostgreSQL are destroyed, those in the spool are not"),
            None => "no key was destroyed".to_owned(),
        };
        Ended { outcome: Outcome::Error, problem: format!("{done}: {e}; run it again once that is fixed") }
    })?;
    Ok(Destroyed { postgres, spool })
}

fn confirm(subject: &Subject, subjects: &[String]) -> Result<(), AuditError> {
    let refused = |problem: &str| Err(AuditError::Refused(problem.to_owned()));
    if !io::stdin().is_terminal() {
        return refused("no key was destroyed: standard input is not a terminal, so confirm with --yes");
    }
    let name = text::safe(&subject.0);
    let question = format!(
        "This destroys the keys of {name} ({}), for ever: the name can never be decrypted again.\n\
         Write {name} to continue: ",
        subjects.join(", ")
    );
    let _ = write!(io::stderr(), "{question}");
    let mut answer = String::new();
    // A line longer than any subject is not a confirmation.
    let read = io::stdin().lock().take_line(&mut answer);
    if read.is_err() || answer.trim_end() != subject.0 {
        return refused("no key was destroyed");
    }
    Ok(())
}

/// Reads a line of bounded length.
trait TakeLine {
    fn take_line(self, line: &mut String) -> io::Result<usize>;
}

impl<R: BufRead> TakeLine for R {
    fn take_line(self, line: &mut String) -> io::Result<usize> {
        io::Read::take(self, 4096).read_line(line)
    }
}

fn show(receipt: &Receipt, line: &str, json: bool) -> String {
    if json {
        return text::safe_json(line) + "\n";
    }
    let mut out = String::new();
    let mut say = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<10} {}", text::safe(value));
    };
    say("subjects", &receipt.subjects.join(", "));
    let keys = match receipt.keys.postgres {
        Some(postgres) => format!("{postgres} destroyed in PostgreSQL, {} in the spool", receipt.keys.spool),
        None => format!("{} destroyed in the spool", receipt.keys.spool),
    };
    say("keys", &keys);
    say("by", &receipt.by);
    if let Some(reason) = &receipt.reason {
        say("reason", reason);
    }
    say("at", &receipt.at);
    say("entry", &format!("{} of {} in chain {}: {}", receipt.seq, receipt.class, receipt.chain, receipt.entry));
    say("hash", &receipt.hash);
    out.push_str("\nThe receipt; `outrigger audit verify --receipt FILE` verifies it:\n");
    out.push_str(&text::safe_json(line));
    out.push('\n');
    out
}
