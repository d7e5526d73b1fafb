//! Which requests get a permit, wait for one, or are refused: permits for requests to the app, and a short queue for them.
//!
//! ```text
//! ask ──► a permit is free ───────────────► Go
//!     └─► room in the queue, or a request in it that makes room (and is refused) ──► Wait ──► granted, in order
//!     └─► otherwise ──────────────────────► Refuse, at once
//! ```
//!
//! The order is by priority, then fair between clients: see [`queue`], which has the bound on a request's wait. The queue may
//! be long for as long as a burst takes to drain; once it stands ([`pressure`]) it is no longer than what the app answers in
//! half of the longest wait, so that a request that is let in is nearly always served, unless everything goes to more
//! important ones.

mod clients;
mod pressure;
mod queue;
mod slab;

use std::time::Duration;

use self::clients::{Clients, FORGOTTEN_AFTER_NS};
use self::pressure::Pressure;
use self::queue::{FairQueue, Terms};
use crate::concurrency::{self, Concurrency, Sample};
use crate::priority::Priority;

/// What operators may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The bounds of the limit.
    pub concurrency: concurrency::Settings,
    /// The longest wait.
    pub max_wait: Duration,
    /// The most that wait, however fast the app is.
    pub max_queue: u32,
    /// The most that wait while the app is away.
    pub max_held: u32,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// How important the request is.
    pub priority: Priority,
    /// The client: a hash.
    pub client: u64,
    /// When, in nanoseconds.
    pub now: u64,
}

/// A place in the queue. Given back by exactly one of [`Admission::collect`] and [`Admission::abandon`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a place that nobody gives back is lost"]
pub struct Ticket(u32);

impl Ticket {
    /// The number of the place, for whoever gives it back.
    const fn number(self) -> u32 {
        self.0
    }
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has a permit: [`Admission::finish`] gives it back.
    Go,
    /// It waits.
    Wait(Ticket),
    /// There is no room for it.
    Refuse,
}

/// What became of somebody who waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing yet.
    Waiting,
    /// It has a permit.
    Granted,
    /// It made room for another request, and is refused.
    Displaced,
}

/// At most so many requests are displaced when one asks.
pub const MOST_DISPLACED: usize = 4;
/// A flow of a heavy client may be overtaken by one newer flow for so many places in the queue.
const PLACES_PER_OVERTAKER: u32 = 4;

/// Permits and queue. `T` is what wakes a request that waits.
#[derive(Debug)]
pub struct Admission<T> {
    law: Concurrency,
    settings: Settings,
    in_flight: u32,
    /// Requests that passed without a permit.
    passed: u32,
    queue: FairQueue<T>,
    clients: Clients,
    pressure: Pressure,
    /// The latest time that was mentioned, in nanoseconds.
    clock: u64,
    /// The app is away: no permit is granted, and requests wait for it.
    is_suspended: bool,
    /// Since the app is back: what the backlog of that time adds to the room, one less with each permit granted.
    backlog: u32,
}

