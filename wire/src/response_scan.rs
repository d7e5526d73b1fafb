//! Checks the header sections of responses while their bytes arrive, without keeping them.
//!
//! For the general path: Pingora's parser is more lenient than [`crate::rewrite::relay_answer`], and hides some of what it
//! accepts. This check makes both paths reject the same responses: more than [`MOST_BYTES`] or [`MOST_FIELDS`], folded lines
//! (RFC 9112 section 5.2), repeated or invalid framing, and framing in two ways (section 6.3).

/// Maximum size in bytes of the header section of a response, with its status line.
pub const MOST_BYTES: usize = 64 << 10;
/// Maximum number of headers in a response.
pub const MOST_FIELDS: usize = 128;

/// Why a header section is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFault {
    /// It has too many bytes or headers.
    TooLarge,
    /// A line continues the previous one (`obs-fold`).
    Folded,
    /// The length of its body is invalid, or stated twice.
    Framing,
}

/// The position in a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// The status line.
    #[default]
    Status,
    /// The first byte of a header line.
    LineStart,
    /// A header's name.
    Name,
    /// A header's value, or the whitespace before it.
    Value,
    /// After the header section of the final response.
    Done,
}

/// The header whose line is read, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Other,
    Length,
    Encoding,
}

/// The check of one connection's responses to one request: any number of interim responses, and the final one.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseScan {
    place: Place,
    line: Line,
    /// Bytes of this header section so far.
    bytes: usize,
    fields: usize,
    /// Bytes of the name or value that match so far.
    matched: usize,
    /// Whitespace has followed the name, or the value.
    has_ended: bool,
    has_length: bool,
    has_encoding: bool,
    /// The value of `Content-Length`.
    length: u64,
    /// The status line so far: three digits after the first space.
    status: u16,
    digits: u8,
}

const LENGTH: &[u8] = b"content-length";
const ENCODING: &[u8] = b"transfer-encoding";
const CHUNKED: &[u8] = b"chunked";

