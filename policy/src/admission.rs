//! Admission control: a permit for each request at the app, and a short, fair queue for the requests without one.
//!
//! ```text
//! ask ──► a permit is free ──────────────────────────────────────────────────► Go
//!     └─► the queue has room, or a queued request is displaced (rejected) ───► Wait ──► granted, in order
//!     └─► otherwise ─────────────────────────────────────────────────────────► Refuse, at once
//! ```
//!
//! The order is by priority (for exceptions see `FairQueue::next`), then fair between clients
//! (`queue.rs`, with the bound on a request's wait). During a burst the queue may be long. Under lasting overload
//! (`pressure.rs`) it is bounded by the number of responses that the app gives in half of `max_wait`, so nearly every
//! request that is queued is also served, unless more important requests take all permits.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//!
//! use outrigger_policy::admission::{Admission, Ask, Settings, Turn, Verdict};
//! use outrigger_policy::concurrency;
//! use outrigger_policy::priority::Priority;
//!
//! let mut admission: Admission<&str> = Admission::new(Settings {
//!     concurrency: concurrency::Settings { min: 1, max: 1, initial: 1 },
//!     max_wait: Duration::from_secs(1),
//!     max_queue: 100,
//!     max_held: 100,
//! });
//! let ask = |priority, client| Ask { priority, client, now: 0 };
//!
//! // Client 1 takes the only permit, client 2 waits.
//! assert_eq!(admission.ask(ask(Priority::Medium, 1), |_, _| {}), Verdict::Go);
//! let Verdict::Wait(ticket) = admission.ask(ask(Priority::High, 2), |_, _| {}) else { panic!("the queue is empty") };
//! *admission.waker(&ticket).unwrap() = "client 2";
//! assert_eq!(admission.grant(), None);
//!
//! // Client 1 gets its response after 20 ms; its permit goes to client 2.
//! admission.finish(1, Priority::Medium, 20_000_000, 20_000_000);
//! assert_eq!(admission.grant(), Some("client 2"));
//! assert_eq!(admission.collect(ticket), Ok(Turn::Granted));
//! ```

mod clients;
mod pressure;
mod queue;
mod room;
mod seen;
mod slab;

use std::time::Duration;

use self::clients::{Clients, FORGOTTEN_AFTER_NS};
use self::pressure::Pressure;
use self::queue::FairQueue;
use crate::concurrency::{self, Concurrency, Sample};
use crate::priority::Priority;

/// Settings of the concurrency limit and the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bounds of the concurrency limit.
    pub concurrency: concurrency::Settings,
    /// The longest wait. The caller enforces it with [`Admission::abandon`].
    pub max_wait: Duration,
    /// Maximum length of the queue, however fast the app is.
    pub max_queue: u32,
    /// Maximum length of the queue while the app is unreachable.
    pub max_held: u32,
}

/// A request for a permit.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The priority of the request.
    pub priority: Priority,
    /// The hash of the client's identity.
    pub client: u64,
    /// The current time, in nanoseconds.
    pub now: u64,
}

/// A queued request. Pass it to exactly one of [`Admission::collect`], [`Admission::abandon`] and [`Admission::disown`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is not given back is lost"]
pub struct Ticket(u32);

impl Ticket {
    const fn number(self) -> u32 {
        self.0
    }
}

/// The result of [`Admission::ask`].
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request has a permit; [`Admission::finish`] returns it.
    Go,
    /// The request is queued.
    Wait(Ticket),
    /// The request is rejected: the queue has no room.
    Refuse,
}

/// The state of a queued request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// In the queue.
    Waiting,
    /// The request has a permit.
    Granted,
    /// The request is rejected: it made room for another one.
    Displaced,
}

/// The maximum number of requests that one call of [`Admission::ask`] displaces.
pub const MOST_DISPLACED: usize = 4;
/// Newer flows may overtake a flow of a heavy client: one for each this many queue positions.
const PLACES_PER_OVERTAKER: u32 = 4;

/// A priority that was granted no permit for `max_wait` divided by this gets one if the next client of the more important
/// priority is heavy and its own is not, unless critical requests wait.
const PATIENCE: u64 = 4;

