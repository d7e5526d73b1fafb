//! Reads a request's JSON body within a size limit and the deadline; errors tell where the JSON is wrong.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use http::header;
use serde::de::DeserializeOwned;

use crate::App;
use crate::deadline::Deadline;
use crate::error::ApiError;

/// The parsed body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if !kind.is_some_and(is_json) {
            return Err(ApiError::UnsupportedMediaType);
        }
        let bytes = read(request, app.limits.body_bytes(), "document").await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            if error.is_data() {
                ApiError::Invalid(error.to_string())
            } else {
                ApiError::BadRequest(format!("the body is not valid JSON: {error}"))
            }
        })
    }
}

/// Reads a body of at most `limit` bytes before the request's deadline. `what` names the thing to make smaller in the
/// error.
///
/// # Errors
/// The body is too large or too slow, or the client disconnected.
pub async fn read(request: Request, limit: usize, what: &str) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::TooLarge(format!("the body is larger than {limit} bytes; send a smaller {what}"));
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|bytes: usize| bytes > limit) {
        return Err(too_large());
    }
    let deadline = request.extensions().get::<Deadline>().copied();
    let deadline = deadline.ok_or_else(|| ApiError::Internal("a request without a deadline".to_owned()))?;
    let read = deadline.run(axum::body::to_bytes(request.into_body(), limit)).await;
    read.map_err(|_| ApiError::BodyTimeout)?.map_err(|error| {
        // Only the limit's error can be recognised by its text; all others are a disconnect or malformed content.
        let text = error.to_string();
        if text.contains("length limit") {
            too_large()
        } else {
            ApiError::BadRequest(format!("the body cannot be read: {text}"))
        }
    })
}

/// `application/json` and `application/*+json`, with any parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_json_by_its_content_type() {
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
            assert!(is_json(kind), "{kind}");
        }
        for kind in ["text/json", "application/x-www-form-urlencoded", "", "application/jsonp"] {
            assert!(!is_json(kind), "{kind}");
        }
    }
}
