//! The configuration, in the summary.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::history::ReloadProblem;

/// The configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Configuration {
    /// Its version: increases with each change.
    pub version: u64,
    /// When it came into force.
    pub since: Timestamp,
    /// The number of routes.
    pub routes: usize,
    /// Its warnings, at most 10.
    pub warnings: Vec<String>,
    /// The feature flags and their modes, or shares of clients.
    pub flags: BTreeMap<String, String>,
    /// The file's last version, if it was rejected.
    pub refused: Option<Refused>,
}

/// A rejected configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Refused {
    /// When.
    pub at: Timestamp,
    /// The number of problems.
    pub count: usize,
    /// The first 10 of them.
    pub problems: Vec<ReloadProblem>,
}