/// Permits and queue. `T` wakes a queued request; the caller stores it with [`Admission::waker`].
#[derive(Debug)]
pub struct Admission<T> {
    concurrency: Concurrency,
    settings: Settings,
    in_flight: u32,
    /// Requests at the app without a permit (`monitor`).
    passed: u32,
    queue: FairQueue<T>,
    clients: Clients,
    pressure: Pressure,
    /// The latest time passed in, in nanoseconds.
    clock: u64,
    /// The app is unreachable: requests wait, and no permit is granted.
    is_suspended: bool,
    /// Extra room after an outage of the app, for its backlog. Decreases by one with each permit granted.
    backlog: u32,
}

impl<T: Default> Admission<T> {
    /// Creates an admission controller without requests.
    pub fn new(settings: Settings) -> Self {
        Self {
            concurrency: Concurrency::new(settings.concurrency),
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

    /// Changes the settings. Requests keep their permits and queue positions.
    pub fn set(&mut self, settings: Settings) {
        if settings != self.settings {
            self.concurrency.set_bounds(settings.concurrency.min, settings.concurrency.max);
            self.settings = settings;
        }
    }

    /// Returns the concurrency limit for a snapshot. See [`Concurrency::saved`].
    pub const fn saved_limit(&self) -> f64 {
        self.concurrency.saved()
    }

    /// Starts with a concurrency limit that was learned before a restart. See [`Concurrency::restore`].
    pub fn restore_limit(&mut self, limit: f64, age: Duration) -> bool {
        self.concurrency.restore(limit, age)
    }

    /// Returns the concurrency limit: the number of permits.
    pub fn limit(&self) -> u32 {
        self.concurrency.limit()
    }

    /// Returns the number of permits in use.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Returns the number of waiting requests of a priority.
    pub fn waiting(&self, priority: Priority) -> u32 {
        self.queue.waiting(priority)
    }

    /// Returns the app's smoothed latency; `None` before the first few responses.
    pub fn latency(&self) -> Option<Duration> {
        self.concurrency.latency()
    }

    /// Stops granting permits until [`Admission::resume`]: the app is unreachable. Queued requests keep waiting.
    pub fn suspend(&mut self) {
        self.is_suspended = true;
        // Disowned requests (`monitor`) were already sent, so a permit granted to one would never be returned.
        for number in self.queue.numbers() {
            let is_counted =
                self.queue.place(number).is_some_and(|place| !place.is_owned && place.turn == Turn::Waiting);
            if is_counted {
                drop(self.displace(number));
            }
        }
    }

    /// Grants permits again, within the limit: the app is reachable. The backlog must not cause rejections, so the queue
    /// temporarily has room for twice its length; this extra room shrinks with each permit granted.
    pub fn resume(&mut self) {
        self.is_suspended = false;
        self.backlog = self.queue.len().saturating_mul(2);
    }

    /// Takes a permit for `client` if one is free and the queue is empty. Never waits or displaces a request.
    pub fn ask_now(&mut self, client: u64) -> bool {
        let is_free = self.in_flight < self.concurrency.limit() && self.queue.len() == 0 && !self.is_suspended;
        if is_free {
            self.in_flight += 1;
            let client = self.clients.enter(client);
            self.clients.hold(client);
        }
        is_free
    }

    /// Takes a permit, or queues or rejects the request. Calls `displaced` with the waker and the priority of each request
    /// that makes room, at most [`MOST_DISPLACED`] times.
    pub fn ask(&mut self, ask: Ask, mut displaced: impl FnMut(T, Priority)) -> Verdict {
        self.clock = self.clock.max(ask.now);
        if self.ask_now(ask.client) {
            return Verdict::Go;
        }
        self.notice_pressure();
        self.shed(&mut displaced);
        let known = self.clients.find(ask.client);
        let own = known.map_or(0, |client| self.queue.waiting_of(&self.clients, client, ask.priority));
        if self.queue.len() >= self.room() {
            let victim = match self.queue.makes_room_for(ask.priority, own) {
                Some(victim) => victim,
                None => {
                    self.pressure.sign(self.clock, self.interval());
                    let victim = self.starved(ask.priority, known, own).or_else(|| self.heavier(ask));
                    let Some(victim) = victim else {
                        if let Some(client) = known {
                            self.clients.charge(client, ask.priority, self.clock);
                        }
                        return Verdict::Refuse;
                    };
                    victim
                }
            };
            let priority = self.queue.priority_of(victim);
            displaced(self.displace(victim), priority);
        }
        let (client, terms) = (self.clients.enter(ask.client), self.terms());
        Verdict::Wait(Ticket(self.queue.push(&mut self.clients, client, ask.priority, terms)))
    }

    /// Grants a free permit to the next queued request and returns its waker. `None` if no permit is free or the queue is
    /// empty.
    pub fn grant(&mut self) -> Option<T> {
        if self.is_suspended || self.in_flight >= self.concurrency.limit() {
            return None;
        }
        let starved_since = self.clock.saturating_sub(self.max_wait() / PATIENCE);
        let next = self.queue.next(&self.clients, starved_since, self.clock)?;
        let client = self.queue.place(next)?.client;
        self.backlog = self.backlog.saturating_sub(1);
        self.in_flight += 1;
        self.clients.hold(client);
        self.pressure.granted(self.clock, self.interval());
        let terms = self.terms();
        Some(self.queue.grant(&mut self.clients, next, terms))
    }

    /// Takes the result of a queued request and frees its queue entry. A displaced or unknown ticket gives
    /// [`Turn::Displaced`].
    ///
    /// # Errors
    /// The ticket, if the request is still waiting.
    pub fn collect(&mut self, ticket: Ticket) -> Result<Turn, Ticket> {
        let number = ticket.number();
        let turn = self.queue.place(number).map_or(Turn::Displaced, |place| place.turn);
        if turn == Turn::Waiting {
            return Err(Ticket(number));
        }
        self.queue.forget(number);
        Ok(turn)
    }

    /// Returns the waker of a queued request, to set it.
    pub fn waker(&mut self, ticket: &Ticket) -> Option<&mut T> {
        self.queue.place_mut(ticket.0).map(|place| &mut place.waker)
    }

    /// Keeps the request in the queue without an owner, for counting only (`monitor`). Its entry is freed as soon as it
    /// leaves the queue.
    pub fn disown(&mut self, ticket: Ticket) {
        let number = ticket.number();
        if let Some(place) = self.queue.place_mut(number) {
            place.is_owned = false;
        }
    }

    /// Removes a request whose owner stops waiting. Returns true if it was still waiting. If it was just granted a permit,
    /// the permit is returned.
    pub fn abandon(&mut self, ticket: &Ticket) -> bool {
        let Some(place) = self.queue.place(ticket.0) else { return false };
        let (turn, client) = (place.turn, place.client);
        match turn {
            Turn::Waiting => drop(self.displace(ticket.0)),
            Turn::Granted => {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.clients.release(client, Priority::Strict, self.clock, 0, false);
            }
            Turn::Displaced => {}
        }
        self.queue.forget(ticket.0);
        turn == Turn::Waiting
    }

    /// Counts a request that is sent to the app without a permit (`monitor`).
    pub fn pass(&mut self) {
        self.passed = self.passed.saturating_add(1);
    }

    /// Ends a request counted by [`Admission::pass`] and returns one permit of the simulated queue: each response advances
    /// it by one.
    pub fn finish_watched(&mut self, client: u64) {
        self.passed = self.passed.saturating_sub(1);
        self.finish(client, Priority::Strict, self.clock, 0);
    }

    /// Returns the number of requests at the app, with or without a permit.
    pub fn present(&self) -> u32 {
        self.passed.max(self.in_flight)
    }

    /// Returns a permit at `now`, after the app has worked for `used` nanoseconds on a request of this priority.
    pub fn finish(&mut self, client: u64, priority: Priority, now: u64, used: u64) {
        self.clock = self.clock.max(now);
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(client) = self.clients.find(client) {
            // Usage counts only while requests have to wait.
            let matters = self.queue.len() > 0 || self.pressure.is_felt(self.clock, FORGOTTEN_AFTER_NS);
            self.clients.release(client, priority, self.clock, used, matters);
        }
    }

    /// Records a latency sample: a response head arrived, or timed out. See [`Concurrency::record`].
    pub fn record(&mut self, now: u64, sample: Sample) {
        self.concurrency.record(now, sample);
    }

    /// Removes a client's disowned requests that have waited for longer than `max_wait`, and calls `expired` with the
    /// priority of each.
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

    /// Removes a request from the queue without a permit and returns its waker.
    fn displace(&mut self, number: u32) -> T {
        let client = self.queue.place(number).map(|place| place.client);
        let priority = self.queue.priority_of(number);
        let waker = self.queue.remove(&mut self.clients, number, Turn::Displaced);
        if let Some(client) = client {
            self.clients.charge(client, priority, self.clock);
            self.clients.rest(client, self.clock);
        }
        waker
    }
}

#[cfg(test)]
mod tests;
