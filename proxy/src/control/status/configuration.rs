//! The part of the summary about the configuration: what is in force, on probation, taken back or rejected.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::history::ReloadProblem;
use crate::engine::state::{Snapshot, State};
use crate::mechanism::audit::upkeep::flags;

/// Warnings of the configuration that are shown.
const MOST_WARNINGS: usize = 10;

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
    /// Set while it is on probation, or waits to be confirmed.
    #[serde(default)]
    pub probation: Option<Probation>,
    /// The content of the last change that came into force, by its hash.
    #[serde(default)]
    pub content: Option<String>,
    /// The Machine that tries the file's change first, if this one waits for it.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// Seconds of traffic under good rules that a change would be compared with, at most 300.
    #[serde(default)]
    pub learned_s: f64,
    /// The last change, if it was taken back.
    #[serde(default)]
    pub undone: Option<Undone>,
}

/// A change on probation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    /// When it has passed; absent if it only waits to be confirmed.
    pub until: Option<Timestamp>,
    /// When it is taken back unless an operator confirms it.
    pub confirm_until: Option<Timestamp>,
}

/// A change that was taken back, or would have been.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// When.
    pub at: Timestamp,
    /// Its version.
    pub version: u64,
    /// The measure that has become worse, as in metrics.
    pub measure: String,
    /// The observation, in one sentence.
    pub text: String,
    /// It stays in force: the mode is `monitor`.
    pub is_kept: bool,
    /// The file still has it, so that a restart would bring it into force.
    pub is_in_file: bool,
    /// Its content, by its hash.
    #[serde(default)]
    pub content: String,
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

/// Message, place and hint of a warning, without the lines of the file, which may have secrets.
fn without_source(warning: &str) -> String {
    let is_shown = |line: &&str| {
        let line = line.trim_start();
        // A line of the file comes after its number or a bar.
        line.starts_with("warning") || line.starts_with("-->") || line.starts_with("= ")
    };
    warning.lines().filter(is_shown).map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Gathers it.
pub fn configuration(state: &State, rules: &Snapshot) -> Configuration {
    let guard = state.guard.shown();
    Configuration {
        probation: guard.probation.map(|on| Probation { until: on.until, confirm_until: on.confirm_until }),
        content: guard.content,
        waiting_for: guard.waiting,
        learned_s: guard.learned.as_secs_f64(),
        undone: guard.undone.map(|undone| Undone {
            at: undone.at,
            version: undone.version,
            measure: undone.measure.to_owned(),
            text: undone.text,
            is_kept: undone.is_kept,
            is_in_file: undone.is_in_file,
            content: undone.content,
        }),
        version: rules.version,
        since: Timestamp::from_second(state.metrics.config.loaded_at()).unwrap_or_default(),
        routes: rules.config.routes.all().len(),
        warnings: rules
            .config
            .warnings
            .iter()
            .take(MOST_WARNINGS)
            .map(|warning| without_source(&warning.text))
            .collect(),
        flags: flags(&rules.config).into(),
        refused: state.history.refused_reload().map(|refused| Refused {
            at: refused.at,
            count: refused.count,
            problems: refused.problems,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use outrigger_rules::config::Config;

    use super::*;

    #[test]
    fn a_warning_shows_no_line_of_the_file() {
        let file = "[server]\nlisten = \"0.0.0.0:8080\" # secret\n[admin]\nlisten = \"0.0.0.0:9091\" # secret\n";
        let config = Config::parse(Path::new("proxy.toml"), file, &|_| None).unwrap();
        for warning in &config.warnings {
            assert!(!without_source(&warning.text).contains("secret"), "{warning}");
        }
        let rendered =
            "warning: `a` is old\n --> proxy.toml:3:1\n  |\n3 | a = \"secret\"\n  | ^\n  |\n  = hint: write `b`\n";
        assert_eq!(without_source(rendered), "warning: `a` is old --> proxy.toml:3:1 = hint: write `b`");
    }
}
