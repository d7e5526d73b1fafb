//! Request buffering: requests wait while the app refuses connections, for example during a restart; the app is probed until
//! it is up.
//!
//! While the app is down, the queue hands out no permits: requests wait by priority, up to `app.max_held` and for `app.hold`
//! each. Once it is up, permits are handed out as usual, so that it is not flooded. Without `hold` no request waits, but the
//! app is probed all the same, so that circuit breakers that opened because of it close as soon as it listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outrigger_policy::flags::Mode;

use crate::engine::connect::connect;
use crate::engine::exchange::Exchange;
use crate::engine::notices;
use crate::engine::rejection::Rejection;
use crate::engine::stages::{admit, failover};
use crate::engine::state::State;
use crate::transport::upstream::ConnectError;

/// Interval of connection attempts while the app is down. On the same machine, each costs it about ten microseconds.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// Whether the app accepts connections, as far as is known.
#[derive(Debug, Default)]
pub struct Reach {
    is_away: AtomicBool,
    /// Outrigger itself starts and stops the app, and it is not to be connected to now.
    is_stopped: AtomicBool,
    /// The app will not come back.
    has_ended: AtomicBool,
}

impl Reach {
    /// Whether the app is down: it has refused a connection, and all since.
    pub fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }
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
    state.gate.resume();
}

/// Records that the app is down, suspends the queue and watches for the app to come back. Returns false if that was known.
fn becomes_away(state: &Arc<State>) -> bool {
    if state.reach.is_away.swap(true, Ordering::SeqCst) {
        return false;
    }
    state.metrics.app_reachable.set(0);
    notices::app_reach_changed(state, true, "the app is unreachable".to_owned());
    if state.reach.has_ended.load(Ordering::SeqCst) {
        return true;
    }
    if !state.rules.load().config.app.hold.is_zero() {
        state.gate.suspend();
        let changes = state.breakers.app_is_down(state.nanoseconds(Instant::now()));
        changes.into_iter().for_each(|(cell, change)| notices::breaker_changed(state, &cell, change));
    }
    tokio::spawn(watch(Arc::clone(state), Instant::now()));
    true
}

/// Whether this request must wait for the app before it is sent.
pub fn must_wait(state: &State, exchange: &Exchange) -> bool {
    state.reach.is_away() && waits(exchange) && !state.reach.has_ended.load(Ordering::Relaxed)
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
    let changes = state.breakers.app_is_up(state.nanoseconds(Instant::now()));
    changes.into_iter().for_each(|(cell, change)| notices::breaker_changed(&state, &cell, change));
    state.metrics.app_reachable.set(1);
    let held: u32 = state.gate.standing().waiting.iter().sum();
    let away_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(event = "app_back", away_ms, held, "the app accepts connections again");
    notices::app_reach_changed(&state, false, format!("the app is back after {away_ms} ms; {held} requests waited"));
    // In this order: if a request finds the app down again from here on, it suspends the gate again.
    state.gate.resume();
    state.reach.is_away.store(false, Ordering::SeqCst);
    // It was stopped since the connection: `app_stops` found it away, and left this to the watch.
    if state.reach.is_stopped.load(Ordering::SeqCst) {
        becomes_away(&state);
    }
}

/// Adds a request to the queue, by priority, after it found the app down.
///
/// # Errors
/// [`Rejection::AppRestarting`] if the queue is full.
pub fn rejoin(state: &State, exchange: &mut Exchange) -> Result<(), Rejection> {
    exchange.permit = None;
    admit::ask(state, exchange, Mode::Enforce)
}
