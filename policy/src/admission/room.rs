//! The length of the queue, and the requests that make room in it.

use super::pressure::Pressure;
use super::queue::Terms;
use super::{Admission, Ask, MOST_DISPLACED, PLACES_PER_OVERTAKER};
use crate::priority::Priority;

/// A standing queue is as long as what the app does in this fraction of `max_wait`. In a longer one, requests would wait in
/// vain; in a shorter one, too few are left when more important ones become fewer.
const STANDING: f64 = 0.8;

impl<T: Default> Admission<T> {
    /// Returns the current maximum length of the queue.
    pub fn room(&self) -> u32 {
        if self.is_suspended {
            return self.settings.max_held;
        }
        let room = if self.pressure.stands(self.clock, self.interval()) {
            let drained = f64::from(self.pressure.drained(self.clock, self.interval()));
            let drained = drained * self.max_wait() as f64 / self.interval() as f64;
            self.lasting_room(STANDING, drained)
        } else {
            self.settings.max_queue
        };
        room.max(self.backlog.min(self.settings.max_held))
    }

    /// The number of responses in a fraction of `max_wait`, by the concurrency limit or by the recent rate `drained` (per
    /// `max_wait`), whichever is more; at least the limit. `max_queue` while the latency is unknown.
    fn lasting_room(&self, fraction: f64, drained: f64) -> u32 {
        let Some(answered) = self.concurrency.answers_in(self.settings.max_wait) else {
            return self.settings.max_queue;
        };
        // The cast saturates.
        ((answered.max(drained) * fraction) as u32).max(self.concurrency.limit()).min(self.settings.max_queue)
    }

    pub(super) fn terms(&self) -> Terms {
        let room = self.lasting_room(0.5, 0.0);
        Terms { now: self.clock, overtakers: room / PLACES_PER_OVERTAKER, overtakers_of_strangers: room / 2 }
    }

    /// Records a sign of pressure if the next request of a priority has waited for at least the target.
    pub(super) fn notice_pressure(&mut self) {
        let target = Pressure::target(self.interval());
        let has_waited =
            |number| self.queue.place(number).is_some_and(|place| self.clock - place.since.min(self.clock) >= target);
        if !self.is_suspended
            && Priority::ALL.into_iter().filter_map(|priority| self.queue.next_of(priority)).any(has_waited)
        {
            self.pressure.sign(self.clock, self.interval());
        }
    }

    /// When a burst has become an overload, displaces the newest of the least important requests at once instead of after
    /// a futile wait: a few with each new request.
    pub(super) fn shed(&mut self, displaced: &mut impl FnMut(T, Priority)) {
        for _ in 1..MOST_DISPLACED {
            let Some(least) = self.queue.least_important() else { return };
            if self.queue.len() <= self.room() {
                return;
            }
            let Some(last) = self.queue.last_of(least) else { return };
            displaced(self.displace(last), least);
        }
    }

    /// Returns a request whose client has used clearly more in this priority than the client of a new request.
    pub(super) fn heavier(&self, ask: Ask) -> Option<u32> {
        let heaviest = self.queue.heaviest_of(ask.priority)?;
        let client = self.queue.place(heaviest)?.client;
        self.clients.has_used_more(client, ask.client, ask.priority, self.clock).then_some(heaviest)
    }

    /// Returns the next request of a priority that was granted no permit for half of `max_wait`, if the request has waited
    /// that long as well and its client is the new request's client or has more requests waiting. Without this, all queued
    /// requests would be equally old and time out just when the app has capacity for them.
    pub(super) fn starved(&self, priority: Priority, client: Option<u32>, own: u32) -> Option<u32> {
        let half = self.max_wait() / 2;
        let is_long_ago = |at: u64| self.clock.saturating_sub(at) > half;
        let next = self.queue.next_of(priority)?;
        let place = self.queue.place(next)?;
        let is_starved = self.queue.served_at(priority).is_some_and(is_long_ago) && is_long_ago(place.since);
        let is_fair =
            client == Some(place.client) || own < self.queue.waiting_of(&self.clients, place.client, priority);
        (is_starved && is_fair).then_some(next)
    }
}
