//! Failures of the app: the other part of the table.

use http::StatusCode;

use super::{Problem, SOON};

/// Why the app failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The connection was refused, or the address cannot be reached.
    Unreachable,
    /// Connecting took too long.
    ConnectTimeout,
    /// The response did not begin in time, or paused for too long.
    Timeout,
    /// The connection ended before the response did.
    Closed,
    /// The response is not valid HTTP.
    Invalid,
    /// An error of Outrigger itself.
    Internal,
}

impl Failure {
    /// All failures.
    pub const ALL: [Self; 6] =
        [Self::Unreachable, Self::ConnectTimeout, Self::Timeout, Self::Closed, Self::Invalid, Self::Internal];

    /// The table of failures.
    pub const fn problem(self) -> Problem {
        const RETRY: &str = "retry; if it persists, give the operator the request_id";
        let (status, label, title, retry_after) = match self {
            Self::Unreachable => (StatusCode::BAD_GATEWAY, "app_unreachable", "The app cannot be reached", SOON),
            Self::ConnectTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "app_connect_timeout", "The app does not take connections", SOON)
            }
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "app_timeout", "The app did not answer in time", None),
            Self::Closed => (StatusCode::BAD_GATEWAY, "app_closed", "The app ended the connection early", None),
            Self::Invalid => (StatusCode::BAD_GATEWAY, "app_invalid", "The app's answer is no HTTP", None),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The proxy failed", None),
        };
        Problem { status, label, title, detail: RETRY, retry_after }
    }
}
