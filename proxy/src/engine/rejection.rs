//! Why we answered instead of the app: the one table of statuses, labels and words.
//!
//! The client reads what to do, in `application/problem+json` (RFC 9457); the metric and the log carry the label.

use std::time::Duration;

use http::StatusCode;
use outrigger_wire::malformed::Malformed;
use outrigger_wire::retry_after::seconds;

use crate::engine::exchange::Listener;

/// A request that we refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// It is no HTTP that could be passed on.
    Malformed(Malformed),
    /// Its head is larger than allowed.
    HeadTooLarge,
    /// Its head took too long.
    HeadTooSlow,
    /// Its body is larger than the route allows.
    BodyTooLarge,
    /// Its body paused for too long.
    BodyTooSlow,
    /// Bodies from its address take all the memory that they may.
    TooManyUploads,
    /// More connections than allowed.
    TooManyConnections,
    /// Unfinished heads hold all the memory that they may.
    TooManyHeads,
    /// Health, while the process is leaving.
    Draining,
    /// Its path has a segment `.` or `..`, in whichever spelling.
    DotSegment,
    /// Its path has a control character.
    ControlCharacter,
    /// Its path can be read in several ways, and not all of them lead to the same route.
    AmbiguousPath,
    /// Its path is where the app shows its metrics, and no route makes it public.
    NotPublic,
    /// It carries a credential twice: it could be one client here and another one to the app.
    RepeatedCredential,
    /// The client is banned.
    Banned {
        /// When the ban ends.
        retry_after: Duration,
    },
    /// The client has had what it may have.
    QuotaExceeded {
        /// The number of the limit in the rules.
        limit: u16,
        /// When it may have more.
        retry_after: Duration,
    },
    /// The app has as many requests as it can take, and more important ones wait.
    Overloaded,
    /// The app is away, and as many as may wait for it do.
    AppRestarting,
    /// The app has failed too often.
    BreakerOpen {
        /// When it is tried again.
        retry_after: Duration,
    },
    /// Its time was over before its turn came.
    Expired,
    /// A fault on purpose.
    FaultInjected {
        /// Its status.
        status: StatusCode,
    },
    /// What it does could not be entered into the audit trail.
    AuditUnavailable,
    /// Its path is for this program alone.
    Reserved,
    /// It came by the listener for peers, and shows no signature of one.
    NotAPeer,
    /// This process has forwarded it already, or the app's name leads back to it.
    Loop,
    /// This host is out of descriptors, ports or memory.
    OutOfResources,
}

/// A request that the app failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection: refused, or nobody there.
    Unreachable,
    /// Connecting took too long.
    ConnectTimeout,
    /// The answer did not begin in time, or paused for too long.
    Timeout,
    /// The connection ended before the answer did.
    Closed,
    /// What came is no HTTP answer.
    Invalid,
    /// The fault is ours.
    Internal,
}

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// The label in metrics and logs, and the last part of `type`.
    pub label: &'static str,
    /// In a few words.
    pub title: &'static str,
    /// What to do.
    pub detail: &'static str,
    /// When to come back.
    pub retry_after: Option<Duration>,
}

/// Problem types that are not ours alone (draft-ietf-httpapi-ratelimit-headers-10 section 6).
const REGISTRY: &str = "https://iana.org/assignments/http-problem-types#";
const SOON: Option<Duration> = Some(Duration::from_secs(1));

impl Rejection {
    /// As an example of its kind.
    pub const BANNED: Self = Self::Banned { retry_after: Duration::ZERO };
    /// As an example of its kind.
    pub const QUOTA_EXCEEDED: Self = Self::QuotaExceeded { limit: 0, retry_after: Duration::ZERO };
    /// As an example of its kind.
    pub const BREAKER_OPEN: Self = Self::BreakerOpen { retry_after: Duration::ZERO };

    /// One of each kind, for tests and the metrics' catalogue.
    pub fn all() -> impl Iterator<Item = Self> {
        let rest = [
            Self::HeadTooLarge,
            Self::HeadTooSlow,
            Self::BodyTooLarge,
            Self::BodyTooSlow,
            Self::TooManyUploads,
            Self::TooManyConnections,
            Self::TooManyHeads,
            Self::Draining,
            Self::DotSegment,
            Self::ControlCharacter,
            Self::AmbiguousPath,
            Self::NotPublic,
            Self::RepeatedCredential,
            Self::BANNED,
            Self::QUOTA_EXCEEDED,
            Self::Overloaded,
            Self::AppRestarting,
            Self::BREAKER_OPEN,
            Self::Expired,
            Self::FaultInjected { status: StatusCode::SERVICE_UNAVAILABLE },
            Self::AuditUnavailable,
            Self::Reserved,
            Self::NotAPeer,
            Self::Loop,
            Self::OutOfResources,
        ];
        Malformed::ALL.into_iter().map(Self::Malformed).chain(rest)
    }

