//! Confirms that an event is on disk.

use outrigger_policy::audit::{Class, Hash};
use tokio::sync::oneshot;

/// The place of an event in the audit log.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// The id of the event.
    pub id: u128,
    /// The class of its chain.
    pub class: Class,
    /// Its number in the chain.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// Notifies a task that its event is on disk. Dropping it means that the event is not.
pub type Done = oneshot::Sender<Receipt>;
