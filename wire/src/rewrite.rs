//! Writes heads: requests for the app and responses for the client. Pure: bytes in, bytes out.
//!
//! Only the fast lane uses this; Pingora writes the header sections of other requests.

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use crate::forwarding::{self, Added};
use crate::names::{X_OUTRIGGER_HOP, X_OUTRIGGER_REFUSED, X_REQUEST_TIMEOUT_MS};
use crate::scan::Framing;
use crate::sieve::{Passage, Removed, Sieve};
use crate::{cookies, ratelimit, retry_after};

/// Whether a header applies to one connection only (RFC 9110 section 7.6.1).
fn is_hop_by_hop(name: &str) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        2 => is("te"),
        7 => is("upgrade") || is("trailer"),
        10 => is("connection") || is("keep-alive"),
        14 => is("http2-settings"),
        16 => is("proxy-connection"),
        17 => is("transfer-encoding"),
        18 => is("proxy-authenticate"),
        19 => is("proxy-authorization"),
        _ => false,
    }
}

/// The headers to remove from a request.
#[derive(Clone, Copy, Debug)]
pub struct Sifting<'a> {
    /// Removes headers that the sender may not send.
    pub sieve: Sieve<'a>,
    /// The session cookie is Outrigger's own and is removed.
    pub hides_session: bool,
    /// `Connection` names headers that are removed.
    pub nominates: bool,
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
    Sifting { sieve, hides_session, nominates, is_chunked, host }: Sifting<'_>,
) -> Removed<&'r str, &'r [u8]> {
    out.put_slice(request.method.unwrap_or_default().as_bytes());
    out.put_u8(b' ');
    out.put_slice(request.path.unwrap_or_default().as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    if let Some(host) = host {
        put_field(out, "Host", host.as_bytes());
    }
    let mut removed = Removed::default();
    for field in request.headers.iter() {
        if is_hop_by_hop(field.name) || (nominates && is_nominated(request.headers, field.name)) {
            continue;
        }
        let passage = sieve.passage(field.name);
        if passage != Passage::Passes {
            removed.forged |= passage == Passage::Forged;
            if removed.claim.is_none() && sieve.is_claim(field.name) {
                removed.claim = Some((field.name, field.value));
            }
        } else if hides_session && field.name.eq_ignore_ascii_case("cookie") && cookies::is_in(field.value) {
            let mut others = Vec::with_capacity(field.value.len());
            if cookies::write_others(field.value, &mut others) {
                put_field(out, field.name, &others);
            }
        } else if !added.replaces(field.name) {
            put_field(out, field.name, field.value);
        }
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

/// Whether a client may have this header removed with `Connection`, and does. It cannot remove what the request needs.
fn is_nominated(headers: &[httparse::Header<'_>], name: &str) -> bool {
    !name.eq_ignore_ascii_case("host")
        && headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case("connection"))
            .any(|header| nominates(header.value, name))
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

/// The app's response is invalid and cannot be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidAnswer;

/// Space for headers added to a response, so that its buffer is allocated once.
const OWN_FIELDS_BYTES: usize = 192;
/// Maximum number of headers in a response.
const MOST_FIELDS: usize = 128;

/// Properties of the request, and headers to add to the response.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The request was `HEAD`: the response has no body, regardless of its headers.
    pub is_head_request: bool,
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
    /// The client speaks HTTP/1.0, which has no chunks.
    pub is_http10: bool,
}

/// Parses the response at the start of `input` and writes the client's response to `out`; `None` until the head is complete.
///
/// # Errors
/// The response is not valid HTTP/1, or contradicts itself.
pub fn relay_answer(input: &[u8], out: &mut BytesMut, frame: Frame<'_>) -> Result<Option<AnswerHead>, InvalidAnswer> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut answer = httparse::Response::new(&mut fields);
    let len = match answer.parse(input) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(InvalidAnswer),
    };
    let status = answer.code.ok_or(InvalidAnswer)?;
    if status == 101 || !(100..1000).contains(&status) {
        return Err(InvalidAnswer);
    }
    let connection = Said::of(answer.headers)?;
    let has_no_body = frame.is_head_request || status < 200 || status == 204 || status == 304;
    let body = match (connection.length, connection.chunked) {
        _ if has_no_body => AnswerBody::Framed(Framing::Length(0)),
        (_, true) => AnswerBody::Framed(Framing::Chunked),
        (Some(length), false) => AnswerBody::Framed(Framing::Length(length)),
        (None, false) => AnswerBody::UntilClose,
    };
    out.reserve(len + OWN_FIELDS_BYTES);
    out.put_slice(b"HTTP/1.1 ");
    put_status(out, status);
    out.put_u8(b' ');
    out.put_slice(answer.reason.unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
    let is_final = status >= 200;
    let (mut has_date, mut is_event_stream, mut retry_after, mut is_given_back) = (false, false, None, false);
    let mut is_shared = status == 304;
    let own_limits = frame.limits.filter(|_| is_final);
    let mut upstream_limits = ratelimit::Upstream::default();
    for field in answer.headers.iter() {
        let is = |other: &str| field.name.len() == other.len() && field.name.eq_ignore_ascii_case(other);
        has_date |= is("date");
        is_event_stream |= is("content-type") && is_event_stream_type(field.value);
        if is(X_OUTRIGGER_REFUSED.as_str()) {
            // Between Machines only: an app's response with this header would be mistaken for a declined request.
            is_given_back = true;
            continue;
        }
        is_shared |= is("cache-control") && cookies::is_shared(field.value);
        if is("retry-after") && retry_after.is_none() {
            retry_after = retry_after::asked_for(field.value);
        }
        let stays =
            !is_hop_by_hop(field.name) || (is("upgrade") && status == 426) || (is("trailer") && connection.chunked);
        let replaced = frame.request_id.is_some() && is("x-request-id");
        let nominated = connection.nominates.is_some_and(|names| nominates(names, field.name));
        let is_merged = own_limits.is_some_and(|own| upstream_limits.take(own, field.name, field.value));
        if stays && !replaced && !nominated && !is_merged {
            put_field(out, field.name, field.value);
        }
    }
    // The client's connection stays open after the app's closes: a response without a length is forwarded in chunks.
    let in_chunks = body == AnswerBody::UntilClose || matches!(body, AnswerBody::Framed(Framing::Chunked));
    if (in_chunks || (connection.chunked && frame.is_head_request)) && !frame.is_http10 {
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
        if frame.closes {
            out.put_slice(b"Connection: close\r\n");
        }
    }
    out.put_slice(b"\r\n");
    let speaks_11 = answer.version == Some(1);
    // A body behind 204 would be read as the next response.
    let may_have_body = status == 204 && (connection.chunked || connection.length.is_some_and(|length| length > 0));
    let keeps_connection = if speaks_11 { !connection.close } else { connection.keep_alive } && !may_have_body;
    Ok(Some(AnswerHead { len, status, body, keeps_connection, is_event_stream, retry_after, is_given_back }))
}

fn put_status(out: &mut BytesMut, status: u16) {
    // Three digits, checked by the caller; each remainder is below ten.
    out.put_slice(&[100, 10, 1].map(|unit| b'0' + (status / unit % 10) as u8));
}

/// Connection and body headers of a response.
#[derive(Default)]
struct Said<'a> {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    /// The value of `Connection`, if it names other headers.
    nominates: Option<&'a [u8]>,
}

impl<'a> Said<'a> {
    fn of(fields: &[httparse::Header<'a>]) -> Result<Self, InvalidAnswer> {
        let mut said = Self::default();
        for field in fields {
            let is = |other: &str| field.name.eq_ignore_ascii_case(other);
            match field.name.len() {
                10 if is("connection") => {
                    for token in field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                        if token.eq_ignore_ascii_case(b"close") {
                            said.close = true;
                        } else if token.eq_ignore_ascii_case(b"keep-alive") {
                            said.keep_alive = true;
                        } else if !token.is_empty() {
                            said.nominates = Some(field.value);
                        }
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
}

/// Whether `Connection: names` names `field`. An app cannot remove framing headers that way.
fn nominates(names: &[u8], field: &str) -> bool {
    !field.eq_ignore_ascii_case("content-length")
        && names.split(|b| *b == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(field.as_bytes()))
}

/// Whether a `Content-Type`, with or without parameters, is that of an event stream.
pub fn is_event_stream_type(value: &[u8]) -> bool {
    let media_type = value.split(|byte| *byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME: Frame<'static> = Frame {
        is_head_request: false,
        request_id: Some(b"id-1"),
        date: b"now",
        limits: None,
        session: b"",
        closes: false,
        is_http10: false,
    };

    fn relay(answer: &str, frame: Frame<'_>) -> Result<Option<(AnswerHead, String)>, InvalidAnswer> {
        let mut out = BytesMut::new();
        let head = relay_answer(answer.as_bytes(), &mut out, frame)?;
        Ok(head.map(|head| (head, String::from_utf8(out.to_vec()).unwrap())))
    }

    #[test]
    fn an_event_stream_is_known_by_its_media_type() {
        for is in ["text/event-stream", "Text/Event-Stream; charset=utf-8", "text/event-stream ;x=y"] {
            assert!(is_event_stream_type(is.as_bytes()), "{is}");
        }
        for is_not in ["", "text/event-streams", "application/json; x=text/event-stream"] {
            assert!(!is_event_stream_type(is_not.as_bytes()), "{is_not}");
        }
    }

    #[test]
    fn the_time_that_is_left_is_written_anew_where_it_is_the_last_field() {
        let anew = |head: &str| {
            let mut head = BytesMut::from(head);
            set_timeout(&mut head, Duration::from_millis(250));
            String::from_utf8(head.to_vec()).unwrap()
        };
        let line = "GET / HTTP/1.1\r\nhost: a\r\n";
        assert_eq!(
            anew(&format!("{line}x-request-timeout-ms: 30000\r\n\r\n")),
            format!("{line}x-request-timeout-ms: 250\r\n\r\n")
        );
        for other in [format!("{line}\r\n"), format!("{line}x-request-timeout-ms: 1\r\nb: c\r\n\r\n"), String::new()] {
            assert_eq!(anew(&other), other);
        }
    }

    #[test]
    fn passes_on_what_is_for_the_client() {
        let answer = "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nConnection: keep-alive, X-Hop\r\n\
                      X-Request-Id: theirs\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nok";
        let (head, written) = relay(answer, FRAME).unwrap().unwrap();
        assert_eq!(
            written,
            "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Request-Id: id-1\r\nDate: now\r\n\r\n"
        );
        assert_eq!(
            (head.status, head.body, head.keeps_connection),
            (200, AnswerBody::Framed(Framing::Length(2)), true)
        );
        assert_eq!(head.len, answer.len() - 2);
    }

    #[test]
    fn knows_how_an_answer_ends() {
        let body = |answer: &str, frame| relay(answer, frame).unwrap().unwrap().0.body;
        let nothing = AnswerBody::Framed(Framing::Length(0));
        assert_eq!(body("HTTP/1.1 200 OK\r\n\r\n", FRAME), AnswerBody::UntilClose);
        assert_eq!(
            body("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", FRAME),
            AnswerBody::Framed(Framing::Chunked)
        );
        assert_eq!(body("HTTP/1.1 204 No Content\r\n\r\n", FRAME), nothing);
        assert_eq!(body("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", FRAME), nothing);
        assert_eq!(body("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", FRAME), nothing);
        assert_eq!(
            body("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", Frame { is_head_request: true, ..FRAME }),
            nothing
        );
    }

    #[test]
    fn an_answer_without_a_length_is_passed_on_in_chunks() {
        let (_, written) = relay("HTTP/1.0 200 OK\r\n\r\n", FRAME).unwrap().unwrap();
        assert!(written.contains("Transfer-Encoding: chunked\r\n"), "{written}");
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "garbage garbage\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        ] {
            assert_eq!(relay(answer, FRAME).unwrap_err(), InvalidAnswer, "{answer:?}");
        }
        assert_eq!(relay("HTTP/1.1 200 OK\r\nContent-Le", FRAME), Ok(None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), status in 0..1000_u32) {
            let mut answer = format!("HTTP/1.1 {status} x\r\n").into_bytes();
            answer.extend(bytes);
            let _ = relay_answer(&answer, &mut BytesMut::new(), FRAME);
        }
    }
}
