//! The audit trail, for the commands: entries in, and subjects forgotten.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use outrigger_policy::audit::{Class, EventType, Outcome, hex};
use outrigger_trail::keys::SubjectKind;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::audit::{Act, Command, shown_id};
use crate::state::State;

/// How long the writer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest details of an entry, as JSON.
const DETAILS_BYTES: usize = 64 << 10;
/// The most subjects in one request.
const MOST_SUBJECTS: usize = 1000;
/// What the commands do. Nothing else can be entered from outside.
const ACTIONS: [&str; 9] = [
    "audit.verify",
    "audit.search",
    "audit.export",
    "audit.erase",
    "audit.report",
    "audit.hold",
    "audit.release",
    "export",
    "erase",
];

/// The routes; whoever may use them is asked around them.
pub fn router() -> Router<Arc<State>> {
    Router::new().route("/audit/entries", post(enter)).route("/audit/erase", post(erase))
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("there is no audit trail here: set `audit.directory`")]
    NoTrail,
    #[error("{0}")]
    Body(#[from] JsonRejection),
    #[error("`{0}` is nothing that a command enters; known are {known}", known = ACTIONS.join(", "))]
    Action(String),
    #[error("`{0}` is no type of the audit trail that a command enters")]
    Type(String),
    #[error("`{0}` is no outcome: write success, failure, error or refused")]
    Outcome(String),
    #[error("`{0}` is no subject: write user:NAME, key:NAME or address:IP")]
    Subject(String),
    #[error("more than {MOST_SUBJECTS} subjects")]
    Many,
    #[error("details of more than {DETAILS_BYTES} bytes")]
    Long,
    #[error("it cannot be written: {0}")]
    Unwritable(String),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self {
            Self::NoTrail => StatusCode::NOT_FOUND,
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
    let (done, receipt) = oneshot::channel();
    let act = Act {
        is_operator: true,
        subject: entry.subject,
        reason: entry.reason,
        details: Some(details),
        done: Some(done),
        ..Act::new(event, action, outcome)
    };
    let trail = state.trail.as_ref().ok_or(Refused::NoTrail)?;
    // Whatever the flag says: who reads the trail is written down.
    trail.enter(&state.rules.load(), act);
    let late = || Refused::Unwritable("not within 10 s, or the disk says no; the log says why".to_owned());
    let receipt = tokio::time::timeout(PATIENCE, receipt).await.map_err(|_| late())?.map_err(|_| late())?;
    let mut hash = Vec::new();
    hex(&mut hash, &receipt.hash);
    Ok(Json(json!({
        "id": shown_id(receipt.id), "class": receipt.class.name(), "seq": receipt.seq, "hash": String::from_utf8_lossy(&hash),
    })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Erasure {
    /// As pseudonyms.
    subjects: Vec<String>,
}

async fn erase(
    Shared(state): Shared<Arc<State>>,
    body: Result<Json<Erasure>, JsonRejection>,
) -> Result<Json<Value>, Refused> {
    let Json(Erasure { subjects }) = body?;
    if subjects.len() > MOST_SUBJECTS {
        return Err(Refused::Many);
    }
    let trail = state.trail.as_ref().ok_or(Refused::NoTrail)?;
    let (answer, destroyed) = oneshot::channel();
    trail.command(Command::Forget(subjects, answer));
    let late = || Refused::Unwritable("the writer did not answer within 10 s".to_owned());
    let destroyed = tokio::time::timeout(PATIENCE, destroyed).await.map_err(|_| late())?.map_err(|_| late())?;
    Ok(Json(json!({ "keys": destroyed.map_err(Refused::Unwritable)? })))
}
