//! `fallback` of a route: what is said instead of an answer of an app that cannot give one.

use std::sync::Arc;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::tree::Step;

/// What is said instead of an answer of an app that cannot give one.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// Its status, 200 to 599.
    #[serde(default = "ok")]
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Its type.
    #[serde(default = "json")]
    pub content_type: String,
    /// Its body, of at most 64 KiB.
    pub body: String,
}

const fn ok() -> u16 {
    200
}

fn json() -> String {
    "application/json".to_owned()
}

/// What is said instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackAnswer {
    /// The status.
    pub status: StatusCode,
    /// The content type.
    pub content_type: Arc<str>,
    /// The body.
    pub body: Arc<str>,
}

impl Builder<'_> {
    /// What a route says instead of an answer.
    pub fn fallback(&mut self, written: &Fallback, index: usize) -> FallbackAnswer {
        let path = |key| [Step::Key("routes"), Step::Index(index), Step::Key("fallback"), Step::Key(key)];
        if http::HeaderValue::from_str(&written.content_type).is_err() {
            let message = format!("{:?} is no content type", written.content_type);
            self.complain(&path("content_type"), message, "write \"application/json\", for example");
        }
        if written.body.len() > 64 << 10 {
            let message = format!("`body` has {} bytes, and may have 65536", written.body.len());
            self.complain(&path("body"), message, "say less");
        }
        let is_empty_by_nature = matches!(written.status, 204 | 205 | 304);
        if is_empty_by_nature && !written.body.is_empty() {
            let message = format!("an answer {} has no body", written.status);
            self.complain(&path("status"), message, "take another status, or leave the body empty");
        }
        let status = StatusCode::from_u16(written.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let (content_type, body) = (written.content_type.as_str().into(), written.body.as_str().into());
        FallbackAnswer { status, content_type, body }
    }
}
