//! `[state]`: snapshots of what Outrigger has learned, so that it survives a restart.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::environment::FLY_MACHINE_ID;
use crate::tree::Step;
use crate::units::{Size, Span, Text};

/// The bounds of `every`.
const EVERY: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// The bounds of `max_size`, in bytes.
const BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 30;

/// Snapshots of circuit breakers, bans, rate limits, the concurrency limit and the retry budget. Changes need a restart.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SavedState {
    /// Where the snapshot is kept: a directory of this Machine and this user alone. Unset: no snapshots, and each start begins without
    /// state. Environment: OUTRIGGER_STATE_DIRECTORY.
    pub directory: Option<String>,
    /// How often a changed state is written, 100 ms to 1 h. Bans and changes of circuit breakers are written within 100 ms.
    pub every: Text<Span>,
    /// Maximum size of the snapshot, 64 KiB to 1 GiB; a key of a rate limit takes 16 bytes. Beyond, the keys whose quota is full again
    /// first are left out.
    pub max_size: Text<Size>,
    /// Whether a Machine without a usable snapshot asks its peers for theirs, for at most one second.
    pub peers: bool,
}

impl Default for SavedState {
    fn default() -> Self {
        Self { directory: None, every: Text(Span(Duration::from_secs(1))), max_size: Text(Size(16 << 20)), peers: true }
    }
}

/// Snapshots, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRules {
    /// The directory.
    pub directory: PathBuf,
    /// The name of the Machine whose snapshot it is; empty without one.
    pub machine: String,
    /// How often a changed state is written.
    pub every: Duration,
    /// Maximum size, in bytes.
    pub max_bytes: usize,
    /// Whether peers are asked.
    pub asks_peers: bool,
}

impl Builder<'_> {
    /// Checks the section; `None` without a directory.
    pub fn state(&mut self, written: &SavedState, machine: Option<&str>) -> Option<StateRules> {
        let at = |key| [Step::Key("state"), Step::Key(key)];
        let (every, size) = (written.every.0.0, written.max_size.0);
        if !EVERY.contains(&every) {
            let message = format!("`every` needs 100ms to 1h, got {}", written.every.0);
            self.complain(&at("every"), message, "as much is lost in a crash; write \"1s\", for example");
        }
        if !BYTES.contains(&size.0) {
            let message = format!("`max_size` needs 64KiB to 1GiB, got {size}");
            self.complain(
                &at("max_size"),
                message,
                "100,000 keys of rate limits take 1.6MB; write \"16MiB\", for example",
            );
        }
        let directory = written.directory.as_ref().filter(|directory| !directory.trim().is_empty())?;
        let fly = (self.environment)(FLY_MACHINE_ID).filter(|id| !id.trim().is_empty());
        Some(StateRules {
            directory: directory.into(),
            // Not the host's name: a container has another one with each start.
            machine: machine.map(str::to_owned).or(fly).unwrap_or_default(),
            every,
            max_bytes: usize::try_from(size.0).unwrap_or(usize::MAX),
            asks_peers: written.peers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::load;
    #[test]
    fn there_are_snapshots_if_there_is_a_directory() {
        assert!(load("[state]\nevery = \"2s\"\n", &[]).unwrap().state.is_none());
        let state = |source: &str, name: &str, value: &str| {
            load(source, &[("OUTRIGGER_STATE_DIRECTORY", "/state"), (name, value)]).unwrap().state.unwrap()
        };
        let rules = state("", FLY_MACHINE_ID, "m1");
        assert_eq!((rules.directory.to_str(), rules.machine.as_str()), (Some("/state"), "m1"));
        assert_eq!((rules.every, rules.max_bytes, rules.asks_peers), (Duration::from_secs(1), 16 << 20, true));
        // A container's name changes with each start.
        assert_eq!(state("", "HOSTNAME", "4f1c2a").machine, "");
        assert_eq!(state("[server]\nmachine = \"a\"\n", FLY_MACHINE_ID, "m1").machine, "a");
    }

    #[test]
    fn the_bounds_are_checked_without_a_directory_too() {
        for wrong in ["every = \"99ms\"", "every = \"2h\"", "max_size = \"63KiB\"", "max_size = \"2GiB\""] {
            let error = load(&format!("[state]\n{wrong}\n"), &[]).unwrap_err();
            assert!(error.contains("needs"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_change_needs_a_restart() {
        let with = |directory| load(&format!("[state]\ndirectory = \"{directory}\"\n"), &[]).unwrap();
        assert_eq!(with("/a").needs_restart(&with("/b")), ["state"]);
    }
}
