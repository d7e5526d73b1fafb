//! `fallback` of a route: the response while its circuit breaker is open or the app is unreachable.

use std::sync::Arc;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::tree::Step;

/// The response while the route's circuit breaker is open or the app is unreachable.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// Status code, 200 to 599.
    #[serde(default = "ok")]
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Content type.
    #[serde(default = "json")]
    pub content_type: String,
    /// Body, at most 64 KiB.
    pub body: String,
}

const fn ok() -> u16 {
    200
}

fn json() -> String {
    "application/json".to_owned()
}

/// A fallback response, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackAnswer {
    /// Status code.
    pub status: StatusCode,
    /// Content type.
    pub content_type: Arc<str>,
    /// Body.
    pub body: Arc<str>,
}

impl Builder<'_> {
    /// Checks a route's fallback.
    pub fn fallback(&mut self, written: &Fallback, index: usize) -> FallbackAnswer {
        let path = |key| [Step::Key("routes"), Step::Index(index), Step::Key("fallback"), Step::Key(key)];
        if http::HeaderValue::from_str(&written.content_type).is_err() {
            let message = format!("{:?} is not a content type", written.content_type);
            self.complain(&path("content_type"), message, "write \"application/json\", for example");
        }
        if written.body.len() > 64 << 10 {
            let message = format!("`body` has {} bytes, and may have 65536", written.body.len());
            self.complain(&path("body"), message, "say less");
        }
        let is_empty_by_nature = matches!(written.status, 204 | 205 | 304);
        if is_empty_by_nature && !written.body.is_empty() {
            let message = format!("a response with status {} has no body", written.status);
            self.complain(&path("status"), message, "choose another status, or leave the body empty");
        }
        let status = StatusCode::from_u16(written.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let (content_type, body) = (written.content_type.as_str().into(), written.body.as_str().into());
        FallbackAnswer { status, content_type, body }
    }
}
