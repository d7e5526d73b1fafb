//! A timer whose deadline can be moved for free.

use std::future::Future;
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
            // A task that has used up its budget would get `Pending` without being registered, and is not polled here again.
            let sleep = std::pin::pin!(tokio::task::coop::unconstrained(self.sleep.as_mut()));
            ready!(sleep.poll(cx));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn fires_although_the_tasks_budget_was_used_up_when_it_was_set() {
        let (mut timer, deadline) = (Timer::new(), Instant::now() + Duration::from_millis(100));
        while tokio::task::coop::has_budget_remaining() {
            tokio::task::coop::consume_budget().await;
        }
        let mut polls = 0;
        let fired = poll_fn(|cx| {
            polls += 1;
            timer.poll(cx, deadline)
        });
        tokio::time::timeout(Duration::from_secs(1), fired).await.expect("the timer fires");
        assert!(polls <= 3, "{polls}");
    }
}
