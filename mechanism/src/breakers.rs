//! The circuit breakers of the routes: [`outrigger_policy::breaker`] behind a lock.
//!
//! Every attempt at the upstream asks its circuit breaker first ([`Cell::enter`]) and reports how it ended
//! ([`Attempt::end`]). The permit is released in `Drop`, so a probe whose client disconnects returns it. A circuit breaker
//! that is closed and calm costs one load when a request is admitted, and a lock of about ten nanoseconds before and after
//! each attempt. A change comes back as a value ([`Change`]), for metrics, the log and the audit log.

pub mod metrics;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_policy::breaker::{
    Breaker, Caller, Control, Failure, Outcome, Permit, Reason, Refused, SavedBreaker, State as Position,
};
use outrigger_policy::saved::Shift;
use outrigger_rules::sections::breaker::BreakerRules;
use outrigger_wire::random::dice;

/// Circuit breakers that opened this shortly before the app was found to be unreachable opened because of that.
const JUST_NOW: Duration = Duration::from_secs(1);

/// A circuit breaker.
#[derive(Debug)]
pub struct Cell {
    /// Its name in metrics and logs.
    pub name: Arc<str>,
    breaker: Mutex<Breaker>,
    /// Closed for every client and not forced: requests pass without a check.
    is_calm: AtomicBool,
    /// It has been used, so operators see it.
    is_used: AtomicBool,
    /// It opened because the app was unreachable.
    is_unreached: AtomicBool,
    /// When its state changed last, on its own clock; 0: never.
    turned_at: AtomicU64,
}

/// The state of a circuit breaker, for operators.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Closed, open or half-open.
    pub position: Position,
    /// Automatic, or forced by an operator.
    pub control: Control,
    /// Why it opened last.
    pub reason: Option<Reason>,
    /// Failures in a row.
    pub failures: u32,
    /// Calls in the window, and how many of them failed and were slow.
    pub seen: (u32, u32, u32),
    /// How long it stays open.
    pub left: Option<Duration>,
    /// For how long it has had its state; `None` if it never had another one.
    pub age: Option<Duration>,
    /// The number of clients that are rejected for failures that only they saw.
    pub clients_refused: usize,
}

/// A change of a circuit breaker, to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "metrics, log and audit log do not show the change"]
pub struct Change {
    /// A further client is rejected for failures that only that client saw: the number of such clients.
    pub clients_refused: Option<usize>,
    /// The new state.
    pub turned: Option<Turned>,
}

/// A new state of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turned {
    /// The state before.
    pub from: Position,
    /// The state now.
    pub to: Position,
    /// Why it opened last.
    pub reason: Option<Reason>,
    /// How long it stays open.
    pub open_for: Option<Duration>,
}

impl Turned {
    fn new(from: Position, breaker: &Breaker, now: u64) -> Self {
        let open_for = breaker.open_for(now).map(|(left, _)| left);
        Self { from, to: breaker.state(), reason: breaker.reason(), open_for }
    }
}

