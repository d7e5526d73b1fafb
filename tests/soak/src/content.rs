//! Bodies that follow from an id, so that both ends know what the other one must have sent; and a checksum.

use bytes::Bytes;

/// The body of this size that belongs to this id.
pub fn content(id: u64, size: usize) -> Bytes {
    let words = size.div_ceil(8);
    let base = mix(id);
    let mut all = Vec::with_capacity(words * 8);
    for n in 0..words as u64 {
        all.extend_from_slice(&mix(base.wrapping_add(n)).to_le_bytes());
    }
    all.truncate(size);
    all.into()
}

/// The finalizer of `splitmix64`.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a over the bytes so far.
#[derive(Debug, Clone, Copy)]
pub struct Checksum {
    state: u64,
    length: usize,
}

impl Checksum {
    pub fn new() -> Self {
        Self { state: 0xcbf2_9ce4_8422_2325, length: 0 }
    }

    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.state = (self.state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.length += bytes.len();
    }

    /// How the app responds to a request with this body.
    pub fn receipt(&self, id: u64) -> String {
        format!("{id:016x} {} {:016x}", self.length, self.state)
    }
}

/// The receipt for a whole body.
pub fn receipt(id: u64, body: &[u8]) -> String {
    let mut sum = Checksum::new();
    sum.add(body);
    sum.receipt(id)
}

/// The n-th event of a stream.
pub fn event(id: u64, n: u32) -> String {
    format!("data: {id:016x} {n}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_two_ids_differ_and_a_part_shows_in_the_receipt() {
        assert_eq!(content(1, 100), content(1, 100));
        assert_eq!((content(1, 13).len(), content(1, 0).len()), (13, 0));
        assert_ne!(content(1, 100), content(2, 100));
        assert_ne!(content(1, 8), content(2, 8));
        let body = content(7, 1000);
        let mut parts = Checksum::new();
        body.chunks(33).for_each(|part| parts.add(part));
        assert_eq!(parts.receipt(7), receipt(7, &body));
        assert_ne!(receipt(7, &body[..999]), receipt(7, &body));
    }
}
