//! The endpoints for single documents and their list.

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{HeaderValue, StatusCode, header};
use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::App;
use crate::audit::own::{Act, Asker};
use crate::body;
use crate::cursor::Cursor;
use crate::deadline::Deadline;
use crate::error::ApiError;
use crate::outbox::Applied;
use crate::records::{self, Document, Summary};
use crate::validate;

/// Reserved from the deadline while waiting for ChromaDB, to write the response.
const ANSWER: std::time::Duration = std::time::Duration::from_millis(20);
const PAGE_DEFAULT: i64 = 20;
const PAGE_MAX: i64 = 100;

/// The body of a request that stores a document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDocument {
    title: Option<String>,
    content: String,
    embedding: Vec<f64>,
    metadata: Option<Value>,
    id: Option<Uuid>,
}

/// The response's body: the stored document, and whether searches find it already.
#[derive(Debug, Serialize)]
struct Created {
    #[serde(flatten)]
    document: Document,
    /// `false`: the document is stored, and ChromaDB gets it later.
    indexed: bool,
}

/// `POST /api/v1/documents`: 201 once PostgreSQL has stored the document. `indexed` tells whether ChromaDB has it too
/// or gets it later.
pub async fn create(
    State(app): State<App>,
    Extension(deadline): Extension<Deadline>,
    asker: Asker,
    body::Json(new): body::Json<NewDocument>,
) -> Result<Response, ApiError> {
    let document = new.check(&app)?;
    let claim = app.outbox.admit()?;
    let entry = app.audit.entry(&app.metrics.audit, &asker, Act::Create(document.id));
    let written = records::insert(&app.postgres, deadline, &document, claim, entry.as_ref()).await;
    let written = written.map_err(|error| app.audit.blame(error))?.ok_or_else(|| {
        ApiError::Conflict(format!("a document with id {} exists; delete it first or leave the id out", document.id))
    })?;
    let undo = app.audit.entry(&app.metrics.audit, &asker, Act::Undo(document.id));
    let record = document.clone().into_record();
    let indexed = match app.outbox.apply(deadline.reserving(ANSWER), written.job, Some(record), undo).await {
        Applied::Now => true,
        Applied::Later => false,
        Applied::Refused(why) => return Err(why),
    };
    let location = format!("/api/v1/documents/{}", document.id);
    let created = Created { document: Document { created_at: written.created_at, ..document }, indexed };
    let mut response = (StatusCode::CREATED, Json(created)).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// `GET /api/v1/documents/{id}`.
pub async fn read(
    State(app): State<App>,
    Extension(deadline): Extension<Deadline>,
    asker: Asker,
    Path(id): Path<String>,
) -> Result<Json<Document>, ApiError> {
    let id = parse_id(&id)?;
    let entry = app.audit.entry(&app.metrics.audit, &asker, Act::Read(id));
    let found = records::read(&app.postgres, deadline, id, entry.as_ref()).await;
    found.map_err(|error| app.audit.blame(error))?.map(Json).ok_or_else(|| no_such(id))
}

/// `DELETE /api/v1/documents/{id}`: 204 once PostgreSQL has deleted the document; searches no longer return it.
pub async fn delete(
    State(app): State<App>,
    Extension(deadline): Extension<Deadline>,
    asker: Asker,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = parse_id(&id)?;
    let claim = app.outbox.admit()?;
    let entry = app.audit.entry(&app.metrics.audit, &asker, Act::Delete(id));
    let deleted = records::delete(&app.postgres, deadline, id, claim, entry.as_ref()).await;
    let job = deleted.map_err(|error| app.audit.blame(error))?.ok_or_else(|| no_such(id))?;
    app.outbox.apply(deadline.reserving(ANSWER), job, None, None).await;
    Ok(StatusCode::NO_CONTENT)
}

/// The query of `GET /api/v1/documents`.
#[derive(Debug, Deserialize)]
pub struct PageQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

/// A page of the list, newest first.
#[derive(Debug, Serialize)]
pub struct Page {
    documents: Vec<Summary>,
    /// To be sent as `cursor` for the next page; `null` on the last one.
    next_cursor: Option<String>,
}

/// `GET /api/v1/documents?limit=&cursor=`: 1 to 100 documents, 20 by default, without content and embedding.
pub async fn list(
    State(app): State<App>,
    Extension(deadline): Extension<Deadline>,
    asker: Asker,
    query: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Page>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let limit = query.limit.as_deref().map_or(Ok(PAGE_DEFAULT), parse_limit)?;
    let after = query.cursor.as_deref().map(Cursor::decode).transpose();
    let after = after.map_err(|error| ApiError::BadRequest(error.to_string()))?;
    // Fetches one more than the limit to see whether there is a next page.
    let after = after.map(|cursor| (cursor.created_at, cursor.id));
    let entry = app.audit.entry(&app.metrics.audit, &asker, Act::List);
    let found = records::page(&app.postgres, deadline, after, limit + 1, entry.as_ref()).await;
    let mut documents = found.map_err(|error| app.audit.blame(error))?;
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = documents.len() > wanted;
    documents.truncate(wanted);
    let last = documents.last().filter(|_| more);
    let next_cursor = last.map(|last| Cursor { created_at: last.created_at, id: last.id }.encode());
    Ok(Json(Page { documents, next_cursor }))
}

impl NewDocument {
    fn check(self, app: &App) -> Result<Document, ApiError> {
        if let Some(text) = &self.title {
            validate::title(text)?;
        }
        app.limits.content(&self.content)?;
        let embedding = app.limits.embedding(&self.embedding)?;
        let metadata = self.metadata.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        validate::metadata(&metadata)?;
        // PostgreSQL stores microseconds; the response must contain the stored value.
        let created_at = Timestamp::now().round(Unit::Microsecond).unwrap_or(Timestamp::UNIX_EPOCH);
        let id = self.id.unwrap_or_else(Uuid::now_v7);
        Ok(Document { id, title: self.title, content: self.content, embedding, metadata, created_at })
    }
}

fn parse_id(text: &str) -> Result<Uuid, ApiError> {
    text.parse().map_err(|_| ApiError::BadRequest("the id in the path needs to be a UUID".to_owned()))
}

fn parse_limit(text: &str) -> Result<i64, ApiError> {
    let limit = text.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
    limit.ok_or_else(|| ApiError::BadRequest(format!("limit needs to be a number from 1 to {PAGE_MAX}")))
}

fn no_such(id: Uuid) -> ApiError {
    ApiError::NotFound(format!("there is no document {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_from_1_to_100() {
        assert_eq!(parse_limit("100").unwrap(), 100);
        for bad in ["0", "101", "-1", "ten", "", "99999999999999999999"] {
            assert!(parse_limit(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_unknown_field_is_named() {
        let error = serde_json::from_str::<NewDocument>(r#"{"content":"x","embeding":[1]}"#).unwrap_err().to_string();
        assert!(error.contains("unknown field `embeding`, expected one of"), "{error}");
    }
}
