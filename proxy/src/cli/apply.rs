//! `outrigger reload`, `apply` and `confirm`: changes of a running proxy's configuration, through its admin listener.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use http::Method;
use outrigger_rules::load::read;
use outrigger_rules::units::Span;
use serde_json::{Value, json};

use super::admin::{self, AdminError, At};

const TIMEOUT: Duration = Duration::from_secs(10);
/// How often the proxy is asked whether the change is still in force.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Options of `outrigger reload`.
#[derive(Debug, Args)]
pub struct ReloadOptions {
    /// Without probation, and also if this content was taken back before.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: At,
}

/// Options of `outrigger apply`.
#[derive(Debug, Args)]
pub struct ApplyOptions {
    /// The new configuration. The file that the proxy watches is not changed.
    file: PathBuf,
    /// Take the change back unless it is confirmed within this time, such as 120s.
    #[arg(long, value_name = "TIME")]
    confirm: Option<String>,
    /// Do not ask for the confirmation: `outrigger confirm` gives it.
    #[arg(long, requires = "confirm")]
    no_wait: bool,
    /// Without probation, and also if this content was taken back before.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: At,
}

/// Options of `outrigger confirm`.
#[derive(Debug, Args)]
pub struct ConfirmOptions {
    #[command(flatten)]
    at: At,
}

/// Runs `outrigger reload`.
pub fn reload(named: Option<&Path>, options: &ReloadOptions) -> ExitCode {
    with_address(named, &options.at, |address| {
        match post(address, "/config/reload", Some(&json!({ "force": options.force }))) {
            Ok(answer) => super::say(&in_force(&answer)),
            Err(e) => super::fail(&e),
        }
    })
}

/// Runs `outrigger confirm`.
pub fn confirm(named: Option<&Path>, options: &ConfirmOptions) -> ExitCode {
    with_address(named, &options.at, confirm_at)
}

/// Runs `outrigger apply`.
pub fn apply(named: Option<&Path>, options: &ApplyOptions) -> ExitCode {
    if let Some(text) = options.confirm.as_ref().filter(|text| text.parse::<Span>().is_err()) {
        return super::fail(&format_args!("{text:?} is not a time: write \"120s\" or \"5m\""));
    }
    let text = match read(&options.file) {
        Ok(text) => text,
        Err(e) => return super::refuse(&e),
    };
    with_address(named, &options.at, |address| {
        let order = json!({ "text": text, "confirm": options.confirm, "force": options.force });
        let answer = match post(address, "/config/apply", Some(&order)) {
            Ok(answer) => answer,
            Err(e) => return super::fail(&e),
        };
        let file = options.file.display();
        let keep = format!(
            "It is in this process only: a restart, or a change of the file that the proxy watches, ends it. To keep it, write {file} over \
             that file.\n"
        );
        let Some(seconds) = answer["confirm_s"].as_f64() else {
            return super::say(&format!("{}{keep}", in_force(&answer)));
        };
        let asks = !options.no_wait && io::stdin().is_terminal();
        let how = if asks { "press Enter" } else { "run `outrigger confirm`" };
        let said = format!("{}{keep}It is taken back in {seconds} s: {how} to confirm it.\n", in_force(&answer));
        let code = super::say(&said);
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        if asks { ask(address, until, answer["version"].as_u64()) } else { code }
    })
}

/// Waits for Enter, until the change is no longer in force. The end of the input does not confirm it.
fn ask(address: SocketAddr, until: Instant, version: Option<u64>) -> ExitCode {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            // The other end may be gone.
            let _ = sender.send(());
        }
        // Ends with the process.
        thread::park();
    });
    while Instant::now() < until {
        match lines.recv_timeout(LOOK_EVERY) {
            Ok(()) => return confirm_at(address),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let status = admin::request(address, &Method::GET, "/status", None, TIMEOUT).unwrap_or_default();
        let config = &status["config"];
        if let Some(text) =
            config["undone"]["text"].as_str().filter(|_| config["undone"]["version"].as_u64() == version)
        {
            return super::fail(&format_args!("it was taken back: {text}"));
        }
    }
    super::fail(&"it is taken back: it was not confirmed in time")
}

fn confirm_at(address: SocketAddr) -> ExitCode {
    match post(address, "/config/confirm", None) {
        Ok(answer) => super::say(&match answer["probation_s"].as_f64() {
            Some(left) => format!("confirmed; its probation lasts another {left:.0} s\n"),
            None => "confirmed\n".to_owned(),
        }),
        Err(e) => super::fail(&e),
    }
}

fn in_force(answer: &Value) -> String {
    let version = &answer["version"];
    match answer["probation_s"].as_f64() {
        Some(seconds) => format!("configuration {version} is in force, and on probation for {seconds} s\n"),
        None => format!("configuration {version} is in force, without probation\n"),
    }
}

fn with_address(named: Option<&Path>, at: &At, then: impl FnOnce(SocketAddr) -> ExitCode) -> ExitCode {
    match at.address(named) {
        Ok(address) => then(address),
        Err(e) => super::refuse(&e),
    }
}

fn post(address: SocketAddr, path: &str, body: Option<&Value>) -> Result<Value, AdminError> {
    admin::request(address, &Method::POST, path, body, TIMEOUT)
}
