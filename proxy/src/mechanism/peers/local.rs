//! How the app here is: asked once a second, as Fly would, so that the peers hear of it and requests go to them meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;

use crate::engine::state::{Phase, State};
use crate::mechanism::peers::answer::Condition;
use crate::mechanism::peers::probe::{Unanswered, ask};
use crate::transport::upstream::{self, ConnectError};

/// Asked without an answer so often in a row, the app is not ready: one slow answer is none.
const MOST_UNANSWERED: u32 = 2;

/// What is known of the app here.
#[derive(Debug, Default)]
pub struct Local {
    is_unready: AtomicBool,
}

impl Local {
    /// It says that it cannot take requests, or says nothing.
    pub fn is_unready(&self) -> bool {
        self.is_unready.load(Ordering::Relaxed)
    }
}

/// What this Machine says of itself.
pub fn condition(state: &State, local: &Local) -> Condition {
    if state.drain.phase() != Phase::Serving {
        Condition::Leaving
    } else if state.reach.is_away() || local.is_unready() {
        Condition::Unready
    } else if state.gate.standing().waiting.iter().any(|waiting| *waiting > 0) {
        Condition::Busy
    } else {
        Condition::Ready
    }
}

/// Keeps asking the app.
pub async fn keep_asking(state: Arc<State>) {
    let Some(peers) = &state.peers else { return };
    let mut unanswered = 0;
    loop {
        let is_unready = match is_ready(&state, peers.rules.timeout).await {
            Ok(is_ready) => {
                unanswered = 0;
                !is_ready
            }
            // It was not asked, for want of something here.
            Err(Unanswered::Connect(ConnectError::Exhausted { .. })) => peers.local.is_unready(),
            Err(_) => {
                unanswered += 1;
                // Until then what it said last counts.
                unanswered >= MOST_UNANSWERED || peers.local.is_unready()
            }
        };
        if peers.local.is_unready.swap(is_unready, Ordering::Relaxed) != is_unready {
            let words = if is_unready { "is not ready: requests go to peers" } else { "is ready again" };
            tracing::warn!(event = "app_ready", ready = !is_unready, "the app {words}");
        }
        tokio::time::sleep(peers.rules.interval).await;
    }
}

/// What the app says. One that knows no such question is ready whenever it answers.
async fn is_ready(state: &State, patience: Duration) -> Result<bool, Unanswered> {
    let (status, _) = ask(upstream::connect(state), "/health/ready", patience).await?;
    Ok(status != StatusCode::SERVICE_UNAVAILABLE)
}
