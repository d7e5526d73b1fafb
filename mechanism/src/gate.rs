//! The concurrency limit and its queue, shared by the workers: [`outrigger_policy::admission`] behind a lock.
//!
//! A request keeps its permit until the end of its response, or until the response's head if the rest is long: a
//! stream, or a body that the client reads slowly. The concurrency limit follows the time from the permit to the head.
//!
//! In `monitor` mode no request waits or is rejected. A simulated queue still runs, advanced by one with each response,
//! so the counters show what `enforce` would have rejected at the app's real throughput.

pub mod metrics;

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_policy::admission::{Admission, Ask, MOST_DISPLACED, Settings, Ticket, Turn, Verdict};
use outrigger_policy::concurrency::{Ended, Sample};
use outrigger_policy::flags::Mode;
use outrigger_policy::priority::Priority;

type Queue = Admission<Option<Waker>>;

/// The concurrency limit and its queue.
#[derive(Debug)]
pub struct Gate {
    queue: Mutex<Queue>,
    epoch: Instant,
}

/// A request for a permit.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// The priority of the request.
    pub priority: Priority,
    /// The hash of its client.
    pub client: u64,
    /// The class of the request: responses of one class take a similar time.
    pub class: u16,
    /// Whether it may be queued or rejected.
    pub mode: Mode,
    /// It came from a peer: it gets a permit only if one is free, and displaces no request.
    pub is_guest: bool,
}

/// The result of [`Gate::ask`].
#[derive(Debug)]
pub enum Entry {
    /// The request has a permit.
    Go(Permit),
    /// The request is queued.
    Wait(Waiting),
    /// The request is rejected.
    Refused,
}

/// The state for operators.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// The concurrency limit: the number of permits.
    pub limit: u32,
    /// Permits in use.
    pub in_flight: u32,
    /// The maximum length of the queue.
    pub room: u32,
    /// Waiting requests, by priority.
    pub waiting: [u32; Priority::ALL.len()],
    /// The latency of responses.
    pub latency: Option<Duration>,
}

impl Gate {
    /// Creates a concurrency limit without requests.
    pub fn new(settings: Settings) -> Self {
        Self { queue: Mutex::new(Admission::new(settings)), epoch: clock::now() }
    }

    /// Changes the settings.
    pub fn set(&self, settings: Settings) {
        let mut queue = self.lock();
        queue.set(settings);
        wake_all(queue);
    }

    /// Returns the concurrency limit, for a snapshot.
    pub fn saved_limit(&self) -> f64 {
        self.lock().saved_limit()
    }

    /// Starts with a concurrency limit that was learned `age` ago. Returns false if that is too long ago.
    pub fn restore_limit(&self, limit: f64, age: Duration) -> bool {
        self.lock().restore_limit(limit, age)
    }

    /// Stops granting permits: the app is unreachable.
    pub fn suspend(&self) {
        self.lock().suspend();
    }

    /// Grants permits again, in order: the app is reachable.
    pub fn resume(&self) {
        let mut queue = self.lock();
        queue.resume();
        wake_all(queue);
    }

    /// Returns the state.
    pub fn standing(&self) -> Standing {
        let queue = self.lock();
        Standing {
            limit: queue.limit(),
            in_flight: queue.in_flight(),
            room: queue.room(),
            waiting: Priority::ALL.map(|priority| queue.waiting(priority)),
            latency: queue.latency(),
        }
    }

