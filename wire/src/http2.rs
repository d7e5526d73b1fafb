//! HTTP/2 (RFC 9113) at the byte level: frame headers, header compression, and header sections as HTTP/1.1 and back.
//!
//! A request becomes an HTTP/1.1 head, so that both protocols are checked by the same code ([`crate::scan`]) and reach the app as
//! the same bytes. Pure: bytes in, bytes out.

pub mod hpack;
mod huffman;
pub mod request;
pub mod response;

use bytes::{BufMut, BytesMut};

/// The first bytes of every connection (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The length of a frame header.
pub const FRAME_HEAD: usize = 9;
/// The largest payload that a peer must accept (RFC 9113 section 4.2).
pub const MAX_FRAME: usize = 16_384;
/// The initial size of a flow-control window.
pub const INITIAL_WINDOW: i64 = 65_535;
/// The largest size of a flow-control window.
pub const MAX_WINDOW: i64 = (1 << 31) - 1;

/// Frame types (RFC 9113 section 6).
pub mod kind {
    /// A part of a body.
    pub const DATA: u8 = 0;
    /// Begins a header section.
    pub const HEADERS: u8 = 1;
    /// Obsolete.
    pub const PRIORITY: u8 = 2;
    /// Ends a stream.
    pub const RST_STREAM: u8 = 3;
    /// Settings of the sender.
    pub const SETTINGS: u8 = 4;
    /// Only servers may send it.
    pub const PUSH_PROMISE: u8 = 5;
    /// Is acknowledged.
    pub const PING: u8 = 6;
    /// No more streams are accepted.
    pub const GOAWAY: u8 = 7;
    /// Enlarges a window.
    pub const WINDOW_UPDATE: u8 = 8;
    /// Continues a header section.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    /// The last frame of the sender on this stream.
    pub const END_STREAM: u8 = 1;
    /// Acknowledges SETTINGS or PING.
    pub const ACK: u8 = 1;
    /// The header section is complete.
    pub const END_HEADERS: u8 = 4;
    /// The payload is padded.
    pub const PADDED: u8 = 8;
    /// The payload begins with a priority.
    pub const PRIORITY: u8 = 32;
}

/// An error code (RFC 9113 section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// No error.
    None = 0,
    /// The peer broke the protocol.
    Protocol = 1,
    /// An internal error.
    Internal = 2,
    /// The peer exceeded a window.
    FlowControl = 3,
    /// A frame arrived for a closed stream.
    StreamClosed = 5,
    /// A frame has a wrong size.
    FrameSize = 6,
    /// The stream was not processed.
    Refused = 7,
    /// A header section could not be decoded.
    Compression = 9,
    /// The peer causes too much load.
    Calm = 11,
}

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Length of the payload.
    pub len: usize,
    /// The frame's type: see [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// Its stream; 0 is the connection.
    pub stream: u32,
}

impl FrameHead {
    /// The frame header at the start of `bytes`, if it is complete.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, s0, s1, s2, s3, ..] = bytes else { return None };
        Some(Self {
            len: u32::from_be_bytes([0, *a, *b, *c]) as usize,
            kind: *kind,
            flags: *flags,
            stream: u32::from_be_bytes([s0 & 0x7f, *s1, *s2, *s3]),
        })
    }

    /// Writes it.
    pub fn write(&self, out: &mut BytesMut) {
        out.put_slice(&self.bytes());
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; FRAME_HEAD] {
        let [_, a, b, c] = u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, s0, s1, s2, s3]
    }
}

/// The payload of a padded frame without its padding; `None` if the padding is longer than it.
pub fn unpadded(flags: u8, payload: &[u8]) -> Option<&[u8]> {
    if flags & flag::PADDED == 0 {
        return Some(payload);
    }
    let (length, rest) = payload.split_first()?;
    rest.len().checked_sub(usize::from(*length)).map(|len| &rest[..len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_header_is_read_as_it_was_written() {
        let head = FrameHead { len: 0x0001_0203, kind: kind::DATA, flags: flag::END_STREAM, stream: 0x7fff_ffff };
        assert_eq!(FrameHead::parse(&head.bytes()), Some(head));
        assert_eq!(FrameHead::parse(&head.bytes()[..8]), None);
        let mut reserved = head.bytes();
        reserved[5] |= 0x80;
        assert_eq!(FrameHead::parse(&reserved), Some(head));
    }

    #[test]
    fn padding_is_removed() {
        assert_eq!(unpadded(0, b"\x01ab"), Some(&b"\x01ab"[..]));
        assert_eq!(unpadded(flag::PADDED, b"\x01ab"), Some(&b"a"[..]));
        assert_eq!(unpadded(flag::PADDED, b"\x02ab"), Some(&b""[..]));
        assert_eq!(unpadded(flag::PADDED, b"\x03ab"), None);
        assert_eq!(unpadded(flag::PADDED, b""), None);
    }
}
