//! The body of a response: where it ends.

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

    /// The number of `bytes` that belong to the body, and how many at their start are passed on. With `decodes`, these are the
    /// data of chunks, else all.
    pub(super) fn take(&mut self, bytes: &mut [u8], decodes: bool) -> Result<(usize, usize), Broken> {
        let taken = match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= taken as u64;
                taken
            }
            Self::Chunked(chunks) if decodes => return chunks.decode(bytes).map_err(|_| broken_chunks()),
            Self::Chunked(chunks) => chunks.feed(bytes).map_err(|_| broken_chunks())?,
            Self::UntilClose => bytes.len(),
        };
        Ok((taken, taken))
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

fn broken_chunks() -> Broken {
    Broken::App(Failure::Invalid, "the body's chunks are malformed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_ends_where_its_framing_says() {
        let mut length = BodyEnd::new(AnswerBody::Framed(Framing::Length(3)));
        assert_eq!(length.take(&mut b"abcd".to_vec(), false).unwrap(), (3, 3));
        assert!(length.is_done());
        let mut chunked = BodyEnd::new(AnswerBody::Framed(Framing::Chunked));
        assert_eq!(chunked.take(&mut b"1\r\na\r\n0\r\n\r\nHTTP".to_vec(), false).unwrap(), (11, 11));
        assert!(chunked.is_done());
        let mut decoded = b"1\r\na\r\n0\r\n\r\nHTTP".to_vec();
        assert_eq!(BodyEnd::new(AnswerBody::Framed(Framing::Chunked)).take(&mut decoded, true).unwrap(), (11, 1));
        assert_eq!(decoded[0], b'a');
        let mut open = BodyEnd::new(AnswerBody::UntilClose);
        assert_eq!(open.take(&mut b"abc".to_vec(), false).unwrap(), (3, 3));
        assert!(!open.is_done() && open.ends_with_connection());
    }
}
