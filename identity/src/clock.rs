//! The clocks: time that passes, and the time of day.
//!
//! Both follow the runtime's clock where a simulation has paused it. Threads without a runtime have the system's clock.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time now. In a runtime with a paused clock, the time there.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The time that has passed since `earlier`, by the clock of [`now`].
pub fn since(earlier: Instant) -> Duration {
    now().saturating_duration_since(earlier)
}

/// The time of day.
pub fn wall() -> SystemTime {
    if IS_SIMULATED.load(Ordering::Relaxed) {
        return simulated().unwrap_or_else(SystemTime::now);
    }
    SystemTime::now()
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Seconds since 1970, as signed values contain them.
pub fn seconds() -> u32 {
    u32::try_from(unix_now()).unwrap_or(u32::MAX)
}

/// A simulation runs, in this thread or another.
static IS_SIMULATED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static SIMULATED: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
}

#[cold]
fn simulated() -> Option<SystemTime> {
    SIMULATED.get().map(|(since_then, time)| time + since(since_then))
}

/// Sets the time of day in this thread; from then on it follows [`now`]. For simulations.
#[doc(hidden)]
pub fn set_wall(time: SystemTime) {
    SIMULATED.set(Some((now(), time)));
    IS_SIMULATED.store(true, Ordering::Relaxed);
}
