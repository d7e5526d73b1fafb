//! State of a request that only Pingora's hooks need, next to its [`Exchange`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::engine::attempts::Next;
use crate::engine::bounds::LONG_BODY;
use crate::engine::exchange::Exchange;
use crate::engine::state::Snapshot;
use crate::general::line::Line;
use crate::general::upload::Upload;
use crate::mechanism::gate::Permit;

/// A request on the general path. Pingora passes it to each hook.
#[derive(Debug)]
pub struct Context {
    pub exchange: Exchange,
    /// The next step, which the next call of `upstream_peer` takes.
    pub next: Option<Next>,
    /// The upstream connection of the current attempt.
    pub line: Option<Line>,
    /// The request body.
    pub upload: Upload,
    /// Bytes of the request body that this attempt has sent.
    pub body_bytes: u64,
    /// Interim responses (1xx) in this attempt.
    pub interim: usize,
    /// The permit, once the head of a response of unknown length has come.
    pub lingering: Option<Lingering>,
}

impl Context {
    /// The context of a request that has just been read.
    pub fn new(rules: Arc<Snapshot>) -> Self {
        Self {
            exchange: Exchange::new(rules),
            next: None,
            line: None,
            upload: Upload::default(),
            body_bytes: 0,
            interim: 0,
            lingering: None,
        }
    }

    /// Gives the permit back after [`LONG_BODY`], or as soon as Outrigger waits for the client and not for the app. Pingora calls
    /// no hook while the client reads slowly, so a task watches the connection.
    pub fn release_permit_later(&mut self) {
        let (Some(permit), Some(line)) = (self.exchange.permit.take(), &self.line) else { return };
        let watch = line.watch();
        let permit = Arc::new(Mutex::new(Some(permit)));
        let kept = Arc::clone(&permit);
        let task = tokio::spawn(async move {
            let by = Instant::now() + LONG_BODY;
            loop {
                sleep(LOOK).await;
                if Instant::now() >= by || !watch.waits_for_app() {
                    break;
                }
            }
            drop(take(&permit));
        });
        self.lingering = Some(Lingering { permit: kept, task });
    }
}

/// How often [`Context::release_permit_later`] checks the connection.
const LOOK: Duration = Duration::from_millis(50);

/// A permit that a task gives back later. Dropping this gives it back at once.
#[derive(Debug)]
pub struct Lingering {
    permit: Arc<Mutex<Option<Permit>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.task.abort();
        drop(take(&self.permit));
    }
}

fn take(permit: &Mutex<Option<Permit>>) -> Option<Permit> {
    permit.lock().unwrap_or_else(PoisonError::into_inner).take()
}
