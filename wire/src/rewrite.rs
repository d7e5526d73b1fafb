//! Writes heads: requests for the app and responses for the client. Pure: bytes in, bytes out.
//!
//! [`crate::headers`] decides which headers pass.

use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::{BufMut, BytesMut};

use crate::forwarding::{self, Added};
use crate::headers::{self, Named, RequestHeaders, ResponseHeaders, Verdict};
use crate::names::{TRACEPARENT, X_OUTRIGGER_HOP, X_OUTRIGGER_REFUSED, X_REQUEST_TIMEOUT_MS};
use crate::request::Fields;
use crate::scan::Framing;
use crate::sieve::{Removed, Sieve};
use crate::trace_context::SpanId;
use crate::{cookies, ratelimit, retry_after};

/// Maximum size in bytes of the header section of a response, with its status line.
pub const MOST_BYTES: usize = 64 << 10;
/// Maximum number of headers in a response.
pub const MOST_FIELDS: usize = 128;

/// The headers to remove from a request.
#[derive(Clone, Copy, Debug)]
pub struct Sifting<'a> {
    /// Removes headers that the sender may not send.
    pub sieve: Sieve<'a>,
    /// The session cookie is Outrigger's own and is removed.
    pub hides_session: bool,
    /// The request asks to switch protocols: it keeps `Upgrade`.
    pub is_upgrade: bool,
    /// The body follows in chunks.
    pub is_chunked: bool,
    /// `Host` for a request that has none, as HTTP/1.0 allows.
    pub host: Option<&'a str>,
}

/// Writes the request's head for the app; returns what was removed.
pub fn write_request<'r>(
    out: &mut BytesMut,
    request: &httparse::Request<'_, 'r>,
    added: &Added,
    Sifting { sieve, hides_session, is_upgrade, is_chunked, host }: Sifting<'_>,
) -> Removed<&'r str, &'r [u8]> {
    out.put_slice(request.method.unwrap_or_default().as_bytes());
    out.put_u8(b' ');
    out.put_slice(request.path.unwrap_or_default().as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    if let Some(host) = host {
        put_field(out, "Host", host.as_bytes());
    }
    let mut removed = Removed::default();
    let named = Named::of(Fields::Wire(request.headers));
    let table = RequestHeaders { sieve, named, hides_session, is_upgrade, added };
    for field in request.headers.iter() {
        match table.verdict(field.name) {
            Verdict::Passes => put_field(out, field.name, field.value),
            verdict @ (Verdict::Removed | Verdict::Forged) => {
                removed.forged |= verdict == Verdict::Forged;
                if removed.claim.is_none() && sieve.is_claim(field.name) {
                    removed.claim = Some((field.name, field.value));
                }
            }
            Verdict::Cookie if cookies::is_in(field.value) => {
                let mut others = Vec::with_capacity(field.value.len());
                if cookies::write_others(field.value, &mut others) {
                    put_field(out, field.name, &others);
                }
            }
            Verdict::Cookie => put_field(out, field.name, field.value),
            Verdict::HopByHop | Verdict::Framing | Verdict::Replaced => {}
        }
    }
    if is_upgrade {
        put_field(out, "Connection", b"Upgrade");
    }
    if is_chunked {
        out.put_slice(b"Transfer-Encoding: chunked\r\n");
    }
    for (name, value) in added.iter() {
        put_field(out, name.as_str(), value);
    }
    out.put_slice(b"\r\n");
    removed
}

/// Writes the head of [`write_request`] for a peer, with the signed hop header added.
pub fn with_hop(head: &[u8], hop: &[u8]) -> BytesMut {
    let first = memchr::memchr(b'\n', head).map_or(0, |at| at + 1);
    let mut out = BytesMut::with_capacity(head.len() + hop.len() + 32);
    out.put_slice(&head[..first]);
    put_field(&mut out, X_OUTRIGGER_HOP.as_str(), hop);
    out.put_slice(&head[first..]);
    out
}

/// Rewrites the remaining time in a head of [`write_request`], where it is the last header.
pub fn set_timeout(head: &mut BytesMut, left: Duration) {
    let name = X_REQUEST_TIMEOUT_MS.as_str().as_bytes();
    let Some(end) = head.strip_suffix(b"\r\n\r\n") else { return };
    let start = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let is_last = end[start..].strip_prefix(name).is_some_and(|value| value.starts_with(b": "));
    if is_last {
        head.truncate(start + name.len() + 2);
        head.put_slice(format!("{}\r\n\r\n", forwarding::whole_milliseconds(left)).as_bytes());
    }
}

/// Names another span of the same trace in a head of [`write_request`] that has a `traceparent` of ours.
pub fn set_span(head: &mut BytesMut, span: SpanId) {
    /// Where the id of the span begins in the header's value.
    const AT: usize = 36;
    let field = [b"\r\n", TRACEPARENT.as_str().as_bytes(), b": 00-"].concat();
    let Some(start) = memchr::memmem::rfind(head, &field) else { return };
    let at = start + field.len() - 3 + AT;
    let id = span.to_string();
    if let Some(place) = head.get_mut(at..at + id.len()) {
        place.copy_from_slice(id.as_bytes());
    }
}

fn put_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// How the body of a response is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerBody {
    /// By its declared length, or in chunks.
    Framed(Framing),
    /// By the end of the connection.
    UntilClose,
}

