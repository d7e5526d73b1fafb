//! The body of a response: where it ends, and chunks for one of unknown length.

use bytes::{BufMut, BytesMut};
use outrigger_wire::chunks::Chunks;
use outrigger_wire::rewrite::AnswerBody;
use outrigger_wire::scan::Framing;

use crate::engine::rejection::Failure;
use crate::http1::Broken;

/// Where the body of a response ends.
pub(super) enum BodyEnd {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl BodyEnd {
    pub(super) fn new(body: AnswerBody) -> Self {
        match body {
            AnswerBody::Framed(Framing::Length(left)) => Self::Length(left),
            AnswerBody::Framed(Framing::Chunked) => Self::Chunked(Chunks::default()),
            AnswerBody::UntilClose => Self::UntilClose,
        }
    }

    /// The number of `bytes` that belong to the body.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunks) => {
                chunks.feed(bytes).map_err(|_| Broken::App(Failure::Invalid, "the body's chunks are malformed".into()))
            }
            Self::UntilClose => Ok(bytes.len()),
        }
    }

    /// The number of bytes that are left, if known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::UntilClose => false,
        }
    }

    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self, Self::UntilClose)
    }
}

/// Writes a chunk of a body of unknown length (RFC 9112 section 7.1), or nothing for no bytes: an empty chunk ends a body.
pub(super) fn put_chunk(out: &mut BytesMut, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.put_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        out.put_slice(bytes);
        out.put_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_ends_where_its_framing_says() {
        let mut length = BodyEnd::new(AnswerBody::Framed(Framing::Length(3)));
        assert_eq!(length.take(b"abcd").unwrap(), 3);
        assert!(length.is_done());
        let mut chunked = BodyEnd::new(AnswerBody::Framed(Framing::Chunked));
        assert_eq!(chunked.take(b"1\r\na\r\n0\r\n\r\nHTTP").unwrap(), 11);
        assert!(chunked.is_done());
        let mut open = BodyEnd::new(AnswerBody::UntilClose);
        assert_eq!(open.take(b"abc").unwrap(), 3);
        assert!(!open.is_done() && open.ends_with_connection());
    }
}
