//! The same requests over HTTP/2, and what is different there.

use std::sync::Mutex;

use serde_json::Value;

use super::Outcome;
use crate::{
    differential::requests::{Body, Request},
    h2_conformance::{
        case::{Connection, Response},
        wire::{self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PROTOCOL_ERROR},
    },
    harness::{PATIENCE, Proxy},
};

/// A difference of HTTP/2: what it is about, when it applies, and whether the outcomes over HTTP/1.1 and HTTP/2 are right.
type Difference = (&'static str, fn(&Request) -> bool, fn(&Outcome, &Outcome) -> bool);

/// In the order in which they are asked. Each must be seen.
const DIFFERENCES: [Difference; 9] = [
    ("a malformed request is a stream error", |_| true, |one, two| one.is_malformed() && is_malformed(two)),
    (
        "what is malformed may be found before what is too large",
        |_| true,
        |one, two| matches!(one, Outcome::Refused(431, _)) && is_malformed(two),
    ),
    ("a body that is too short is malformed", Request::is_incomplete, |_, two| is_malformed(two)),
    ("a body that is too long is malformed, not the next request", |r| r.length().is_gt(), |_, two| is_malformed(two)),
    ("headers of a connection are malformed", has_connection_headers, |_, two| is_malformed(two)),
    ("blanks around a value are malformed", has_blanks, |_, two| is_malformed(two)),
    ("an empty host is malformed", |r| r.hosts == [""], |_, two| is_malformed(two)),
    ("the scheme says nothing", |r| r.origin.starts_with("ftp:"), |one, _| one.is_malformed()),
    (
        "the headers of other protocol versions",
        |_| true,
        |one, two| match (one, two) {
            (Outcome::Served(status, seen), Outcome::Served(other, other_seen)) => {
                status == other && as_any_version(seen) == as_any_version(other_seen)
            }
            _ => false,
        },
    ),
];

fn is_malformed(outcome: &Outcome) -> bool {
    *outcome == Outcome::Reset(PROTOCOL_ERROR) || outcome.is_malformed()
}

fn has_connection_headers(request: &Request) -> bool {
    let names = ["connection", "keep-alive", "proxy-connection", "upgrade"];
    let is_other_te = |(name, value): &(String, String)| name.eq_ignore_ascii_case("te") && value != "trailers";
    names.iter().any(|name| request.has(name)) || request.fields.iter().any(is_other_te)
}

fn has_blanks(request: &Request) -> bool {
    request.fields.iter().any(|(_, value)| value.trim() != value)
}

/// The app's view without the version in `Via` and how often `Cookie` came: HTTP/2 joins them.
fn as_any_version(seen: &Value) -> Value {
    let mut seen = seen.clone();
    if let Some(via) = seen["headers"]["via"].as_str() {
        seen["headers"]["via"] = via.replace("2 outrigger", "1.1 outrigger").replace("2.0 ", "1.1 ").into();
    }
    if let Some(cookie) = seen["headers"]["cookie"].as_str() {
        seen["headers"]["cookie"] = cookie.replace(", ", "; ").into();
    }
    // The order of headers, and the case of their names.
    seen["head"] = Value::Null;
    seen
}

/// How often each difference was seen, and each kind of outcome.
#[derive(Default)]
pub struct Tally(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    differences: [usize; DIFFERENCES.len()],
    served: usize,
    refused: usize,
    only_http1: usize,
}

impl Tally {
    /// Fails unless the generated requests were of all kinds.
    #[track_caller]
    pub fn check(&self) {
        let seen = self.0.lock().unwrap();
        println!("{seen:?}");
        for ((what, ..), count) in DIFFERENCES.iter().zip(&seen.differences) {
            assert!(*count > 0, "no request shows: {what}");
        }
        assert!(seen.served > 100 && seen.refused > 10, "{seen:?}");
    }
}

/// The problem with the outcome over HTTP/2, if any, given that over HTTP/1.1.
pub fn problem(proxy: &Proxy, request: &Request, http1: &Outcome, tally: &Tally) -> Option<String> {
    let Some(frames) = frames(request) else {
        tally.0.lock().unwrap().only_http1 += 1;
        return None;
    };
    let (outcome, serves_on) = ask(proxy, &frames, request.method == "HEAD");
    let mut seen = tally.0.lock().unwrap();
    seen.served += usize::from(matches!(outcome, Outcome::Served(..)));
    seen.refused += usize::from(matches!(outcome, Outcome::Refused(..)));
    let difference =
        DIFFERENCES.iter().position(|(_, applies, is_right)| applies(request) && is_right(http1, &outcome));
    let is_same = outcome == *http1;
    if let Some(difference) = difference.filter(|_| !is_same) {
        seen.differences[difference] += 1;
    }
    match serves_on {
        Ok(()) if is_same || difference.is_some() => None,
        serves_on => {
            let mut bytes = request.bytes();
            bytes.truncate(600);
            let bytes = String::from_utf8_lossy(&bytes);
            Some(format!("HTTP/2: {bytes:?}\n  {outcome:?}, {serves_on:?}\n  HTTP/1.1: {http1:?}"))
        }
    }
}

fn ask(proxy: &Proxy, frames: &[u8], is_head: bool) -> (Outcome, Result<(), String>) {
    let mut connection = Connection::greeted(proxy.h2c, PATIENCE);
    connection.send(frames);
    connection.read_until(|frames| frames.iter().any(|frame| frame.ends(1)));
    let response = Response::of(&connection.frames, 1);
    let outcome = match (response.statuses.last(), response.reset) {
        (_, Some(code)) if code != 0 => Outcome::Reset(code),
        (Some(status), _) => Outcome::of(*status, &response.body, is_head),
        (None, _) => Outcome::Closed,
    };
    (outcome, connection.serves(3))
}

/// The request on stream 1; `None` if HTTP/2 cannot express it.
fn frames(request: &Request) -> Option<Vec<u8>> {
    if request.spoilt.is_some() || matches!(request.body, Body::Chunked(_, None)) {
        return None;
    }
    let (scheme, authority) = request.origin.split_once("://").unwrap_or(("http", ""));
    let first = request.path.as_bytes().first();
    // Otherwise the path would be a part of the host.
    let has_host = !authority.is_empty() && matches!(first, Some(b'/' | b'?') | None);
    if !request.origin.is_empty() && !has_host {
        return None;
    }
    let lacks_path = !authority.is_empty() && first != Some(&b'/');
    let path = format!("{}{}", if lacks_path { "/" } else { "" }, request.path);
    let mut fields = vec![(":method", request.method), (":scheme", scheme), (":path", path.as_str())];
    match request.hosts {
        [host] if authority.is_empty() => fields.push((":authority", host)),
        hosts => {
            fields.extend(Some((":authority", authority)).filter(|_| !authority.is_empty()));
            fields.extend(hosts.iter().map(|host| ("host", *host)));
        }
    }
    let names: Vec<String> = request.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    for (name, (_, value)) in names.iter().zip(&request.fields) {
        // Browsers send each cookie in one of its own.
        let crumbs = if name == "cookie" { "; " } else { "\0no separator" };
        fields.extend(value.split(crumbs).map(|value| (name.as_str(), value)));
    }
    match &request.body {
        Body::None => Some(head(&fields, true)),
        Body::Length(length, bytes) => {
            fields.push(("content-length", length));
            Some([head(&fields, false), body(bytes, true)].concat())
        }
        Body::Chunked(_, content) => {
            let (pieces, trailers) = content.as_ref()?;
            let pieces = pieces.iter().flat_map(|piece| body(piece, false));
            let end = if trailers.is_empty() { wire::last_data(1, b"") } else { wire::last_headers(1, trailers) };
            Some(head(&fields, false).into_iter().chain(pieces).chain(end).collect())
        }
    }
}

fn head(fields: &[(&str, &str)], is_last: bool) -> Vec<u8> {
    let block = wire::block(fields);
    let mut pieces = block.chunks(10_000).peekable();
    let end = |is_end: bool| if is_end { END_HEADERS } else { 0 };
    let first = pieces.next().unwrap_or_default();
    let last = if is_last { END_STREAM } else { 0 };
    let mut bytes = wire::frame(HEADERS, last | end(pieces.peek().is_none()), 1, first);
    while let Some(piece) = pieces.next() {
        bytes.extend(wire::frame(CONTINUATION, end(pieces.peek().is_none()), 1, piece));
    }
    bytes
}

/// DATA with padding, as far as the first window goes.
fn body(bytes: &[u8], is_last: bool) -> Vec<u8> {
    let mut pieces = bytes.chunks(10_000).peekable();
    let mut frames = Vec::new();
    if pieces.peek().is_none() && is_last {
        frames = wire::last_data(1, b"");
    }
    while let Some(piece) = pieces.next() {
        let last = if is_last && pieces.peek().is_none() { END_STREAM } else { 0 };
        frames.extend(wire::frame(DATA, last | PADDED, 1, &[&[3], piece, &[0; 3]].concat()));
    }
    frames
}
