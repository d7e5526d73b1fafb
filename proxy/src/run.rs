//! `outrigger run -- COMMAND`: the app as a process of Outrigger, which starts it, restarts it when it ends or hangs, and stops it.
//!
//! ```text
//! driver.rs    drives `policy::supervisor` with processes, signals, timers and probes
//! process.rs   one start of the command: its environment, signals, and what it leaves behind
//! probe.rs     whether the app gives a sign of life
//! output.rs    its output as JSON lines, if that is wanted
//! port.rs      a free port for the app; listening.rs: on which ports it listens instead
//! ```
//!
//! docs/run.md describes what operators see.

pub mod driver;
pub mod listening;
mod output;
pub mod port;
mod probe;
pub mod process;

use std::sync::Arc;

use outrigger_policy::supervisor::State as Phase;
use tokio::sync::{mpsc, oneshot, watch};

/// How a process ended, as an exit code: its own, or 128 and the number of the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u8);

/// The process, for operators.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Its state; `None` before the first start.
    pub phase: Option<Phase>,
    /// Its process id, while it runs.
    pub pid: Option<i32>,
    /// How often it was started.
    pub starts: u64,
    /// How it ended last.
    pub last_exit: Option<ExitCode>,
    /// Why it was stopped or restarted last.
    pub last_reason: Option<&'static str>,
}

/// An order for the driver.
#[derive(Debug)]
pub enum Order {
    /// Restart the app. Responds once it serves again, or with an error if it does not.
    Restart(oneshot::Sender<Result<(), GivenUp>>),
    /// Stop the app, and do not start it again.
    Stop,
    /// Kill it now.
    Hurry,
}

/// The app was restarted too often, or Outrigger shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the app did not come back; the log says why")]
pub struct GivenUp;

/// The app's process, for other parts of Outrigger.
#[derive(Clone, Debug)]
pub struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    shown: watch::Receiver<Arc<Shown>>,
}

impl Handle {
    /// Restarts the app, and waits until it serves. If the caller goes away, the restart goes on.
    ///
    /// # Errors
    /// The app does not come back.
    pub async fn restart(&self) -> Result<(), GivenUp> {
        let (done, result) = oneshot::channel();
        self.orders.send(Order::Restart(done)).map_err(|_| GivenUp)?;
        result.await.unwrap_or(Err(GivenUp))
    }

    /// Sends an order. After the end of the driver, there is nothing left to stop.
    pub fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    /// The process now.
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown.borrow())
    }
}
