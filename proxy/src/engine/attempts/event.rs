//! What can happen to a request.

use std::time::Duration;

use http::StatusCode;

use crate::engine::rejection::{Failure, Rejection};

/// An event in the life of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has a permit, or needs none.
    Admitted {
        /// How many attempts its route allows, including the first; 1 without retries.
        most: u32,
        /// Its method is idempotent (RFC 9110 section 9.2.2).
        is_idempotent: bool,
    },
    /// It gets no permit. With `peer`, its destination has become a peer.
    NotAdmitted {
        /// The reason.
        rejection: Rejection,
        /// A peer takes it.
        peer: bool,
    },
    /// It waited for the app for as long as `app.hold` allows.
    HoldOver,
    /// Its deadline has passed before it was sent: while it waited, or because an injected delay took the rest of its time.
    Expired,
    /// The circuit breaker rejects the attempt. With `peer`, its destination has become a peer.
    BreakerOpen {
        /// When the circuit breaker lets a probe through.
        retry_after: Duration,
        /// A peer takes it.
        peer: bool,
    },
    /// An injected fault responds in place of the app.
    FaultStatus {
        /// The status of that response.
        status: StatusCode,
        /// The route retries this status, and the request is repeatable.
        wants_retry: bool,
    },
    /// The app refused the connection, or does not accept it and answers nothing: it has not seen the request.
    Refused {
        /// The request may wait until the app is back.
        waits: bool,
        /// A peer takes it: its destination has become that peer.
        peer: bool,
    },
    /// No connection within `app.connect_timeout`, so the app has not seen the request.
    ConnectTimedOut,
    /// Connecting failed for a local reason: this host is out of resources, or the app's name resolves to this proxy.
    NoConnection(Rejection),
    /// The connection of [`super::Next::Probe`] succeeded.
    Connected,
    /// The app closed the connection, or reset it, before the response's head was complete.
    Closed {
        /// It was a kept connection, and no byte of a response came.
        is_stale: bool,
        /// No byte of a response has been passed on, and the body is kept: with an idempotent method, it is repeatable.
        may_repeat: bool,
    },
    /// The app closed the connection, and the kernel proves that it has read nothing of the request.
    Unread {
        /// It was a kept connection.
        is_kept: bool,
    },
    /// The response's head was not complete within the time for an attempt. With `peer`, its destination has become a peer.
    Overdue {
        /// As of [`Event::Closed`].
        may_repeat: bool,
        /// A peer takes it.
        peer: bool,
    },
    /// A peer that was asked as well has responded first: its destination has become that peer.
    HedgeWon,
    /// The response's head was not complete at the deadline.
    TimedOut,
    /// The app's response is not valid HTTP.
    Invalid,
    /// The response's head is complete; interim responses are no events.
    Answered {
        /// Its status.
        status: u16,
        /// The route retries this status, and the request is repeatable.
        wants_retry: bool,
        /// The response's `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Its destination is a peer, as a stage decided.
    SentToPeer {
        /// As of [`Event::Admitted`].
        is_idempotent: bool,
    },
    /// The peer could not be reached or declined the request: its app has not seen it.
    PeerDeclined,
    /// The connection to the peer closed, or its response was not valid HTTP. The peer's app may have seen the request.
    PeerBroke {
        /// Which of the two.
        failure: Failure,
        /// As of [`Event::Closed`].
        may_repeat: bool,
    },
    /// The peer did not respond in time.
    PeerTimedOut,
    /// The head of the peer's response is complete.
    PeerAnswered,
    /// The client disconnected, or its request cannot be completed.
    ClientLeft,
    /// The result of [`super::Step::Buy`]: the pause before the retry, or `None` if there is no time or no budget for it.
    Bought(Option<Duration>),
}
