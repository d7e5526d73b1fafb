//! Which clients had a response within the last minutes, approximately: two sets of bits, of which the newer one is filled.
//!
//! A client counts as seen for at least [`KEPT_NS`] after a response, or until [`MOST`] others had one. One in thirty-two
//! unseen clients counts as seen when both sets are full.

/// The newer set becomes the older one after this time, in nanoseconds.
const KEPT_NS: u64 = 300_000_000_000;
/// Bits of a set.
const BITS: usize = 1 << 20;
/// The newer set becomes the older one when it has this many bits.
const MOST: u32 = BITS as u32 / 64;

/// The clients; see the module documentation.
#[derive(Debug, Default)]
pub struct Seen {
    /// Empty before the first client.
    newer: Box<[u64]>,
    older: Box<[u64]>,
    count: u32,
    since: u64,
}

const fn bit(client: u64) -> (usize, u64) {
    let bit = client as usize % BITS;
    (bit / 64, 1 << (bit % 64))
}

impl Seen {
    pub fn add(&mut self, client: u64, now: u64) {
        if self.count >= MOST || now.saturating_sub(self.since) >= KEPT_NS || self.newer.is_empty() {
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer = vec![0; BITS / 64].into();
            (self.count, self.since) = (0, now);
        }
        let (word, bit) = bit(client);
        if let Some(word) = self.newer.get_mut(word) {
            self.count += u32::from(*word & bit == 0);
            *word |= bit;
        }
    }

    pub fn has(&self, client: u64) -> bool {
        let (word, bit) = bit(client);
        [&self.newer, &self.older].into_iter().any(|set| set.get(word).is_some_and(|word| word & bit != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spreads numbers as the hash of a client does.
    const fn hash(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
    }

    #[test]
    fn a_client_is_seen_for_minutes_and_then_forgotten() {
        let mut seen = Seen::default();
        assert!(!seen.has(7));
        seen.add(7, 1);
        seen.add(8, KEPT_NS);
        assert!(seen.has(7) && seen.has(8) && !seen.has(9));
        seen.add(8, 2 * KEPT_NS);
        seen.add(8, 3 * KEPT_NS);
        assert!(!seen.has(7) && seen.has(8));
    }

    #[test]
    fn many_clients_shorten_the_time_and_do_not_make_all_others_seen() {
        let mut seen = Seen::default();
        (0..1_000_000).for_each(|n| seen.add(hash(n), n));
        assert!(seen.has(hash(999_999)) && seen.has(hash(990_000)));
        let taken_for_seen = (2_000_000..2_010_000).filter(|n| seen.has(hash(*n))).count();
        assert!(taken_for_seen < 500, "{taken_for_seen} of 10,000");
    }
}
