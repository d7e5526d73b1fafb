//! Header compression (RFC 7541): a decoder with its dynamic table, and literals for responses, which need no table.

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};

use super::huffman;

/// The size of the decoder's dynamic table, which is the protocol's default.
const TABLE_BYTES: usize = 4096;
/// Each entry adds so many bytes to the size of the table (RFC 7541 section 4.1).
const ENTRY_BYTES: usize = 32;
/// The most digits of an integer: enough for 32 bits, with needless zeros.
const MOST_DIGITS: u32 = 5;

/// The header section cannot be decoded: a connection error of type `COMPRESSION_ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

#[derive(Debug)]
struct Entry {
    name_len: usize,
    /// Name and value.
    text: Box<[u8]>,
}

impl Entry {
    fn size(&self) -> usize {
        self.text.len() + ENTRY_BYTES
    }
}

/// Decodes header sections.
#[derive(Debug)]
pub struct Decoder {
    entries: VecDeque<Entry>,
    size: usize,
    most: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, most: TABLE_BYTES, name: Vec::new(), value: Vec::new() }
    }
}

impl Decoder {
    /// Calls `field` with each name and value of a complete header block.
    ///
    /// # Errors
    /// The block is no encoding.
    pub fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), Invalid> {
        let mut rest = block;
        let mut may_resize = true;
        while let Some(first) = rest.first().copied() {
            match first {
                0x80.. => {
                    let index = integer(&mut rest, 7)?;
                    let (name, value) = self.entry(index)?;
                    field(name, value);
                }
                0x20..0x40 => {
                    let most = integer(&mut rest, 5)?;
                    if !may_resize || most > TABLE_BYTES {
                        return Err(Invalid);
                    }
                    self.most = most;
                    self.evict(0);
                    // Two are allowed: the smallest size in between, and the final one. More do no harm.
                    continue;
                }
                _ => {
                    let is_indexed = first >= 0x40;
                    let (mut name, mut value) = (std::mem::take(&mut self.name), std::mem::take(&mut self.value));
                    let read = self.literal(&mut rest, if is_indexed { 6 } else { 4 }, &mut name, &mut value);
                    if read.is_ok() {
                        field(&name, &value);
                        if is_indexed {
                            self.insert(&name, &value);
                        }
                    }
                    (self.name, self.value) = (name, value);
                    read?;
                }
            }
            may_resize = false;
        }
        // A large header is rare: its memory is not kept.
        for scratch in [&mut self.name, &mut self.value] {
            scratch.clear();
            scratch.shrink_to(TABLE_BYTES);
        }
        // A new size stands before a header, not at the end.
        if may_resize && !block.is_empty() { Err(Invalid) } else { Ok(()) }
    }

    /// Frees what is only needed while it decodes.
    pub fn rest(&mut self) {
        (self.name, self.value) = (Vec::new(), Vec::new());
    }

    fn literal(&self, rest: &mut &[u8], prefix: u32, name: &mut Vec<u8>, value: &mut Vec<u8>) -> Result<(), Invalid> {
        name.clear();
        value.clear();
        match integer(rest, prefix)? {
            0 => string(rest, name)?,
            index => name.extend_from_slice(self.entry(index)?.0),
        }
        string(rest, value)
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Invalid> {
        let index = index.checked_sub(1).ok_or(Invalid)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - STATIC.len()).ok_or(Invalid)?;
        Ok(entry.text.split_at(entry.name_len))
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + ENTRY_BYTES;
        self.evict(size);
        if size <= self.most {
            self.entries.push_front(Entry { name_len: name.len(), text: [name, value].concat().into() });
            self.size += size;
        }
    }

    /// Makes room for `needed` bytes.
    fn evict(&mut self, needed: usize) {
        while self.size + needed > self.most {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size();
        }
    }
}

