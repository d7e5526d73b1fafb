//! Whether the app gives a sign of life.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header;

use crate::engine::connect::connect;
use crate::engine::state::State;
use crate::transport::ask::ask;
use crate::transport::upstream::ConnectError;

/// The question to an app without `health.path`. Any response will do, such as 404.
const PATH: &str = "/health/live";
/// Interval of connection attempts while the app starts.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Waits until the app responds, for as long as it takes. An app that always closes the connection instead has its reasons; one that
/// does so once may be ending.
pub async fn first_response(state: Arc<State>) {
    const MOST_CLOSED: u32 = 3;
    let mut closed = 0;
    loop {
        match sign(&state).await {
            Sign::Response => return,
            Sign::Closed if closed + 1 >= MOST_CLOSED => return,
            Sign::Closed => closed += 1,
            Sign::None => closed = 0,
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// It responds.
    Response,
    /// It closes the connection without a response.
    Closed,
    /// It accepts no connection.
    None,
}

/// Whether the app responds or closes the connection: the kernel accepts connections for a process that does not run, too, so only
/// silence is no sign of life. Waits as long as it takes.
pub async fn is_alive(state: &State) -> bool {
    sign(state).await != Sign::None
}

async fn sign(state: &State) -> Sign {
    let rules = state.rules.load_full();
    let patience = rules.config.app.connect_timeout;
    let stream = match tokio::time::timeout(patience, connect(state)).await {
        Ok(Ok(stream)) => stream,
        // Not the app's fault.
        Ok(Err(ConnectError::Exhausted { .. })) => return Sign::Closed,
        Ok(Err(_)) | Err(_) => return Sign::None,
    };
    let request = http::Request::get(rules.config.health.path().unwrap_or(PATH))
        .header(header::HOST, "localhost")
        .header(header::USER_AGENT, "outrigger")
        .header(header::CONNECTION, "close")
        .body(Bytes::new());
    let Ok(request) = request else { return Sign::Closed };
    match ask(stream, request).await {
        Ok(_) => Sign::Response,
        // Or it sent what is no HTTP.
        Err(_) => Sign::Closed,
    }
}
