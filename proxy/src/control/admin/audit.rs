//! The audit log, for the commands: adds entries and erases subjects.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use outrigger_policy::audit::{Class, EventType, Outcome, hex};
use outrigger_trail::keys::{MasterKeys, SubjectKind};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::control::admin::access::Endpoints;
use crate::engine::state::State;
use crate::mechanism::audit::{Act, Authority, Command, ForgetError, Receipt, shown_id};

/// How long the writer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest details of an entry, as JSON, in bytes.
const DETAILS_BYTES: usize = 64 << 10;
/// The most subjects in one request.
const MOST_SUBJECTS: usize = 1000;
/// The actions of commands. Clients cannot add entries with any other action.
const ACTIONS: [&str; 10] = [
    "audit.verify",
    "audit.search",
    "audit.follow",
    "audit.export",
    "audit.erase",
    "audit.report",
    "audit.hold",
    "audit.release",
    "export",
    "erase",
];

/// Adds the endpoints.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints.post("/audit/entries", enter).post("/audit/erase", erase)
}

/// Why an entry was not added.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("there is no audit log here: set `audit.directory`")]
    NoTrail,
    #[error("{0}")]
    Body(#[from] JsonRejection),
    #[error("`{0}` is not an action that a command records; known are {known}", known = ACTIONS.join(", "))]
    Action(String),
    #[error("`{0}` is not an event type that a command records")]
    Type(String),
    #[error("`{0}` is not an outcome: write success, failure, error or refused")]
    Outcome(String),
    #[error("`{0}` is not a subject: write user:NAME, key:NAME or address:IP")]
    Subject(String),
    #[error("more than {MOST_SUBJECTS} subjects")]
    Many,
    #[error("details of more than {DETAILS_BYTES} bytes")]
    Long,
    #[error("no subject is named")]
    Nobody,
    #[error(
        "this subject is unknown here: the spool has no data key of it, so no key was destroyed; \
         shipped keys are in PostgreSQL: `outrigger audit erase --database`"
    )]
    Unknown,
    #[error("{0}")]
    Held(String),
    #[error("it cannot be written: {0}")]
    Unwritable(String),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self {
            Self::NoTrail | Self::Unknown => StatusCode::NOT_FOUND,
            Self::Held(_) => StatusCode::CONFLICT,
            Self::Unwritable(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(rename = "type")]
    event: String,
    action: String,
    outcome: String,
    by: String,
    subject: Option<String>,
    reason: Option<String>,
    details: Option<serde_json::Map<String, Value>>,
}

async fn enter(
    Shared(state): Shared<Arc<State>>,
    body: Result<Json<Entry>, JsonRejection>,
) -> Result<Json<Value>, Refused> {
    let Json(entry) = body?;
    let action = ACTIONS.into_iter().find(|known| **known == entry.action).ok_or(Refused::Action(entry.action))?;
    let event = EventType::named(&entry.event)
        .filter(|event| matches!(event.class(), Class::Administration | Class::Deletion))
        .ok_or(Refused::Type(entry.event))?;
    let outcome = Outcome::named(&entry.outcome).ok_or(Refused::Outcome(entry.outcome))?;
    if let Some(subject) = entry.subject.as_ref().filter(|subject| SubjectKind::of(subject).is_none()) {
        return Err(Refused::Subject(subject.clone()));
    }
    let mut details = entry.details.unwrap_or_default();
    details.insert("by".to_owned(), entry.by.into());
    let details = Value::Object(details).to_string();
    if details.len() > DETAILS_BYTES {
        return Err(Refused::Long);
    }
    let act = Act {
        is_operator: true,
        subject: entry.subject,
        reason: entry.reason,
        details: Some(details),
        ..Act::new(event, action, outcome)
    };
    let receipt = record_entry(&state, act).await?;
    let mut hash = Vec::new();
    hex(&mut hash, &receipt.hash);
    Ok(Json(json!({
        "id": shown_id(receipt.id), "class": receipt.class.name(), "seq": receipt.seq, "hash": String::from_utf8_lossy(&hash),
    })))
}

