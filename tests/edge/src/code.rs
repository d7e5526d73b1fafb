//! Why the edge responds by itself: Fly's error codes.
//!
//! Fly writes them only into the app's log stream. This stand-in also adds them to the response, in `x-edge-error`, so that
//! tests can read them. Source: docs:monitoring/error-codes.html.md (facts: 7).

use http::StatusCode;

/// The response header that names its [`Code`]. Not a header of Fly's.
pub const EDGE_ERROR: &str = "x-edge-error";

/// Ordered by text, for readable snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// The request does not fit into the replay buffer.
    ReplayTooLarge,
    TooManyReplays,
    MalformedReplay,
    ReplayAppNotFound,
    ReplayAppForbidden,
    /// Counted for each connection that a Machine refused; never in a response.
    ConnectionRefused,
    /// The same, for a connection that timed out.
    ConnectTimeout,
    WakeTimeout,
    WakeFailed,
    /// Counted whenever a Machine that was just stopped passes a request on.
    RecentlyStopped,
    NoHealthyMachine,
    MachineNotFound,
    /// After refused connections.
    RetriesExhausted,
    /// Without a connection attempt: all Machines are at the hard limit, or too many requests wait.
    NoCapacity,
    /// The Machine got the request and did not complete the response.
    Interrupted,
}

impl Code {
    /// Fly's name of it.
    pub fn text(self) -> &'static str {
        match self {
            Self::ReplayTooLarge => "PA01",
            Self::TooManyReplays => "PA02",
            Self::MalformedReplay => "PA03",
            Self::ReplayAppNotFound => "PA04",
            Self::ReplayAppForbidden => "PA05",
            Self::ConnectionRefused => "PC01",
            Self::ConnectTimeout => "PC05",
            Self::WakeTimeout => "PM03",
            Self::WakeFailed => "PM07",
            Self::RecentlyStopped => "PM11",
            Self::NoHealthyMachine => "PR01",
            Self::MachineNotFound => "PR02",
            Self::RetriesExhausted => "PR03",
            Self::NoCapacity => "PR04",
            Self::Interrupted => "PU02",
        }
    }

    /// 503 for temporary conditions, 502 for the rest. Fly documents only the "then 503" of full and failing Machines
    /// (docs:reference/load-balancing.html.md, docs:apps/app-availability.html.markerb; facts: 5, 6.1).
    pub fn status(self) -> StatusCode {
        match self {
            Self::WakeTimeout | Self::WakeFailed | Self::NoHealthyMachine | Self::NoCapacity => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    pub fn words(self) -> &'static str {
        match self {
            Self::ReplayTooLarge => "the request is too large to be replayed",
            Self::TooManyReplays => "too many fly-replay responses for one request",
            Self::MalformedReplay => "malformed fly-replay response",
            Self::ReplayAppNotFound => "the app of fly-replay does not exist",
            Self::ReplayAppForbidden => "the app of fly-replay may not be replayed to",
            Self::ConnectionRefused => "a Machine refused the connection",
            Self::ConnectTimeout => "a Machine did not accept the connection in time",
            Self::WakeTimeout => "the Machine did not start in time",
            Self::WakeFailed => "the Machine could not be started",
            Self::RecentlyStopped => "the Machine was just stopped",
            Self::NoHealthyMachine => "no healthy Machine",
            Self::MachineNotFound => "no such Machine, or it may not be reached",
            Self::RetriesExhausted => "no Machine accepted a connection",
            Self::NoCapacity => "all Machines are at their hard limit",
            Self::Interrupted => "the request began and did not complete",
        }
    }
}
