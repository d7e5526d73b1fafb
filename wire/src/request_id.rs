//! Request ids: from a trusted edge, else a new UUIDv7 (RFC 9562), without allocation.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::random::random;

/// Maximum length of an id from an edge.
const LONGEST: usize = 64;

/// Text of at most 64 bytes, stored inline.
#[derive(Clone, Copy)]
pub struct RequestId {
    text: [u8; LONGEST],
    len: u8,
}

impl Default for RequestId {
    fn default() -> Self {
        Self { text: [0; LONGEST], len: 0 }
    }
}

impl RequestId {
    /// Accepts an id of letters, digits, `-`, `_`, `.` and `:`; `None` for anything else.
    pub fn from_edge(name: &[u8]) -> Option<Self> {
        let fits = (1..=LONGEST).contains(&name.len())
            && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'));
        fits.then(|| {
            let mut id = Self::default();
            id.text[..name.len()].copy_from_slice(name);
            // At most 64 bytes.
            id.len = name.len() as u8;
            id
        })
    }

    /// Creates a UUIDv7: 48 bits of milliseconds, then 74 random bits.
    pub fn generate() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::uuid_v7(now.as_millis() as u64, random(), random())
    }

    fn uuid_v7(milliseconds: u64, a: u64, b: u64) -> Self {
        let high = milliseconds << 16 | 0x7000 | a & 0x0fff;
        let low = 0b10 << 62 | b >> 2;
        let mut id = Self { len: 36, ..Self::default() };
        let mut at = 0;
        for (index, byte) in high.to_be_bytes().into_iter().chain(low.to_be_bytes()).enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                id.text[at] = b'-';
                at += 1;
            }
            id.text[at..at + 2].copy_from_slice(&hex(byte));
            at += 2;
        }
        id
    }

    /// The bytes of the text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.len)]
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // It only ever contains ASCII.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// The byte as two lower-case hex digits.
pub fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_version_7_uuids_that_sort_by_time() {
        let early = RequestId::uuid_v7(0x0123_4567_89ab, u64::MAX, u64::MAX);
        assert_eq!(early.as_str(), "01234567-89ab-7fff-bfff-ffffffffffff");
        let late = RequestId::uuid_v7(0x0123_4567_89ac, 0, 0);
        assert!(early.as_str() < late.as_str());
        assert_ne!(RequestId::generate().as_str(), RequestId::generate().as_str());
    }

    #[test]
    fn takes_over_only_plain_names() {
        assert_eq!(RequestId::from_edge(b"01JD-fra").unwrap().as_str(), "01JD-fra");
        for wrong in [&b""[..], b"a b", b"a\r\nb", b"\xff", &[b'x'; 65]] {
            assert!(RequestId::from_edge(wrong).is_none());
        }
    }
}
