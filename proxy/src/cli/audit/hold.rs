//! `outrigger audit hold`: keeps entries beyond their retention. Holds are in the spool's file HOLDS, and in PostgreSQL.

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use outrigger_policy::audit::{Class, EventType, Outcome};
use outrigger_trail::holds::{self, Hold, Holds, Release};
use outrigger_trail::store::subjects;
use serde_json::{Value, json};
use uuid::Uuid;

use super::act::{Act, record_first};
use super::find::class;
use super::{AuditError, By, Context, Place, Subject, now, text};

/// A command for holds.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Keep the entries of a class, about a subject, or of a class about a subject.
    Add(Add),
    /// Release a hold.
    Release(Let),
    /// List holds, including released ones.
    List(Place),
}

/// Options of `outrigger audit hold add`.
#[derive(Clone, Debug, Args)]
pub struct Add {
    /// The location.
    #[command(flatten)]
    place: Place,
    /// Only entries of this class.
    #[arg(long, value_parser = class, required_unless_present = "subject")]
    class: Option<Class>,
    /// Only entries about user:NAME, key:NAME or address:IP.
    #[arg(long)]
    subject: Option<Subject>,
    /// The operator and the reason; a hold needs a reason.
    #[command(flatten)]
    by: By,
}

/// Options of `outrigger audit hold release`.
#[derive(Clone, Debug, Args)]
pub struct Let {
    /// The hold's id, as shown by `outrigger audit hold list`: h-… in the spool, a number in PostgreSQL.
    id: String,
    /// The location.
    #[command(flatten)]
    place: Place,
    /// The operator.
    #[command(flatten)]
    by: By,
}

/// Runs `outrigger audit hold`.
pub(super) fn run(config: &Path, command: &Command) -> Result<ExitCode, AuditError> {
    match command {
        Command::Add(options) => add(&Context::new(config, options.place.clone())?, options),
        Command::Release(options) => release(&Context::new(config, options.place.clone())?, options),
        Command::List(place) => list(&Context::new(config, place.clone())?),
    }
}

fn act<'a>(by: &'a By, action: &'static str, details: &Value) -> Act<'a> {
    Act {
        event: EventType::AdminAction,
        action,
        outcome: Outcome::Success,
        by,
        subject: None,
        details: details.as_object().cloned().unwrap_or_default(),
    }
}

fn add(context: &Context, options: &Add) -> Result<ExitCode, AuditError> {
    let Some(reason) = options.by.reason.as_deref().filter(|reason| !reason.trim().is_empty()) else {
        return Err(AuditError::Refused("a hold needs a --reason".to_owned()));
    };
    let directory = context.directory()?;
    let subjects = match &options.subject {
        Some(subject) => context.keys()?.pseudonyms(&subject.0).unwrap_or_default(),
        None => Vec::new(),
    };
    let mut database = context.database()?;
    let id = format!("h-{}", &Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).simple().to_string()[20..]);
    let class = options.class.map(Class::name);
    let details = json!({ "hold": id, "class": class, "subjects": subjects });
    record_first(context, &act(&options.by, "audit.hold", &details))?;
    let hold = Hold {
        id: id.clone(),
        class: class.map(str::to_owned),
        subjects: subjects.clone(),
        reason: reason.to_owned(),
        by: options.by.by.clone(),
        since: now().to_string(),
        released: None,
    };
    holds::add(directory, &hold)?;
    let mut said = vec![id];
    if let Some(database) = &mut database {
        let by = &options.by.by;
        let hold = subjects::hold(&mut database.client, options.class, &subjects, reason, by);
        said.push(context.runtime.block_on(hold)?.id.to_string());
    }
    if context.place.json {
        return Ok(crate::cli::say(&format!("{}\n", json!({ "holds": said }))));
    }
    Ok(crate::cli::say(&format!("held: {}\n", said.join(" in the spool, in PostgreSQL as "))))
}

fn release(context: &Context, options: &Let) -> Result<ExitCode, AuditError> {
    let unknown = |place: &str| {
        AuditError::Refused(format!("{place} has no active hold {:?}; see `outrigger audit hold list`", options.id))
    };
    let enter = || record_first(context, &act(&options.by, "audit.release", &json!({ "hold": options.id })));
    match options.id.parse::<i64>() {
        Ok(id) => {
            let Some(database) = context.database()? else {
                return Err(AuditError::Refused(
                    "a hold with a number is in PostgreSQL: name it with --database".to_owned(),
                ));
            };
            enter()?;
            context.runtime.block_on(subjects::release(&database.client, id))?.ok_or_else(|| unknown("PostgreSQL"))?;
        }
        Err(_) => {
            let directory = context.directory()?;
            if !Holds::read(directory)?.active().any(|hold| hold.id == options.id) {
                return Err(unknown("the spool"));
            }
            enter()?;
            let release = Release { id: options.id.clone(), by: options.by.by.clone(), at: now().to_string() };
            holds::release(directory, &release)?;
        }
    }
    let said = if context.place.json {
        json!({ "released": options.id }).to_string()
    } else {
        format!("released: {}", options.id)
    };
    Ok(crate::cli::say(&(text::safe_lines(&said) + "\n")))
}

/// A hold in the spool or in PostgreSQL.
struct Shown {
    at: &'static str,
    id: String,
    class: String,
    subjects: String,
    since: String,
    by: String,
    reason: String,
    released: String,
}

fn list(context: &Context) -> Result<ExitCode, AuditError> {
    let mut all = Vec::new();
    if let Some(directory) = &context.directory {
        for hold in Holds::read(directory)?.0 {
            all.push(Shown {
                at: "spool",
                id: hold.id,
                class: hold.class.unwrap_or_default(),
                subjects: hold.subjects.join(" "),
                since: hold.since,
                by: hold.by,
                reason: hold.reason,
                released: hold.released.map(|release| release.at).unwrap_or_default(),
            });
        }
    }
    let database = context.database()?;
    if let Some(database) = &database {
        for hold in context.runtime.block_on(subjects::holds(&database.client))? {
            all.push(Shown {
                at: "postgres",
                id: hold.id.to_string(),
                class: hold.class.map(|class| class.name().to_owned()).unwrap_or_default(),
                subjects: hold.subjects.join(" "),
                since: hold.since.to_string(),
                by: hold.by,
                reason: hold.reason,
                released: hold.released.map(|at| at.to_string()).unwrap_or_default(),
            });
        }
    }
    if context.directory.is_none() && database.is_none() {
        return Err(AuditError::NoDirectory);
    }
    if context.place.json {
        let line = |hold: &Shown| {
            let value = json!({
                "where": hold.at, "id": hold.id, "class": hold.class, "subjects": hold.subjects, "since": hold.since,
                "by": hold.by, "reason": hold.reason, "released": hold.released,
            });
            text::safe_json(&value.to_string()) + "\n"
        };
        return Ok(crate::cli::say(&all.iter().map(line).collect::<String>()));
    }
    if all.is_empty() {
        return Ok(crate::cli::say("no holds\n"));
    }
    let header = ["WHERE", "HOLD", "CLASS", "SUBJECTS", "SINCE", "BY", "REASON", "RELEASED"];
    let row = |hold: Shown| {
        vec![hold.at.to_owned(), hold.id, hold.class, hold.subjects, hold.since, hold.by, hold.reason, hold.released]
    };
    let rows: Vec<Vec<String>> = all.into_iter().map(row).collect();
    Ok(crate::cli::say(&text::table(&header, &rows)))
}
