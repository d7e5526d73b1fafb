//! This Machine, among others of the same app.

use std::sync::Arc;

use crate::signing::Keys;

/// The Machine that this is.
#[derive(Clone, Debug)]
pub struct This {
    /// Its name.
    pub name: Arc<str>,
    /// What it shares with its peers.
    pub keys: Keys,
}
