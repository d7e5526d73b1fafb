//! Waiting for a condition with a deadline, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// Between two looks: short beside everything waited for, long beside the cost of a look.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks until there is an answer. `what` completes the sentence "waited 10s for …".
pub fn for_some<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(Error::new(format_args!("waited {limit:?} for {what}, in vain")));
        }
        thread::sleep(PAUSE);
    }
}

/// Asks until it is true.
pub fn until(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    for_some(what, limit, || look().then_some(()))
}
