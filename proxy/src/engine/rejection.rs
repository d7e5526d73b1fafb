//! Why Outrigger responded instead of the app: the one table of statuses, labels and texts.
//!
//! The response says what the client can do, in `application/problem+json` (RFC 9457); metrics and the log have the label.

mod failure;
mod malformed;

use std::time::Duration;

use http::StatusCode;
use outrigger_wire::malformed::Malformed;

pub use self::failure::Failure;
use self::malformed::malformed_problem;

/// Why Outrigger rejected a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// It is not HTTP that could be forwarded.
    Malformed(Malformed),
    /// Its head is larger than allowed.
    HeadTooLarge,
    /// Its head took too long.
    HeadTooSlow,
    /// Its body is larger than the route allows.
    BodyTooLarge,
    /// Its body paused for too long.
    BodyTooSlow,
    /// Bodies from its address use all the memory that they may.
    TooManyUploads,
    /// The connection limit is reached.
    TooManyConnections,
    /// Unfinished heads use all the memory that they may.
    TooManyHeads,
    /// A health check, while the process is shutting down.
    Draining,
    /// A health check, and the app's own one fails.
    Unhealthy,
    /// Its path has a segment `.` or `..`, in any spelling.
    DotSegment,
    /// Its path has a control character.
    ControlCharacter,
    /// Its path can be read in several ways that lead to different routes.
    AmbiguousPath,
    /// Its path is where the app serves its metrics, and no route makes it public.
    NotPublic,
    /// It carries a credential twice, which could identify one client here and another one to the app.
    RepeatedCredential,
    /// The client is banned.
    Banned {
        /// Time until the ban ends.
        retry_after: Duration,
    },
    /// The client has exceeded a rate limit.
    QuotaExceeded {
        /// The limit's number in the configuration.
        limit: u16,
        /// Time until it may send another request.
        retry_after: Duration,
    },
    /// The app handles as many requests as it can, and more important ones wait.
    Overloaded,
    /// The app is down, and the maximum number of requests waits for it.
    AppRestarting,
    /// An operator pauses requests: the maximum number of them waits, or its time is over.
    Paused {
        /// Time until the pause ends by itself.
        retry_after: Duration,
    },
    /// An operator has requests refused.
    Maintenance {
        /// As the operator configures it.
        retry_after: Duration,
    },
    /// The circuit breaker is open.
    BreakerOpen {
        /// Time until a probe may pass.
        retry_after: Duration,
    },
    /// Its deadline passed while it waited.
    Expired,
    /// A fault was injected.
    FaultInjected {
        /// Its status.
        status: StatusCode,
    },
    /// Its event could not be written to the audit log.
    AuditUnavailable,
    /// Its path is reserved for Outrigger.
    Reserved,
    /// The client's address is not one of those that the operator allows.
    AddressNotAllowed,
    /// It arrived on the listener for peers without a peer's signature.
    NotAPeer,
    /// This process has forwarded it already, or the app's name resolves to this proxy.
    Loop,
    /// This host is out of descriptors, ports or memory.
    OutOfResources,
}

/// The content of an error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// The label in metrics and logs, and the last part of `type`.
    pub label: &'static str,
    /// A short summary.
    pub title: &'static str,
    /// Advice for the client.
    pub detail: &'static str,
    /// When the client may retry.
    pub retry_after: Option<Duration>,
}

/// Problem types registered for everybody (draft-ietf-httpapi-ratelimit-headers-10 section 6).
const REGISTRY: &str = "https://iana.org/assignments/http-problem-types#";
const SOON: Option<Duration> = Some(Duration::from_secs(1));

impl Rejection {
    /// An example of this variant.
    pub const BANNED: Self = Self::Banned { retry_after: Duration::ZERO };
    /// An example of this variant.
    pub const QUOTA_EXCEEDED: Self = Self::QuotaExceeded { limit: 0, retry_after: Duration::ZERO };
    /// An example of this variant.
    pub const BREAKER_OPEN: Self = Self::BreakerOpen { retry_after: Duration::ZERO };
    /// An example of this variant.
    pub const PAUSED: Self = Self::Paused { retry_after: Duration::ZERO };
    /// An example of this variant.
    pub const MAINTENANCE: Self = Self::Maintenance { retry_after: Duration::ZERO };

