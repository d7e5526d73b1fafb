//! Bounds of upstream responses, the same on both paths.

/// The largest header section of a response.
pub const ANSWER_HEAD_BYTES: usize = 64 << 10;
/// The most interim responses (1xx) before the final one.
pub const MOST_INTERIM: usize = 64;
