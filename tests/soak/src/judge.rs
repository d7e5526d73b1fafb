//! The definition of an expected failure: what `docs/failure.md` says that clients see, and no more.

use std::fmt;
use std::time::Duration;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// On a kept connection.
    Get,
    /// On a connection of its own.
    GetNew,
    Put,
    Post,
    Http2Get,
    Http2Post,
    WebSocket,
    /// Server-sent events.
    Events,
    /// 1 MiB with `Content-Length`.
    UploadSized,
    /// 1 MiB in chunks.
    UploadChunked,
    /// A client that disconnects before the end.
    Leaves,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Get,
        Self::GetNew,
        Self::Put,
        Self::Post,
        Self::Http2Get,
        Self::Http2Post,
        Self::WebSocket,
        Self::Events,
        Self::UploadSized,
        Self::UploadChunked,
        Self::Leaves,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET, kept connection",
            Self::GetNew => "GET, new connection",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Http2Get => "GET over HTTP/2",
            Self::Http2Post => "POST over HTTP/2",
            Self::WebSocket => "WebSocket",
            Self::Events => "event stream",
            Self::UploadSized => "upload, known length",
            Self::UploadChunked => "upload, chunked",
            Self::Leaves => "client that leaves",
        }
    }

    /// The period that its latency measures.
    pub fn latency(self) -> &'static str {
        match self {
            Self::WebSocket => "a message until its echo",
            Self::Events => "until the first event",
            Self::Leaves => "not measured",
            _ => "until the end of the response",
        }
    }

    /// Whether Outrigger may send it again: `docs/failure.md`, "Retries". An event stream is a GET.
    pub fn is_repeatable(self) -> bool {
        matches!(self, Self::Get | Self::GetNew | Self::Put | Self::Http2Get | Self::Events)
    }

    /// Whether its response goes on after its head, so that it can break off.
    fn is_long(self) -> bool {
        matches!(self, Self::WebSocket | Self::Events)
    }
}

/// How a request failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No connection to the proxy.
    NotConnected(String),
    /// Another response than the right one: its status, and the problem's name or `the app`.
    Rejected(u16, String),
    /// The connection broke before the response.
    BrokenBefore(String),
    /// The response broke off.
    BrokenWithin(String),
    /// No complete response within the client's timeout.
    Late,
    /// A response with a content that it must not have.
    Wrong(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected(why) => write!(f, "no connection: {why}"),
            Self::Rejected(status, by) => write!(f, "{status} {by}"),
            Self::BrokenBefore(why) => write!(f, "broken before the response: {why}"),
            Self::BrokenWithin(why) => write!(f, "broken within the response: {why}"),
            Self::Late => f.write_str("no response within the client's timeout"),
            Self::Wrong(what) => write!(f, "wrong content: {what}"),
        }
    }
}

/// Times since the start within which connections of an app broke: it was killed, or it reset connections.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Breaks(pub Vec<(Duration, Duration)>);

impl Breaks {
    /// Whether one of them overlaps this time.
    pub fn within(&self, from: Duration, to: Duration) -> bool {
        self.0.iter().any(|(begins, ends)| *begins <= to && from <= *ends)
    }
}

/// Whether the documentation says that this request may fail so. `breaks`: an app's connections broke while it was under way.
///
/// - A request that is not repeatable may be one that the app had begun to read: 502 `app-closed`.
/// - A response of which the head was passed on cannot be sent again: it breaks off.
///
/// Everything else is unexpected, also while an app hangs, is slow or restarts, and while a proxy restarts, reloads or pauses.
pub fn is_expected(kind: Kind, failure: &Failure, breaks: bool) -> bool {
    match failure {
        Failure::Rejected(502, by) if by == "app-closed" => breaks && !kind.is_repeatable(),
        Failure::BrokenWithin(_) => breaks && kind.is_long(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Failure {
        Failure::Rejected(502, "app-closed".to_owned())
    }

    #[test]
    fn only_requests_that_cannot_be_repeated_may_fail_and_only_when_connections_broke() {
        for kind in Kind::ALL {
            assert_eq!(is_expected(kind, &closed(), true), !kind.is_repeatable(), "{kind:?}");
            assert!(!is_expected(kind, &closed(), false), "{kind:?}");
        }
    }

    #[test]
    fn only_long_responses_may_break_off() {
        let broken = Failure::BrokenWithin("reset".to_owned());
        let long: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| is_expected(*kind, &broken, true)).collect();
        assert_eq!(long, [Kind::WebSocket, Kind::Events]);
        assert!(!is_expected(Kind::Events, &broken, false));
    }

    #[test]
    fn everything_else_is_unexpected() {
        let all = [
            Failure::NotConnected("refused".to_owned()),
            Failure::Rejected(502, "app-unreachable".to_owned()),
            Failure::Rejected(503, "app-closed".to_owned()),
            Failure::Rejected(503, "breaker-open".to_owned()),
            Failure::Rejected(504, "app-timeout".to_owned()),
            Failure::Rejected(500, "the app".to_owned()),
            Failure::BrokenBefore("closed".to_owned()),
            Failure::Late,
            Failure::Wrong("another response".to_owned()),
        ];
        for failure in all {
            assert!(Kind::ALL.iter().all(|kind| !is_expected(*kind, &failure, true)), "{failure}");
        }
    }

    #[test]
    fn a_break_counts_for_requests_that_were_under_way() {
        let seconds = Duration::from_secs;
        let breaks = Breaks(vec![(seconds(10), seconds(12))]);
        assert!(breaks.within(seconds(1), seconds(10)) && breaks.within(seconds(12), seconds(20)));
        assert!(breaks.within(seconds(11), seconds(11)) && breaks.within(seconds(1), seconds(20)));
        assert!(!breaks.within(seconds(1), seconds(9)) && !breaks.within(seconds(13), seconds(20)));
    }
}
