//! Request and response heads in Pingora's types: reads, checks, removes and adds headers.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use outrigger_wire::authority::is_host_value;
use outrigger_wire::cookies;
use outrigger_wire::forwarding::Added;
use outrigger_wire::headers::{self, MOST_OPTIONS, Named, RequestHeaders, ResponseHeaders, Verdict};
use outrigger_wire::malformed::Malformed;
use outrigger_wire::names::X_REQUEST_ID;
use outrigger_wire::ratelimit;
use outrigger_wire::request::{Fields, Request};
use outrigger_wire::retry_after;
use outrigger_wire::rewrite::is_event_stream_type;
use outrigger_wire::sieve::{Removed, Sieve};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, Result};

use crate::engine::exchange::Exchange;
use crate::engine::stages::affinity;

/// How many headers are removed between two readings of a map.
const BATCH: usize = 8;

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

/// Checks a header section that arrived over HTTP/2 for what [`outrigger_wire::scan`] rejects over HTTP/1.
///
/// # Errors
/// `Host` or `:authority` is not a host with an optional port, or a name is not a token: the `http` crate allows quotes.
pub(super) fn check_h2(head: &RequestHeader) -> std::result::Result<(), Malformed> {
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let hosts = head.headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    if !authority.into_iter().chain(hosts).all(is_host_value) {
        return Err(Malformed::Host);
    }
    let is_token = |name: &HeaderName| !name.as_str().contains('"');
    if head.headers.keys().all(is_token) { Ok(()) } else { Err(Malformed::Field) }
}

/// Edits the request for the app by [`RequestHeaders`], and returns what was removed from it. Counterpart of
/// [`outrigger_wire::rewrite::write_request`].
///
/// # Errors
/// Pingora's, for a header that cannot be inserted.
pub(super) fn edit_request(
    request: &mut RequestHeader,
    added: &Added,
    sieve: Sieve<'_>,
    hides_session: bool,
) -> Result<Removed<HeaderName, HeaderValue>> {
    let named = Named::of(Fields::Wire(&[]));
    let rules = RequestHeaders { sieve, named, hides_session, is_upgrade: false, added };
    let has_names = has_names(&request.headers);
    let headers = &request.headers;
    let table = RequestHeaders { named: Named::known(Fields::Map(headers), has_names), ..rules };
    let mut removed = Removed::default();
    let mut has_session = false;
    for name in headers.keys() {
        match table.verdict(name.as_str()) {
            verdict @ (Verdict::Removed | Verdict::Forged) => {
                removed.forged |= verdict == Verdict::Forged;
                if removed.claim.is_none() && sieve.is_claim(name.as_str()) {
                    removed.claim = headers.get(name).map(|value| (name.clone(), value.clone()));
                }
            }
            Verdict::Cookie => {
                has_session |= headers.get_all(name).iter().any(|value| cookies::is_in(value.as_bytes()));
            }
            Verdict::Passes | Verdict::HopByHop | Verdict::Framing | Verdict::Replaced => {}
        }
    }
    loop {
        let headers = &request.headers;
        let table = RequestHeaders { named: Named::known(Fields::Map(headers), has_names), ..rules };
        // Inserting `added` replaces.
        let stays = |verdict| matches!(verdict, Verdict::Passes | Verdict::Cookie | Verdict::Replaced);
        let batch = batch(headers, |name| !stays(table.verdict(name.as_str())));
        batch.iter().flatten().for_each(|name| drop(request.remove_header(name)));
        if batch[BATCH - 1].is_none() {
            break;
        }
    }
    request.remove_header(&header::CONNECTION);
    if has_session {
        hide_session(request)?;
    }
    for (name, value) in added.iter() {
        request.insert_header(name, value)?;
    }
    Ok(removed)
}

/// Edits an interim or final response for the client by [`ResponseHeaders`]. Counterpart of
/// [`outrigger_wire::rewrite::relay_answer`], except that the headers of Outrigger's own are added later: Pingora adds `Date`
/// and `Connection`, and frames the body by `Transfer-Encoding`, which stays where a body may follow.
pub(super) fn edit_response(response: &mut ResponseHeader, sends_request_id: bool, limits: Option<ratelimit::Own<'_>>) {
    let status = response.status.as_u16();
    let named = has_names(&response.headers);
    loop {
        let headers = &response.headers;
        let table = ResponseHeaders {
            status,
            named: Named::known(Fields::Map(headers), named),
            // Pingora drops them.
            passes_trailers: false,
            sends_request_id,
            limits,
        };
        let goes = |name: &HeaderName| match table.verdict(name.as_str()) {
            Verdict::Framing => *name != header::TRANSFER_ENCODING || !headers::may_have_body(status),
            // Merged or replaced later.
            Verdict::Passes | Verdict::Replaced => false,
            Verdict::HopByHop | Verdict::Removed | Verdict::Forged | Verdict::Cookie => true,
        };
        let batch = batch(headers, goes);
        batch.iter().flatten().for_each(|name| drop(response.remove_header(name)));
        if batch[BATCH - 1].is_none() {
            break;
        }
    }
    response.remove_header(&header::CONNECTION);
}

