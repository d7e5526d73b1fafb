//! An app that refuses connections is one that restarts: requests wait for it, and it is watched until it is back.
//!
//! Waiting is the gate's affair: no slot is given while the app is away, so requests queue in order of importance, up to
//! `app.max_held` and for `app.hold` each. When it is back, slots are given as before, so that it gets no more at a time than
//! it can take. Without `hold` nobody waits, but the app is watched all the same, so that breakers which opened because of it
//! close in the moment in which it listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outrigger_policy::flags::Mode;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::stages::{admit, failover};
use crate::engine::state::State;
use crate::transport::upstream::{self, ConnectError};

/// How often a watched app is tried. Connecting on the same machine costs it some ten microseconds.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// Whether the app takes connections, as far as is known.
#[derive(Debug, Default)]
pub struct Reach {
    is_away: AtomicBool,
}

impl Reach {
    /// It refused the last connection, and every one since.
    pub fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }
}

/// Whether requests wait for an app that is away.
fn waits(exchange: &Exchange) -> bool {
    let has_hold = !exchange.rules.config.app.hold.is_zero() && !exchange.route().is_health;
    exchange.resilience == Mode::Enforce && has_hold && !failover::is_guest(exchange)
}

/// Whether this request has to wait for the app before it may be sent.
pub fn must_wait(state: &State, exchange: &Exchange) -> bool {
    state.reach.is_away() && waits(exchange)
}

/// A connection was refused. True if the request waits for the app: then [`rejoin`] is next.
pub fn refused(state: &Arc<State>, exchange: &Exchange) -> bool {
    if exchange.resilience != Mode::Enforce {
        return false;
    }
    if !state.reach.is_away.swap(true, Ordering::Relaxed) {
        // Those in force: the exchange's rules may be older.
        let rules = state.rules.load_full();
        let app = &rules.config.app;
        let hold_ms = u64::try_from(app.hold.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(event = "app_away", app = %app.address, hold_ms, "the app refuses connections; it is tried until it is back");
        state.metrics.app_reachable.set(0);
        if !app.hold.is_zero() {
            state.gate.suspend();
            state.breakers.app_is_away(state);
        }
        tokio::spawn(watch(Arc::clone(state), Instant::now()));
    }
    waits(exchange)
}

/// A connection broke off: has the app gone, or does it only fail? Whoever dies takes its listener along.
pub async fn is_gone(state: &Arc<State>, exchange: &Exchange) -> bool {
    if exchange.resilience != Mode::Enforce {
        return false;
    }
    let patience = exchange.rules.config.app.connect_timeout;
    let tried = tokio::time::timeout(patience, upstream::connect(state)).await;
    let is_gone = matches!(tried, Ok(Err(ConnectError::Refused(_) | ConnectError::Unknown(_))));
    if is_gone {
        refused(state, exchange);
    }
    is_gone
}

async fn watch(state: Arc<State>, since: Instant) {
    loop {
        tokio::time::sleep(TRY_EVERY).await;
        let rules = state.rules.load_full();
        let app = &rules.config.app;
        if !app.hold.is_zero() {
            // It may have been zero when the app went.
            state.gate.suspend();
        }
        let tried = tokio::time::timeout(app.connect_timeout, upstream::connect(&state)).await;
        if matches!(tried, Ok(Ok(_))) {
            break;
        }
    }
    state.breakers.app_is_back(&state);
    state.metrics.app_reachable.set(1);
    let held: u32 = state.gate.standing().waiting.iter().sum();
    let away_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(event = "app_back", away_ms, held, "the app takes connections again");
    // In this order: whoever finds it away again from here on suspends the gate again.
    state.gate.resume();
    state.reach.is_away.store(false, Ordering::Relaxed);
}

/// Puts a request that found the app away in the queue, in the place of its importance.
///
/// # Errors
/// [`Rejection::AppRestarting`] when no more may wait.
pub fn rejoin(state: &State, exchange: &mut Exchange) -> Result<(), Rejection> {
    exchange.permit = None;
    admit::ask(state, exchange, Mode::Enforce)
}