/// A parsed response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// Length of the app's head in bytes.
    pub len: usize,
    /// Status code.
    pub status: u16,
    /// How its body is delimited.
    pub body: AnswerBody,
    /// The app keeps the connection open.
    pub keeps_connection: bool,
    /// Its body is an event stream, which may be silent for a long time.
    pub is_event_stream: bool,
    /// The response's `Retry-After`.
    pub retry_after: Option<Duration>,
    /// A peer declines the request.
    pub is_given_back: bool,
}

impl AnswerHead {
    /// Whether no other response to the request follows. That is also true of 101, after which the bytes are not HTTP.
    pub fn is_final(&self) -> bool {
        self.status >= 200 || self.status == SWITCHING
    }
}

const SWITCHING: u16 = 101;
const UPGRADE_REQUIRED: u16 = 426;

/// The app's response is invalid and cannot be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidAnswer;

/// Space for headers added to a response, so that its buffer is allocated once.
const OWN_FIELDS_BYTES: usize = 192;

/// Properties of the request, and headers to add to the response.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The request was `HEAD`: the response has no body, regardless of its headers.
    pub is_head_request: bool,
    /// The request asked to switch protocols, which 101 does.
    pub is_upgrade: bool,
    /// `X-Request-Id`, if responses carry it.
    pub request_id: Option<&'a [u8]>,
    /// `Date`, for an app that sends none (RFC 9110 section 6.6.1).
    pub date: &'a [u8],
    /// Rate limits in the final response, merged with the upstream's own.
    pub limits: Option<ratelimit::Own<'a>>,
    /// The session cookie as a header line, omitted from responses that shared caches may store.
    pub session: &'a [u8],
    /// The client's connection closes after this response.
    pub closes: bool,
    /// The client takes a body in chunks; HTTP/1.0 and HTTP/2 have none.
    pub takes_chunks: bool,
}

/// Parses the response at the start of `input` and writes the client's response to `out`; `None` until the head is complete.
///
/// # Errors
/// The response is not valid HTTP/1, or contradicts itself.
pub fn relay_answer(input: &[u8], out: &mut BytesMut, frame: Frame<'_>) -> Result<Option<AnswerHead>, InvalidAnswer> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    let len = match parser().parse_response_with_uninit_headers(&mut answer, input, &mut fields) {
        Ok(httparse::Status::Complete(len)) if len <= MOST_BYTES => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Ok(httparse::Status::Complete(_)) | Err(_) => return Err(InvalidAnswer),
    };
    let status = answer.code.ok_or(InvalidAnswer)?;
    if (status == SWITCHING && !frame.is_upgrade) || !(100..1000).contains(&status) {
        return Err(InvalidAnswer);
    }
    let connection = Said::of(answer.headers)?;
    let has_no_body = frame.is_head_request || !headers::may_have_body(status);
    let body = match (connection.length, connection.chunked) {
        _ if has_no_body => AnswerBody::Framed(Framing::Length(0)),
        (_, true) => AnswerBody::Framed(Framing::Chunked),
        (Some(length), false) => AnswerBody::Framed(Framing::Length(length)),
        (None, false) => AnswerBody::UntilClose,
    };
    out.reserve(len + OWN_FIELDS_BYTES);
    put_status_line(out, status, answer.reason.unwrap_or_default());
    let is_final = status >= 200;
    let (mut has_date, mut is_event_stream, mut retry_after, mut is_given_back) = (false, false, None, false);
    let mut has_upgrade = false;
    let mut is_shared = status == 304;
    let own_limits = frame.limits.filter(|_| is_final);
    let mut upstream_limits = ratelimit::Upstream::default();
    let table = ResponseHeaders {
        status,
        named: Named::known(Fields::Wire(answer.headers), connection.names_headers),
        passes_trailers: connection.chunked && !has_no_body && frame.takes_chunks,
        sends_request_id: frame.request_id.is_some(),
        limits: own_limits,
    };
    for field in answer.headers.iter() {
        let is = |other: &str| field.name.len() == other.len() && field.name.eq_ignore_ascii_case(other);
        if is("retry-after") && retry_after.is_none() {
            retry_after = retry_after::asked_for(field.value);
        }
        match table.verdict(field.name) {
            Verdict::Passes => {
                has_date |= is("date");
                has_upgrade |= is("upgrade");
                is_event_stream |= is("content-type") && is_event_stream_type(field.value);
                is_shared |= is("cache-control") && cookies::is_shared(field.value);
                put_field(out, field.name, field.value);
            }
            Verdict::Replaced => _ = own_limits.is_some_and(|own| upstream_limits.take(own, field.name, field.value)),
            Verdict::Removed => is_given_back |= is(X_OUTRIGGER_REFUSED.as_str()),
            Verdict::HopByHop | Verdict::Framing | Verdict::Forged | Verdict::Cookie => {}
        }
    }
    // The client's connection stays open after the app's closes: a response without a length is forwarded in chunks.
    let in_chunks = body == AnswerBody::UntilClose || matches!(body, AnswerBody::Framed(Framing::Chunked));
    let in_chunks = in_chunks || (connection.chunked && frame.is_head_request && headers::may_have_body(status));
    if in_chunks && frame.takes_chunks {
        out.put_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if is_final {
        if let Some(id) = frame.request_id {
            put_field(out, "X-Request-Id", id);
        }
        if !has_date {
            put_field(out, "Date", frame.date);
        }
        if let Some(own) = own_limits {
            ratelimit::merged(own, &upstream_limits, |name, value| put_field(out, name, value));
        }
        if !is_shared {
            out.put_slice(frame.session);
        }
    }
    let names_upgrade = status == SWITCHING || (status == UPGRADE_REQUIRED && has_upgrade);
    put_connection(out, names_upgrade, is_final && frame.closes);
    out.put_slice(b"\r\n");
    let keeps_connection = connection.stays_open(status, answer.version == Some(1));
    Ok(Some(AnswerHead { len, status, body, keeps_connection, is_event_stream, retry_after, is_given_back }))
}

