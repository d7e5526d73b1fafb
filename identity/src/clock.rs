//! The time of day.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Seconds since 1970, as signed values contain them.
pub fn seconds() -> u32 {
    u32::try_from(unix_now()).unwrap_or(u32::MAX)
}
