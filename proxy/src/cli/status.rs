//! `outrigger status` and `outrigger top`: how a running proxy is, from the summary of its admin listener.
//!
//! ```text
//! tables.rs   the summary as tables of text, for both
//! screen.rs   `top` in a terminal
//! ```

mod screen;
mod tables;

use std::io::{self, IsTerminal, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde::Deserialize;
use serde_json::Value;

use super::admin::{self, AdminError, At};
use crate::cli::audit::text;
use crate::control::status::{Level, Status};

const TIMEOUT: Duration = Duration::from_secs(10);
/// `status` ends with this code if clients get errors, for scripts.
const BAD: u8 = 2;

/// Options of `outrigger status` and `outrigger top`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    #[command(flatten)]
    at: At,
    /// All Machines: this one, and its peers as they answer it.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A Machine and its summary, or why there is none.
#[derive(Clone, Debug, Deserialize)]
struct Machine {
    name: Option<String>,
    status: Option<Box<Status>>,
    error: Option<String>,
}

impl Machine {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("this Machine")
    }
}

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
enum NoStatus {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("the proxy's response is not one of this version: {0}")]
    Version(#[from] serde_json::Error),
}

fn asked(address: SocketAddr, all: bool) -> Result<Value, AdminError> {
    admin::request(address, &Method::GET, if all { "/status/all" } else { "/status" }, None, TIMEOUT)
}

fn machines(address: SocketAddr, all: bool) -> Result<Vec<Machine>, NoStatus> {
    parsed(asked(address, all)?, all)
}

fn parsed(answer: Value, all: bool) -> Result<Vec<Machine>, NoStatus> {
    if all {
        return Ok(serde_json::from_value(answer["machines"].clone())?);
    }
    let status: Box<Status> = serde_json::from_value(answer)?;
    Ok(vec![Machine { name: status.machine.clone(), status: Some(status), error: None }])
}

/// Runs `outrigger status`: exits with 2 if clients get errors.
pub fn run(named: Option<&Path>, options: &Options) -> ExitCode {
    let address = match options.at.address(named) {
        Ok(address) => address,
        Err(e) => return super::refuse(&e),
    };
    let answer = match asked(address, options.all) {
        Ok(answer) => answer,
        Err(e) => return super::fail(&e),
    };
    let machines = match parsed(answer.clone(), options.all) {
        Ok(machines) => machines,
        Err(e) => return super::fail(&e),
    };
    let said = match options.json {
        true => super::say(&format!("{}\n", text::safe_json(&answer.to_string()))),
        false => super::say(&as_text(&machines)),
    };
    let is_bad = |machine: &Machine| machine.status.as_ref().is_some_and(|status| status.headline.level == Level::Bad);
    if machines.iter().any(is_bad) { ExitCode::from(BAD) } else { said }
}

/// Runs `outrigger top`: in a terminal until `q`; else prints the summary once.
pub fn top(named: Option<&Path>, options: &Options) -> ExitCode {
    if options.json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return run(named, options);
    }
    let address = match options.at.address(named) {
        Ok(address) => address,
        Err(e) => return super::refuse(&e),
    };
    // A proxy that is not there is an error now, not an empty screen.
    let first = match machines(address, options.all) {
        Ok(machines) => machines,
        Err(e) => return super::fail(&e),
    };
    match screen::run(first, address, options.all) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr());
            super::fail(&e)
        }
    }
}

/// The summaries as text, one after the other.
fn as_text(machines: &[Machine]) -> String {
    let mut out = String::new();
    for machine in machines {
        if machines.len() > 1 {
            out.push_str(&format!("== {} ==\n", text::safe(machine.name())));
        }
        match (&machine.status, &machine.error) {
            (Some(status), _) => out.push_str(&tables::text(status)),
            (None, error) => {
                out.push_str(&format!("no answer: {}\n", text::safe(error.as_deref().unwrap_or("unknown"))));
            }
        }
        out.push('\n');
    }
    out
}
