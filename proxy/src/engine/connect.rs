//! Connects to the app at its current address, and retries while this host lacks a resource that a connection needs.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::state::State;
use crate::transport::app_pool::AppStream;
use crate::transport::upstream::ConnectError;

/// The pauses before a connection is retried while this host lacks a resource. Then the request is rejected.
const PAUSES: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(20)];

/// Opens a connection to the app at its current address. The caller limits how long that may take.
///
/// # Errors
/// See [`ConnectError`]. A resource that this host lacks has been counted and logged.
pub async fn connect(state: &State) -> Result<AppStream, ConnectError> {
    with_room(state, || connect_once(state)).await
}

/// Like [`connect`], without retries when this host lacks a resource. Follows changes of `app.address`, and of the addresses
/// of its name, while connecting.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_once(state: &State) -> Result<AppStream, ConnectError> {
    loop {
        let moved = state.app_moved.notified();
        let upstream = Arc::clone(&state.rules.load().upstreams.app);
        let connected = tokio::select! {
            biased;
            connected = upstream.connect() => connected,
            () = moved => continue,
        };
        // If the app's address has just changed, a failure at the old one does not count.
        if connected.is_ok() || Arc::ptr_eq(&upstream, &state.rules.load().upstreams.app) {
            return connected;
        }
    }
}

/// Opens a connection. If this host lacks a resource, closes idle connections and retries for a moment.
///
/// # Errors
/// The last error of `open`.
pub async fn with_room<T, F>(state: &State, mut open: impl FnMut() -> F) -> Result<T, ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let mut pauses = PAUSES.iter();
    loop {
        let opened = open().await;
        let Some(resource) = opened.as_ref().err().and_then(ConnectError::exhausted) else { return opened };
        state.note_exhaustion(resource);
        match pauses.next() {
            Some(pause) => tokio::time::sleep(*pause).await,
            None => return opened,
        }
    }
}
