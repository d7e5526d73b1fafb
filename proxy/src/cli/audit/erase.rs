//! `outrigger audit erase`: destroys the data keys of a subject, and gives a receipt for it.
//!
//! What was written about the subject stays where it is, so the trail still verifies; but who it was can no longer be read, neither
//! here nor in any copy or backup of the trail. (A backup of the *keys* has to be destroyed as well.)

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;
use outrigger_policy::audit::{EventType, Outcome};
use outrigger_trail::holds::Holds;
use outrigger_trail::layout;
use outrigger_trail::store::subjects;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::act::{Act, Entered, Writer, chain_of};
use super::{AuditError, By, Context, Place, Subject, now, text};

/// Who is forgotten.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Where.
    #[command(flatten)]
    pub place: Place,
    /// Who: user:NAME, key:NAME or address:IP.
    #[arg(long)]
    subject: Subject,
    /// There is no PostgreSQL that entries are shipped to: without it, keys that were shipped would stay.
    #[arg(long, conflicts_with = "database")]
    without_database: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Who acts.
    #[command(flatten)]
    by: By,
}

/// How many keys were destroyed where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destroyed {
    /// `None`: there is no database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<u64>,
    /// In the spool, and in the program that writes it.
    pub spool: u64,
}

/// What proves an erasure: signed, and entered into the trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The version of the format: 1.
    pub receipt: u32,
    /// The pseudonyms.
    pub subjects: Vec<String>,
    /// What was destroyed.
    pub keys: Destroyed,
    /// Who did it.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When, RFC 3339.
    pub at: String,
    /// The entry that says so: its id.
    pub entry: String,
    /// Its chain.
    pub chain: String,
    /// Its class.
    pub class: String,
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
    /// The key that signs.
    pub key: String,
}

/// `outrigger audit erase`.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode, AuditError> {
    let keys = context.keys()?;
    let directory = context.directory()?;
    let chain = chain_of(context)?;
    let subjects = keys.pseudonyms(&options.subject.0).unwrap_or_default();
    if context.place.database.is_none() && !options.without_database {
        return Err(AuditError::Refused(
            "keys that were shipped are in PostgreSQL: name it with --database, or say --without-database".to_owned(),
        ));
    }
    if let Some(hold) = Holds::read(directory)?.keeps_subject(&subjects) {
        return Err(AuditError::Refused(format!(
            "hold {} of {} keeps what is about this subject ({}); release it first, if it may be",
            hold.id, hold.by, hold.reason
        )));
    }
    if !options.yes {
        confirm(&options.subject, &subjects)?;
    }
    let mut database = context.database()?;

    // First of all: what cannot be entered is not done.
    let not_entered = |e| AuditError::NotEntered(Box::new(e));
    let mut details = Map::new();
    details.insert("subjects".to_owned(), Value::from(subjects.clone()));
    let begun = Act {
        event: EventType::AdminAction,
        action: "audit.erase",
        outcome: Outcome::Success,
        by: &options.by,
        subject: None,
        details,
    };
    let mut writer = Writer::find(context).map_err(not_entered)?;
    writer.enter(context, &begun).map_err(not_entered)?;

    let reason = options.by.reason.as_deref();
    let mut erasures = Vec::new();
    let mut postgres = None;
    if let Some(database) = &mut database {
        erasures =
            context.runtime.block_on(subjects::erase(&mut database.client, &subjects, &options.by.by, reason))?;
        postgres = Some(erasures.iter().map(|erasure| u64::try_from(erasure.keys).unwrap_or_default()).sum());
    }
    let spool = writer.forget(context, &subjects).map_err(|e| half(postgres, &e))?;
    let at = now().to_string();
    let destroyed = Destroyed { postgres, spool };
    let mut details = Map::new();
    details.insert("subjects".to_owned(), Value::from(subjects.clone()));
    details.insert("keys".to_owned(), serde_json::to_value(&destroyed).unwrap_or_default());
    details.insert("at".to_owned(), Value::from(at.as_str()));
    let done = Act {
        event: EventType::ErasureRequest,
        action: "erase",
        outcome: Outcome::Success,
        by: &options.by,
        subject: None,
        details,
    };
    let Entered { id, class, seq, hash } = writer.enter(context, &done).map_err(|e| {
        AuditError::Refused(format!(
            "the keys are destroyed, but there is no receipt, since it cannot be entered: {e}; run it again"
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

fn half(postgres: Option<u64>, error: &AuditError) -> AuditError {
    let done = match postgres {
        Some(keys) => format!("the {keys} keys in PostgreSQL are destroyed, those in the spool are not"),
        None => "nothing was destroyed".to_owned(),
    };
    AuditError::Refused(format!("{done}: {error}; run it again once that is mended"))
}

fn confirm(subject: &Subject, subjects: &[String]) -> Result<(), AuditError> {
    let refused = |problem: &str| Err(AuditError::Refused(problem.to_owned()));
    if !io::stdin().is_terminal() {
        return refused("nothing was done: nobody is there to be asked; say --yes");
    }
    let name = text::safe(&subject.0);
    let question = format!(
        "This destroys the keys of {name} ({}), for ever: nobody will be able to read who that was.\n\
         Write {name} to go on: ",
        subjects.join(", ")
    );
    let _ = write!(io::stderr(), "{question}");
    let mut answer = String::new();
    // A line that is longer than any subject is no answer.
    let read = io::stdin().lock().take_line(&mut answer);
    if read.is_err() || answer.trim_end() != subject.0 {
        return refused("nothing was done");
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
        // Writing to a string does not fail.
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
