//! This Machine among those of the same app.

use std::sync::Arc;

use crate::signing::Keys;

/// This Machine.
#[derive(Clone, Debug)]
pub struct This {
    /// Its name.
    pub name: Arc<str>,
    /// The keys that it shares with its peers.
    pub keys: Keys,
}