fn put_connection(out: &mut BytesMut, names_upgrade: bool, closes: bool) {
    match (names_upgrade, closes) {
        (false, false) => {}
        (false, true) => out.put_slice(b"Connection: close\r\n"),
        (true, false) => out.put_slice(b"Connection: Upgrade\r\n"),
        (true, true) => out.put_slice(b"Connection: Upgrade, close\r\n"),
    }
}

/// Accepts whitespace before a colon, which a proxy removes from responses (RFC 9112 section 5.1).
fn parser() -> httparse::ParserConfig {
    let mut parser = httparse::ParserConfig::default();
    parser.allow_spaces_after_header_name_in_responses(true);
    parser
}

fn put_status_line(out: &mut BytesMut, status: u16, reason: &str) {
    out.put_slice(b"HTTP/1.1 ");
    // Three digits, checked by the caller; each remainder is below ten.
    out.put_slice(&[100, 10, 1].map(|unit| b'0' + (status / unit % 10) as u8));
    out.put_u8(b' ');
    out.put_slice(reason.as_bytes());
    out.put_slice(b"\r\n");
}

/// Connection and body headers of a response.
#[derive(Default)]
struct Said {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    /// `Connection` names other headers.
    names_headers: bool,
}

impl Said {
    fn of(fields: &[httparse::Header<'_>]) -> Result<Self, InvalidAnswer> {
        let mut said = Self::default();
        let mut options = 0;
        for field in fields {
            let is = |other: &str| field.name.eq_ignore_ascii_case(other);
            match field.name.len() {
                10 if is("connection") => {
                    for option in headers::options(field.value) {
                        said.close |= option.eq_ignore_ascii_case(b"close");
                        said.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                        said.names_headers |= headers::names_header(option);
                        options += 1;
                    }
                    if options > headers::MOST_OPTIONS {
                        return Err(InvalidAnswer);
                    }
                }
                14 if is("content-length") => {
                    let text = std::str::from_utf8(field.value).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
                    let length = text.and_then(|t| t.parse().ok()).ok_or(InvalidAnswer)?;
                    // Also if both are equal: the client would get both.
                    if said.length.replace(length).is_some() {
                        return Err(InvalidAnswer);
                    }
                }
                17 if is("transfer-encoding") => {
                    if said.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(InvalidAnswer);
                    }
                    said.chunked = true;
                }
                _ => {}
            }
        }
        // With two lengths for one body, a client that uses the other one misreads the next response.
        if said.chunked && said.length.is_some() { Err(InvalidAnswer) } else { Ok(said) }
    }

    /// Whether another request may be sent on the connection.
    fn stays_open(&self, status: u16, speaks_11: bool) -> bool {
        // The bytes of a body that must not exist (RFC 9110 section 15.3.5) would be read as the next response.
        let has_stray_body = status == 204 && (self.chunked || self.length.is_some_and(|length| length > 0));
        // HTTP/1.0 has no chunks.
        let is_faulty = has_stray_body || (self.chunked && !speaks_11);
        !is_faulty && if speaks_11 { !self.close } else { self.keep_alive }
    }
}

/// Whether a `Content-Type`, with or without parameters, is that of an event stream.
pub fn is_event_stream_type(value: &[u8]) -> bool {
    let media_type = value.split(|byte| *byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

#[cfg(test)]
mod tests;
