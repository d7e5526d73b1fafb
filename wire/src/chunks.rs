//! Finds the end of chunked bodies and checks their grammar (RFC 9112 section 7.1).

use crate::malformed::Malformed;

/// Parses a chunked body byte by byte to find its end and to check its grammar (RFC 9112 section 7.1).
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    state: ChunkState,
    /// Remaining bytes of the chunk.
    left: u64,
    /// Bytes of the line so far.
    line: u16,
    /// Bytes of all trailers so far.
    trailers: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    Size,
    /// White space between the size and an extension.
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
    End,
}

/// Maximum length of a line with a chunk's size and extensions.
const CHUNK_LINE_BYTES: u16 = 1024;
/// Maximum size of all trailers together.
const TRAILER_BYTES: u32 = 16 << 10;

impl Default for Chunks {
    fn default() -> Self {
        Self { state: ChunkState::Size, left: 0, line: 0, trailers: 0 }
    }
}

impl Chunks {
    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.state == ChunkState::End
    }

    /// Consumes the next bytes; returns how many of them belong to this body.
    ///
    /// # Errors
    /// [`Malformed::Chunk`]
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && self.state != ChunkState::End {
            if self.state == ChunkState::Data {
                let available = bytes.len() - at;
                let taken = usize::try_from(self.left).map_or(available, |left| left.min(available));
                self.left -= taken as u64;
                at += taken;
                if self.left == 0 {
                    self.state = ChunkState::DataCr;
                }
                continue;
            }
            self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// Like [`Self::feed`], and moves the data to the start of `bytes`. Returns how many bytes belong to this body, and the
    /// number of bytes of data.
    ///
    /// # Errors
    /// [`Malformed::Chunk`]
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<(usize, usize), Malformed> {
        let (mut at, mut data) = (0, 0);
        while at < bytes.len() && self.state != ChunkState::End {
            if self.state == ChunkState::Data {
                let available = bytes.len() - at;
                let taken = usize::try_from(self.left).map_or(available, |left| left.min(available));
                if data < at {
                    bytes.copy_within(at..at + taken, data);
                }
                self.left -= taken as u64;
                (at, data) = (at + taken, data + taken);
                if self.left == 0 {
                    self.state = ChunkState::DataCr;
                }
                continue;
            }
            self.step(bytes[at])?;
            at += 1;
        }
        Ok((at, data))
    }

    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        use ChunkState::{
            Data, DataCr, DataLf, End, Extension, LastLf, Size, SizeLf, Space, Trailer, TrailerLf, TrailerStart,
        };
        self.line = self.line.saturating_add(1);
        if matches!(self.state, Size | Space | Extension) && self.line > CHUNK_LINE_BYTES {
            return Err(Malformed::Chunk);
        }
        if matches!(self.state, TrailerStart | Trailer) {
            self.trailers += 1;
            if self.trailers > TRAILER_BYTES {
                return Err(Malformed::Chunk);
            }
        }
        let is_text = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        self.state = match (self.state, byte) {
            (Size, digit) if digit.is_ascii_hexdigit() => {
                // 16 digits are 64 bits; legitimate senders do not add more leading zeros.
                if self.line > 16 || self.left >> 59 != 0 {
                    return Err(Malformed::Chunk);
                }
                let value = char::from(digit).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(value);
                Size
            }
            (Size, b'\r') if self.line > 1 => SizeLf,
            (Size, b' ' | b'\t') if self.line > 1 => Space,
            (Size, b';') if self.line > 1 => Extension,
            (Space, b' ' | b'\t') => Space,
            (Space, b';') => Extension,
            (Extension, b'\r') => SizeLf,
            (Extension, _) if is_text => Extension,
            (SizeLf, b'\n') if self.left == 0 => TrailerStart,
            (SizeLf, b'\n') => Data,
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => {
                self.line = 0;
                self.left = 0;
                Size
            }
            (TrailerStart, b'\r') => LastLf,
            (TrailerStart, b' ' | b'\t') => return Err(Malformed::Chunk),
            (TrailerStart | Trailer, _) if is_text => Trailer,
            (Trailer, b'\r') => TrailerLf,
            (TrailerLf, b'\n') => TrailerStart,
            (LastLf, b'\n') => End,
            _ => return Err(Malformed::Chunk),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunked(text: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut chunks = Chunks::default();
        chunks.feed(text).map(|taken| (taken, chunks.is_done()))
    }

    #[test]
    fn knows_where_a_chunked_body_ends() {
        assert_eq!(chunked(b"3\r\nabc\r\n0\r\n\r\nGET /"), Ok((13, true)));
        assert_eq!(chunked(b"3;x=\"y\"\r\nabc\r\n0\r\nT: 1\r\n\r\n"), Ok((25, true)));
        assert_eq!(chunked(b"3 \t; x\r\nabc\r\n0\r\n\r\n"), Ok((18, true)));
        assert_eq!(chunked(b"FFFF\r\nabc"), Ok((9, false)));
    }

    #[test]
    fn rejects_malformed_chunks() {
        for text in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"3\nabc",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"3 x\r\nabc\r\n",
            b"3 \r\nabc\r\n",
            b"3\r\nabcX",
            b"0\r\n\n",
            b"11111111111111111\r\n",
            b"3;\0\r\n",
            b"0\r\n folded: 1\r\n\r\n",
            b";\r\n",
        ] {
            assert_eq!(chunked(text), Err(Malformed::Chunk), "{:?}", String::from_utf8_lossy(text));
        }
        assert_eq!(chunked(format!("3;{}\r\n", "x".repeat(2000)).as_bytes()), Err(Malformed::Chunk));
        assert_eq!(chunked(format!("0\r\n{}\r\n\r\n", "x: y\r\n".repeat(5000)).as_bytes()), Err(Malformed::Chunk));
    }

    proptest! {
        #[test]
        fn pieces_are_read_as_the_whole(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..5),
            cut in 0..200_usize,
        ) {
            let mut body = Vec::new();
            for part in &parts {
                body.extend(format!("{:x}\r\n", part.len()).bytes());
                body.extend(part);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            let (first, second) = body.split_at(cut.min(body.len()));
            let mut chunks = Chunks::default();
            prop_assert_eq!(chunks.feed(first), Ok(first.len()));
            prop_assert_eq!(chunks.feed(second), Ok(second.len()));
            prop_assert!(chunks.is_done());
        }

        #[test]
        fn decoding_gives_the_data_of_any_pieces(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..5),
            size in 1..40_usize,
        ) {
            let mut body = Vec::new();
            for part in &parts {
                body.extend(format!("{:x};e=1\r\n", part.len()).bytes());
                body.extend(part);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\nTrailer: x\r\n\r\n");
            let len = body.len();
            body.extend(b"GET");
            let (mut chunks, mut data, mut taken) = (Chunks::default(), Vec::new(), 0);
            for piece in body.chunks_mut(size) {
                let (of_body, of_data) = chunks.decode(piece).unwrap();
                data.extend_from_slice(&piece[..of_data]);
                taken += of_body;
            }
            prop_assert_eq!(data, parts.concat());
            prop_assert!(chunks.is_done() && taken == len);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Chunks::default().feed(&bytes);
        }
    }
}
