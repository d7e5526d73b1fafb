//! Request buffering: requests wait while the app refuses connections, for example during a restart, and while an operator
//! pauses them ([`crate::engine::pause`]). The app is probed until it is up.
//!
//! While the app is down, the queue hands out no permits: requests wait by priority, up to `app.max_held` and for `app.hold`
//! each. Once it is up, permits are handed out as usual, so that it is not flooded. Without `hold` no request waits, but the
//! app is probed all the same, so that circuit breakers that opened because of it close as soon as it listens.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_policy::flags::Mode;

use crate::engine::connect::connect;
use crate::engine::exchange::Exchange;
use crate::engine::notices;
use crate::engine::rejection::Rejection;
use crate::engine::stages::{admit, failover};
use crate::engine::state::State;
use crate::mechanism::gate::Gate;
use crate::transport::upstream::ConnectError;

/// Interval of connection attempts while the app is down. On the same machine, each costs it about ten microseconds.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// The app has refused a connection, and all since.
const AWAY: u8 = 1;
/// An operator pauses requests.
const PAUSED: u8 = 2;
/// An operator has requests refused.
const MAINTENANCE: u8 = 4;

/// Whether requests may be sent to the app, as far as is known.
#[derive(Debug, Default)]
pub struct Reach {
    /// In one word, so that a request learns with one load that it may go on.
    bits: AtomicU8,
    /// Held where the queue is suspended or resumed: the end of a pause must not resume it for an app that is down, or the
    /// reverse.
    turning: Mutex<()>,
    /// Outrigger itself starts and stops the app, and it is not to be connected to now.
    is_stopped: AtomicBool,
    /// The app will not come back.
    has_ended: AtomicBool,
    /// When the app last came back, and when the last pause ended, in nanoseconds ([`State::nanoseconds`]).
    back_at: AtomicU64,
    unpaused_at: AtomicU64,
}

impl Reach {
    fn has(&self, bits: u8) -> bool {
        self.bits.load(Ordering::Relaxed) & bits != 0
    }

    /// Whether the app is down: it has refused a connection, and all since.
    pub fn is_away(&self) -> bool {
        self.has(AWAY)
    }

    /// Whether an operator pauses requests.
    pub fn is_paused(&self) -> bool {
        self.has(PAUSED)
    }

    /// Whether an operator has requests refused.
    pub fn is_in_maintenance(&self) -> bool {
        self.has(MAINTENANCE)
    }

    /// Whether an operator pauses requests or has them refused.
    pub fn is_closed_by_operator(&self) -> bool {
        self.has(PAUSED | MAINTENANCE)
    }

    /// Refuses requests from now on, or no longer.
    pub fn set_maintenance(&self, is_on: bool) {
        if is_on {
            self.bits.fetch_or(MAINTENANCE, Ordering::SeqCst);
        } else {
            self.bits.fetch_and(!MAINTENANCE, Ordering::SeqCst);
        }
    }

    /// Holds requests from now on.
    pub fn pause(&self, gate: &Gate) {
        let _turning = self.turning();
        gate.suspend();
        self.bits.fetch_or(PAUSED, Ordering::SeqCst);
    }

    /// Sends requests to the app again, unless it is down. `now` is in nanoseconds.
    pub fn unpause(&self, gate: &Gate, now: u64) {
        self.unpaused_at.store(now, Ordering::SeqCst);
        self.clear(PAUSED, gate);
    }

    /// In this order: a request that finds the app down again from here on suspends the queue again.
    fn clear(&self, bit: u8, gate: &Gate) {
        let _turning = self.turning();
        let rest = self.bits.load(Ordering::SeqCst) & !bit;
        if rest & (AWAY | PAUSED) == 0 || (rest & PAUSED == 0 && self.has_ended.load(Ordering::SeqCst)) {
            gate.resume();
        }
        self.bits.fetch_and(!bit, Ordering::SeqCst);
    }