    /// Asks for a permit for a request that arrived at `now`. In `monitor` mode, calls `refused` for each request that
    /// `enforce` would have rejected.
    pub fn ask(self: &Arc<Self>, wish: Wish, now: Instant, mut refused: impl FnMut(Priority)) -> Entry {
        let now = self.nanoseconds(now);
        let is_monitored = wish.mode == Mode::Monitor;
        // All as one client: the request that ends is not the one whose simulated permit becomes free.
        let client = if is_monitored { 0 } else { wish.client };
        let mut queue = self.lock();
        if is_monitored {
            queue.expire(client, now, &mut refused);
        }
        let mut displaced: [Option<(Option<Waker>, Priority)>; MOST_DISPLACED] = Default::default();
        let mut empty = displaced.iter_mut();
        let ask = Ask { priority: wish.priority, client, now };
        let verdict = match (wish.is_guest && !is_monitored).then(|| queue.ask_now(client)) {
            Some(true) => Verdict::Go,
            Some(false) => Verdict::Refuse,
            None => queue.ask(ask, |waker, priority| {
                if let Some(empty) = empty.next() {
                    *empty = Some((waker, priority));
                }
            }),
        };
        if is_monitored {
            queue.pass();
        }
        let in_flight = queue.present();
        let verdict = match verdict {
            Verdict::Wait(ticket) if is_monitored => {
                queue.disown(ticket);
                Verdict::Go
            }
            Verdict::Refuse if is_monitored => {
                refused(wish.priority);
                Verdict::Go
            }
            other => other,
        };
        drop(queue);
        for (waker, priority) in displaced.into_iter().flatten() {
            match waker {
                Some(waker) => waker.wake(),
                None if is_monitored => refused(priority),
                None => {}
            }
        }
        match verdict {
            Verdict::Go => Entry::Go(Permit {
                gate: Arc::clone(self),
                client,
                priority: wish.priority,
                class: wish.class,
                is_watched: is_monitored,
                in_flight,
                sent: now,
                head: None,
            }),
            Verdict::Wait(ticket) => {
                let (gate, priority, class) = (Arc::clone(self), wish.priority, wish.class);
                Entry::Wait(Waiting { gate, ticket: Some(ticket), client, priority, class })
            }
            Verdict::Refuse => Entry::Refused,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic with the lock held leaves numbers that are off by one at worst.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Grants free permits to the next requests, and wakes them after the lock is released.
fn wake_all(mut queue: MutexGuard<'_, Queue>) {
    let Some(first) = queue.grant() else { return };
    let mut rest = Vec::new();
    while let Some(next) = queue.grant() {
        rest.push(next);
    }
    drop(queue);
    [first].into_iter().chain(rest).flatten().for_each(Waker::wake);
}

/// A permit; returned when dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    client: u64,
    priority: Priority,
    class: u16,
    /// It is only counted (`monitor`).
    is_watched: bool,
    in_flight: u32,
    sent: u64,
    head: Option<(u64, Ended)>,
}

impl Permit {
    /// The request is sent now: an earlier attempt that failed does not count as latency of the app.
    pub fn sent(&mut self, now: Instant) {
        self.sent = self.gate.nanoseconds(now);
    }

    /// The head of the response has arrived.
    pub fn answered(&mut self, now: Instant) {
        self.head.get_or_insert((self.gate.nanoseconds(now), Ended::Answered));
    }

    /// The app has timed out.
    pub fn timed_out(&mut self, now: Instant) {
        self.head.get_or_insert((self.gate.nanoseconds(now), Ended::TimedOut));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // A request that ended without a response has used the app until now.
        let now = self.head.map_or_else(|| self.gate.nanoseconds(clock::now()), |(now, _)| now);
        let used = now.saturating_sub(self.sent);
        let mut queue = self.gate.lock();
        // In `monitor` mode more requests than the limit may be in flight; such samples say too little about it.
        let says_something = !self.is_watched || self.in_flight <= queue.limit();
        if let (Some((now, ended)), true) = (self.head, says_something) {
            queue.record(now, Sample { class: self.class, started: self.sent, in_flight: self.in_flight, ended });
        }
        if self.is_watched {
            queue.finish_watched(self.client);
        } else {
            queue.finish(self.client, self.priority, now, used);
        }
        wake_all(queue);
    }
}

/// A queued request; removed from the queue when dropped.
#[derive(Debug)]
pub struct Waiting {
    gate: Arc<Gate>,
    ticket: Option<Ticket>,
    client: u64,
    priority: Priority,
    class: u16,
}

impl Waiting {
    /// Ready with a permit, or with `None` if a more important request has displaced it.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<Permit>> {
        let Some(ticket) = self.ticket.take() else { return Poll::Ready(None) };
        let mut queue = self.gate.lock();
        match queue.collect(ticket) {
            Err(ticket) => {
                if let Some(waker) = queue.waker(&ticket)
                    && !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker()))
                {
                    *waker = Some(cx.waker().clone());
                }
                self.ticket = Some(ticket);
                Poll::Pending
            }
            Ok(Turn::Granted) => {
                let in_flight = queue.in_flight();
                drop(queue);
                let sent = self.gate.nanoseconds(clock::now());
                let (gate, client) = (Arc::clone(&self.gate), self.client);
                let (priority, class) = (self.priority, self.class);
                Poll::Ready(Some(Permit {
                    gate,
                    client,
                    priority,
                    class,
                    is_watched: false,
                    in_flight,
                    sent,
                    head: None,
                }))
            }
            Ok(Turn::Waiting | Turn::Displaced) => Poll::Ready(None),
        }
    }

    /// Waits for a permit until `deadline`; then returns `None`. `Some(None)`: it was displaced.
    pub async fn turn(&mut self, deadline: Instant) -> Option<Option<Permit>> {
        let turn = poll_fn(|cx| self.poll_turn(cx));
        tokio::time::timeout_at(deadline.into(), turn).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let mut queue = self.gate.lock();
            queue.abandon(&ticket);
            // If a permit was granted at this moment, the next request gets it.
            wake_all(queue);
        }
    }
}
