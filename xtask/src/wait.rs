//! Waits for a condition with a deadline, instead of a fixed time.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// Pause between two checks: short compared to the waits, long compared to the cost of a check.
const PAUSE: Duration = Duration::from_millis(20);

/// Calls `look` until it returns a value. `what` completes the sentence "timed out after 10s waiting for …".
pub fn for_some<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(Error::new(format_args!("timed out after {limit:?} waiting for {what}")));
        }
        thread::sleep(PAUSE);
    }
}

/// Calls `look` until it returns true.
pub fn until(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    for_some(what, limit, || look().then_some(()))
}
