//! Parses HTTP/1.1 heads: the end of the head, the length of the body, and malformed input.
//!
//! Requests can be smuggled if two parsers read them differently (RFC 9112 section 11.2). This module rejects ambiguous messages
//! before the app reads them. Requests over HTTP/2 pass it as well, see [`crate::http2`]. Pure: bytes in, verdicts out.

use std::mem::MaybeUninit;

use crate::authority::{is_host_value, is_same_host};
use crate::headers;
use crate::malformed::Malformed;

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `Content-Length`; zero if missing.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A parsed request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Length in bytes, including the empty line.
    pub len: usize,
    /// How its body is delimited.
    pub framing: Framing,
    /// The position of scheme and host in an absolute target; apps handle a plain path better. Empty for a path.
    pub origin: Origin,
    /// HTTP/1.0.
    pub is_http10: bool,
    /// The client closes its connection after the response.
    pub closes: bool,
    /// It has `Expect`: the client may wait for an interim response before it sends the body.
    pub expects: bool,
}

/// Scheme and host of an absolute target, as bytes from the start of the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Start.
    pub start: usize,
    /// Length; zero for a path.
    pub len: usize,
    /// The target has no path, at most a query: a slash must be added.
    pub lacks_path: bool,
    /// The length of the host, at the end of these bytes, if the request has no `Host` (HTTP/1.0): it must be added.
    pub lacks_host: usize,
}

/// Why a head is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is malformed.
    Malformed(Malformed),
    /// It has more bytes or headers than allowed.
    TooLarge,
}

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// Maximum size of a head.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes.
    pub max_bytes: usize,
    /// Number of headers.
    pub max_fields: usize,
}

/// Maximum number of headers that [`inspect`] supports.
pub const MOST_FIELDS: usize = 256;

/// Finds the end of a head that arrives in pieces, reading each byte once.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    /// Bytes before this have been read.
    seen: usize,
    /// Start of the current line.
    line: usize,
}

impl HeadScanner {
    /// Returns the length of the head at the start of `bytes`, if it is complete. `bytes` grows from call to call.
    ///
    /// # Errors
    /// A line ends in LF alone, or continues the previous one.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        while let Some(found) = memchr::memchr(b'\n', &bytes[self.seen..]) {
            let newline = self.seen + found;
            if newline == 0 || bytes[newline - 1] != b'\r' {
                return Err(Malformed::BareLineFeed);
            }
            let is_empty = newline - 1 == self.line;
            if !is_empty && self.line > 0 && matches!(bytes[self.line], b' ' | b'\t') {
                return Err(Malformed::FoldedField);
            }
            self.seen = newline + 1;
            self.line = newline + 1;
            if is_empty {
                return Ok(Some(newline + 1));
            }
        }
        self.seen = bytes.len();
        Ok(None)
    }
}

/// Parses the complete head at the start of `bytes`.
///
/// # Errors
/// The head is malformed or too large.
pub fn inspect(bytes: &[u8], limits: Limits) -> Result<Head, Refused> {
    let mut fields = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MOST_FIELDS];
    let fields = &mut fields[..limits.max_fields.min(MOST_FIELDS)];
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(bytes, fields) {
        Ok(httparse::Status::Complete(len)) => len,
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooLarge),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => return Err(Malformed::Field.into()),
        Err(httparse::Error::Version) => return Err(Malformed::Version.into()),
        Err(_) | Ok(httparse::Status::Partial) => return Err(Malformed::RequestLine.into()),
    };
    let is_http11 = request.version == Some(1);
    let method = request.method.unwrap_or_default();
    let target = request.path.unwrap_or_default();
    if method == "CONNECT" {
        return Err(Malformed::Connect.into());
    }
    let authority = target_authority(method, target)?;
    let fields = Fields::read(request.headers)?;
    if fields.options > headers::MOST_OPTIONS {
        return Err(Malformed::Field.into());
    }
    match fields.host {
        None if is_http11 => return Err(Malformed::Host.into()),
        Some(host) if authority.is_some_and(|authority| !names_host(target, authority, host)) => {
            return Err(Malformed::HostMismatch.into());
        }
        _ => {}
    }
    let framing = match (fields.length, fields.chunked) {
        (Some(_), true) => return Err(Malformed::LengthAndEncoding.into()),
        (None, true) if !is_http11 => return Err(Malformed::Encoding.into()),
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    let origin = authority.map_or_else(Origin::default, |authority| {
        // httparse ensures one space after the method; scheme, "://" and authority follow.
        let scheme = target.find("://").unwrap_or_default();
        let len = scheme + 3 + authority.len();
        let lacks_host = if fields.host.is_none() { authority.len() } else { 0 };
        Origin { start: method.len() + 1, len, lacks_path: !target[len..].starts_with('/'), lacks_host }
    });
    Ok(Head { len, framing, origin, is_http10: !is_http11, closes: fields.closes, expects: fields.expects })
}

