//! The circuit breakers of the routes: [`outrigger_policy::breaker`] behind a lock.
//!
//! Every attempt at the upstream asks its circuit breaker first ([`enter`]) and reports how it ended ([`ended`]). The
//! permit lives in the exchange and is released in `Drop`, so a probe whose client disconnects returns it. A circuit
//! breaker that is closed and calm costs one load when a request is admitted, and a lock of about ten nanoseconds
//! before and after each attempt.

pub mod metrics;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_identity::hash::client_hash;
use outrigger_policy::breaker::{
    Breaker, Caller, Control, Failure, Outcome, Permit, Reason, Refused, State as Position,
};
use outrigger_policy::flags::Mode;
use outrigger_rules::sections::breaker::BreakerRules;
use outrigger_wire::random::dice;
use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;
use crate::mechanism::audit;

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
    /// The number of clients that are rejected for failures that only they saw.
    pub clients_refused: usize,
}

impl Cell {
    fn new(rules: &BreakerRules) -> Self {
        Self {
            name: Arc::clone(&rules.name),
            breaker: Mutex::new(Breaker::new(rules.settings)),
            is_calm: AtomicBool::new(true),
            is_used: AtomicBool::new(false),
            is_unreached: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        // A panic with the lock held leaves numbers that are off by one at worst.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the breaker, and reports a new state to metrics, audit log and log.
    fn change<T>(&self, state: &State, change: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.lock();
        let (before, refused_before) = (breaker.state(), breaker.clients_refused());
        let value = change(&mut breaker);
        let (after, refused) = (breaker.state(), breaker.clients_refused());
        self.is_calm.store(breaker.is_calm(), Ordering::Relaxed);
        if refused > refused_before {
            state.metrics.breakers.refuses_one(&self.name);
            tracing::info!(
                event = "breaker_client",
                breaker = &*self.name,
                clients_refused = refused,
                "breaker {} rejects a client for failures that only it received",
                self.name
            );
        }
        if before != after {
            let now = state.nanoseconds(Instant::now());
            let (reason, open_for) = (breaker.reason(), breaker.open_for(now).map(|(left, _)| left));
            drop(breaker);
            self.tell(state, before, after, reason, open_for);
        }
        value
    }

    fn tell(&self, state: &State, from: Position, to: Position, reason: Option<Reason>, open_for: Option<Duration>) {
        state.metrics.breakers.changed(&self.name, to);
        let (breaker, from) = (&*self.name, from.name());
        audit::acts::breaker(state, breaker, from, to.name(), reason.map(Reason::name));
        if to == Position::Open {
            let reason = reason.map_or("operator", Reason::name);
            let open_ms = open_for.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
            tracing::warn!(
                event = "breaker",
                breaker,
                from,
                to = to.name(),
                reason,
                open_ms,
                "breaker {breaker} opens"
            );
        } else {
            tracing::info!(
                event = "breaker",
                breaker,
                from,
                to = to.name(),
                "breaker {breaker}: {from} to {}",
                to.name()
            );
        }
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
            clients_refused: breaker.clients_refused(),
        })
    }

