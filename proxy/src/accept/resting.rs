//! The wakers of idle connections: a shutdown wakes them, so that they close.

use std::cell::RefCell;
use std::task::Waker;

thread_local! {
    /// The wakers of this worker's connections, to wake idle ones when the process shuts down.
    static RESTING: RefCell<Wakers> = const { RefCell::new(Wakers { slots: Vec::new(), free: Vec::new() }) };
}

struct Wakers {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// The index of a connection among this worker's wakers.
pub(super) struct Resting {
    slot: usize,
}

impl Resting {
    pub(super) fn register() -> Self {
        RESTING.with_borrow_mut(|wakers| {
            let slot = wakers.free.pop().unwrap_or_else(|| {
                wakers.slots.push(None);
                wakers.slots.len() - 1
            });
            Self { slot }
        })
    }

    pub(super) fn wake_me(&self, waker: &Waker) {
        RESTING.with_borrow_mut(|wakers| {
            if let Some(slot) = wakers.slots.get_mut(self.slot)
                && !slot.as_ref().is_some_and(|kept| kept.will_wake(waker))
            {
                *slot = Some(waker.clone());
            }
        });
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        // Fails only while the thread ends, which drops the list as well.
        let _ = RESTING.try_with(|wakers| {
            let mut wakers = wakers.borrow_mut();
            if let Some(slot) = wakers.slots.get_mut(self.slot) {
                *slot = None;
            }
            wakers.free.push(self.slot);
        });
    }
}

/// Wakes every connection of this thread, so that idle ones notice the shutdown.
pub fn wake_all() {
    let wakers: Vec<Waker> =
        RESTING.with_borrow_mut(|wakers| wakers.slots.iter_mut().filter_map(Option::take).collect());
    wakers.into_iter().for_each(Waker::wake);
}
