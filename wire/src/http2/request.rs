//! A request's header section as an HTTP/1.1 head.

use bytes::{BufMut, BytesMut};

use super::Reason;
use crate::authority::is_same_host;

/// A header section while it is decoded.
#[derive(Debug, Default)]
pub struct RequestHead {
    method: Vec<u8>,
    scheme: Vec<u8>,
    path: Vec<u8>,
    authority: Vec<u8>,
    /// Which of the pseudo-headers it has, as bits in the order of [`PSEUDO`].
    seen: u8,
    /// The other headers, as HTTP/1.1 writes them.
    headers: Vec<u8>,
    cookie: Vec<u8>,
    length: Option<u64>,
    has_headers: bool,
    has_host: bool,
    is_malformed: bool,
    count: usize,
    bytes: usize,
    most_headers: usize,
    most_bytes: usize,
}

const PSEUDO: [&[u8]; 4] = [b":method", b":scheme", b":path", b":authority"];

/// A complete header section as an HTTP/1.1 head.
#[derive(Debug, PartialEq, Eq)]
pub struct Complete {
    /// The head.
    pub head: BytesMut,
    /// The declared length of the body.
    pub length: Option<u64>,
}

/// Why a header section is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A stream error of this kind.
    Malformed(Reason),
    /// It has more bytes or headers than allowed.
    TooLarge,
}

impl RequestHead {
    /// Begins a header section with limits on the size of the HTTP/1.1 head and its headers.
    pub fn begin(&mut self, most_bytes: usize, most_headers: usize) {
        for text in [&mut self.method, &mut self.scheme, &mut self.path, &mut self.authority] {
            text.clear();
        }
        for text in [&mut self.headers, &mut self.cookie] {
            text.clear();
            text.shrink_to(4096);
        }
        (self.seen, self.length) = (0, None);
        (self.has_headers, self.has_host, self.is_malformed) = (false, false, false);
        (self.count, self.bytes, self.most_headers, self.most_bytes) = (0, 0, most_headers, most_bytes);
    }

    /// Takes a header. After one that does not fit or is malformed, the rest is ignored.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(name.len() + value.len() + 4);
        if self.is_malformed || self.is_too_large() {
            return;
        }
        self.is_malformed = !match name.first() {
            Some(b':') => self.pseudo(name, value),
            Some(_) => self.header(name, value),
            None => false,
        };
    }

    fn is_too_large(&self) -> bool {
        // The four pseudo-headers are no headers in HTTP/1.
        self.bytes > self.most_bytes || self.count > self.most_headers.saturating_add(PSEUDO.len())
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> bool {
        let Some(index) = PSEUDO.iter().position(|known| *known == name) else { return false };
        if self.has_headers || self.seen & (1 << index) != 0 || !is_value(value) {
            return false;
        }
        self.seen |= 1 << index;
        let place = match index {
            0 => &mut self.method,
            1 => &mut self.scheme,
            2 => &mut self.path,
            _ => &mut self.authority,
        };
        place.extend_from_slice(value);
        true
    }

    fn header(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.has_headers = true;
        if !name.iter().all(|byte| is_name_byte(*byte)) || !is_value(value) {
            return false;
        }
        match name {
            // They belong to a connection of HTTP/1 (RFC 9113 section 8.2.2).
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => return false,
            b"te" if value != b"trailers" => return false,
            b"cookie" => {
                // Browsers send each cookie in one of its own (RFC 9113 section 8.2.3).
                let separator: &[u8] = if self.cookie.is_empty() { b"" } else { b"; " };
                self.cookie.extend_from_slice(separator);
                self.cookie.extend_from_slice(value);
                return true;
            }
            b"host" => {
                if self.has_host {
                    return false;
                }
                self.has_host = true;
                if self.seen & 8 != 0 {
                    return is_same_host(&self.scheme, value, &self.authority);
                }
                self.authority.extend_from_slice(value);
                return true;
            }
            b"content-length" => {
                let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
                let Some(length) = length else { return false };
                if self.length.replace(length).is_some() {
                    return false;
                }
            }
            _ => {}
        }
        put(&mut self.headers, name, value);
        true
    }

    /// The head, once all headers have been taken. `is_last`: no body follows.
    ///
    /// # Errors
    /// The request is malformed or too large.
    pub fn finish(&self, is_last: bool) -> Result<Complete, Unfit> {
        let is_path = self.path.first() == Some(&b'/') || (self.path == b"*" && self.method == b"OPTIONS");
        let is_text = |text: &[u8]| text.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
        let is_whole = self.seen & 7 == 7
            && !self.method.is_empty()
            && self.method.iter().all(|byte| is_name_byte(byte.to_ascii_lowercase()))
            && self.scheme.first().is_some_and(u8::is_ascii_alphabetic)
            && is_path
            && is_text(&self.path)
            && is_text(&self.authority)
            && (!self.authority.is_empty() || (self.seen & 8 == 0 && !self.has_host))
            && self.method != b"CONNECT"
            && !(is_last && self.length.is_some_and(|length| length > 0));
        if self.is_malformed || (!is_whole && !self.is_too_large()) {
            return Err(Unfit::Malformed(Reason::Protocol));
        }
        if self.is_too_large() {
            return Err(Unfit::TooLarge);
        }
        let mut head = BytesMut::with_capacity(self.bytes + 64);
        head.put_slice(&self.method);
        head.put_u8(b' ');
        head.put_slice(&self.path);
        head.put_slice(b" HTTP/1.1\r\n");
        if self.has_host || self.seen & 8 != 0 {
            head.put_slice(b"Host: ");
            head.put_slice(&self.authority);
            head.put_slice(b"\r\n");
        }
        head.put_slice(&self.headers);
        if !self.cookie.is_empty() {
            head.put_slice(b"cookie: ");
            head.put_slice(&self.cookie);
            head.put_slice(b"\r\n");
        }
        if !is_last && self.length.is_none() {
            head.put_slice(b"transfer-encoding: chunked\r\n");
        }
        head.put_slice(b"\r\n");
        Ok(Complete { head, length: self.length })
    }

    /// Whether these were valid trailers: no pseudo-headers, and nothing malformed.
    pub fn is_trailers(&self) -> bool {
        !self.is_malformed && self.seen == 0
    }
}

fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A token's byte (RFC 9110 section 5.6.2) that is no upper-case letter (RFC 9113 section 8.2.1).
const fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'.' | b'^'
        | b'`' | b'|' | b'~')
}

/// Whether a value has no control characters, and no blank at either end (RFC 9113 section 8.2.1).
fn is_value(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let is_control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    !is_blank(value.first()) && !is_blank(value.last()) && !value.iter().any(is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::{self, Framing, Limits};
    use proptest::prelude::*;

    const START: [(&str, &str); 4] =
        [(":method", "POST"), (":scheme", "http"), (":path", "/a?b"), (":authority", "a.test")];

    fn read(fields: &[(&str, &str)], is_last: bool) -> Result<String, Unfit> {
        let mut head = RequestHead::default();
        head.begin(1000, 8);
        fields.iter().for_each(|(name, value)| head.field(name.as_bytes(), value.as_bytes()));
        head.finish(is_last).map(|complete| String::from_utf8(complete.head.to_vec()).unwrap())
    }

    fn with(fields: &[(&str, &str)], is_last: bool) -> Result<String, Unfit> {
        read(&[&START, fields].concat(), is_last)
    }

    #[test]
    fn a_request_becomes_an_http_1_head() {
        let start = "POST /a?b HTTP/1.1\r\nHost: a.test\r\n";
        assert_eq!(with(&[], true).unwrap(), format!("{start}\r\n"));
        assert_eq!(with(&[], false).unwrap(), format!("{start}transfer-encoding: chunked\r\n\r\n"));
        assert_eq!(with(&[("content-length", "3")], false).unwrap(), format!("{start}content-length: 3\r\n\r\n"));
        let cookies = [("cookie", "a=b"), ("x", "y"), ("cookie", "c=d")];
        assert_eq!(with(&cookies, true).unwrap(), format!("{start}x: y\r\ncookie: a=b; c=d\r\n\r\n"));
        for host in ["A.test", "a.test:80", "a.test:"] {
            assert_eq!(with(&[("host", host)], true).unwrap(), format!("{start}\r\n"));
        }
        for host in ["b.test", "a.test:81", "a.test:443", ""] {
            assert!(with(&[("host", host)], true).is_err(), "{host:?}");
        }
    }

    #[test]
    fn limits_are_those_of_http_1() {
        let long = "x".repeat(1000);
        assert_eq!(with(&[("x", &long)], true), Err(Unfit::TooLarge));
        assert_eq!(with(&[("x", "y"); 9], true), Err(Unfit::TooLarge));
        assert!(with(&[("x", "y"); 8], true).is_ok());
    }

    #[test]
    fn bytes_that_mean_something_in_http_1_are_malformed() {
        for value in ["a\r\nb: c", "a\nb", "a\rb", "a\0b", " a", "a ", "a\t", "a\x7f"] {
            assert!(with(&[("x", value)], true).is_err(), "{value:?}");
        }
        for name in
            ["X", "", "x y", "x:", "x\r\n", "x\"", "x\u{e9}", "connection", "transfer-encoding", "te", "upgrade"]
        {
            assert!(with(&[(name, "a")], true).is_err(), "{name:?}");
        }
        for path in ["", "a", "/a b", "/a\r\nb", "*", "http://a/", "/\x7f"] {
            let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a")];
            assert!(read(&fields, true).is_err(), "{path:?}");
        }
    }

    proptest! {
        /// Whatever passes is one HTTP/1.1 head, with the body that was declared.
        #[test]
        fn a_request_that_passes_is_one_head(
            fields in prop::collection::vec(("[a-z:\r\n -]{0,9}", "[ -~\r\n\t]{0,9}"), 0..5),
            is_last in any::<bool>(),
        ) {
            let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            if let Ok(head) = with(&fields, is_last) {
                prop_assert_eq!(memchr::memmem::find(head.as_bytes(), b"\r\n\r\n"), Some(head.len() - 4));
                if let Ok(read) = scan::inspect(head.as_bytes(), Limits { max_bytes: 4096, max_fields: 32 }) {
                    prop_assert_eq!(read.len, head.len());
                    prop_assert!(!read.closes);
                    prop_assert_eq!(read.framing == Framing::Chunked, !is_last && !head.contains("content-length"));
                }
            }
        }
    }
}