impl ResponseScan {
    /// Reads the next bytes from the app. After the final header section it ignores them.
    ///
    /// # Errors
    /// The header section is not one that the fast lane would forward.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ResponseFault> {
        for byte in bytes {
            if self.place == Place::Done {
                return Ok(());
            }
            self.bytes += 1;
            if self.bytes > MOST_BYTES {
                return Err(ResponseFault::TooLarge);
            }
            self.take(*byte)?;
        }
        Ok(())
    }

    fn take(&mut self, byte: u8) -> Result<(), ResponseFault> {
        match (self.place, byte) {
            (Place::Status, b'\n') if self.digits == 0 => {}
            (Place::Status, b'\n') => self.place = Place::LineStart,
            (Place::Status, b' ') if self.digits == 0 => self.digits = 1,
            (Place::Status, b'0'..=b'9') if (1..4).contains(&self.digits) => {
                self.status = self.status * 10 + u16::from(byte - b'0');
                self.digits += 1;
            }
            (Place::Status, _) | (Place::LineStart, b'\r') | (Place::Done, _) => {}
            (Place::LineStart, b'\n') => return self.end(),
            (Place::LineStart, b' ' | b'\t') => return Err(ResponseFault::Folded),
            (Place::LineStart, _) => {
                self.fields += 1;
                if self.fields > MOST_FIELDS {
                    return Err(ResponseFault::TooLarge);
                }
                let line = match byte.to_ascii_lowercase() {
                    b'c' => Line::Length,
                    b't' => Line::Encoding,
                    _ => Line::Other,
                };
                (self.place, self.line, self.matched, self.has_ended) = (Place::Name, line, 1, false);
            }
            (Place::Name, b':') => return self.name_ended(),
            // Not a header; the parser rejects it.
            (Place::Name, b'\n') => self.place = Place::LineStart,
            (Place::Name, b' ' | b'\t') => self.has_ended = true,
            (Place::Name, _) => self.name_goes_on(byte),
            (Place::Value, b'\n') => return self.value_ended(),
            (Place::Value, _) => return self.value_goes_on(byte),
        }
        Ok(())
    }

    fn name_goes_on(&mut self, byte: u8) {
        let name = match self.line {
            Line::Length => LENGTH,
            Line::Encoding => ENCODING,
            Line::Other => return,
        };
        if self.has_ended || name.get(self.matched) != Some(&byte.to_ascii_lowercase()) {
            self.line = Line::Other;
        }
        self.matched += 1;
    }

    fn name_ended(&mut self) -> Result<(), ResponseFault> {
        let is_repeated = match self.line {
            Line::Length if self.matched == LENGTH.len() => std::mem::replace(&mut self.has_length, true),
            Line::Encoding if self.matched == ENCODING.len() => std::mem::replace(&mut self.has_encoding, true),
            _ => {
                self.line = Line::Other;
                false
            }
        };
        if is_repeated {
            return Err(ResponseFault::Framing);
        }
        (self.place, self.matched, self.has_ended, self.length) = (Place::Value, 0, false, 0);
        Ok(())
    }

    fn value_goes_on(&mut self, byte: u8) -> Result<(), ResponseFault> {
        if self.line == Line::Other {
            return Ok(());
        }
        if matches!(byte, b' ' | b'\t' | b'\r') {
            // Whitespace around the value; the parser rejects CR without LF.
            self.has_ended |= self.matched > 0;
            return Ok(());
        }
        let is_valid = match self.line {
            Line::Length => {
                let length =
                    self.length.checked_mul(10).and_then(|ten| ten.checked_add(u64::from(byte.wrapping_sub(b'0'))));
                self.length = length.unwrap_or_default();
                byte.is_ascii_digit() && length.is_some()
            }
            Line::Encoding | Line::Other => CHUNKED.get(self.matched) == Some(&byte.to_ascii_lowercase()),
        };
        self.matched += 1;
        if is_valid && !self.has_ended { Ok(()) } else { Err(ResponseFault::Framing) }
    }

    fn value_ended(&mut self) -> Result<(), ResponseFault> {
        self.place = Place::LineStart;
        match self.line {
            Line::Length if self.matched == 0 => Err(ResponseFault::Framing),
            Line::Encoding if self.matched != CHUNKED.len() => Err(ResponseFault::Framing),
            _ => Ok(()),
        }
    }

    /// The header section is complete.
    fn end(&mut self) -> Result<(), ResponseFault> {
        if self.has_length && self.has_encoding {
            return Err(ResponseFault::Framing);
        }
        let is_interim = (100..200).contains(&self.status) && self.status != 101;
        *self = Self { place: if is_interim { Place::Status } else { Place::Done }, ..Self::default() };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;

    use crate::rewrite::{Frame, relay_answer};

    fn scan(text: &[u8]) -> Result<bool, ResponseFault> {
        let mut scan = ResponseScan::default();
        scan.feed(text).map(|()| scan.place == Place::Done)
    }

    #[test]
    fn rejects_what_can_be_read_in_two_ways() {
        use ResponseFault::{Folded, Framing, TooLarge};
        let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        for (fields, expected) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Framing),
            ("Content-Length : 5\r\nContent-Length: 5\r\n", Framing),
            ("Content-Length: 3, 3\r\n", Framing),
            ("content-length: \r\n", Framing),
            ("Content-Length: 5 5\r\n", Framing),
            ("Content-Length: +5\r\n", Framing),
            ("Content-Length: 18446744073709551616\r\n", Framing),
            ("Transfer-Encoding: gzip, chunked\r\n", Framing),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Framing),
            ("X-A: b\r\n c: d\r\n", Folded),
            (&"X: a\r\n".repeat(129), TooLarge),
            (&format!("X: {}\r\n", "a".repeat(MOST_BYTES)), TooLarge),
        ] {
            assert_eq!(scan(head(fields).as_bytes()), Err(expected), "{fields:.60}");
        }
        for fields in [
            "",
            "Content-Length \t:\t18446744073709551615 \r\n",
            "Transfer-Encoding:Chunked\r\nX: y\r\n",
            &"X: a\r\n".repeat(128),
        ] {
            assert_eq!(scan(head(fields).as_bytes()), Ok(true), "{fields:.60}");
        }
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n";
        assert_eq!(scan(interim.as_bytes()), Ok(false));
        let body = "Content-Length: 1\r\nContent-Length: 1\r\n";
        assert_eq!(scan(format!("{interim}{}{body}", head("")).as_bytes()), Ok(true));
        assert_eq!(scan(format!("{interim}{}", head(body)).as_bytes()), Err(Framing));
    }

    const FRAME: Frame<'static> = Frame {
        is_head_request: false,
        is_upgrade: false,
        request_id: None,
        date: b"now",
        limits: None,
        session: b"",
        closes: false,
        takes_chunks: true,
    };

    proptest! {
        /// The parser of both paths rejects the rest, such as invalid characters.
        #[test]
        fn the_fast_lane_rejects_the_same(
            status in prop::sample::select(vec!["200", "204", "304", "404", "426"]),
            lines in prop::collection::vec(
                prop::sample::select(vec![
                    "Content-Length: 5", "Content-Length: 0", "content-length : 5", "Content-Length: 5,5", "Content-Length:",
                    "Content-Length: 05 ", "Content-Lengths: x", "Content-Lengt: x", "Transfer-Encoding: chunked",
                    "TRANSFER-ENCODING\t:\tChunked\t", "Transfer-Encoding: chunked,", "Transfer-Encoding: gzip", "T: a",
                    "X-A:", "X-A: b", " folded", "X-B : c",
                ]),
                0..5,
            ),
            cut in 0..100_usize,
        ) {
            let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let text = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
            let (one, other) = text.as_bytes().split_at(cut.min(text.len()));
            let mut pieces = ResponseScan::default();
            let in_pieces = pieces.feed(one).and_then(|()| pieces.feed(other));
            prop_assert_eq!(in_pieces.is_ok(), scan(text.as_bytes()).is_ok());
            let relayed = relay_answer(text.as_bytes(), &mut BytesMut::new(), FRAME);
            prop_assert_eq!(in_pieces.is_ok(), relayed.is_ok(), "{:?}: {:?} {:?}", text, in_pieces, relayed);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = scan(&bytes);
        }
    }
}