impl<T: Default> Admission<T> {
    /// No requests yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            law: Concurrency::new(settings.concurrency),
            settings,
            in_flight: 0,
            passed: 0,
            queue: FairQueue::new(),
            clients: Clients::default(),
            pressure: Pressure::default(),
            clock: 0,
            is_suspended: false,
            backlog: 0,
        }
    }

    /// Changes the settings; requests keep their permits and places.
    pub fn set(&mut self, settings: Settings) {
        if settings != self.settings {
            self.law.set_bounds(settings.concurrency.min, settings.concurrency.max);
            self.settings = settings;
        }
    }

    /// Permits now.
    pub fn limit(&self) -> u32 {
        self.law.limit()
    }

    /// Permits in use.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// How many requests of a priority wait.
    pub fn waiting(&self, priority: Priority) -> u32 {
        self.queue.waiting(priority)
    }

    /// How long a response takes now.
    pub fn latency(&self) -> Option<Duration> {
        self.law.latency()
    }

    /// The most that may wait now.
    pub fn room(&self) -> u32 {
        self.room_for(Priority::Medium)
    }

    /// No permit is granted until [`Admission::resume`]: the app is away. Requests that wait go on waiting.
    pub fn suspend(&mut self) {
        self.is_suspended = true;
        // Those that are only counted have been sent already: nobody would give back the permits that they get.
        for number in self.queue.numbers() {
            let is_counted =
                self.queue.place(number).is_some_and(|place| !place.is_owned && place.turn == Turn::Waiting);
            if is_counted {
                drop(self.displace(number));
            }
        }
    }

    /// The app is back: those that wait get permits as the limit allows. They are no reason to refuse those that come now, so
    /// there is room for as many again, and less and less as they go.
    pub fn resume(&mut self) {
        self.is_suspended = false;
        self.backlog = self.queue.len().saturating_mul(2);
    }

    /// How many may wait before a request of this priority is refused: critical requests may fill more, for nobody goes before them.
    fn room_for(&self, priority: Priority) -> u32 {
        if self.is_suspended {
            return self.settings.max_held;
        }
        let room = if self.pressure.stands(self.clock, self.interval()) {
            let drained = f64::from(self.pressure.drained(self.clock, self.interval()));
            let drained = drained * self.max_wait() as f64 / self.interval() as f64;
            self.lasting_room(priority, drained)
        } else {
            self.settings.max_queue
        };
        room.max(self.backlog.min(self.settings.max_held))
    }

    /// The room in a queue that stands: what the app answers in half of the longest wait (four fifths for critical requests), by
    /// the law or by what it has `drained` of late in as long as the longest wait. All that may wait before anything is known.
    fn lasting_room(&self, priority: Priority, drained: f64) -> u32 {
        let Some(answered) = self.law.answers_in(self.settings.max_wait) else { return self.settings.max_queue };
        let share = if priority == Priority::Critical { 0.8 } else { 0.5 };
        // Too many for the type means as many as it holds.
        ((answered.max(drained) * share) as u32).max(self.law.limit()).min(self.settings.max_queue)
    }

    /// Gives `client` a permit if one is free and nobody waits; displaces nobody, and does not wait.
    pub fn ask_now(&mut self, client: u64) -> bool {
        let is_free = self.in_flight < self.law.limit() && self.queue.len() == 0 && !self.is_suspended;
        if is_free {
            self.in_flight += 1;
            let client = self.clients.enter(client);
            self.clients.hold(client);
        }
        is_free
    }

    /// A request asks for a permit. `displaced` is called for each request that makes room, with what wakes it and its
    /// priority: at most [`MOST_DISPLACED`] times.
    pub fn ask(&mut self, ask: Ask, mut displaced: impl FnMut(T, Priority)) -> Verdict {
        self.clock = self.clock.max(ask.now);
        if self.ask_now(ask.client) {
            return Verdict::Go;
        }
        self.feel();
        self.shed(&mut displaced);
        let known = self.clients.find(ask.client);
        let own = known.map_or(0, |client| self.queue.waiting_of(&self.clients, client, ask.priority));
        if self.queue.len() >= self.room() {
            let victim = match self.queue.makes_room_for(ask.priority, own) {
                Some(victim) => Some(victim),
                None if self.queue.len() >= self.room_for(ask.priority) => {
                    self.pressure.sign(self.clock, self.interval());
                    let Some(hopeless) = self.hopeless(ask.priority, known, own) else { return Verdict::Refuse };
                    Some(hopeless)
                }
                None => None,
            };
            if let Some(victim) = victim {
                let priority = self.queue.priority_of(victim);
                displaced(self.displace(victim), priority);
            }
        }
        let (client, terms) = (self.clients.enter(ask.client), self.terms());
        Verdict::Wait(Ticket(self.queue.push(&mut self.clients, client, ask.priority, terms)))
    }

    /// The next request whose turn it is, if a permit is free: it has the permit now, and what is returned wakes it.
    pub fn grant(&mut self) -> Option<T> {
        if self.is_suspended || self.in_flight >= self.law.limit() {
            return None;
        }
        let next = self.queue.next()?;
        let client = self.queue.place(next)?.client;
        self.backlog = self.backlog.saturating_sub(1);
        self.in_flight += 1;
        self.clients.hold(client);
        self.pressure.granted(self.clock, self.interval());
        let terms = self.terms();
        Some(self.queue.grant(&mut self.clients, next, terms))
    }

    /// What became of a request that waited; if it waits no longer, this gives its place back.
    pub fn collect(&mut self, ticket: Ticket) -> Result<Turn, Ticket> {
        let number = ticket.number();
        let turn = self.queue.place(number).map_or(Turn::Displaced, |place| place.turn);
        if turn == Turn::Waiting {
            return Err(Ticket(number));
        }
        self.queue.forget(number);
        Ok(turn)
    }

    /// What wakes the owner of a place.
    pub fn waker(&mut self, ticket: &Ticket) -> Option<&mut T> {
        self.queue.place_mut(ticket.0).map(|place| &mut place.waker)
    }

    /// Nobody looks what becomes of it: it is only there to be counted.
    pub fn disown(&mut self, ticket: Ticket) {
        let number = ticket.number();
        if let Some(place) = self.queue.place_mut(number) {
            place.is_owned = false;
        }
    }

    /// Its owner waits no longer. True if it waited to the end: it was neither granted a permit nor displaced. A permit that it
    /// was granted in this moment is given back.
    pub fn abandon(&mut self, ticket: &Ticket) -> bool {
        let Some(place) = self.queue.place(ticket.0) else { return false };
        let (turn, client) = (place.turn, place.client);
        match turn {
            Turn::Waiting => drop(self.displace(ticket.0)),
            Turn::Granted => {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.clients.release(client, self.clock, None);
            }
            Turn::Displaced => {}
        }
        self.queue.forget(ticket.0);
        turn == Turn::Waiting
    }

    /// A request passes without a permit, as all do in monitor mode.
    pub fn pass(&mut self) {
        self.passed = self.passed.saturating_add(1);
    }

    /// A request in monitor mode is done: whichever request had the permit in question, the app has done a request's work.
    pub fn finish_watched(&mut self, client: u64) {
        self.passed = self.passed.saturating_sub(1);
        self.finish(client, self.clock, 0);
    }

    /// Requests at the app, with a permit or without.
    pub fn present(&self) -> u32 {
        self.passed.max(self.in_flight)
    }

    /// A permit is given back at `now`, after the app has worked for `used` nanoseconds.
    pub fn finish(&mut self, client: u64, now: u64, used: u64) {
        self.clock = self.clock.max(now);
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(client) = self.clients.find(client) {
            // Where nobody has to wait, nobody takes anything from anybody.
            let matters = self.queue.len() > 0 || self.pressure.is_felt(self.clock, FORGOTTEN_AFTER_NS);
            self.clients.release(client, self.clock, (matters && used > 0).then_some(used));
        }
    }

    /// The head of a response came, or did not come in time.
    pub fn record(&mut self, now: u64, sample: Sample) {
        self.law.record(now, sample);
    }

    /// Removes the requests of a client that have waited longer than they may and that nobody wakes. Says of which priority
    /// they were.
    pub fn expire(&mut self, client: u64, now: u64, mut expired: impl FnMut(Priority)) {
        self.clock = self.clock.max(now);
        let longest = self.max_wait();
        let Some(client) = self.clients.find(client) else { return };
        for priority in Priority::ALL {
            while let Some(oldest) = self.queue.oldest_of(&self.clients, client, priority)
                && let Some(place) = self.queue.place(oldest)
                && now.saturating_sub(place.since) > longest
                && !place.is_owned
            {
                drop(self.displace(oldest));
                expired(priority);
            }
        }
    }

    fn max_wait(&self) -> u64 {
        u64::try_from(self.settings.max_wait.as_nanos()).unwrap_or(u64::MAX)
    }

    fn interval(&self) -> u64 {
        Pressure::interval(self.max_wait())
    }

    fn terms(&self) -> Terms {
        let overtakers = self.lasting_room(Priority::Medium, 0.0) / PLACES_PER_OVERTAKER;
        Terms { now: self.clock, overtakers }
    }

    /// Notices a queue in which a request has waited for long.
    fn feel(&mut self) {
        let target = Pressure::target(self.interval());
        let has_waited =
            |number| self.queue.place(number).is_some_and(|place| self.clock - place.since.min(self.clock) >= target);
        if !self.is_suspended
            && Priority::ALL.into_iter().filter_map(|priority| self.queue.next_of(priority)).any(has_waited)
        {
            self.pressure.sign(self.clock, self.interval());
        }
    }

    /// A burst that has turned out to be an overload: the newest of the least important are refused now rather than after a wait that
    /// comes to nothing. A few with each request that comes.
    fn shed(&mut self, displaced: &mut impl FnMut(T, Priority)) {
        for _ in 1..MOST_DISPLACED {
            let Some(least) = self.queue.least_important() else { return };
            if self.queue.len() <= self.room_for(least) {
                return;
            }
            let Some(last) = self.queue.last_of(least) else { return };
            displaced(self.displace(last), least);
        }
    }

    /// The next request of a priority of which none was granted a permit for half of the longest wait, if it has waited as long
    /// itself, and its client has no fewer requests than the one that comes. Otherwise all that wait would have waited for as long,
    /// and give up in the moment in which the app has time for them.
    fn hopeless(&self, priority: Priority, client: Option<u32>, own: u32) -> Option<u32> {
        let half = self.max_wait() / 2;
        let is_long_ago = |at: u64| self.clock.saturating_sub(at) > half;
        let next = self.queue.next_of(priority)?;
        let place = self.queue.place(next)?;
        let is_starved = self.queue.served_at(priority).is_some_and(is_long_ago) && is_long_ago(place.since);
        let is_fair =
            client == Some(place.client) || own < self.queue.waiting_of(&self.clients, place.client, priority);
        (is_starved && is_fair).then_some(next)
    }

    /// Takes a request out of the queue without a permit.
    fn displace(&mut self, number: u32) -> T {
        let client = self.queue.place(number).map(|place| place.client);
        let waker = self.queue.remove(&mut self.clients, number, Turn::Displaced);
        if let Some(client) = client {
            self.clients.rest(client, self.clock);
        }
        waker
    }
}

#[cfg(test)]
mod tests;
