//! A call: who makes it, and how it ends.

use std::time::Duration;

/// The origin and target of a call. Both numbers are hashes, or any distinct values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The client. Identities that cost nothing, such as addresses of one network, must map to the same client.
    pub client: u64,
    /// The target of the call, if unrelated targets share the breaker ([`Settings::is_shared`](super::Settings::is_shared)); otherwise a constant.
    pub place: u64,
}

impl Caller {
    /// For a breaker that does not distinguish clients.
    pub const ANYBODY: Self = Self { client: 0, place: 0 };

    /// The key under which the caller alone is refused.
    pub(super) const fn key(self) -> u64 {
        self.client ^ self.place.rotate_left(29)
    }
}

/// The kind of a failure, by what could have caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nothing was sent, so no client caused it. Counts for all clients.
    Away,
    /// The upstream reports that one of its own dependencies does not respond. Like [`Failure::Silent`]; in addition,
    /// [`Settings::consecutive`](super::Settings::consecutive) of them in a row open the breaker for all for 1 s, if no other client was served within
    /// the last minute.
    Reported,
    /// No response, or no usable one. Refuses the client that sees it, and all clients once several see it.
    Silent,
    /// A response that reports a failure. Like [`Failure::Silent`], but if places share the breaker, it counts for its own
    /// place only.
    Answered,
}

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response after this long.
    Success(Duration),
    /// No response, or one that reports a failure.
    Failure(Failure),
    /// Unknown, as when the client disconnected. Says nothing about the upstream.
    Ignored,
}