/// An integer (RFC 7541 section 5.1) that begins in the low bits of the first byte.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Invalid> {
    let (first, mut tail) = rest.split_first().ok_or(Invalid)?;
    let most = (1_usize << prefix) - 1;
    let mut number = usize::from(*first) & most;
    if number == most {
        let mut shift = 0;
        loop {
            let (byte, next) = tail.split_first().ok_or(Invalid)?;
            tail = next;
            number = number.checked_add(usize::from(byte & 0x7f) << shift).ok_or(Invalid)?;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift >= 7 * MOST_DIGITS {
                return Err(Invalid);
            }
        }
    }
    *rest = tail;
    Ok(number)
}

fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Invalid> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let len = integer(rest, 7)?;
    if len > rest.len() {
        return Err(Invalid);
    }
    let (text, tail) = rest.split_at(len);
    *rest = tail;
    if is_huffman {
        huffman::decode(text, out).ok_or(Invalid)
    } else {
        out.extend_from_slice(text);
        Ok(())
    }
}

/// Writes an integer (RFC 7541 section 5.1) after the bits of `pattern`.
fn put_integer(out: &mut BytesMut, pattern: u8, prefix: u32, number: usize) {
    let most = (1_usize << prefix) - 1;
    let low = |number: usize| (number & 0xff) as u8;
    if number < most {
        return out.put_u8(pattern | low(number));
    }
    out.put_u8(pattern | low(most));
    let mut rest = number - most;
    while rest >= 0x80 {
        out.put_u8(0x80 | low(rest & 0x7f));
        rest >>= 7;
    }
    out.put_u8(low(rest));
}

/// Writes `:status`.
pub fn put_status(out: &mut BytesMut, status: &[u8]) {
    let known = STATIC[7..14].iter().position(|(_, value)| value.as_bytes() == status);
    if let Some(index) = known {
        return out.put_u8(0x80 | (8 + index) as u8);
    }
    put_integer(out, 0, 4, 8);
    put_string(out, status);
}

/// Writes a header as a literal without indexing; its name becomes lower-case. A cookie is marked so that no intermediary
/// indexes it (RFC 7541 section 7.1.3).
pub fn put_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    let pattern = if name.eq_ignore_ascii_case(b"set-cookie") { 0x10 } else { 0 };
    match index_of(name) {
        Some(index) => put_integer(out, pattern, 4, index),
        None => {
            out.put_u8(pattern);
            put_integer(out, 0, 7, name.len());
            let start = out.len();
            out.put_slice(name);
            out[start..].make_ascii_lowercase();
        }
    }
    put_string(out, value);
}

fn put_string(out: &mut BytesMut, text: &[u8]) {
    put_integer(out, 0, 7, text.len());
    out.put_slice(text);
}

/// The index of a name of responses in the static table.
fn index_of(name: &[u8]) -> Option<usize> {
    let (from, to) = NAMES_BY_LENGTH.get(name.len()).copied()?;
    let candidates = &RESPONSE_NAMES[from..to];
    candidates.iter().find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes())).map(|(_, index)| *index)
}

/// The names of the static table that are common in responses, in the order of their lengths.
const RESPONSE_NAMES: [(&str, usize); 26] = [
    ("age", 21),
    ("via", 60),
    ("date", 33),
    ("etag", 34),
    ("link", 45),
    ("vary", 59),
    ("allow", 22),
    ("server", 54),
    ("expires", 36),
    ("refresh", 52),
    ("location", 46),
    ("set-cookie", 55),
    ("retry-after", 53),
    ("content-type", 31),
    ("accept-ranges", 18),
    ("cache-control", 24),
    ("content-range", 30),
    ("last-modified", 44),
    ("content-length", 28),
    ("content-encoding", 26),
    ("content-language", 27),
    ("content-location", 29),
    ("www-authenticate", 61),
    ("content-disposition", 25),
    ("strict-transport-security", 56),
    ("access-control-allow-origin", 20),
];

/// For each length, where its names are in [`RESPONSE_NAMES`].
const NAMES_BY_LENGTH: [(usize, usize); 28] = {
    let mut ranges = [(0, 0); 28];
    let (mut at, mut length) = (0, 0);
    while length < ranges.len() {
        let from = at;
        while at < RESPONSE_NAMES.len() && RESPONSE_NAMES[at].0.len() == length {
            at += 1;
        }
        ranges[length] = (from, at);
        length += 1;
    }
    ranges
};

