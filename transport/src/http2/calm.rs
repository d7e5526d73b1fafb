//! How often a client may cause useless work.

use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_wire::http2::Reason;

/// Faults that a client has in reserve. A browser that leaves a page resets its requests at once.
const MOST: u32 = 200;
/// One more after this time.
const REFILL: Duration = Duration::from_millis(50);
/// Frames without content that may follow each other.
const MOST_EMPTY: u32 = 100;

/// A token bucket of resets and malformed requests, which requests that are served refill, too; and the number of empty frames.
#[derive(Debug)]
pub(super) struct Calm {
    left: u32,
    since: Option<Instant>,
    empty: u32,
}

impl Default for Calm {
    fn default() -> Self {
        Self { left: MOST, since: None, empty: 0 }
    }
}

impl Calm {
    /// A stream was reset, by either side.
    pub(super) fn take(&mut self) -> Result<(), Reason> {
        let now = clock::now();
        let since = self.since.get_or_insert(now);
        let earned = u32::try_from((now - *since).as_millis() / REFILL.as_millis()).unwrap_or(MOST);
        if earned > 0 {
            *since = now;
        }
        self.left = self.left.saturating_add(earned).min(MOST).checked_sub(1).ok_or(Reason::Calm)?;
        Ok(())
    }

    /// A response was sent completely.
    pub(super) fn served(&mut self) {
        self.left = (self.left + 1).min(MOST);
    }

    /// A frame without content arrived.
    pub(super) fn empty(&mut self) -> Result<(), Reason> {
        self.empty += 1;
        if self.empty > MOST_EMPTY { Err(Reason::Calm) } else { Ok(()) }
    }

    /// A frame with content arrived.
    pub(super) fn filled(&mut self) {
        self.empty = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_more_is_not() {
        let mut calm = Calm::default();
        let taken = (0..10_000).take_while(|_| calm.take().is_ok()).count();
        assert!((200..400).contains(&taken), "{taken}");
        calm.served();
        assert!(calm.take().is_ok());
    }

    #[test]
    fn empty_frames_may_not_follow_each_other_without_end() {
        let mut calm = Calm::default();
        for _ in 0..3 {
            (0..100).for_each(|_| calm.empty().unwrap());
            calm.filled();
        }
        (0..100).for_each(|_| calm.empty().unwrap());
        assert_eq!(calm.empty(), Err(Reason::Calm));
    }
}
