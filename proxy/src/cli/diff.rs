//! `outrigger diff`: what changes in meaning between two files, or between the running proxy and a file. Exit codes as those of `diff`: 0
//! without changes, 1 with changes, 2 if they cannot be compared; 78 if a file is not valid.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use outrigger_rules::config::Config;
use outrigger_rules::diff::{Diff, Side, diff, running};
use outrigger_rules::environment::process_environment;
use outrigger_rules::load::Loaded;

use super::admin::{self, At};
use super::{refuse, say};

const TIMEOUT: Duration = Duration::from_secs(10);
/// The exit code when there are changes.
const CHANGES: u8 = 1;
/// The exit code when the configurations cannot be compared.
const TROUBLE: u8 = 2;

/// Options of `outrigger diff`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The old file; with only one file, this is the new one, and the old configuration is that of the running proxy.
    #[arg(value_name = "FILE")]
    first: PathBuf,
    /// The new file.
    #[arg(value_name = "NEW")]
    second: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

/// Runs `outrigger diff`.
pub fn run(named: Option<&Path>, options: &Options) -> ExitCode {
    let load = |file: &Path| Config::load(file, &process_environment);
    let changes = match &options.second {
        Some(second) => match (load(&options.first), load(second)) {
            (Ok(old), Ok(new)) => compare(&old, &new, &BTreeSet::new()),
            (Err(e), Ok(_)) | (Ok(_), Err(e)) => return refuse(&e),
            (Err(old), Err(new)) => {
                refuse(&old);
                return refuse(&new);
            }
        },
        None => match load(&options.first) {
            Ok(new) => match with_running(named, &options.at, &new) {
                Ok(changes) => changes,
                Err(e) => {
                    super::fail(&*e);
                    return ExitCode::from(TROUBLE);
                }
            },
            Err(e) => return refuse(&e),
        },
    };
    let text = match (options.json, serde_json::to_value(&changes)) {
        (true, Ok(json)) => format!("{json:#}\n"),
        _ => changes.to_string(),
    };
    let said = say(&text);
    if said == ExitCode::SUCCESS && !changes.is_empty() { ExitCode::from(CHANGES) } else { said }
}

fn compare(old: &Config, new: &Config, unknown: &BTreeSet<String>) -> Diff {
    diff(&Side::of(old), &Side::of(new), unknown, &process_environment)
}

/// Compares with the running proxy, whose admin listener shows the configuration without secrets.
fn with_running(named: Option<&Path>, at: &At, new: &Config) -> Result<Diff, Box<dyn std::error::Error>> {
    let address = at.address(named)?;
    let shown = admin::request(address, &Method::GET, "/config?changed=true", None, TIMEOUT)?;
    let (values, unknown) = running(&shown, new)?;
    let old = Loaded::of_values(&values, &process_environment)?;
    Ok(compare(&old.config, new, &unknown))
}

#[cfg(test)]
mod tests;
