//! `outrigger config`: the configuration as it is in force, with the origin of each value.

use std::process::ExitCode;

use clap::Args;
use outrigger_rules::config::Config;

use super::say;

/// Options of `outrigger config`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Leave out the values that are defaults.
    #[arg(long)]
    changed: bool,
}

/// Runs `outrigger config`.
pub fn run(config: &Config, options: &Options) -> ExitCode {
    let Some(effective) = &config.effective else { return ExitCode::SUCCESS };
    if options.json {
        return say(&format!("{:#}\n", effective.to_json(options.changed)));
    }
    let text = effective.to_toml(options.changed);
    say(text.trim_start_matches('\n'))
}
