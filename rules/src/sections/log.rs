//! `[log]`: what is logged, and how.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Which log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what may become one.
    Warn,
    /// And what changes.
    #[default]
    Info,
    /// And why.
    Debug,
}

/// Logs, to standard output.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How lines look. Environment: OUTRIGGER_LOG_FORMAT.
    pub format: LogFormat,
    /// Which lines are written. Environment: OUTRIGGER_LOG_LEVEL.
    pub level: LogLevel,
    /// One line a request, written beside the request's path; what does not fit the queue is counted and dropped.
    pub access: bool,
}
