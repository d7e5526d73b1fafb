//! Hashes that identify clients.
//!
//! They depend on a secret seed, so clients whose hashes collide cannot be made up. The seed is random in each process, unless
//! the state of an earlier process is restored: then [`use_seed`] makes the hashes the same.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The kind of identity, for [`client_hash`]: the same bytes of another kind are another client.
pub mod kind {
    /// The name of a verified user.
    pub const USER: u8 = 1;
    /// The name of a known key.
    pub const KEY: u8 = 2;
    /// An unknown key, by its value.
    pub const UNKNOWN_KEY: u8 = 3;
    /// A fingerprint of the seed.
    pub(super) const SEED: u8 = 0xff;
}

/// The key of all hashes; a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed([u64; 2]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

impl Seed {
    /// Makes a seed of 16 secret bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let whole = u128::from_le_bytes(bytes);
        Self([whole as u64, (whole >> 64) as u64])
    }

    /// Returns the bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0[0]) | (u128::from(self.0[1]) << 64)).to_le_bytes()
    }

    /// Returns a hash of `bytes` with this seed as the key.
    pub fn hash(self, bytes: &[u8]) -> u64 {
        siphash(self, 0, bytes)
    }

    /// Returns a number that identifies the seed and does not reveal it.
    pub fn fingerprint(self) -> u64 {
        siphash(self, kind::SEED, b"")
    }
}

static SEED: LazyLock<[AtomicU64; 2]> = LazyLock::new(|| {
    // The standard library takes its keys from the system's random numbers, and does not hand them out.
    let random = RandomState::new();
    [0_u8, 1].map(|n| AtomicU64::new(random.hash_one(n)))
});

/// Returns the seed in use.
pub fn seed() -> Seed {
    Seed([SEED[0].load(Ordering::Relaxed), SEED[1].load(Ordering::Relaxed)])
}

/// Replaces the seed. Hashes made before no longer stand for any client, so this belongs before the configuration is read.
pub fn use_seed(seed: Seed) {
    for (word, value) in SEED.iter().zip(seed.0) {
        word.store(value, Ordering::Relaxed);
    }
}

/// A number for a client that is neither predictable nor reversible without the seed.
pub fn client_hash(kind: u8, bytes: &[u8]) -> u64 {
    siphash(seed(), kind, bytes)
}

/// SipHash-1-3 (Aumasson and Bernstein, 2012) of `kind` and `bytes`: the hash of the standard library's tables, which does not let a
/// program choose the key.
fn siphash(Seed([k0, k1]): Seed, kind: u8, bytes: &[u8]) -> u64 {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut absorb = |word: u64| {
        v[3] ^= word;
        round(&mut v);
        v[0] ^= word;
    };
    // The kind is the first byte, so the others are shifted by one.
    let (mut word, mut filled) = (u64::from(kind), 1);
    for byte in bytes {
        word |= u64::from(*byte) << (8 * filled);
        filled += 1;
        if filled == 8 {
            absorb(word);
            (word, filled) = (0, 0);
        }
    }
    // The last word has the length in its highest byte.
    absorb(word | ((bytes.len() as u64 + 1) << 56));
    v[2] ^= 0xff;
    (0..3).for_each(|_| round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline]
const fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// Spreads a difference in one bit over all of them (the finaliser of MurmurHash3).
pub const fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher};

    use super::*;

    #[test]
    fn hashes_are_those_of_the_standard_library_with_a_key_of_zeros() {
        let bytes: Vec<u8> = (0..70).map(|n| n * 3).collect();
        for length in 0..bytes.len() {
            let mut hasher = DefaultHasher::new();
            hasher.write(&[9]);
            hasher.write(&bytes[..length]);
            assert_eq!(siphash(Seed([0, 0]), 9, &bytes[..length]), hasher.finish(), "{length}");
        }
    }

    #[test]
    fn a_seed_survives_as_bytes_and_changes_every_hash() {
        let bytes = std::array::from_fn(|n| n as u8);
        let seed = Seed::from_bytes(bytes);
        assert_eq!(seed.to_bytes(), bytes);
        // The reference key of the paper's test vectors, in their order.
        assert_eq!(seed, Seed([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]));
        let other = Seed([1, 2]);
        assert_ne!(siphash(seed, 1, b"ann"), siphash(other, 1, b"ann"));
        assert_ne!(seed.fingerprint(), other.fingerprint());
        assert_eq!(format!("{seed:?}"), "Seed(…)");
    }
}
