//! `[traffic]`: the record of requests for `outrigger backtest`.

use std::path::PathBuf;
use std::time::Duration;

use outrigger_traffic::template::Detail;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::tree::Step;
use crate::units::{Size, Span, Text};

/// The least that the files of a record may take together.
const LEAST_BYTES: u64 = 1 << 20;

/// Which parts of paths are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Paths {
    /// Segments that a route of the file names, and those that look like words; never a parameter of the route.
    #[default]
    Words,
    /// Only segments that a route of the file names.
    Routes,
}

impl From<Paths> for Detail {
    fn from(paths: Paths) -> Self {
        match paths {
            Paths::Words => Self::Words,
            Paths::Routes => Self::Routes,
        }
    }
}

/// The record of requests for `outrigger backtest`: route, times, status and pseudonyms, no addresses, keys, users, queries or parameters.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// Whether requests are recorded.
    pub record: bool,
    /// Where the files are. No other program's files are touched there.
    pub directory: String,
    /// Maximum size of all files together. Beyond, the oldest are deleted. A request takes about 40 bytes.
    pub max_bytes: Text<Size>,
    /// How long files are kept.
    pub keep: Text<Span>,
    /// Which parts of paths are recorded.
    pub paths: Paths,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            record: false,
            directory: "/var/lib/outrigger/traffic".to_owned(),
            max_bytes: Text(Size(256 << 20)),
            keep: Text(Span(Duration::from_secs(7 * 86_400))),
            paths: Paths::default(),
        }
    }
}

/// The traffic record, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficRules {
    /// Whether requests are recorded.
    pub is_recorded: bool,
    /// Where the files are.
    pub directory: PathBuf,
    /// Maximum bytes of all files together.
    pub max_bytes: u64,
    /// How long files are kept.
    pub keep: Duration,
    /// Which parts of paths are recorded.
    pub paths: Paths,
}

impl Builder<'_> {
    /// Checks the section.
    pub fn traffic(&mut self, written: &Traffic) -> TrafficRules {
        let at = |key| [Step::Key("traffic"), Step::Key(key)];
        let max_bytes = written.max_bytes.0.0;
        if max_bytes < LEAST_BYTES {
            let message = format!("`max_bytes` needs 1MiB or more, got {}", written.max_bytes.0);
            self.complain(&at("max_bytes"), message, "a request takes about 40 bytes: 256MiB holds about 6 million");
        }
        if written.keep.0.0.is_zero() {
            self.complain(&at("keep"), "`keep` needs more than zero", "write \"7d\"; or `record = false`");
        }
        if written.directory.is_empty() {
            self.complain(&at("directory"), "`directory` is empty", "name a directory that only Outrigger writes to");
        }
        TrafficRules {
            is_recorded: written.record,
            directory: PathBuf::from(&written.directory),
            max_bytes,
            keep: written.keep.0.0,
            paths: written.paths,
        }
    }
}