impl Cell {
    fn new(rules: &BreakerRules) -> Self {
        Self {
            name: Arc::clone(&rules.name),
            breaker: Mutex::new(Breaker::new(rules.settings)),
            is_calm: AtomicBool::new(true),
            is_used: AtomicBool::new(false),
            is_unreached: AtomicBool::new(false),
            turned_at: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        // A panic with the lock held leaves numbers that are off by one at worst.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the breaker.
    fn change<T>(&self, now: u64, change: impl FnOnce(&mut Breaker) -> T) -> (T, Option<Change>) {
        let mut breaker = self.lock();
        let (before, refused_before) = (breaker.state(), breaker.clients_refused());
        let value = change(&mut breaker);
        self.is_calm.store(breaker.is_calm(), Ordering::Relaxed);
        let refused = breaker.clients_refused();
        let clients_refused = (refused > refused_before).then_some(refused);
        let turned = (breaker.state() != before).then(|| Turned::new(before, &breaker, now));
        if turned.is_some() {
            self.turned_at.store(now.max(1), Ordering::Relaxed);
        }
        let has_changed = clients_refused.is_some() || turned.is_some();
        (value, has_changed.then_some(Change { clients_refused, turned }))
    }

    /// Returns whether it is closed for every client and not forced: then requests pass without a check.
    pub fn is_calm(&self) -> bool {
        self.is_calm.load(Ordering::Relaxed)
    }

    /// Returns the rejection that an attempt by `caller` would get, and whether an operator has forced it.
    pub fn refuses(&self, now: u64, caller: Caller) -> Option<(Refused, bool)> {
        let breaker = self.lock();
        let is_forced = breaker.control() == Control::ForcedOpen;
        breaker.refuses(now, caller).map(|refused| (refused, is_forced))
    }

    /// Asks for an attempt that begins at `began`, which is `now` on the breaker's clock.
    ///
    /// # Errors
    /// [`Refused`]: it is open.
    pub fn enter(
        self: &Arc<Self>,
        caller: Caller,
        now: u64,
        began: Instant,
    ) -> (Result<Attempt, Refused>, Option<Change>) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
        let (asked, change) = if self.is_calm() {
            // Closed: the question changes no state.
            (self.lock().ask(now, caller), None)
        } else {
            self.change(now, |breaker| breaker.ask(now, caller))
        };
        (asked.map(|permit| Attempt { cell: Arc::clone(self), permit: Some(permit), began }), change)
    }

    /// Returns the number of probes in progress.
    pub fn probes(&self) -> usize {
        self.lock().probes()
    }

    /// Returns the state; `None` if it was neither used nor forced.
    pub fn standing(&self, now: u64) -> Option<Standing> {
        let breaker = self.lock();
        let is_forced = breaker.control() != Control::Automatic;
        (is_forced || self.is_used.load(Ordering::Relaxed)).then(|| Standing {
            position: breaker.state(),
            control: breaker.control(),
            reason: breaker.reason(),
            failures: breaker.failures(),
            seen: breaker.seen(now),
            left: breaker.open_for(now).map(|(left, _)| left),
            age: match self.turned_at.load(Ordering::Relaxed) {
                0 => None,
                at => Some(Duration::from_nanos(now.saturating_sub(at))),
            },
            clients_refused: breaker.clients_refused(),
        })
    }

    /// Forces the state for an operator, or ends that.
    pub fn control_by(&self, control: Control, now: u64) -> Option<Change> {
        self.change(now, |breaker| breaker.control_by(control, now)).1
    }
}

/// All circuit breakers of this process, by name. They survive config reloads.
#[derive(Debug, Default)]
pub struct Registry {
    cells: Mutex<HashMap<Arc<str>, Arc<Cell>>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Cell>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the circuit breakers of this configuration, in its order; existing ones keep their state.
    pub fn prepare(&self, rules: &[BreakerRules]) -> Vec<Arc<Cell>> {
        let mut cells = self.lock();
        let cell = |rules: &BreakerRules| {
            let cell = cells.entry(Arc::clone(&rules.name)).or_insert_with(|| Arc::new(Cell::new(rules)));
            cell.lock().set(rules.settings);
            Arc::clone(cell)
        };
        rules.iter().map(cell).collect()
    }

    /// Removes those that the configuration no longer has.
    pub fn forget(&self, rules: &[BreakerRules], mut gone: impl FnMut(&str)) {
        self.lock().retain(|name, _| {
            let stays = rules.iter().any(|rule| rule.name == *name);
            if !stays {
                gone(name);
            }
            stays
        });
    }

    /// Returns the state of those that have one, for a snapshot.
    pub fn saved(&self) -> Vec<(String, SavedBreaker)> {
        let saved = self.all().into_iter().map(|cell| (cell.name.to_string(), cell.lock().saved()));
        saved.filter(|(_, breaker)| !breaker.is_fresh()).collect()
    }

    /// Takes over the state of an earlier process. Returns the circuit breakers that have changed.
    pub fn restore(&self, saved: &[(String, SavedBreaker)], shift: Shift) -> Vec<(Arc<Cell>, Change)> {
        self.change_each(|cell| {
            let (_, saved) = saved.iter().find(|(name, _)| **name == *cell.name)?;
            cell.is_used.store(true, Ordering::Relaxed);
            cell.change(shift.now, |breaker| breaker.restore(saved, shift)).1
        })
    }

