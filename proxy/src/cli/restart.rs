//! `outrigger restart`: restarts the app of a running proxy, through its admin listener.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;

use super::admin::{self, At};

/// The app may take long to stop and to start, as long as it is configured.
const TIMEOUT: Duration = Duration::from_mins(15);

/// Options of `outrigger restart`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    at: At,
}

/// Runs the command.
pub fn run(named: Option<&Path>, options: &Options) -> ExitCode {
    let address = match options.at.address(named) {
        Ok(address) => address,
        Err(e) => return super::refuse(&e),
    };
    match admin::request(address, &Method::POST, "/app/restart", None, TIMEOUT) {
        Ok(answer) => {
            let number = |name: &str| answer[name].as_u64().unwrap_or_default();
            let (pid, took, held) = (number("pid"), number("took_ms") as f64 / 1000.0, number("held_requests"));
            super::say(&format!("the app is restarted, as process {pid}: {took:.1} s, {held} requests waited\n"))
        }
        Err(e) => super::fail(&e),
    }
}
