//! Shutdown: the signal, the lame duck, and the requests in flight.

use std::io;
use std::time::Duration;

use outrigger_identity::clock;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::engine::pause::{self, End};
use crate::engine::state::{Phase, State};

/// SIGTERM and SIGINT. Caught from the moment they are installed, so that none ends the process without a drain and none is lost between
/// two waits.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Needs a runtime.
    pub fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "draining");
    }
}

/// How little time there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// As much as is configured.
    None,
    /// The app is gone: requests have nothing to wait for.
    AppIsGone,
}

/// Fails health checks, then accepts no new connections, then waits for requests in flight. A second signal skips the
/// waiting.
pub(super) async fn drain(
    state: &State,
    leaving: &watch::Sender<bool>,
    closing: &watch::Sender<bool>,
    signals: &mut Signals,
    haste: Haste,
) {
    const LAST_ANSWERS: Duration = Duration::from_secs(2);
    let mut server = state.rules.load().config.server.clone();
    if haste == Haste::AppIsGone {
        (server.lame_duck, server.drain_timeout) = (Duration::ZERO, server.drain_timeout.min(LAST_ANSWERS));
    }
    // Otherwise paused requests would wait for the end of this process.
    pause::resume(state, End::Shutdown);
    advance(state, Phase::LameDuck);
    leaving.send_replace(true);
    if !server.lame_duck.is_zero() {
        tracing::info!(
            lame_duck_ms = server.lame_duck.as_millis() as u64,
            "health checks fail now, requests are still served"
        );
        tokio::select! {
            () = tokio::time::sleep(server.lame_duck) => {}
            () = signals.next() => {}
        }
    }
    advance(state, Phase::Closing);
    closing.send_replace(true);
    let began = clock::now();
    let drained = async {
        // Until every worker has accepted what had connected, zero connections does not mean that all are done.
        closing.closed().await;
        while state.connections() > 0 {
            // The notification may have come before this listens for it, so it also polls.
            let _ = tokio::time::timeout(Duration::from_millis(100), state.drain.idle.notified()).await;
        }
    };
    tokio::select! {
        () = drained => tracing::info!(drain_ms = clock::since(began).as_millis() as u64, "the last connection is closed"),
        () = tokio::time::sleep(server.drain_timeout) => tracing::warn!(
            connections = state.connections(),
            requests = state.in_flight(),
            "drain_timeout is over, closing the remaining connections"
        ),
        () = signals.next() => tracing::warn!(
            connections = state.connections(),
            requests = state.in_flight(),
            "second signal, closing the remaining connections"
        ),
    }
}

fn advance(state: &State, phase: Phase) {
    state.drain.advance(phase);
    state.metrics.drain_phase.set(phase as i64);
}
