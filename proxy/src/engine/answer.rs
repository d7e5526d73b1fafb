//! Outrigger's own responses: problems, health, fallbacks, replays, responses to probes, and rejections of input that is not
//! a complete request. [`OwnResponse`] is their head.

use std::io::Write as _;
use std::time::Duration;

use bytes::BufMut;
use http::StatusCode;
use outrigger_wire::names::FLY_REPLAY;
use outrigger_wire::request_id::RequestId;
use outrigger_wire::retry_after::seconds;

use crate::engine::exchange::{Exchange, Listener};
use crate::engine::pages::{self, Page};
use crate::engine::rejection::Problem;
use crate::engine::reply::Reply;
use crate::engine::stages::{failover, limits};

/// The head of a response of Outrigger's own, without `Date` and `Connection`: [`OwnResponse::write`] adds them.
#[derive(Clone, Copy, Debug)]
pub struct OwnResponse<'a> {
    status: StatusCode,
    content_type: Option<&'a str>,
    /// The `Content-Security-Policy` of a page.
    policy: Option<&'a str>,
    body_bytes: usize,
    retry_after: Option<Duration>,
    request_id: Option<&'a [u8]>,
    /// A peer that sent the request may serve it itself.
    declines: bool,
    /// The value of `Fly-Replay`.
    replay: Option<&'a [u8]>,
    /// Whose rate limits are shown.
    exchange: Option<&'a Exchange>,
}

impl<'a> OwnResponse<'a> {
    /// A problem, health or a fallback.
    pub fn reply(exchange: &'a Exchange, reply: &'a Reply) -> Self {
        Self {
            content_type: Some(&reply.content_type),
            policy: reply.policy.as_deref(),
            retry_after: reply.retry_after,
            declines: failover::is_given_back(exchange),
            ..Self::to(exchange, reply.status, reply.body.len())
        }
    }

    /// Asks the edge to send the request to the Machine that `field` names.
    pub fn replay(exchange: &'a Exchange, field: &'a [u8]) -> Self {
        Self { replay: Some(field), ..Self::to(exchange, StatusCode::TEMPORARY_REDIRECT, 0) }
    }

    /// Any other response to a request.
    pub fn to(exchange: &'a Exchange, status: StatusCode, body_bytes: usize) -> Self {
        Self {
            status,
            content_type: None,
            policy: None,
            body_bytes,
            retry_after: None,
            request_id: exchange.rules.config.headers.request_id.then(|| exchange.request_id.as_bytes()),
            declines: false,
            replay: None,
            exchange: Some(exchange),
        }
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Calls `put` with each header, but for `Date` and `Connection`.
    pub fn headers(&self, mut put: impl FnMut(&'static str, &[u8])) {
        if let Some(content_type) = self.content_type {
            put("Content-Type", content_type.as_bytes());
        }
        put("Content-Length", Decimal::new(self.body_bytes as u64).as_bytes());
        put("Cache-Control", b"no-store");
        if let Some(policy) = self.policy {
            put("Content-Security-Policy", policy.as_bytes());
            put("X-Content-Type-Options", b"nosniff");
            put("Vary", b"Accept");
        }
        if let Some(after) = self.retry_after {
            put("Retry-After", Decimal::new(seconds(after)).as_bytes());
        }
        if let Some(id) = self.request_id {
            put("X-Request-Id", id);
        }
        if self.declines {
            put("X-Outrigger-Refused", b"1");
        }
        if let Some(field) = self.replay {
            put(FLY_REPLAY.as_str(), field);
        }
        if let Some(told) = self.exchange.and_then(limits::told) {
            told.each(put);
        }
    }

    /// Writes it as an HTTP/1.1 head. `date` is the value of `Date` (RFC 9110 section 6.6.1); `closes` announces that the
    /// connection ends with this response.
    pub fn write(&self, out: &mut impl BufMut, date: &[u8], closes: bool) {
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(self.status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(self.status.canonical_reason().unwrap_or("Error").as_bytes());
        out.put_slice(b"\r\n");
        let mut put = |name: &str, value: &[u8]| {
            out.put_slice(name.as_bytes());
            out.put_slice(b": ");
            out.put_slice(value);
            out.put_slice(b"\r\n");
        };
        self.headers(&mut put);
        put("Date", date);
        if closes {
            put("Connection", b"close");
        }
        out.put_slice(b"\r\n");
    }
}

/// A whole HTTP/1.1 response that ends the connection, for what was rejected before it became a request; with a page, that instead of
/// JSON.
pub fn early(problem: &Problem, page: Option<Page>, id: RequestId, listener: Listener, date: &[u8]) -> Vec<u8> {
    let (content_type, body, policy) = match page {
        Some(page) => (pages::CONTENT_TYPE, page.body, Some(page.policy)),
        None => ("application/problem+json", problem.body(id.as_str(), None), None),
    };
    let response = OwnResponse {
        status: problem.status,
        content_type: Some(content_type),
        policy: policy.as_deref(),
        body_bytes: body.len(),
        retry_after: problem.retry_after,
        // No configuration applies to it yet.
        request_id: Some(id.as_bytes()),
        declines: listener == Listener::Peers,
        replay: None,
        exchange: None,
    };
    let mut out = Vec::with_capacity(512);
    response.write(&mut out, date, true);
    out.extend_from_slice(body.as_bytes());
    out
}

/// A number in decimal digits, on the stack.
struct Decimal {
    digits: [u8; 20],
    len: usize,
}

impl Decimal {
    fn new(number: u64) -> Self {
        let mut digits = [0; 20];
        let mut rest = &mut digits[..];
        // 20 digits hold every number.
        let _ = write!(rest, "{number}");
        let len = 20 - rest.len();
        Self { digits, len }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.digits[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::rejection::Rejection;

    const DATE: &[u8] = b"Thu, 01 Jan 1970 00:00:00 GMT";

    #[test]
    fn an_early_rejection_is_a_whole_response() {
        let id = RequestId::generate();
        for (listener, declines) in [(Listener::Public, false), (Listener::Peers, true)] {
            let problem = Rejection::TooManyConnections.problem();
            let text = String::from_utf8(early(&problem, None, id, listener, DATE)).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let refused = if declines { "\r\nX-Outrigger-Refused: 1" } else { "" };
            assert_eq!(
                head,
                format!(
                    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
                     Cache-Control: no-store\r\nRetry-After: 1\r\nX-Request-Id: {id}{refused}\r\n\
                     Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nConnection: close",
                    body.len()
                )
            );
            assert_eq!(body, problem.body(id.as_str(), None));
        }
    }

    #[test]
    fn numbers_are_written_completely() {
        for number in [0, 9, 10, 12_345, u64::MAX] {
            assert_eq!(Decimal::new(number).as_bytes(), number.to_string().as_bytes());
        }
    }
}
