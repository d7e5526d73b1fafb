//! Buffers that the next requests of the same thread reuse.

use std::cell::RefCell;

use bytes::BytesMut;

/// How much of a response body is read at once.
pub(super) const READ_BYTES: usize = 16 << 10;
/// The size of the first buffer for a response: most fit, with head and body.
pub(super) const FIRST_READ_BYTES: usize = 4 << 10;
/// The most buffers that a thread keeps.
const MOST_SCRATCH: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub(super) fn scratch() -> BytesMut {
    SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(FIRST_READ_BYTES))
}

/// Keeps a buffer for reuse.
pub(super) fn recycle(mut buffer: BytesMut) {
    buffer.clear();
    // Consumed bytes have moved the start of the buffer; without this, the next response would be read in two pieces.
    let _ = buffer.try_reclaim(READ_BYTES) || buffer.try_reclaim(FIRST_READ_BYTES);
    // A buffer that a large response has grown is freed.
    if (FIRST_READ_BYTES..=READ_BYTES * 2).contains(&buffer.capacity()) {
        SCRATCH.with_borrow_mut(|kept| {
            if kept.len() < MOST_SCRATCH {
                kept.push(buffer);
            }
        });
    }
}