    /// Forces the state for an operator, or ends that.
    pub fn control_by(&self, state: &State, control: Control) {
        let now = state.nanoseconds(Instant::now());
        self.change(state, |breaker| breaker.control_by(control, now));
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

    /// Returns all circuit breakers, by name.
    pub fn all(&self) -> Vec<Arc<Cell>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Undoes openings of the last second: the app refuses connections and requests are held, so that was the cause.
    pub fn app_is_away(&self, state: &State) {
        let now = state.nanoseconds(Instant::now());
        for cell in self.all() {
            cell.change(state, |breaker| breaker.forgive(now, JUST_NOW));
        }
    }

    /// The app accepts connections again: closes circuit breakers that opened because it did not, and lets the others
    /// probe now.
    pub fn app_is_back(&self, state: &State) {
        let now = state.nanoseconds(Instant::now());
        for cell in self.all() {
            let was_unreached = cell.is_unreached.swap(false, Ordering::Relaxed);
            cell.change(state, |breaker| {
                if was_unreached {
                    breaker.forgive(now, Duration::MAX);
                }
                breaker.try_now();
            });
        }
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

/// Returns the exchange's circuit breaker, its configuration, and its mode for this client.
fn of(exchange: &Exchange) -> Option<(&Arc<Cell>, &BreakerRules, Mode)> {
    if exchange.resilience == Mode::Off {
        return None;
    }
    let number = usize::from(exchange.route().breaker?);
    let (cell, rules) = (exchange.rules.breakers.get(number)?, exchange.rules.config.breakers.get(number)?);
    let mode = match (exchange.resilience, rules.mode) {
        (_, Mode::Off) | (Mode::Off, _) => return None,
        (Mode::Monitor, _) | (_, Mode::Monitor) => Mode::Monitor,
        (Mode::Enforce, Mode::Enforce) => Mode::Enforce,
    };
    Some((cell, rules, mode))
}

/// Identifies the client to the breaker: without a verified credential, by address, so that many keys make no more
/// clients.
fn caller(exchange: &Exchange) -> Caller {
    let client = &exchange.client;
    let id = if client.verified.is_some() { client.id } else { client.address_id };
    Caller { client: id, place: exchange.place }
}

/// Returns the place of a path without a route of its own: its first segment.
fn place_of(path: &str) -> u64 {
    let segment = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    client_hash(b'p', segment.as_bytes())
}

/// Stage: rejects a request that an open circuit breaker would reject anyway, before it waits for a permit.
///
/// # Errors
/// [`Rejection::BreakerOpen`]
pub fn may_pass(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    if of(exchange).is_some_and(|(_, rules, _)| rules.settings.is_shared) {
        exchange.place = place_of(request.path);
    }
    let Some((cell, _, mode)) = of(exchange) else { return Ok(()) };
    if cell.is_calm.load(Ordering::Relaxed) {
        return Ok(());
    }
    let breaker = cell.lock();
    let is_forced = breaker.control() == Control::ForcedOpen;
    let refused = breaker.refuses(state.nanoseconds(exchange.started), caller(exchange));
    drop(breaker);
    match refused {
        // A state forced by an operator is enforced, regardless of the circuit breaker's mode.
        Some(refused) if mode == Mode::Enforce || is_forced => Err(rejection(refused)),
        _ => Ok(()),
    }
}

/// Asks the circuit breaker before an attempt.
///
/// # Errors
/// [`Rejection::BreakerOpen`]
pub fn enter(state: &State, exchange: &mut Exchange, now: Instant) -> Result<(), Rejection> {
    exchange.attempt = None;
    let Some((cell, _, mode)) = of(exchange) else { return Ok(()) };
    let (cell, caller) = (Arc::clone(cell), caller(exchange));
    if !cell.is_used.load(Ordering::Relaxed) {
        cell.is_used.store(true, Ordering::Relaxed);
    }
    let at = state.nanoseconds(now);
    let asked = if cell.is_calm.load(Ordering::Relaxed) {
        // Closed: the question changes no state.
        cell.lock().ask(at, caller)
    } else {
        cell.change(state, |breaker| breaker.ask(at, caller))
    };
    match asked {
        Ok(permit) => {
            exchange.attempt = Some(Attempt { cell, permit: Some(permit), began: now });
            Ok(())
        }
        Err(refused) if mode == Mode::Enforce => Err(rejection(refused)),
        Err(refused) => {
            let (priority, tier) = (exchange.route().priority, exchange.client.tier);
            state.metrics.rejections.refusals.monitored(rejection(refused), priority, tier);
            Ok(())
        }
    }
}

const fn rejection(refused: Refused) -> Rejection {
    Rejection::BreakerOpen { retry_after: refused.retry_after }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The head of the response arrived then, with this status.
    Answered(u16, Instant),
    /// There was no valid response.
    Failed,
    /// There was no connection in time.
    NotConnected,
    /// The app is unreachable.
    Unreached,
    /// Unknown.
    Unknown,
}

/// Judges the app by its response, with the table of docs/failure.md. `None`: not counted.
fn judge(exchange: &Exchange, status: u16) -> Option<Result<(), Failure>> {
    let rules = exchange.route().breaker.and_then(|n| exchange.rules.config.breakers.get(usize::from(n)));
    match status {
        // The app sheds load (RFC 9110 section 15.6.4), or is behind a circuit breaker of its own.
        503 if exchange.says_when => None,
        // The request had less time than its route allows.
        503 | 504 if had_less_time(exchange) => None,
        // The app lacks the method or the version: caused by the request. 508: the request causes a loop, or is in one.
        501 | 505 | 508 => None,
        504 => Some(Err(Failure::Reported)),
        502 | 503 => Some(Err(Failure::Silent)),
        500.. => Some(Err(Failure::Answered)),
        429 if rules.is_some_and(|rules| rules.counts_429) => Some(Err(Failure::Answered)),
        _ => Some(Ok(())),
    }
}

/// Returns whether the request had less time than its route allows: by its client's choice, or after it was held.
pub fn had_less_time(exchange: &Exchange) -> bool {
    exchange.is_impatient || exchange.held_since.is_some()
}

/// Returns whether a response with this status is a failure of the app.
pub fn is_failure(exchange: &Exchange, status: u16) -> bool {
    matches!(judge(exchange, status), Some(Err(_)))
}

/// Reports how an attempt ended.
pub fn ended(state: &State, exchange: &mut Exchange, end: End) {
    let Some(mut attempt) = exchange.attempt.take() else { return };
    let Some(permit) = attempt.permit.take() else { return };
    let outcome = match end {
        End::Answered(status, at) => match judge(exchange, status) {
            None => Outcome::Ignored,
            Some(Ok(())) => Outcome::Success(at.saturating_duration_since(attempt.began)),
            Some(Err(failure)) => Outcome::Failure(failure),
        },
        End::Failed => Outcome::Failure(Failure::Silent),
        End::NotConnected | End::Unreached => Outcome::Failure(Failure::Away),
        End::Unknown => Outcome::Ignored,
    };
    let now = match end {
        End::Answered(_, at) => at,
        End::Failed | End::NotConnected | End::Unreached | End::Unknown => Instant::now(),
    };
    let now = state.nanoseconds(now);
    let cell = &attempt.cell;
    if matches!(outcome, Outcome::Success(_)) && cell.is_calm.load(Ordering::Relaxed) {
        // A slow response may open the circuit breaker: then that is reported.
        let mut breaker = cell.lock();
        breaker.record(permit, now, outcome, dice());
        let position = breaker.state();
        let (reason, left) = (breaker.reason(), breaker.open_for(now).map(|(left, _)| left));
        drop(breaker);
        if position != Position::Closed {
            cell.is_calm.store(false, Ordering::Relaxed);
            cell.tell(state, Position::Closed, position, reason, left);
        }
        return;
    }
    cell.is_unreached.store(end == End::Unreached, Ordering::Relaxed);
    cell.change(state, |breaker| breaker.record(permit, now, outcome, dice()));
}