    /// The one table.
    pub const fn problem(self) -> Problem {
        let (status, label, title, detail, retry_after) = match self {
            Self::Malformed(malformed) => return malformed_problem(malformed),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head_too_large",
                "The request's head is too large",
                "send fewer or shorter fields; large cookies are the usual cause",
                None,
            ),
            Self::HeadTooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                "head_too_slow",
                "The request's head took too long",
                "send the whole head at once",
                None,
            ),
            Self::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "The request's body is too large",
                "send less, or in several requests; the operator can raise max_body of the route",
                None,
            ),
            Self::BodyTooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                "body_too_slow",
                "The request's body paused for too long",
                "send the body without long pauses, and not a few bytes at a time",
                None,
            ),
            Self::TooManyUploads => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_uploads",
                "Too many request bodies from this address are unfinished",
                "come back after Retry-After; send fewer bodies at the same time, and each without pauses",
                SOON,
            ),
            Self::TooManyConnections => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_connections",
                "The proxy has no connection to spare",
                "come back after Retry-After; keep connections open and use them again",
                SOON,
            ),
            Self::TooManyHeads => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_unfinished_heads",
                "Too many requests are sent in small pieces",
                "come back after Retry-After; send each request's head whole",
                SOON,
            ),
            Self::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "This process is about to leave",
                "send traffic elsewhere",
                SOON,
            ),
            Self::DotSegment => (
                StatusCode::BAD_REQUEST,
                "path_dot_segment",
                "The request's path has a dot segment",
                "resolve . and .. before sending, as RFC 3986 section 5.2.4 says; encoding them does not help",
                None,
            ),
            Self::ControlCharacter => (
                StatusCode::BAD_REQUEST,
                "path_control_character",
                "The request's path has a control character",
                "send no bytes below 0x20 and no 0x7F in the path, encoded or not",
                None,
            ),
            Self::AmbiguousPath => (
                StatusCode::BAD_REQUEST,
                "path_ambiguous",
                "The request's path can be read in several ways",
                "send the usual spelling; the operator can name the path in a route that takes all of them, such as /items/**",
                None,
            ),
            Self::NotPublic => (
                StatusCode::NOT_FOUND,
                "not_public",
                "There is nothing here for the public",
                "metrics are on the admin listener; the operator can make this path public by naming it in a route",
                None,
            ),
            Self::RepeatedCredential => (
                StatusCode::BAD_REQUEST,
                "repeated_credential",
                "The request carries a credential twice",
                "send one Authorization header with one token, and one API key",
                None,
            ),
            Self::Banned { retry_after } => (
                StatusCode::FORBIDDEN,
                "abnormal_usage_detected",
                "This client is banned for a time",
                "stop, and come back after Retry-After; the operator can lift the ban",
                Some(retry_after),
            ),
            Self::QuotaExceeded { retry_after, .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "quota_exceeded",
                "This client has exceeded its quota",
                "wait for Retry-After, then go on at the pace that RateLimit-Policy allows",
                Some(retry_after),
            ),
            Self::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "temporary_reduced_capacity",
                "The app is busy with more important requests",
                "come back after Retry-After; nothing is wrong with the request",
                SOON,
            ),
            Self::AppRestarting => (
                StatusCode::SERVICE_UNAVAILABLE,
                "app_restarting",
                "The app is restarting, and too many requests wait for it",
                "come back after Retry-After; nothing is wrong with the request",
                SOON,
            ),
            Self::BreakerOpen { retry_after } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "breaker_open",
                "The app fails such requests, and is left alone for a while",
                "come back after Retry-After; nothing is wrong with the request",
                Some(retry_after),
            ),
            Self::Expired => (
                StatusCode::GATEWAY_TIMEOUT,
                "deadline_exceeded",
                "The request's time was over before its turn came",
                "give it more time, or come back when there is less to do",
                SOON,
            ),
            Self::FaultInjected { status } => (
                status,
                "fault_injected",
                "The operator lets this request fail on purpose",
                "try again; the operator's [[faults]] say which requests fail",
                None,
            ),
            Self::AuditUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "audit_unavailable",
                "What this request does cannot be written down, as it has to be",
                "come back after Retry-After; what changes something may have been done: look before sending it again",
                SOON,
            ),
            Self::Reserved => (
                StatusCode::NOT_FOUND,
                "reserved_path",
                "There is nothing here",
                "this path is for the proxy itself",
                None,
            ),
            Self::NotAPeer => (
                StatusCode::FORBIDDEN,
                "not_a_peer",
                "This listener is for the app's other Machines",
                "use the public address; Machines need the same OUTRIGGER_AFFINITY_KEYS, and clocks that agree to a minute",
                None,
            ),
            Self::Loop => (
                StatusCode::LOOP_DETECTED,
                "loop_detected",
                "The request comes back to this proxy",
                "nothing the client can change; the operator's app.address, or a proxy behind it, leads back here",
                None,
            ),
            Self::OutOfResources => (
                StatusCode::SERVICE_UNAVAILABLE,
                "out_of_resources",
                "The proxy cannot open another connection",
                "come back after Retry-After; the operator's log says which limit of the host to raise",
                SOON,
            ),
        };
        Problem { status, label, title, detail, retry_after }
    }
}

