//! HTTP/2 frames and HPACK header blocks as bytes, valid or not.

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// `END_STREAM` of DATA and HEADERS, `ACK` of SETTINGS and PING.
pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const WITH_PRIORITY: u8 = 0x20;

/// Error codes (RFC 9113 section 7).
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A HEADERS frame with a whole header block of a message with a body or trailers.
pub fn headers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(fields))
}

/// The same of a message that ends here.
pub fn last_headers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields))
}

pub fn data(stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(DATA, 0, stream, payload)
}

pub fn last_data(stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(DATA, END_STREAM, stream, payload)
}

pub fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        pairs.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// `GET path`, followed by `extra`.
pub fn with<'a>(path: &'a str, extra: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "h2.test")], extra].concat()
}

/// A whole `GET`.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    last_headers(stream, &with(path, &[]))
}

/// The header section of a `POST` with a body.
pub fn post(stream: u32, path: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    headers(stream, &post_fields(path, extra))
}

pub fn post_fields<'a>(path: &'a str, extra: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "h2.test")], extra].concat()
}

/// Literals without indexing and without Huffman coding (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(0x00, name, value)).collect()
}

/// A literal with a new name: `first` is 0x00 without indexing, 0x10 never indexed, 0x40 with incremental indexing.
pub fn literal(first: u8, name: &str, value: &str) -> Vec<u8> {
    [vec![first], string(name), string(value)].concat()
}

pub fn string(text: &str) -> Vec<u8> {
    [integer(7, 0, text.len()), text.as_bytes().to_vec()].concat()
}

/// A string that is Huffman-coded already.
pub fn huffman(coded: &[u8]) -> Vec<u8> {
    [integer(7, 0x80, coded.len()), coded.to_vec()].concat()
}

/// An integer with a prefix of `bits` (RFC 7541 section 5.1); `first` has the bits before it.
pub fn integer(bits: u8, first: u8, value: usize) -> Vec<u8> {
    let most = (1_usize << bits) - 1;
    if value < most {
        return vec![first | u8::try_from(value).expect("below a prefix")];
    }
    let mut bytes = vec![first | u8::try_from(most).expect("a prefix")];
    let mut left = value - most;
    while left >= 0x80 {
        bytes.push(0x80 | u8::try_from(left & 0x7f).expect("seven bits"));
        left >>= 7;
    }
    bytes.push(u8::try_from(left).expect("seven bits"));
    bytes
}

/// The `:status` that opens a response's header block, written without a dynamic table.
pub fn status(mut block: &[u8]) -> Option<u16> {
    while let [0x20..=0x3f, rest @ ..] = block {
        block = rest;
    }
    match block {
        [first @ 0x88..=0x8e, ..] => Some([200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)]),
        [0x08 | 0x18 | 0x48, length, rest @ ..] if length & 0x80 == 0 => {
            std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?.parse().ok()
        }
        [0x08 | 0x18 | 0x48, length, rest @ ..] => digits(rest.get(..usize::from(length & 0x7f))?),
        _ => None,
    }
}

/// Three Huffman-coded digits: 0 to 2 have five bits, 3 to 9 have six (RFC 7541 appendix B).
fn digits(coded: &[u8]) -> Option<u16> {
    let bits: Vec<u8> = coded.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let value =
            |length: usize| Some(bits.get(at..at + length)?.iter().fold(0, |all, bit| all * 2 + u16::from(*bit)));
        let short = value(5)?;
        let (digit, length) = if short < 3 { (short, 5) } else { (value(6)?.checked_sub(0b01_1001 - 3)?, 6) };
        number = number * 10 + digit;
        at += length;
    }
    Some(number)
}