/// Adds an entry, regardless of the feature flag. It is on disk when this returns.
pub async fn record_entry(state: &State, act: Act) -> Result<Receipt, Refused> {
    let trail = state.trail.as_ref().ok_or(Refused::NoTrail)?;
    let (done, receipt) = oneshot::channel();
    trail.enter(Act { done: Some(done), ..act });
    let late = || Refused::Unwritable("not within 10 s, or the disk failed; see the log".to_owned());
    tokio::time::timeout(PATIENCE, receipt).await.map_err(|_| late())?.map_err(|_| late())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Erasure {
    /// Pseudonyms, or names as operators write them: `user:ann`.
    subjects: Vec<String>,
    /// The operator.
    #[serde(default = "default_operator")]
    by: String,
    /// The reason.
    #[serde(default)]
    reason: Option<String>,
    /// How many keys PostgreSQL has destroyed already: if any, it is not an error that the spool has no key.
    #[serde(default)]
    in_postgres: u64,
}

/// The operator, if a request names none.
pub fn default_operator() -> String {
    "the admin listener's client".to_owned()
}

/// The pseudonyms of `subject`.
fn pseudonyms(keys: &MasterKeys, subject: &str) -> Result<Vec<String>, Refused> {
    if SubjectKind::is_pseudonym(subject) {
        return Ok(vec![subject.to_owned()]);
    }
    keys.pseudonyms(subject).ok_or_else(|| Refused::Subject(subject.to_owned()))
}

/// Destroys data keys. Adds one entry before, and one with the result afterwards.
async fn erase(
    Shared(state): Shared<Arc<State>>,
    body: Result<Json<Erasure>, JsonRejection>,
) -> Result<Json<Value>, Refused> {
    let Json(Erasure { subjects: named, by, reason, in_postgres }) = body?;
    if named.len() > MOST_SUBJECTS {
        return Err(Refused::Many);
    }
    let trail = state.trail.as_ref().ok_or(Refused::NoTrail)?;
    let keys = trail.keys().ok_or(Refused::NoTrail)?;
    let mut subjects = Vec::new();
    for name in &named {
        subjects.extend(pseudonyms(keys, name)?);
    }
    if subjects.is_empty() {
        return Err(Refused::Nobody);
    }
    let act = |event, outcome, details: Value| Act {
        is_operator: true,
        reason: reason.clone(),
        details: Some(details.to_string()),
        ..Act::new(event, "audit.erase", outcome)
    };
    let about = |more: Value| {
        let mut details = json!({ "by": by, "where": "spool", "subjects": subjects });
        if let (Some(details), Value::Object(more)) = (details.as_object_mut(), more) {
            details.extend(more);
        }
        details
    };
    record_entry(&state, act(EventType::AdminAction, Outcome::Success, about(json!({ "step": "asked for" })))).await?;
    let (answer, destroyed) = oneshot::channel();
    trail.command(Command::Forget(subjects.clone(), Authority::Operator, answer));
    let destroyed = match tokio::time::timeout(PATIENCE, destroyed).await {
        Ok(Ok(destroyed)) => destroyed,
        _ => Err(ForgetError::Failed("the writer did not respond within 10 s".to_owned())),
    };
    let (outcome, more, answer) = match destroyed {
        Ok(0) if in_postgres == 0 => {
            (Outcome::Failure, json!({ "keys": 0, "problem": "unknown subject" }), Err(Refused::Unknown))
        }
        Ok(keys) => (Outcome::Success, json!({ "keys": keys }), Ok(keys)),
        Err(held @ ForgetError::Held { .. }) => {
            let problem = held.to_string();
            (Outcome::Refused, json!({ "problem": problem }), Err(Refused::Held(problem)))
        }
        Err(ForgetError::Failed(problem)) => {
            (Outcome::Error, json!({ "problem": problem }), Err(Refused::Unwritable(problem)))
        }
    };
    let ended = act(EventType::ErasureRequest, outcome, about(more));
    // Destroyed keys stay destroyed, and the first entry says that they were to be.
    let entered = record_entry(&state, ended).await;
    let keys = answer?;
    entered?;
    Ok(Json(json!({ "keys": keys })))
}
