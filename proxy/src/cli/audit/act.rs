//! Adds entries about commands to the audit log: directly if no program writes it, else through that program.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use outrigger_policy::audit::{Draft, EventType, Outcome};
use outrigger_rules::environment::FLY_MACHINE_ID;
use outrigger_trail::keys::{MasterKeys, SubjectKind};
use outrigger_trail::layout;
use outrigger_trail::spool::{OPERATOR, Settings, Spool, SpoolError, hex};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{AuditError, By, Context, Subject, now, text};
use crate::cli::admin::{self, AdminError};

const TIMEOUT: Duration = Duration::from_secs(10);

/// An action that was done, or is about to be.
pub(super) struct Act<'a> {
    pub(super) event: EventType,
    pub(super) action: &'static str,
    pub(super) outcome: Outcome,
    pub(super) by: &'a By,
    /// The subject whose action it is; `None`: the operator's.
    pub(super) subject: Option<&'a Subject>,
    pub(super) details: Map<String, Value>,
}

/// The entry of an action.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Recorded {
    pub(super) id: String,
    pub(super) class: String,
    pub(super) seq: u64,
    pub(super) hash: String,
}

/// The writer of the audit log.
pub(super) enum Writer {
    /// This command, which has locked the spool.
    Own { spool: Box<Spool>, keys: MasterKeys, machine: String },
    /// The program, through its admin listener.
    Program(SocketAddr),
}

impl Writer {
    /// Finds the writer.
    pub(super) fn find(context: &Context) -> Result<Self, AuditError> {
        let Some(directory) = &context.directory else {
            return match context.place.admin {
                Some(address) => Ok(Self::Program(address)),
                None => Err(AuditError::NoDirectory),
            };
        };
        // Only the program that owns a spool creates it, not a command with the wrong directory.
        if !directory.join(layout::CHAIN).exists() {
            return Err(AuditError::Refused(format!(
                "{} has no audit log (no file CHAIN); name the directory that the proxy writes to",
                directory.display()
            )));
        }
        require_owner(directory)?;
        let keys = context.keys()?;
        let fly = || std::env::var(FLY_MACHINE_ID).ok().filter(|id| !id.is_empty());
        let machine = context.rules.as_ref().map(|rules| rules.machine.clone()).or_else(fly);
        let machine = machine.unwrap_or_else(|| "local".to_owned());
        let settings = context.rules.as_ref().map_or_else(Settings::default, |rules| rules.spool);
        match Spool::open(directory, keys.clone(), &machine, settings, now()) {
            Ok(spool) => {
                warn_of(&spool);
                Ok(Self::Own { spool: Box::new(spool), keys, machine })
            }
            Err(SpoolError::Locked(_)) => Ok(Self::Program(context.admin()?)),
            Err(e) => Err(e.into()),
        }
    }

    /// Adds an entry. It is on disk when this returns.
    pub(super) fn enter(&mut self, context: &Context, act: &Act<'_>) -> Result<Recorded, AuditError> {
        match self {
            Self::Own { spool, keys, machine } => enter(spool, keys, machine, act),
            Self::Program(address) => {
                let body = json!({
                    "type": act.event.name(),
                    "action": act.action,
                    "outcome": act.outcome.name(),
                    "by": act.by.by,
                    "subject": act.subject.map(|subject| &subject.0),
                    "reason": act.by.reason,
                    "details": act.details,
                });
                let answer = context.runtime.block_on(ask(*address, "/audit/entries", without_null(body)))?;
                serde_json::from_value(answer).map_err(|e| program(*address)(format!("its response is invalid: {e}")))
            }
        }
    }

    /// Destroys the data keys of these pseudonyms that have not been shipped yet, and returns their number. `in_postgres` is
    /// the number of keys destroyed in PostgreSQL.
    pub(super) fn forget(
        &mut self,
        context: &Context,
        subjects: &[String],
        by: &By,
        in_postgres: u64,
    ) -> Result<u64, AuditError> {
        match self {
            Self::Own { spool, .. } => Ok(spool.forget(subjects)? as u64),
            Self::Program(address) => {
                let body =
                    json!({ "subjects": subjects, "by": by.by, "reason": by.reason, "in_postgres": in_postgres });
                let answer = context.runtime.block_on(ask(*address, "/audit/erase", without_null(body)))?;
                answer["keys"]
                    .as_u64()
                    .ok_or_else(|| program(*address)("its response has no number of keys".to_owned()))
            }
        }
    }

