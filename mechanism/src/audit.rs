//! The audit log on the hot path: what is recorded about a request, and how it gets to the writer.
//!
//! ```text
//! stages: choose ─ may_write          record: ended ──────────┐ queue of this worker, bounded
//!                                     answer: before_response ┴──► writer (a thread): hashes, writes, fdatasync
//!                                              ◄── on disk, or not within commit_timeout: 503
//! ```
//!
//! Requests do not wait for the disk, except those whose class requires it. Events that do not fit into the queue are
//! counted, and the writer adds the count to the chain.

mod basis;
pub mod database;
mod event;
mod identities;
pub mod metrics;
mod queue;
mod receipt;
mod refusals;
pub mod shipping;
pub mod upkeep;
mod writer;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use http::Method;
use outrigger_policy::flags::Mode;
use outrigger_rules::sections::audit::AuditRules;
use outrigger_trail::keys::{KEYS, MasterKeys};
use outrigger_trail::local;

pub use crate::audit::basis::AuditBasis;
pub use crate::audit::event::{Act, Captured, Event, Item, Who};
pub use crate::audit::queue::{Authority, Command, ForgetError, Trail, is_worker};
pub use crate::audit::receipt::{Done, Receipt};
use crate::audit::writer::Writer;

/// Data about a request that its event needs.
#[derive(Debug, Default)]
pub struct Noted {
    /// The mode of the audit log for this request.
    pub mode: Mode,
    /// The event is on disk, or on its way there.
    pub is_entered: bool,
    /// The method.
    pub method: Method,
    /// The trace id.
    pub trace: Option<[u8; 16]>,
    /// The headers and parameters that the configuration asks for.
    pub captured: Option<Box<Captured>>,
    /// A signed value that did not verify.
    pub forged: Option<&'static str>,
}

/// Why the audit log has no keys.
#[derive(Debug, thiserror::Error)]
pub enum NoKeys {
    /// The system provides no random bytes.
    #[error("the system provides no random bytes for a key of the audit log: set {KEYS}")]
    NoRandomness,
}

/// Starts the writer.
///
/// # Errors
/// There are no keys, or the system gives no thread.
pub fn start<E: From<NoKeys> + From<io::Error>>(trail: &Arc<Trail>, commands: Receiver<Command>) -> Result<(), E> {
    let basis = trail.basis();
    let keys = match &basis.audit.keys {
        Some(keys) => local::behind(&basis.audit.directory, keys.clone()),
        None => local_key(&basis.audit)?,
    };
    // Set only here.
    let _ = trail.keys.set(keys.clone());
    let writer = Writer::new(Arc::clone(trail), keys, commands);
    std::thread::Builder::new().name("audit".into()).spawn(move || writer.run())?;
    Ok(())
}

/// Without configured master keys, one is kept next to the audit log. This does not protect it from a reader of the
/// disk.
fn local_key(rules: &AuditRules) -> Result<MasterKeys, NoKeys> {
    tracing::warn!(
        "the audit log's key is in its directory, readable with it: set {KEYS} (`openssl rand -base64 32`); \
         see docs/audit.md"
    );
    match local::keys(&rules.directory) {
        Ok(keys) => Ok(keys),
        Err(e) => {
            tracing::error!("the audit log's own key cannot be stored, it lasts as long as this process: {e}");
            local::passing_keys().ok_or(NoKeys::NoRandomness)
        }
    }
}

/// Formats the id of an event, as events contain it.
pub fn shown_id(id: u128) -> String {
    let mut hexed = Vec::new();
    outrigger_policy::audit::hex(&mut hexed, &id.to_be_bytes());
    let text = String::from_utf8_lossy(&hexed).into_owned();
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}
