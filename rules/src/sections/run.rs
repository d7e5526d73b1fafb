//! `[run]`: the app as a process of Outrigger, with `outrigger run -- COMMAND`.

use std::time::Duration;

use outrigger_policy::supervisor::Settings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::tree::Step;
use crate::units::{OptionalSpan, OrOff, Span, Text, span};

/// Where the app's standard output and error go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// To those of Outrigger, without passing through it.
    #[default]
    Inherit,
    /// To the log, each line as a JSON object; lines that are one already stay as they are.
    Json,
}

/// The app as a process of Outrigger: when it is restarted, and how it is stopped.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// How long the app may take from its start to its first response. Longer: it is restarted.
    pub start_timeout: Text<Span>,
    /// Without a sign of life for this long, the app hangs: it is restarted. "off": never for that.
    pub hang_timeout: Text<OptionalSpan>,
    /// How long requests may take to finish before a restart, and then the process after SIGTERM. Longer: SIGKILL.
    pub stop_grace: Text<Span>,
    /// The pause before a restart; doubled with each one in a row.
    pub backoff: Text<Span>,
    /// Maximum of that pause.
    pub max_backoff: Text<Span>,
    /// Restarts in a row; after them, Outrigger ends with the exit code of the app.
    #[schemars(range(max = 1_000_000))]
    pub max_restarts: u32,
    /// A restart after serving for this long is the first one in a row.
    pub stable_after: Text<Span>,
    /// Where the app's standard output and error go. A change applies to the next start of the app.
    pub output: Output,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            start_timeout: span(60),
            hang_timeout: Text(OrOff(Some(Span(Duration::from_secs(8))))),
            stop_grace: span(10),
            backoff: Text(Span(Duration::from_millis(100))),
            max_backoff: span(5),
            max_restarts: 5,
            stable_after: span(60),
            output: Output::Inherit,
        }
    }
}

/// The app's process, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRules {
    /// When it is restarted, and how it is stopped.
    pub settings: Settings,
    /// After this long without a sign of life it hangs; `None`: never.
    pub hang_timeout: Option<Duration>,
    /// Where its output goes.
    pub output: Output,
}

/// The shortest `hang_timeout`: a busy host makes an app wait for longer than less.
const SHORTEST_HANG: Duration = Duration::from_secs(1);

impl Builder<'_> {
    /// Checks the section.
    pub fn run(&mut self, written: &Run) -> RunRules {
        let hang_timeout = written.hang_timeout.0.0.map(|span| span.0);
        if hang_timeout.is_some_and(|timeout| timeout < SHORTEST_HANG) {
            let path = [Step::Key("run"), Step::Key("hang_timeout")];
            self.complain(&path, "`hang_timeout` must be at least 1s", "write \"8s\", or \"off\"");
        }
        if written.start_timeout.0.0.is_zero() {
            let path = [Step::Key("run"), Step::Key("start_timeout")];
            self.complain(&path, "`start_timeout` must be longer than zero", "write \"60s\", for example");
        }
        RunRules {
            settings: Settings {
                start_timeout: written.start_timeout.0.0,
                stop_grace: written.stop_grace.0.0,
                backoff: written.backoff.0.0,
                max_backoff: written.max_backoff.0.0,
                max_restarts: written.max_restarts,
                stable_after: written.stable_after.0.0,
            },
            hang_timeout,
            output: written.output,
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_policy::supervisor::{MOST_SILENT, SHORT_GRACE};

    use super::*;

    #[test]
    fn an_app_that_hangs_is_killed_within_17_seconds_by_default() {
        let run = Run::default();
        let hang = run.hang_timeout.0.0.unwrap().0;
        // It may stop just after a sign of life: then an interval passes before the first one that is silent.
        let until_found = hang / MOST_SILENT * (MOST_SILENT + 1);
        assert!(until_found + run.stop_grace.0.0.min(SHORT_GRACE) + run.backoff.0.0 < Duration::from_secs(17));
    }
}