    /// Closes the writer. The entries of this command get their checkpoint.
    pub(super) fn close(self) -> Result<(), AuditError> {
        match self {
            Self::Own { spool, .. } => Ok(spool.close(now())?),
            Self::Program(_) => Ok(()),
        }
    }
}

/// Adds one entry and closes the writer. Returns `NotRecorded` if that fails: the caller must not continue then.
pub(super) fn record_first(context: &Context, act: &Act<'_>) -> Result<Recorded, AuditError> {
    let enter = || {
        let mut writer = Writer::find(context)?;
        let entered = writer.enter(context, act)?;
        writer.close()?;
        Ok(entered)
    };
    enter().map_err(|e| AuditError::NotRecorded(Box::new(e)))
}

/// Opening the spool has the effects of a start: its findings are in the audit log now, and are reported here as well.
fn warn_of(spool: &Spool) {
    for alarm in spool.alarms() {
        let _ = writeln!(
            std::io::stderr(),
            "outrigger audit: the audit log was changed while no process wrote to it; this is recorded now: {} {}",
            alarm.action,
            text::safe(&alarm.details)
        );
    }
}

/// Whether a program has locked the spool. Then that program writes, and a command need not open the spool.
pub(super) fn is_written(directory: &std::path::Path) -> bool {
    let lock = std::fs::File::open(directory.join(layout::LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

/// Rejects other users than the directory's owner: the program could not write to files that they create.
fn require_owner(directory: &std::path::Path) -> Result<(), AuditError> {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(directory).map_err(AuditError::file(directory))?.uid();
    let own = rustix::process::geteuid().as_raw();
    if owner == own {
        return Ok(());
    }
    Err(AuditError::Refused(format!(
        "{} belongs to the user {owner}, and this is {own}: run it as that user, so that the proxy can still write there",
        directory.display()
    )))
}

fn details_of(act: &Act<'_>) -> String {
    let mut details = Map::new();
    details.insert("by".to_owned(), Value::from(act.by.by.as_str()));
    details.extend(act.details.clone());
    Value::Object(details).to_string()
}

fn enter(spool: &mut Spool, keys: &MasterKeys, machine: &str, act: &Act<'_>) -> Result<Recorded, AuditError> {
    let now = now();
    let who = match act.subject {
        None => OPERATOR.to_owned(),
        Some(Subject(subject)) => {
            let kind = SubjectKind::of(subject).unwrap_or(SubjectKind::User);
            let id = keys.pseudonym(kind, subject.as_bytes());
            // Without a name: otherwise an export would bring back the name of an erased subject.
            format!(r#""actor":{{"id":"{id}","kind":"{}"}}"#, kind.name())
        }
    };
    let details = details_of(act);
    let id = Uuid::now_v7();
    let draft = Draft {
        action: Some(act.action),
        reason: act.by.reason.as_deref(),
        details: Some(&details),
        ..Draft::new(id.as_u128(), now, machine, act.event, act.outcome, &who)
    };
    let placed = spool.append(&draft);
    if let Some((_, error)) = spool.commit(now).into_iter().next() {
        return Err(error.into());
    }
    spool.sign_heads(now)?;
    Ok(Recorded {
        id: id.to_string(),
        class: act.event.class().name().to_owned(),
        seq: placed.seq,
        hash: hex(&placed.hash),
    })
}

fn without_null(mut value: Value) -> Value {
    if let Some(members) = value.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    value
}

fn program(address: SocketAddr) -> impl Fn(String) -> AuditError {
    move |problem| AuditError::Program { address, problem }
}

async fn ask(address: SocketAddr, path: &'static str, body: Value) -> Result<Value, AuditError> {
    admin::ask(address, &Method::POST, path, Some(&body), TIMEOUT).await.map_err(|error| {
        program(address)(match error {
            AdminError::Connect(_, e) => {
                format!("{e}; the spool is locked, so a process writes to it: name its admin listener with --admin")
            }
            error => error.to_string(),
        })
    })
}

/// The id of the spool's chain.
pub(super) fn chain_of(context: &Context) -> Result<String, AuditError> {
    let path: PathBuf = context.directory()?.join(layout::CHAIN);
    let text = std::fs::read_to_string(&path).map_err(AuditError::file(&path))?;
    Ok(text.trim_end().to_owned())
}