    fn turning(&self) -> MutexGuard<'_, ()> {
        self.turning.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a pause concerns the request: health checks are answered, guests go back to their Machine, and a request that the app
/// is working on goes on.
fn is_held_by_pause(exchange: &Exchange) -> bool {
    !exchange.route().is_health && !failover::is_guest(exchange) && exchange.attempts.is_queued()
}

/// Whether the request may wait while the app is down.
fn waits(exchange: &Exchange) -> bool {
    let has_hold = !exchange.rules.config.app.hold.is_zero() && !exchange.route().is_health;
    exchange.resilience == Mode::Enforce && has_hold && !failover::is_guest(exchange)
}

/// Holds requests from now on, also while the app still accepts connections: Outrigger is about to stop or to start it.
pub fn app_stops(state: &Arc<State>) {
    // Before `is_away` is read: see the end of `watch`.
    state.reach.is_stopped.store(true, Ordering::SeqCst);
    let hold_ms = u64::try_from(state.rules.load().config.app.hold.as_millis()).unwrap_or(u64::MAX);
    if becomes_away(state) {
        tracing::info!(event = "app_away", hold_ms, "requests wait until the app has been started");
    }
}

/// Sends requests to the app again as soon as it accepts connections.
pub fn app_starts(state: &State) {
    state.reach.is_stopped.store(false, Ordering::SeqCst);
}

/// The app will not come back: requests fail at once.
pub fn app_ended(state: &State) {
    state.reach.has_ended.store(true, Ordering::SeqCst);
    let _turning = state.reach.turning();
    if !state.reach.is_paused() {
        state.gate.resume();
    }
}

/// Records that the app is down, suspends the queue and watches for the app to come back. Returns false if that was known.
fn becomes_away(state: &Arc<State>) -> bool {
    if state.reach.bits.fetch_or(AWAY, Ordering::SeqCst) & AWAY != 0 {
        return false;
    }
    state.metrics.app_reachable.set(0);
    notices::app_reach_changed(state, true, "the app is unreachable".to_owned());
    if state.reach.has_ended.load(Ordering::SeqCst) {
        return true;
    }
    if !state.rules.load().config.app.hold.is_zero() {
        state.gate.suspend();
        let changes = state.breakers.app_is_down(state.nanoseconds(clock::now()));
        changes.into_iter().for_each(|(cell, change)| notices::breaker_changed(state, &cell, change));
    }
    tokio::spawn(watch(Arc::clone(state), clock::now()));
    true
}

/// Whether this request must wait before it is sent: for an app that is down, or for the end of a pause.
pub fn must_wait(state: &State, exchange: &Exchange) -> bool {
    state.reach.has(AWAY | PAUSED) && (is_paused(state, exchange) || awaits_app(state, exchange))
}

/// Whether this request must wait for the end of a pause.
pub fn is_paused(state: &State, exchange: &Exchange) -> bool {
    state.reach.is_paused() && is_held_by_pause(exchange)
}

/// Whether this request must wait for the app.
fn awaits_app(state: &State, exchange: &Exchange) -> bool {
    state.reach.is_away() && waits(exchange) && !state.reach.has_ended.load(Ordering::Relaxed)
}

/// The verdict on a request that asks for no permit; `None`: it asks for one.
///
/// # Errors
/// A peer's request does not wait here.
pub fn without_permit(state: &State, exchange: &Exchange) -> Option<Result<(), Rejection>> {
    if !state.reach.has(AWAY | PAUSED) {
        return None;
    }
    let (is_guest, is_paused) = (failover::is_guest(exchange), state.reach.is_paused());
    if is_guest {
        let rejection = if is_paused { state.pause.rejection(clock::now()) } else { Rejection::AppRestarting };
        return Some(Err(rejection));
    }
    // One that does not wait for the app fails at once. During a pause, an upload that the app reads goes on.
    let goes_on = if state.reach.is_away() { !must_wait(state, exchange) } else { !exchange.attempts.is_queued() };
    goes_on.then_some(Ok(()))
}

/// Notes that the request waits, and why, so that [`ends`] and the receipt know.
pub fn note_wait(state: &State, exchange: &mut Exchange) {
    if is_paused(state, exchange) {
        exchange.paused_until = state.pause.until();
    } else if let Some(until) = exchange.paused_until {
        // It may have ended early.
        exchange.paused_until = Some(until.min(clock::now()));
    } else if has_ended_since(&state.reach.unpaused_at, state, exchange) && is_held_by_pause(exchange) {
        exchange.paused_until = Some(clock::now());
    }
    if must_wait(state, exchange) {
        exchange.held_since.get_or_insert_with(clock::now);
    } else if exchange.held_since.is_none() && has_ended_since(&state.reach.back_at, state, exchange) && waits(exchange)
    {
        exchange.held_since = Some(exchange.turn_began);
    }
}

/// Whether a pause or an outage has ended while the request waited. It may have begun after the request's last look, too.
fn has_ended_since(at: &AtomicU64, state: &State, exchange: &Exchange) -> bool {
    at.load(Ordering::SeqCst) > state.nanoseconds(exchange.turn_began)
}

/// When a request that waits for an app that is down gives up. The time in a pause does not count.
pub fn ends(exchange: &Exchange) -> Option<Instant> {
    let since = exchange.held_since?;
    let since = exchange.paused_until.map_or(since, |until| until.max(since));
    Some(since + exchange.rules.config.app.hold)
}

/// Records a refused connection. Returns true if the request waits for the app: then call [`rejoin`].
pub fn refused(state: &Arc<State>, exchange: &Exchange) -> bool {
    if exchange.resilience != Mode::Enforce {
        return false;
    }
    // Usually known: many requests find it at the same time.
    if !state.reach.is_away() && becomes_away(state) {
        // The current configuration: the exchange's may be older.
        let rules = state.rules.load_full();
        let app = &rules.config.app;
        let hold_ms = u64::try_from(app.hold.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(event = "app_away", app = %app.address, hold_ms, "the app refuses connections; retrying until it accepts one");
    }
    waits(exchange) && !state.reach.has_ended.load(Ordering::Relaxed)
}

/// After a closed connection: checks whether the app is down or only the request failed. A crashed app no longer listens.
pub async fn is_gone(state: &Arc<State>, exchange: &Exchange) -> bool {
    if exchange.resilience != Mode::Enforce {
        return false;
    }
    if state.reach.is_stopped.load(Ordering::Relaxed) {
        // Outrigger has stopped it, whoever still accepts connections.
        return true;
    }
    let patience = exchange.rules.config.app.connect_timeout;
    let tried = tokio::time::timeout(patience, connect(state)).await;
    let is_gone = matches!(tried, Ok(Err(ConnectError::Refused(_) | ConnectError::Unknown(_))));
    if is_gone {
        refused(state, exchange);
    }
    is_gone
}

async fn watch(state: Arc<State>, since: Instant) {
    loop {
        tokio::time::sleep(TRY_EVERY).await;
        if state.reach.has_ended.load(Ordering::Relaxed) {
            return;
        }
        let rules = state.rules.load_full();
        let app = &rules.config.app;
        if !app.hold.is_zero() {
            // It may have been zero when the app went down.
            state.gate.suspend();
        }
        if state.reach.is_stopped.load(Ordering::Relaxed) {
            continue;
        }
        let tried = tokio::time::timeout(app.connect_timeout, connect(&state)).await;
        if matches!(tried, Ok(Ok(_))) && !state.reach.is_stopped.load(Ordering::Relaxed) {
            break;
        }
    }
    let changes = state.breakers.app_is_up(state.nanoseconds(clock::now()));
    changes.into_iter().for_each(|(cell, change)| notices::breaker_changed(&state, &cell, change));
    state.metrics.app_reachable.set(1);
    let held: u32 = state.gate.standing().waiting.iter().sum();
    let away_ms = u64::try_from(clock::since(since).as_millis()).unwrap_or(u64::MAX);
    tracing::info!(event = "app_back", away_ms, held, "the app accepts connections again");
    notices::app_reach_changed(&state, false, format!("the app is back after {away_ms} ms; {held} requests waited"));
    state.reach.back_at.store(state.nanoseconds(clock::now()), Ordering::SeqCst);
    state.reach.clear(AWAY, &state.gate);
    // It was stopped since the connection: `app_stops` found it away, and left this to the watch.
    if state.reach.is_stopped.load(Ordering::SeqCst) {
        becomes_away(&state);
    }
}

/// Adds a request to the queue, by priority, after it found the app down.
///
/// # Errors
/// [`Rejection::AppRestarting`] or [`Rejection::Paused`] if the queue is full.
pub fn rejoin(state: &State, exchange: &mut Exchange) -> Result<(), Rejection> {
    exchange.permit = None;
    admit::ask(state, exchange, Mode::Enforce)
}