/// The static table (RFC 7541 appendix A).
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Invalid> {
        let mut fields = Vec::new();
        decoder.decode(block, |name, value| fields.push((name.to_vec(), value.to_vec())))?;
        Ok(fields)
    }

    fn text(fields: &Fields) -> String {
        let lines = fields
            .iter()
            .map(|(name, value)| format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        lines.collect::<Vec<_>>().join(" ")
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    /// RFC 7541 appendix C.4: three requests with Huffman codes on one connection.
    #[test]
    fn examples_of_the_rfc() {
        let mut decoder = Decoder::default();
        for (block, expected) in [
            ("828684418cf1e3c2e5f23a6ba0ab90f4ff", ":method=GET :scheme=http :path=/ :authority=www.example.com"),
            (
                "828684be5886a8eb10649cbf",
                ":method=GET :scheme=http :path=/ :authority=www.example.com cache-control=no-cache",
            ),
            (
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
                ":method=GET :scheme=https :path=/index.html :authority=www.example.com custom-key=custom-value",
            ),
        ] {
            assert_eq!(text(&decoded(&mut decoder, &bytes(block)).unwrap()), expected);
        }
        assert_eq!(decoder.size, 164);
    }

    #[test]
    fn invalid_encodings_are_errors() {
        for block in ["80", "be", "ff80", "ffffffffffffffff7f", "007e78", "000178", "00017805", "20", "3fe21f", "8220"]
        {
            assert_eq!(decoded(&mut Decoder::default(), &bytes(block)), Err(Invalid), "{block}");
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let mut decoder = Decoder::default();
        for number in 0..1000 {
            let mut block = BytesMut::from(&b"\x40"[..]);
            put_string(&mut block, format!("x-{number}").as_bytes());
            put_string(&mut block, b"value");
            decoded(&mut decoder, &block).unwrap();
            assert!(decoder.size <= TABLE_BYTES && decoder.entries.len() <= TABLE_BYTES / ENTRY_BYTES);
        }
        assert_eq!(text(&decoded(&mut decoder, b"\xbe").unwrap()), "x-999=value");
        decoded(&mut decoder, b"\x20\x82").unwrap();
        assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
    }

    #[test]
    fn names_of_responses_have_the_index_of_the_static_table() {
        for (name, index) in RESPONSE_NAMES {
            assert_eq!(STATIC[index - 1].0, name);
            assert_eq!(index_of(name.to_ascii_uppercase().as_bytes()), Some(index));
        }
        assert_eq!(index_of(b"x-other"), None);
        assert_eq!(index_of(&[b'x'; 100]), None);
    }

    #[test]
    fn statuses_are_read_as_they_were_written() {
        for status in ["100", "200", "204", "206", "304", "400", "404", "500", "999"] {
            let mut block = BytesMut::new();
            put_status(&mut block, status.as_bytes());
            assert_eq!(text(&decoded(&mut Decoder::default(), &block).unwrap()), format!(":status={status}"));
        }
    }

    proptest! {
        #[test]
        fn fields_are_read_as_they_were_written(
            fields in prop::collection::vec(("[A-Za-z-]{1,40}", prop::collection::vec(any::<u8>(), 0..400)), 0..9),
        ) {
            let mut block = BytesMut::new();
            fields.iter().for_each(|(name, value)| put_field(&mut block, name.as_bytes(), value));
            let expected: Fields =
                fields.into_iter().map(|(name, value)| (name.to_ascii_lowercase().into_bytes(), value)).collect();
            prop_assert_eq!(decoded(&mut Decoder::default(), &block).unwrap(), expected);
        }

        #[test]
        fn no_bytes_make_it_panic(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..9)) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _ = decoded(&mut decoder, &block);
                prop_assert!(decoder.size <= TABLE_BYTES);
            }
        }
    }
}