/// Whether a `Connection` names other headers.
fn has_names(headers: &HeaderMap) -> bool {
    let mut options = headers.get_all(header::CONNECTION).iter().flat_map(|value| headers::options(value.as_bytes()));
    options.any(headers::names_header)
}

/// Up to [`BATCH`] headers that go. `Connection` is not among them: it is removed last, as it names others.
fn batch(headers: &HeaderMap, goes: impl Fn(&HeaderName) -> bool) -> [Option<HeaderName>; BATCH] {
    let mut going = headers.keys().filter(|name| **name != header::CONNECTION && goes(name)).cloned();
    std::array::from_fn(|_| going.next())
}

/// Whether `Connection` of a response has so few options that it can be compared with every header.
pub(super) fn has_few_options(response: &ResponseHeader) -> bool {
    let values = response.headers.get_all(header::CONNECTION).iter();
    values.map(|value| headers::options(value.as_bytes()).count()).sum::<usize>() <= MOST_OPTIONS
}

/// Whether a response is an event stream.
pub(super) fn is_event_stream(response: &ResponseHeader) -> bool {
    response.headers.get_all(header::CONTENT_TYPE).iter().any(|value| is_event_stream_type(value.as_bytes()))
}

/// Adds the headers for the client's rate limits, merged with those of the app.
fn add_limits(response: &mut ResponseHeader, own: ratelimit::Own<'_>) -> Result<()> {
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

/// Removes the session cookie from the request to the app. Headers without it stay as they are.
fn hide_session(request: &mut RequestHeader) -> Result<()> {
    let mut kept = Vec::new();
    for value in request.headers.get_all(header::COOKIE) {
        if !cookies::is_in(value.as_bytes()) {
            kept.push(value.clone());
            continue;
        }
        let mut others = Vec::new();
        if cookies::write_others(value.as_bytes(), &mut others) {
            kept.extend(HeaderValue::from_bytes(&others));
        }
    }
    request.remove_header(&header::COOKIE);
    for others in kept {
        request.append_header(header::COOKIE, others)?;
    }
    Ok(())
}

/// Joins the `Cookie` headers of a request that arrived over HTTP/2, where browsers send each cookie in one of its own (RFC 9113
/// section 8.2.3).
///
/// # Errors
/// Pingora's, for a header that cannot be inserted.
pub(super) fn join_cookies(request: &mut RequestHeader) -> Result<()> {
    let values = || request.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    if values().nth(1).is_none() {
        return Ok(());
    }
    let joined = values().collect::<Vec<_>>().join(&b"; "[..]);
    request.insert_header(header::COOKIE, joined).map(drop)
}

/// Edits a final response, and adds Outrigger's own headers except the session cookie.
///
/// # Errors
/// Pingora's, for a header that cannot be inserted.
pub(super) fn edit_final(
    response: &mut ResponseHeader,
    request_id: Option<&[u8]>,
    limits: Option<ratelimit::Own<'_>>,
) -> Result<()> {
    edit_response(response, request_id.is_some(), limits);
    if let Some(id) = request_id {
        response.insert_header(&X_REQUEST_ID, id)?;
    }
    limits.map_or(Ok(()), |own| add_limits(response, own))
}

/// The pause that a response asks for.
pub(super) fn retry_after(response: &ResponseHeader) -> Option<Duration> {
    response.headers.get_all(header::RETRY_AFTER).iter().find_map(|value| retry_after::asked_for(value.as_bytes()))
}

/// Whether a response may carry a session cookie: no shared cache may store it.
pub(super) fn may_carry_session(response: &ResponseHeader) -> bool {
    let mut said = response.headers.get_all(header::CACHE_CONTROL).iter();
    response.status != StatusCode::NOT_MODIFIED && !said.any(|value| cookies::is_shared(value.as_bytes()))
}

/// Adds the session cookie to a response that may carry it.
pub(super) fn add_session(response: &mut ResponseHeader, exchange: &Exchange) -> Result<()> {
    if !may_carry_session(response) {
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

#[cfg(test)]
mod tests;
