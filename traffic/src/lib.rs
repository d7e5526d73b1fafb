//! The traffic record: what `outrigger backtest` needs of past requests, and as little of their clients as that takes.
//!
//! ```text
//! request.rs     a recorded request
//! template.rs    paths without identifiers
//! shapes.rs      the kinds of requests of a file, in a bounded table
//! encode.rs      requests to blocks of a file · decode.rs: and back, for any bytes · varint.rs
//! files.rs       names of files, and which of them belong to a directory's record
//! ```
//!
//! A file is a [header](encode::header) and blocks. A block has a length, a checksum and at most [`MOST_BLOCK_BYTES`] of entries: texts,
//! shapes and requests. Texts and shapes are numbered from 0 in the order in which they appear; requests refer to them by number. A file
//! whose last block is incomplete ends before it: the process or the disk stopped in the middle of a write.
//!
//! A request takes about 40 bytes.

pub mod decode;
pub mod encode;
pub mod files;
pub mod request;
pub mod shapes;
pub mod template;
mod varint;

/// The first bytes of a file; the last one is the version.
pub const MAGIC: [u8; 8] = *b"OUTRTRF1";
/// Maximum bytes of the entries of a block.
pub const MOST_BLOCK_BYTES: usize = 1 << 20;
/// Maximum number of texts of a file.
pub const MOST_TEXTS: usize = 65_536;
/// Maximum number of shapes of a file.
pub const MOST_SHAPES: usize = 16_384;
/// Maximum bytes of a text.
pub const MOST_TEXT_BYTES: usize = 255;

/// The checksum of a block: FNV-1a, in 64 bits. It detects torn writes, not forgeries.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