const fn malformed_problem(malformed: Malformed) -> Problem {
    let (status, label) = match malformed {
        Malformed::RequestLine => (StatusCode::BAD_REQUEST, "malformed_request_line"),
        Malformed::Target => (StatusCode::BAD_REQUEST, "malformed_target"),
        Malformed::Version => (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "malformed_version"),
        Malformed::Connect => (StatusCode::METHOD_NOT_ALLOWED, "malformed_connect"),
        Malformed::Field => (StatusCode::BAD_REQUEST, "malformed_field"),
        Malformed::BareLineFeed => (StatusCode::BAD_REQUEST, "malformed_line_end"),
        Malformed::FoldedField => (StatusCode::BAD_REQUEST, "malformed_folded_field"),
        Malformed::Host => (StatusCode::BAD_REQUEST, "malformed_host"),
        Malformed::HostMismatch => (StatusCode::BAD_REQUEST, "malformed_host_mismatch"),
        Malformed::Length => (StatusCode::BAD_REQUEST, "malformed_length"),
        Malformed::Encoding => (StatusCode::BAD_REQUEST, "malformed_encoding"),
        Malformed::LengthAndEncoding => (StatusCode::BAD_REQUEST, "malformed_length_and_encoding"),
        Malformed::Chunk => (StatusCode::BAD_REQUEST, "malformed_chunk"),
    };
    Problem { status, label, title: "The request is malformed", detail: malformed.advice(), retry_after: None }
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Unreachable, Self::ConnectTimeout, Self::Timeout, Self::Closed, Self::Invalid, Self::Internal];

    /// The one table.
    pub const fn problem(self) -> Problem {
        const RETRY: &str = "try again; if it persists, tell the operator the request_id";
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

impl Problem {
    /// The body, with the request's name and, where there is one, the policy that it violates.
    pub fn body(&self, request_id: &str, policy: Option<&str>) -> String {
        // Every part is ours or made of plain characters, so nothing needs escaping.
        let policies = policy.map_or_else(String::new, |name| format!(",\"violated-policies\":[\"{name}\"]"));
        format!(
            "{{\"type\":\"{}{}\",\"title\":\"{}\",\"status\":{},\"detail\":\"{}\",\"request_id\":\"{}\"{policies}}}\n",
            if self.is_registered() { REGISTRY } else { "urn:outrigger:problem:" },
            self.label.replace('_', "-"),
            self.title,
            self.status.as_u16(),
            self.detail,
            request_id
        )
    }

    /// Its type is one of those that the draft on rate limit fields registers for everybody.
    fn is_registered(&self) -> bool {
        matches!(self.label, "quota_exceeded" | "temporary_reduced_capacity" | "abnormal_usage_detected")
    }

    /// A whole HTTP/1.1 answer that ends the connection, for requests that never became one.
    pub fn closing_answer(&self, request_id: &str, listener: Listener) -> String {
        let body = self.body(request_id, None);
        let status = self.status;
        let retry_after =
            self.retry_after.map_or_else(String::new, |after| format!("Retry-After: {}\r\n", seconds(after)));
        // A peer serves the request itself then.
        let refused = if listener == Listener::Peers { "X-Outrigger-Refused: 1\r\n" } else { "" };
        format!(
            "HTTP/1.1 {} {}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Request-Id: {request_id}\r\n{refused}{retry_after}Connection: close\r\n\r\n{body}",
            status.as_u16(),
            status.canonical_reason().unwrap_or("Error"),
            body.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::fmt::Write as _;

    #[test]
    fn the_table_is_what_clients_rely_on() {
        let mut table = String::new();
        let problems = Rejection::all().map(Rejection::problem).chain(Failure::ALL.map(Failure::problem));
        for p in problems {
            writeln!(table, "{} {} | {} | {}", p.status.as_u16(), p.label, p.title, p.detail).unwrap();
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn every_reason_has_a_label_of_its_own() {
        let labels: Vec<_> =
            Rejection::all().map(|r| r.problem().label).chain(Failure::ALL.map(|f| f.problem().label)).collect();
        assert_eq!(labels.iter().collect::<HashSet<_>>().len(), labels.len());
    }

    #[test]
    fn a_body_is_valid_json() {
        for problem in Rejection::all().map(Rejection::problem).chain(Failure::ALL.map(Failure::problem)) {
            let body: serde_json::Value = serde_json::from_str(&problem.body("id-1", Some("login"))).unwrap();
            assert_eq!(body["status"], problem.status.as_u16());
            assert_eq!(body["request_id"], "id-1");
            assert_eq!(body["violated-policies"][0], "login");
        }
    }

    #[test]
    fn a_wait_is_rounded_up() {
        assert_eq!(seconds(Duration::from_millis(1001)), 2);
        assert_eq!(seconds(Duration::from_secs(1)), 1);
    }
}
