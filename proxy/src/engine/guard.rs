//! Guarded reload as operators see it: the change that is on probation, the last one that was taken back, and their orders.
//!
//! `control/probation.rs` decides; admin listener, page and status only read this, and send it [`Order`]s.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use outrigger_policy::probation::Worse;
use tokio::sync::{mpsc, oneshot};

/// Orders that wait. More are refused: each takes well below a second.
const ORDERS: usize = 16;
/// The reason in metrics of a change that was not confirmed.
pub const UNCONFIRMED: &str = "unconfirmed";

/// A change that is in force and on probation, or waits to be confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnProbation {
    /// Its version.
    pub version: u64,
    /// When it came into force.
    pub since: Timestamp,
    /// When it has passed; absent if it has, and only waits to be confirmed.
    pub until: Option<Timestamp>,
    /// When it is taken back unless an operator confirms it.
    pub confirm_until: Option<Timestamp>,
}

/// A change that was taken back, or would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undone {
    /// When.
    pub at: Timestamp,
    /// Its version.
    pub version: u64,
    /// The measure that has become worse, as in metrics.
    pub measure: &'static str,
    /// The observation, in one sentence.
    pub text: String,
    /// It stays in force: the mode is `monitor`.
    pub is_kept: bool,
    /// The file still has it, so that a restart would bring it into force.
    pub is_in_file: bool,
    /// Its content, by its hash in hexadecimal.
    pub content: String,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// The change on probation.
    pub probation: Option<OnProbation>,
    /// The last change that was taken back, until another one comes into force.
    pub undone: Option<Undone>,
    /// The Machine that tries the file's change first, if this one waits for it.
    pub waiting: Option<String>,
    /// The content of the last change, if it is in force, by its hash in hexadecimal.
    pub content: Option<String>,
    /// How much traffic under good rules a change would be compared with.
    pub learned: Duration,
}

/// An order about changes.
#[derive(Clone, Debug)]
pub enum Order {
    /// Reads the file again.
    Reload {
        /// Without probation, also if it was taken back before.
        is_forced: bool,
    },
    /// Brings a text into force in place of the file.
    Apply {
        /// The configuration.
        text: String,
        /// It is taken back unless it is confirmed within this time.
        confirm: Option<Duration>,
        /// As for [`Self::Reload`].
        is_forced: bool,
    },
    /// Keeps the change that waits for it.
    Confirm,
}

/// An order that was obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obeyed {
    /// The version in force.
    pub version: u64,
    /// How long it is on probation.
    pub probation: Option<Duration>,
    /// The time in which it must be confirmed.
    pub confirm: Option<Duration>,
}

/// Why an order has no effect.
#[derive(Debug, thiserror::Error)]
pub enum NotObeyed {
    /// There are mistakes in it.
    #[error("the configuration is not valid, the one before stays in force:\n{0}")]
    Invalid(String),
    /// It has proved harmful.
    #[error("this content was taken back before ({0}): change it, or repeat the order with --force")]
    Undone(String),
    /// No change waits to be confirmed.
    #[error("no change waits to be confirmed: it was taken back or replaced, or never applied with --confirm")]
    NothingToConfirm,
    /// Too many orders at a time, or the process is about to end.
    #[error("no order can be taken now: try again")]
    Busy,
}

type Sent = (Order, oneshot::Sender<Result<Obeyed, NotObeyed>>);

/// Guarded reload as operators see it.
#[derive(Debug)]
pub struct Guard {
    shown: Mutex<Shown>,
    sender: mpsc::Sender<Sent>,
    receiver: Mutex<Option<mpsc::Receiver<Sent>>>,
}

impl Default for Guard {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(ORDERS);
        Self { shown: Mutex::default(), sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl Guard {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        // Each part is written as a whole.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is shown.
    pub fn shown(&self) -> Shown {
        self.lock().clone()
    }

    /// Shows the change on probation, if there is one, and the content of the last change, if it is in force. Both at once: peers
    /// conclude from them that it has passed.
    pub fn show_probation(&self, probation: Option<OnProbation>, content: Option<String>) {
        let mut shown = self.lock();
        (shown.probation, shown.content) = (probation, content);
    }

    /// Shows a change that was taken back, or forgets it.
    pub fn show_undone(&self, undone: Option<Undone>) {
        self.lock().undone = undone;
    }

    /// Shows the Machine that tries a change first, if this one waits for it.
    pub fn show_waiting(&self, machine: Option<String>) {
        self.lock().waiting = machine;
    }

    /// Shows how much traffic a change would be compared with.
    pub fn show_learned(&self, learned: Duration) {
        self.lock().learned = learned;
    }

    /// The orders, for the one task that obeys them.
    pub fn take_orders(&self) -> Option<mpsc::Receiver<Sent>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives an order, and waits until it was obeyed.
    ///
    /// # Errors
    /// It has no effect.
    pub async fn order(&self, order: Order) -> Result<Obeyed, NotObeyed> {
        let (reply, replied) = oneshot::channel();
        self.sender.try_send((order, reply)).map_err(|_| NotObeyed::Busy)?;
        replied.await.unwrap_or(Err(NotObeyed::Busy))
    }
}

/// The observation as a sentence, such as `429 by rate limits: 0.2 % before, 71 % in 6 s`.
pub fn told(worse: &Worse) -> String {
    let before = worse.before.map_or_else(|| "unknown".to_owned(), percent);
    let seconds = worse.length.as_secs_f64();
    format!("{}: {before} before, {} in {seconds:.0} s", worse.measure.text(), percent(worse.now))
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 9.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

#[cfg(test)]
mod tests {
    use outrigger_policy::probation::measures::{Ending, Measure};

    use super::*;

    #[test]
    fn it_is_told_in_one_sentence() {
        let measure = Measure::Ended(Ending::RateLimited);
        let mut worse = Worse { measure, before: Some(0.002), now: 0.712, length: Duration::from_millis(6500) };
        assert_eq!(told(&worse), "429 by rate limits: 0.2 % before, 71 % in 6 s");
        worse.before = None;
        assert_eq!(told(&worse), "429 by rate limits: unknown before, 71 % in 6 s");
    }
}