/// The headers that determine how a message is parsed.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    /// `Connection` has the option `close`.
    closes: bool,
    /// It has `Expect`.
    expects: bool,
    /// Number of options of `Connection` other than a single `keep-alive`.
    options: usize,
}

impl<'a> Fields<'a> {
    fn read(headers: &[httparse::Header<'a>]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        for header in headers {
            // Compares lengths first: that is one instruction and excludes most headers.
            let name = header.name;
            match name.len() {
                4 if name.eq_ignore_ascii_case("host") => {
                    if fields.host.is_some() || !is_host_value(header.value) {
                        return Err(Malformed::Host);
                    }
                    fields.host = Some(header.value);
                }
                6 if name.eq_ignore_ascii_case("expect") => fields.expects = true,
                10 if name.eq_ignore_ascii_case("connection") && !header.value.eq_ignore_ascii_case(b"keep-alive") => {
                    for option in headers::options(header.value) {
                        fields.closes |= option.eq_ignore_ascii_case(b"close");
                        fields.options += 1;
                    }
                }
                14 if name.eq_ignore_ascii_case("content-length") => {
                    let length = digits(header.value).ok_or(Malformed::Length)?;
                    // Also if both are equal: the app would see both, and RFC 9110 section 8.6 requires a single one.
                    if fields.length.replace(length).is_some() {
                        return Err(Malformed::Length);
                    }
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    if fields.chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Malformed::Encoding);
                    }
                    fields.chunked = true;
                }
                _ => {}
            }
        }
        Ok(fields)
    }
}

/// The authority of an absolute target; `None` for a path or `*`.
fn target_authority<'a>(method: &str, target: &'a str) -> Result<Option<&'a str>, Malformed> {
    // Fragments stay at the client: sender and recipient could read such a target differently.
    if target.contains('#') {
        return Err(Malformed::Target);
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(None);
    }
    let scheme_end = target.find("://").ok_or(Malformed::Target)?;
    let is_http = ["http", "https"].iter().any(|scheme| target[..scheme_end].eq_ignore_ascii_case(scheme));
    let rest = &target[scheme_end + 3..];
    let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
    if is_http && !authority.is_empty() && is_host_value(authority.as_bytes()) {
        Ok(Some(authority))
    } else {
        Err(Malformed::Target)
    }
}

/// Whether the authority of an absolute target equals `Host`.
fn names_host(target: &str, authority: &str, host: &[u8]) -> bool {
    is_same_host(target.split(':').next().unwrap_or_default().as_bytes(), authority.as_bytes(), host)
}