    /// Returns all circuit breakers, by name.
    pub fn all(&self) -> Vec<Arc<Cell>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Undoes openings of the last second: the app refuses connections and requests are held, so that was the cause.
    /// Returns the circuit breakers that have changed.
    pub fn app_is_down(&self, now: u64) -> Vec<(Arc<Cell>, Change)> {
        self.change_each(|cell| cell.change(now, |breaker| breaker.forgive(now, JUST_NOW)).1)
    }

    /// The app accepts connections again: closes circuit breakers that opened because it did not, and lets the others
    /// probe now. Returns the circuit breakers that have changed.
    pub fn app_is_up(&self, now: u64) -> Vec<(Arc<Cell>, Change)> {
        self.change_each(|cell| {
            let was_unreached = cell.is_unreached.swap(false, Ordering::Relaxed);
            let back = |breaker: &mut Breaker| {
                if was_unreached {
                    breaker.forgive(now, Duration::MAX);
                }
                breaker.try_now();
            };
            cell.change(now, back).1
        })
    }

    fn change_each(&self, change: impl Fn(&Cell) -> Option<Change>) -> Vec<(Arc<Cell>, Change)> {
        self.all().into_iter().filter_map(|cell| change(&cell).map(|change| (cell, change))).collect()
    }
}

/// A response of the app, as circuit breakers see it.
#[derive(Clone, Copy, Debug)]
pub struct SeenResponse {
    /// The status.
    pub status: u16,
    /// It has `Retry-After`.
    pub says_when: bool,
    /// The request had less time than its route allows.
    pub had_less_time: bool,
    /// 429 is a failure.
    pub counts_429: bool,
}

/// Judges the app by its response, with the table of docs/failure.md. `None`: not counted.
pub const fn judge(response: SeenResponse) -> Option<Result<(), Failure>> {
    let SeenResponse { status, says_when, had_less_time, counts_429 } = response;
    match status {
        // The app sheds load (RFC 9110 section 15.6.4), or is behind a circuit breaker of its own.
        503 if says_when => None,
        // The request had less time than its route allows.
        503 | 504 if had_less_time => None,
        // The app lacks the method or the version: caused by the request. 508: the request causes a loop, or is in one.
        501 | 505 | 508 => None,
        504 => Some(Err(Failure::Reported)),
        502 | 503 => Some(Err(Failure::Silent)),
        500.. => Some(Err(Failure::Answered)),
        429 if counts_429 => Some(Err(Failure::Answered)),
        _ => Some(Ok(())),
    }
}

/// An attempt that was let through. If it is dropped before its outcome is known, it does not count.
#[derive(Debug)]
pub struct Attempt {
    cell: Arc<Cell>,
    permit: Option<Permit>,
    began: Instant,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            // This causes no change that must be reported.
            self.cell.lock().record(permit, 0, Outcome::Ignored, 0.0);
        }
    }
}

impl Attempt {
    /// Returns the time since it began, until `at`.
    pub fn duration(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }

    /// Returns its circuit breaker.
    pub fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }

    /// Records how it ended. `was_unreached`: the app is unreachable.
    pub fn end(&mut self, outcome: Outcome, was_unreached: bool, now: u64) -> Option<Change> {
        let permit = self.permit.take()?;
        let cell = &self.cell;
        if matches!(outcome, Outcome::Success(_)) && cell.is_calm() {
            // A slow response may open the circuit breaker.
            let mut breaker = cell.lock();
            breaker.record(permit, now, outcome, dice());
            if breaker.state() == Position::Closed {
                return None;
            }
            let turned = Turned::new(Position::Closed, &breaker, now);
            drop(breaker);
            cell.turned_at.store(now.max(1), Ordering::Relaxed);
            cell.is_calm.store(false, Ordering::Relaxed);
            return Some(Change { clients_refused: None, turned: Some(turned) });
        }
        cell.is_unreached.store(was_unreached, Ordering::Relaxed);
        cell.change(now, |breaker| breaker.record(permit, now, outcome, dice())).1
    }
}
