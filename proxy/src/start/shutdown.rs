//! Shutdown: the signal, the lame duck, and the requests in flight.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::engine::state::{Phase, State};

pub(super) async fn shutdown_signal() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "draining");
    Ok(())
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
pub(super) async fn drain(state: &State, leaving: &watch::Sender<bool>, closing: &watch::Sender<bool>, haste: Haste) {
    const LAST_ANSWERS: Duration = Duration::from_secs(2);
    let mut server = state.rules.load().config.server.clone();
    if haste == Haste::AppIsGone {
        (server.lame_duck, server.drain_timeout) = (Duration::ZERO, server.drain_timeout.min(LAST_ANSWERS));
    }
    advance(state, Phase::LameDuck);
    leaving.send_replace(true);
    if !server.lame_duck.is_zero() {
        tracing::info!(
            lame_duck_ms = server.lame_duck.as_millis() as u64,
            "health checks fail now, requests are still served"
        );
        tokio::select! {
            () = tokio::time::sleep(server.lame_duck) => {}
            _ = shutdown_signal() => {}
        }
    }
    advance(state, Phase::Closing);
    closing.send_replace(true);
    let began = Instant::now();
    let drained = async {
        // Until every worker has accepted what had connected, zero connections does not mean that all are done.
        closing.closed().await;
        while state.connections() > 0 {
            // The notification may have come before this listens for it, so it also polls.
            let _ = tokio::time::timeout(Duration::from_millis(100), state.drain.idle.notified()).await;
        }
    };
    tokio::select! {
        () = drained => tracing::info!(drain_ms = began.elapsed().as_millis() as u64, "the last connection is closed"),
        () = tokio::time::sleep(server.drain_timeout) => tracing::warn!(
            connections = state.connections(),
            requests = state.in_flight(),
            "drain_timeout is over, closing the remaining connections"
        ),
        _ = shutdown_signal() => tracing::warn!(
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
