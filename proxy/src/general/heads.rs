//! Request and response heads in Pingora's types: reads, checks, removes and adds headers.

use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use outrigger_wire::cookies;
use outrigger_wire::ratelimit;
use outrigger_wire::request::{Fields, Request};
use outrigger_wire::sieve::{Passage, Removed, Sieve};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, Result};

use crate::engine::exchange::Exchange;
use crate::engine::stages::{affinity, limits};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Whether the request is idempotent, and all of it is still buffered.
pub(super) fn may_repeat(session: &Session) -> bool {
    session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated()
}

/// Whether no final response has been sent. 101 is final, as the bytes after it are not HTTP; other 1xx are not.
pub(super) fn is_unanswered(session: &Session) -> bool {
    session
        .response_written()
        .is_none_or(|head| head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS)
}

/// The approximate size in bytes of a response's head.
pub(super) fn head_bytes(response: &ResponseHeader) -> usize {
    response.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Whether the request has a body of unknown length. HTTP/2 needs no header for that.
pub(super) fn has_endless_body(session: &mut Session) -> bool {
    let head = session.req_header();
    let is_h2 = head.version == Version::HTTP_2;
    let has_length = head.headers.contains_key(header::CONTENT_LENGTH);
    head.headers.contains_key(header::TRANSFER_ENCODING) || (is_h2 && !has_length && !session.as_mut().is_body_empty())
}

/// The request as the stages see it.
pub(super) fn view(head: &RequestHeader, has_endless_body: bool) -> Request<'_> {
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    Request {
        method: &head.method,
        path: head.uri.path(),
        host: host.or_else(|| head.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default(),
        fields: Fields::Map(&head.headers),
        is_http10: head.version == Version::HTTP_10,
        target: head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
        has_endless_body,
    }
}

pub(super) fn content_length(head: &RequestHeader) -> Option<u64> {
    head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn response_length(head: &ResponseHeader) -> Option<u64> {
    head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn is_invalid_data(error: &Error) -> bool {
    error.root_cause().downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::InvalidData)
}

/// Removes the headers that the sender may not set, and returns what they were.
pub(super) fn sift(request: &mut RequestHeader, sieve: Sieve<'_>) -> Removed<HeaderName, HeaderValue> {
    let stays_out = |name: &&HeaderName| sieve.passage(name.as_str()) != Passage::Passes;
    let mut removed = Removed::default();
    // One at a time, as nearly all requests have none.
    while let Some(name) = request.headers.keys().find(stays_out).cloned() {
        removed.forged |= sieve.passage(name.as_str()) == Passage::Forged;
        let value = request.remove_header(&name);
        if removed.claim.is_none() && sieve.is_claim(name.as_str()) {
            removed.claim = value.map(|value| (name, value));
        }
    }
    removed
}

/// Whether a response states its length at most once and unambiguously. Pingora passes on any `Transfer-Encoding` and repeated
/// `Content-Length`. The fast lane rejects the same in [`outrigger_wire::rewrite`].
pub(super) fn has_one_length(response: &ResponseHeader) -> bool {
    let lengths = response.headers.get_all(header::CONTENT_LENGTH).iter().count();
    let mut encodings = response.headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = encodings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    lengths <= 1 && is_chunked && encodings.next().is_none()
}

/// Removes the hop-by-hop headers (RFC 9110 section 7.6.1).
pub(super) fn remove_hop_by_hop(response: &mut ResponseHeader) {
    if let Some(named) = response.headers.get(header::CONNECTION)
        && !matches!(named.as_bytes(), b"keep-alive" | b"close")
    {
        let nominated: Vec<HeaderName> = response
            .headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            // An app may not remove framing this way.
            .filter(|name| !matches!(*name, header::TRANSFER_ENCODING | header::CONTENT_LENGTH | header::CONNECTION))
            .collect();
        for name in nominated {
            response.remove_header(&name);
        }
    }
    let keeps_upgrade = response.status == StatusCode::UPGRADE_REQUIRED;
    let is_hop = |name: &&HeaderName| {
        **name == KEEP_ALIVE
            || **name == PROXY_CONNECTION
            || **name == header::TE
            || **name == header::TRAILER
            || **name == header::PROXY_AUTHENTICATE
            || (**name == header::UPGRADE && !keeps_upgrade)
    };
    while let Some(name) = response.headers.keys().find(is_hop).cloned() {
        response.remove_header(&name);
    }
}

/// Adds the headers for the client's rate limits, merged with those of the app.
pub(super) fn add_limits(response: &mut ResponseHeader, exchange: &Exchange) -> Result<()> {
    let Some(told) = limits::told(exchange) else { return Ok(()) };
    let own = told.own();
    let mut upstream = ratelimit::Upstream::default();
    for (name, value) in &response.headers {
        upstream.take(own, name.as_str(), value.as_bytes());
    }
    let mut merged = Vec::new();
    ratelimit::merged(own, &upstream, |name, value| merged.push((name, value.to_vec())));
    for name in ratelimit::names().filter(|name| own.merges(name)) {
        response.remove_header(name);
    }
    for (name, value) in merged {
        response.insert_header(name, value)?;
    }
    Ok(())
}

/// Removes the session cookie from the request to the app.
pub(super) fn hide_session(request: &mut RequestHeader) -> Result<()> {
    if !request.headers.get_all(header::COOKIE).iter().any(|value| cookies::is_in(value.as_bytes())) {
        return Ok(());
    }
    let mut kept = Vec::new();
    for value in request.headers.get_all(header::COOKIE) {
        let mut others = Vec::new();
        if cookies::write_others(value.as_bytes(), &mut others) {
            kept.push(others);
        }
    }
    request.remove_header(&header::COOKIE);
    for others in kept {
        request.append_header(header::COOKIE, others)?;
    }
    Ok(())
}

/// Adds the session cookie, unless a cache may share the response.
pub(super) fn add_session(response: &mut ResponseHeader, exchange: &Exchange) -> Result<()> {
    let mut said = response.headers.get_all(header::CACHE_CONTROL).iter();
    let is_shared = said.any(|value| cookies::is_shared(value.as_bytes()));
    if is_shared || response.status == StatusCode::NOT_MODIFIED {
        return Ok(());
    }
    let mut result = Ok(());
    affinity::set_cookie(exchange, |name, value| {
        if let Err(e) = response.append_header(name, value) {
            result = Err(e);
        }
    });
    result
}
