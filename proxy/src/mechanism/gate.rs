//! The slots for requests to the app, as workers see them: [`outrigger_policy::admission`] behind a lock.
//!
//! A request holds its slot from here to the end of its answer, or to the answer's head when what follows is long: a
//! stream, or a body that the client takes slowly. What the limit follows is the time from the slot to the head.
//!
//! In `monitor` nobody waits and nobody is refused. The queue is kept all the same: each answer of the app moves it on by
//! one, so it counts whom `enforce` would have refused with the throughput that the app really has.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outrigger_policy::admission::{Admission, Ask, MOST_DISPLACED, Settings, Ticket, Turn, Verdict};
use outrigger_policy::concurrency::{Ended, Sample};
use outrigger_policy::flags::Mode;
use outrigger_policy::priority::Priority;

type Queue = Admission<Option<Waker>>;

/// See the module.
#[derive(Debug)]
pub struct Gate {
    queue: Mutex<Queue>,
    epoch: Instant,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// How important it is.
    pub priority: Priority,
    /// Whose it is.
    pub client: u64,
    /// Its kind: answers of one kind take a similar time.
    pub class: u16,
    /// Whether it may be made to wait or be refused.
    pub mode: Mode,
    /// It came from a peer: it takes a slot that is free, or none, and nobody's place.
    pub is_guest: bool,
}

/// The answer.
#[derive(Debug)]
pub enum Entry {
    /// It goes.
    Go(Permit),
    /// It waits.
    Wait(Waiting),
    /// It does not.
    Refused,
}

/// What is shown of the gate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// Slots.
    pub limit: u32,
    /// Slots in use.
    pub in_flight: u32,
    /// Who may wait.
    pub room: u32,
    /// Who waits, by priority.
    pub waiting: [u32; Priority::ALL.len()],
    /// What an answer takes.
    pub latency: Option<Duration>,
}

impl Gate {
    /// Open, with nobody there.
    pub fn new(settings: Settings) -> Self {
        Self { queue: Mutex::new(Admission::new(settings)), epoch: Instant::now() }
    }

    /// Changes the settings.
    pub fn set(&self, settings: Settings) {
        let mut queue = self.lock();
        queue.set(settings);
        wake_all(queue);
    }

    /// The app is away: nobody gets a slot.
    pub fn suspend(&self) {
        self.lock().suspend();
    }

    /// The app is back: slots are given again, in order.
    pub fn resume(&self) {
        let mut queue = self.lock();
        queue.resume();
        wake_all(queue);
    }

    /// What there is to be seen.
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

    /// A request that came at `now` asks for a slot. `refused` is called for each that `monitor` would have refused.
    pub fn ask(self: &Arc<Self>, wish: Wish, now: Instant, mut refused: impl FnMut(Priority)) -> Entry {
        let now = self.nanoseconds(now);
        let is_monitored = wish.mode == Mode::Monitor;
        // All as one: who completes is not who holds the slot that becomes free.
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
                class: wish.class,
                is_watched: is_monitored,
                in_flight,
                sent: now,
                head: None,
            }),
            Verdict::Wait(ticket) => {
                Entry::Wait(Waiting { gate: Arc::clone(self), ticket: Some(ticket), client, class: wish.class })
            }
            Verdict::Refuse => Entry::Refused,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Whoever panicked while holding it has left numbers behind that are off by one at the worst.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Gives free slots to those whose turn it is, and wakes them once nobody is held up by it.
fn wake_all(mut queue: MutexGuard<'_, Queue>) {
    let Some(first) = queue.grant() else { return };
    let mut rest = Vec::new();
    while let Some(next) = queue.grant() {
        rest.push(next);
    }
    drop(queue);
    [first].into_iter().chain(rest).flatten().for_each(Waker::wake);
}

/// A slot; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    client: u64,
    class: u16,
    /// It would have gone in any case.
    is_watched: bool,
    in_flight: u32,
    sent: u64,
    head: Option<(u64, Ended)>,
}

impl Permit {
    /// It is sent now: what went before, such as an attempt that failed, says nothing about how long the app takes.
    pub fn sent(&mut self, now: Instant) {
        self.sent = self.gate.nanoseconds(now);
    }

    /// The head of the answer has come.
    pub fn answered(&mut self, now: Instant) {
        self.head.get_or_insert((self.gate.nanoseconds(now), Ended::Answered));
    }

    /// The app has taken too long.
    pub fn timed_out(&mut self, now: Instant) {
        self.head.get_or_insert((self.gate.nanoseconds(now), Ended::TimedOut));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // A request that ended without a response has used the app until now.
        let now = self.head.map_or_else(|| self.gate.nanoseconds(Instant::now()), |(now, _)| now);
        let used = now.saturating_sub(self.sent);
        let mut queue = self.gate.lock();
        // Where nobody heeds the limit, more requests than that say nothing about it.
        let says_something = !self.is_watched || self.in_flight <= queue.limit();
        if let (Some((now, ended)), true) = (self.head, says_something) {
            queue.record(now, Sample { class: self.class, started: self.sent, in_flight: self.in_flight, ended });
        }
        if self.is_watched {
            queue.finish_watched(self.client);
        } else {
            queue.finish(self.client, now, used);
        }
        wake_all(queue);
    }
}

/// A place in the queue; given back when dropped.
#[derive(Debug)]
pub struct Waiting {
    gate: Arc<Gate>,
    ticket: Option<Ticket>,
    client: u64,
    class: u16,
}

impl Waiting {
    /// Ready with a slot, or with `None` when somebody more important has its place.
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
                let sent = self.gate.nanoseconds(Instant::now());
                let (gate, client, class) = (Arc::clone(&self.gate), self.client, self.class);
                Poll::Ready(Some(Permit { gate, client, class, is_watched: false, in_flight, sent, head: None }))
            }
            Ok(Turn::Waiting | Turn::Displaced) => Poll::Ready(None),
        }
    }

    /// Waits for its turn, but not beyond `deadline`: then there is none.
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
            // If its turn had come in this moment, it is the next one's.
            wake_all(queue);
        }
    }
}
