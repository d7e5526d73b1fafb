//! A timer whose deadline can be moved for free.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep};

/// One timer for the life of a connection. Moving its deadline to a later time is free: only when the timer fires does it
/// check whether the deadline has moved, and waits on. A busy connection never touches the runtime's timers.
#[derive(Debug)]
pub struct Timer {
    sleep: Pin<Box<Sleep>>,
    is_armed: bool,
}

impl Default for Timer {
    fn default() -> Self {
        Self::new()
    }
}

impl Timer {
    /// Not set.
    pub fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep_until(Instant::now())), is_armed: false }
    }

    /// Ready at `deadline`.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        loop {
            let must_move = !self.is_armed || self.sleep.is_elapsed() || self.sleep.deadline() > deadline;
            if !must_move {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(deadline);
            self.is_armed = true;
            ready!(self.sleep.as_mut().poll(cx));
        }
    }
}
