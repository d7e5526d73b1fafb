//! `[log]`: what is logged, and how.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// Human-readable.
    Text,
}

/// The least severe level that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// Also conditions that may become failures.
    Warn,
    /// Also changes of state.
    #[default]
    Info,
    /// Also their reasons.
    Debug,
}

/// Logs, to standard output.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The format of lines. Environment: OUTRIGGER_LOG_FORMAT.
    pub format: LogFormat,
    /// The least severe level that is logged. Environment: OUTRIGGER_LOG_LEVEL.
    pub level: LogLevel,
    /// Logs one line per request, in the background; lines that do not fit the queue are counted and dropped.
    pub access: bool,
}