    /// One of each kind, for tests and the list of metrics.
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
            Self::Unhealthy,
            Self::DotSegment,
            Self::ControlCharacter,
            Self::AmbiguousPath,
            Self::NotPublic,
            Self::RepeatedCredential,
            Self::BANNED,
            Self::QUOTA_EXCEEDED,
            Self::Overloaded,
            Self::AppRestarting,
            Self::PAUSED,
            Self::MAINTENANCE,
            Self::BREAKER_OPEN,
            Self::Expired,
            Self::FaultInjected { status: StatusCode::SERVICE_UNAVAILABLE },
            Self::AuditUnavailable,
            Self::Reserved,
            Self::AddressNotAllowed,
            Self::NotAPeer,
            Self::Loop,
            Self::OutOfResources,
        ];
        Malformed::ALL.into_iter().map(Self::Malformed).chain(rest)
    }

    /// The table of rejections.
    pub const fn problem(self) -> Problem {
        let (status, label, title, detail, retry_after) = match self {
            Self::Malformed(malformed) => return malformed_problem(malformed),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head_too_large",
                "The request's head is too large",
                "send fewer or shorter headers; large cookies are the usual cause",
                None,
            ),
            Self::HeadTooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                "head_too_slow",
                "The request's head took too long",
                "send the complete head at once",
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
                "retry after Retry-After; send fewer bodies at the same time, and each without pauses",
                SOON,
            ),
            Self::TooManyConnections => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_connections",
                "The proxy has no connection to spare",
                "retry after Retry-After; keep connections open and reuse them",
                SOON,
            ),
            Self::TooManyHeads => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_unfinished_heads",
                "Too many requests are sent in small pieces",
                "retry after Retry-After; send each request's head at once",
                SOON,
            ),
            Self::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "This process is about to leave",
                "send traffic elsewhere",
                SOON,
            ),
            Self::Unhealthy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "app_unhealthy",
                "The app's health check fails",
                "send traffic elsewhere; the operator finds the check in the app's log",
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
                "stop, and retry after Retry-After; the operator can lift the ban",
                Some(retry_after),
            ),
            Self::QuotaExceeded { retry_after, .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "quota_exceeded",
                "This client has exceeded its quota",
                "wait for Retry-After, then continue at the rate that RateLimit-Policy allows",
                Some(retry_after),
            ),
            Self::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "temporary_reduced_capacity",
                "The app is busy with more important requests",
                "retry after Retry-After; the request is valid",
                SOON,
            ),
            Self::AppRestarting => (
                StatusCode::SERVICE_UNAVAILABLE,
                "app_restarting",
                "The app is restarting, and too many requests wait for it",
                "retry after Retry-After; the request is valid",
                SOON,
            ),
            Self::Paused { retry_after } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "paused",
                "Requests are paused for a moment",
                "retry after Retry-After; the request is valid",
                Some(retry_after),
            ),
            Self::Maintenance { retry_after } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "maintenance",
                "The service is down for maintenance",
                "retry after Retry-After; the request is valid",
                Some(retry_after),
            ),
            Self::BreakerOpen { retry_after } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "breaker_open",
                "The app fails such requests, and is left alone for a while",
                "retry after Retry-After; the request is valid",
                Some(retry_after),
            ),
            Self::Expired => (
                StatusCode::GATEWAY_TIMEOUT,
                "deadline_exceeded",
                "The request's time was over before its turn came",
                "allow more time, or retry when the load is lower",
                SOON,
            ),
            Self::FaultInjected { status } => (
                status,
                "fault_injected",
                "The operator lets this request fail on purpose",
                "retry; the operator's [[faults]] select the requests that fail",
                None,
            ),
            Self::AuditUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "audit_unavailable",
                "The audit entry of this request, which has to come first, cannot be written",
                "retry after Retry-After; a change may have been made: check before sending it again",
                SOON,
            ),
            Self::Reserved => (
                StatusCode::NOT_FOUND,
                "reserved_path",
                "There is nothing here",
                "this path is reserved for the proxy",
                None,
            ),
            Self::AddressNotAllowed => (
                StatusCode::FORBIDDEN,
                "address_not_allowed",
                "The client's address is not allowed",
                "the operator's lists, allow and deny of the listener or of the route, decide",
                None,
            ),
            Self::NotAPeer => (
                StatusCode::FORBIDDEN,
                "not_a_peer",
                "This listener is for the app's other Machines",
                "use the public address; Machines need the same OUTRIGGER_AFFINITY_KEYS, and clocks that differ by less than a minute",
                None,
            ),
            Self::Loop => (
                StatusCode::LOOP_DETECTED,
                "loop_detected",
                "The request comes back to this proxy",
                "the client cannot fix this; the operator's app.address, or a proxy behind it, leads back here",
                None,
            ),
            Self::OutOfResources => (
                StatusCode::SERVICE_UNAVAILABLE,
                "out_of_resources",
                "The proxy cannot open another connection",
                "retry after Retry-After; the operator's log names the limit of the host to raise",
                SOON,
            ),
        };
        Problem { status, label, title, detail, retry_after }
    }
}

impl Problem {
    /// The JSON body, with the request id and, if given, the rate limit's policy that the request violates.
    pub fn body(&self, request_id: &str, policy: Option<&str>) -> String {
        // Every part is a constant or made of plain characters, so no escaping is needed.
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

    /// Whether the draft on rate limit headers registers its type for everybody.
    fn is_registered(&self) -> bool {
        matches!(self.label, "quota_exceeded" | "temporary_reduced_capacity" | "abnormal_usage_detected")
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
}
