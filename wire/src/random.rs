//! Random numbers that need not be secret.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(std::process::id()));
}

/// Returns a random number for names, not for secrets: a SplitMix64 sequence (Steele, Lea, Flood 2014) per thread, seeded by
/// the operating system.
pub fn random() -> u64 {
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ next >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    })
}

/// Begins the sequence of this thread at `seed`, so that a simulation can be repeated.
#[doc(hidden)]
pub fn set_seed(seed: u64) {
    STATE.set(seed);
}

/// A random number in 0..1.
pub fn dice() -> f64 {
    // The upper 53 bits.
    (random() >> 11) as f64 / (1_u64 << 53) as f64
}
