//! `outrigger pause`, `resume` and `maintenance`: orders for a running proxy, through its admin listener.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use http::Method;
use outrigger_rules::units::Span;
use serde_json::{Value, json};

use super::admin::{self, At};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Options of `outrigger pause`.
#[derive(Debug, Args)]
pub struct PauseOptions {
    /// How long requests wait at most, up to 10m.
    #[arg(long = "for", value_name = "TIME", default_value = "30s")]
    length: String,
    #[command(flatten)]
    at: At,
}

/// Options of `outrigger resume`.
#[derive(Debug, Args)]
pub struct ResumeOptions {
    #[command(flatten)]
    at: At,
}

/// Options of `outrigger maintenance`.
#[derive(Debug, Args)]
pub struct MaintenanceOptions {
    /// Whether requests are refused.
    order: Order,
    #[command(flatten)]
    at: At,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    On,
    Off,
}

/// Runs `outrigger pause`.
pub fn pause(named: Option<&Path>, options: &PauseOptions) -> ExitCode {
    // Units as in the file; the proxy checks the bound.
    if options.length.parse::<Span>().is_err() {
        return super::fail(&format_args!("{:?} is not a length: write \"30s\" or \"2m\"", options.length));
    }
    ask(named, &options.at, "/pause", Some(&json!({ "for": options.length })), |answer| {
        let seconds = answer["for_s"].as_f64().unwrap_or_default();
        format!("requests wait, for at most {seconds} s; `outrigger resume` ends it\n")
    })
}

/// Runs `outrigger resume`.
pub fn resume(named: Option<&Path>, options: &ResumeOptions) -> ExitCode {
    ask(named, &options.at, "/resume", None, |answer| {
        let number = |name: &str| answer[name].as_u64().unwrap_or_default();
        let (seconds, held) = (number("paused_ms") as f64 / 1000.0, number("held_requests"));
        format!("requests go on after {seconds:.1} s, {held} requests waited\n")
    })
}

/// Runs `outrigger maintenance`.
pub fn maintenance(named: Option<&Path>, options: &MaintenanceOptions) -> ExitCode {
    let is_on = matches!(options.order, Order::On);
    ask(named, &options.at, "/maintenance", Some(&json!({ "on": is_on })), |_| {
        let text = if is_on { "requests are refused with 503" } else { "requests are served again" };
        format!("{text}\n")
    })
}

fn ask(
    named: Option<&Path>,
    at: &At,
    path: &str,
    body: Option<&Value>,
    told: impl FnOnce(&Value) -> String,
) -> ExitCode {
    let address = match at.address(named) {
        Ok(address) => address,
        Err(e) => return super::refuse(&e),
    };
    match admin::request(address, &Method::POST, path, body, TIMEOUT) {
        Ok(answer) => super::say(&told(&answer)),
        Err(e) => super::fail(&e),
    }
}