/// Parses a number of digits only: no sign, no list, no blanks.
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { max_bytes: 4096, max_fields: 8 };

    fn read(text: &str) -> Result<Head, Refused> {
        let mut scanner = HeadScanner::default();
        match scanner.scan(text.as_bytes()) {
            Ok(Some(len)) => inspect(&text.as_bytes()[..len], LIMITS),
            Ok(None) => panic!("incomplete: {text:?}"),
            Err(malformed) => Err(malformed.into()),
        }
    }

    fn with(fields: &str) -> Result<Head, Refused> {
        read(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
    }

    #[test]
    fn reads_how_long_a_body_is() {
        assert_eq!(with("").unwrap().framing, Framing::Length(0));
        assert_eq!(with("Content-Length: 12\r\n").unwrap().framing, Framing::Length(12));
        assert_eq!(with("Transfer-Encoding: Chunked\r\n").unwrap().framing, Framing::Chunked);
    }

    #[test]
    fn rejects_ambiguous_heads() {
        use Malformed::*;
        for (fields, expected) in [
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", LengthAndEncoding),
            ("Content-Length: 3\r\nContent-Length: 4\r\n", Length),
            ("content-length: 3\r\nCONTENT-LENGTH: 3\r\n", Length),
            ("Content-Length: +3\r\n", Length),
            ("Content-Length: 3, 3\r\n", Length),
            ("Content-Length: \r\n", Length),
            ("Content-Length: 0x10\r\n", Length),
            ("Content-Length: 99999999999999999999\r\n", Length),
            ("Transfer-Encoding: gzip, chunked\r\n", Encoding),
            ("Transfer-Encoding: xchunked\r\n", Encoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Encoding),
            ("Transfer-Encoding : chunked\r\n", Field),
            ("X-A: 1\r\n folded\r\n", FoldedField),
            ("X-A: 1\n", BareLineFeed),
            ("X-A: \0\r\n", Field),
            ("X-A: a\rb\r\n", Field),
            ("X A: 1\r\n", Field),
            (": 1\r\n", Field),
            ("Host: b\r\n", Host),
        ] {
            assert_eq!(with(fields), Err(expected.into()), "{fields:?}");
        }
    }

    #[test]
    fn rejects_invalid_request_lines() {
        use Malformed::*;
        for (text, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Host),
            ("GET / HTTP/1.1\r\nHost: b:80:80\r\n\r\n", Host),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", HostMismatch),
            ("GET http://u@b/ HTTP/1.1\r\nHost: b\r\n\r\n", Target),
            ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", Target),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Target),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Target),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", Connect),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Encoding),
            ("\0 / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET /\r\n\r\n", RequestLine),
        ] {
            assert_eq!(read(text), Err(expected.into()), "{text:?}");
        }
        assert!(read("GET / HTTP/1.0\r\n\r\n").is_ok());
        assert!(read("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").is_ok());
        for (target, host) in
            [("http://A:80/x", "a:80"), ("http://a/x", "a:80"), ("http://a:80/", "a"), ("HTTPS://a:443", "A")]
        {
            assert!(read(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).is_ok(), "{target} {host}");
        }
        for (target, host) in
            [("http://a:443/", "a"), ("https://a:80/", "a"), ("http://a:8080/", "a"), ("http://a/", "b")]
        {
            assert_eq!(read(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")), Err(HostMismatch.into()));
        }
    }

    #[test]
    fn connection_has_few_options() {
        let with_options = |count| with(&format!("Connection: {}\r\nConnection: close\r\n", "a,".repeat(count)));
        assert!(with_options(headers::MOST_OPTIONS - 1).is_ok());
        assert_eq!(with_options(headers::MOST_OPTIONS), Err(Malformed::Field.into()));
    }

    #[test]
    fn counts_headers() {
        assert_eq!(with(&"X: 1\r\n".repeat(8)), Err(Refused::TooLarge));
        assert!(with(&"X: 1\r\n".repeat(7)).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut scanner = HeadScanner::default();
            if let Ok(Some(len)) = scanner.scan(&bytes) {
                let _ = inspect(&bytes[..len], LIMITS);
            }
        }

        #[test]
        fn a_head_in_pieces_ends_where_the_whole_does(fields in "(X: [a-z]{0,9}\r\n){0,5}", cut in 0..100_usize) {
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\nrest");
            let whole = HeadScanner::default().scan(text.as_bytes());
            let mut scanner = HeadScanner::default();
            let first = scanner.scan(&text.as_bytes()[..cut.min(text.len())]);
            let pieces = if let Ok(Some(_)) = first { first } else { scanner.scan(text.as_bytes()) };
            prop_assert_eq!(pieces, whole);
        }
    }
}
