//! Hashes that identify clients; valid within this process only.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

/// The kind of identity, for [`client_hash`]: the same bytes of another kind are another client.
pub mod kind {
    /// The name of a verified user.
    pub const USER: u8 = 1;
    /// The name of a known key.
    pub const KEY: u8 = 2;
    /// An unknown key, by its value.
    pub const UNKNOWN_KEY: u8 = 3;
}

/// A number for a client that is not predictable or reversible and differs in every process.
pub fn client_hash(kind: u8, bytes: &[u8]) -> u64 {
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let mut hasher = SEED.build_hasher();
    hasher.write_u8(kind);
    hasher.write(bytes);
    hasher.finish()
}

/// Spreads a difference in one bit over all of them (the finaliser of MurmurHash3).
pub const fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}
