//! Orders of operators for all requests: a pause, in which they wait, and maintenance, in which they are rejected.
//!
//! A pause suspends the queue as an app that is down does (`stages/hold.rs`): the same bounds, priorities and deadlines apply. It
//! ends by itself. Both outlive a reload and end with the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use outrigger_identity::clock;
use tokio::task::AbortHandle;

use crate::engine::notices;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;

/// The length of a pause, unless its operator gives one.
pub const USUAL: Duration = Duration::from_secs(30);
/// The longest pause.
pub const LONGEST: Duration = Duration::from_mins(10);

/// A pause.
#[derive(Clone, Copy, Debug)]
pub struct Paused {
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself.
    pub ends: Timestamp,
    /// [`Self::ends`], on the monotonic clock.
    until: Instant,
}

/// A pause that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Resumed {
    /// Its length.
    pub paused: Duration,
    /// The requests that waited at its end.
    pub held: u32,
}

/// Why a pause ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An operator ends it.
    Operator,
    /// Its time is over.
    Limit,
    /// This process is about to end.
    Shutdown,
}

impl End {
    /// Its name in logs and the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Limit => "limit",
            Self::Shutdown => "shutdown",
        }
    }
}

#[derive(Debug, Default)]
struct Orders {
    pause: Option<Paused>,
    /// Ends the pause at its limit.
    ender: Option<AbortHandle>,
    maintenance: Option<Timestamp>,
}

/// The orders of operators. Requests read [`crate::engine::stages::hold::Reach`], and this only while there is an order.
#[derive(Debug, Default)]
pub struct Pause(Mutex<Orders>);

impl Pause {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        // Each order is written as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pause in force.
    pub fn shown(&self) -> Option<Paused> {
        self.lock().pause
    }

    /// Since when an operator has requests refused.
    pub fn maintenance_since(&self) -> Option<Timestamp> {
        self.lock().maintenance
    }

    /// When the pause in force ends by itself.
    pub fn until(&self) -> Option<Instant> {
        self.lock().pause.map(|pause| pause.until)
    }

    /// The rejection of a request that does not wait for the end of the pause, or for which it lasts too long.
    pub fn rejection(&self, now: Instant) -> Rejection {
        let left = self.until().map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        Rejection::Paused { retry_after: left.max(Duration::from_secs(1)) }
    }
}

/// Holds new requests for at most `length`. A pause in force gets this length, from now on.
pub fn pause(state: &Arc<State>, length: Duration) -> Paused {
    let (length, now, at) = (length.min(LONGEST), clock::now(), Timestamp::now());
    let until = now + length;
    let mut orders = state.pause.lock();
    let since = orders.pause.map_or(at, |pause| pause.since);
    let pause = Paused { since, ends: at.saturating_add(length).unwrap_or(Timestamp::MAX), until };
    orders.pause = Some(pause);
    state.reach.pause(&state.gate);
    let of_task = Arc::clone(state);
    let ender = tokio::spawn(async move {
        tokio::time::sleep_until(until.into()).await;
        end(&of_task, End::Limit, Some(until));
    });
    if let Some(earlier) = orders.ender.replace(ender.abort_handle()) {
        earlier.abort();
    }
    drop(orders);
    notices::paused(state, length);
    pause
}

/// Ends the pause in force. `None`: there is no pause.
pub fn resume(state: &State, why: End) -> Option<Resumed> {
    end(state, why, None)
}

/// Ends the pause in force; with `until`, only the one that ends then.
fn end(state: &State, why: End, until: Option<Instant>) -> Option<Resumed> {
    let mut orders = state.pause.lock();
    let pause = orders.pause.filter(|pause| until.is_none_or(|until| until == pause.until))?;
    orders.pause = None;
    let ender = orders.ender.take();
    // Read before the queue empties.
    let held = state.gate.standing().waiting.iter().sum();
    state.reach.unpause(&state.gate, state.nanoseconds(clock::now()));
    drop(orders);
    let paused = Timestamp::now().duration_since(pause.since).unsigned_abs();
    let resumed = Resumed { paused, held };
    notices::resumed(state, why, resumed);
    // Last: at the limit, it is this task.
    ender.iter().for_each(AbortHandle::abort);
    Some(resumed)
}

/// Whether requests are refused for maintenance, by an operator's order or by the file.
pub fn is_maintenance(state: &State) -> bool {
    state.reach.is_in_maintenance() || state.rules.load().config.maintenance.is_on
}

/// Has requests refused, or no longer. Returns false if it was so already.
pub fn set_maintenance(state: &State, is_on: bool) -> bool {
    let mut orders = state.pause.lock();
    if orders.maintenance.is_some() == is_on {
        return false;
    }
    orders.maintenance = is_on.then(Timestamp::now);
    state.reach.set_maintenance(is_on);
    drop(orders);
    notices::maintenance_changed(state, is_on);
    true
}
