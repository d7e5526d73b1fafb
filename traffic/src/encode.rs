//! Requests to blocks of a file.

use crate::request::{RecordedRequest, Shape};
use crate::{MAGIC, checksum, varint};

/// The first byte of an entry.
pub(crate) mod entry {
    pub(crate) const TEXT: u8 = 1;
    pub(crate) const SHAPE: u8 = 2;
    pub(crate) const REQUEST: u8 = 3;
}

/// Bytes of the header of a file.
pub const HEADER_BYTES: usize = 16;
/// Bytes before the entries of a block: their length, and their checksum.
pub const BLOCK_HEADER_BYTES: usize = 12;

/// The header of a file: [`MAGIC`] and the time to which others refer, in nanoseconds since 1970.
pub fn header(base_ns: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..].copy_from_slice(&base_ns.to_le_bytes());
    header
}

/// Collects the entries of a block. The caller begins the next one long before [`MOST_BLOCK_BYTES`](crate::MOST_BLOCK_BYTES).
#[derive(Debug)]
pub struct Encoder {
    base_ns: u64,
    before_ns: u64,
    bytes: Vec<u8>,
    requests: u64,
}

impl Encoder {
    /// For a file with this time in its header.
    pub fn new(base_ns: u64) -> Self {
        Self { base_ns, before_ns: base_ns, bytes: vec![0; BLOCK_HEADER_BYTES], requests: 0 }
    }

    /// The number of requests in the block.
    pub const fn requests(&self) -> u64 {
        self.requests
    }

    /// The number of bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the block has no entries.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == BLOCK_HEADER_BYTES
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes.push(entry::TEXT);
        self.bytes.push(text.len() as u8);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub(crate) fn shape(&mut self, shape: Shape) {
        self.bytes.push(entry::SHAPE);
        for number in [shape.method, shape.host, shape.path, shape.route, shape.headers] {
            varint::put(&mut self.bytes, number.into());
        }
    }

    /// Adds a request.
    pub fn request(&mut self, request: &RecordedRequest) {
        let out = &mut self.bytes;
        out.push(entry::REQUEST);
        varint::put(out, request.shape.into());
        varint::put_signed(out, request.started_ns.wrapping_sub(self.before_ns) as i64);
        self.before_ns = request.started_ns;
        varint::put(out, request.total_us);
        varint::put(out, request.queued_us);
        varint::put(out, request.service_us.map_or(0, |service| service.saturating_add(1)));
        out.extend(request.status.to_le_bytes());
        let modes = request.admission as u8 | (request.resilience as u8) << 2 | (request.kind as u8) << 4;
        let differs = request.client != request.address;
        out.push(modes | u8::from(differs) << 6);
        out.push(request.tier);
        out.extend(request.facts.0.to_le_bytes());
        varint::put(out, request.reason.map_or(0, |text| u64::from(text) + 1));
        varint::put(out, request.limit.map_or(0, |text| u64::from(text) + 1));
        out.push(request.attempts);
        out.push(request.body_class);
        out.extend(request.client.to_le_bytes());
        if differs {
            out.extend(request.address.to_le_bytes());
        }
        self.requests += 1;
    }

    /// The block, complete.
    pub fn finish(&mut self) -> &[u8] {
        let entries = &self.bytes[BLOCK_HEADER_BYTES..];
        let (length, sum) = (entries.len() as u32, checksum(entries));
        self.bytes[..4].copy_from_slice(&length.to_le_bytes());
        self.bytes[4..BLOCK_HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        &self.bytes
    }

    /// For the next block of the file.
    pub fn clear(&mut self) {
        self.bytes.truncate(BLOCK_HEADER_BYTES);
        (self.before_ns, self.requests) = (self.base_ns, 0);
    }
}
