//! The command line. Exit codes: 0 success, 1 failure, 78 invalid configuration (`EX_CONFIG` of sysexits.h). `audit` and `diff` have
//! more.

mod admin;
mod apply;
mod audit;
mod backtest;
mod check;
mod config;
mod diff;
mod explain;
mod launch;
mod pause;
mod restart;
mod status;
mod why;

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand};
use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_rules::config::Config;
use outrigger_rules::environment::Given;
use outrigger_rules::error::ConfigError;
use outrigger_rules::explain::field;
use outrigger_rules::own::OwnListeners;

use self::explain::explain;
use self::launch::LaunchError;
use crate::mechanism::saved::choose_seed;
use crate::start::Launch;
use crate::transport::upstream::checked::Checked;

/// The exit code for an invalid configuration.
const EX_CONFIG: u8 = 78;

/// A resilience sidecar for web apps: a reverse proxy that keeps an app responding.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration file. Default: config/proxy.toml; if it does not exist, all settings have their defaults.
    #[arg(long, global = true, env = "OUTRIGGER_CONFIG", value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM; the default. With a command, run the app, too.
    Run(launch::Options),
    /// Restart the app that `outrigger run -- COMMAND` has started; requests wait meanwhile.
    Restart(restart::Options),
    /// Let new requests wait, for a deploy; those that the app has may finish.
    Pause(pause::PauseOptions),
    /// End a pause.
    Resume(pause::ResumeOptions),
    /// Refuse all requests with 503, or end that.
    Maintenance(pause::MaintenanceOptions),
    /// Read the configuration file again, as after a change.
    Reload(apply::ReloadOptions),
    /// Bring a configuration into force without writing the file, for a time if it is not confirmed.
    Apply(apply::ApplyOptions),
    /// Confirm what `outrigger apply --confirm` has brought into force.
    Confirm(apply::ConfirmOptions),
    /// Show how things are: one summary of a running proxy, or of all Machines.
    Status(status::Options),
    /// Watch it in the terminal.
    Top(status::Options),
    /// Tell why a request was refused, retried or sent elsewhere.
    Why(Box<why::Options>),
    /// Check a configuration and report all problems; exit with 78 if there are errors.
    Check(check::Options),
    /// Print the configuration in force, with the origin of each value; secrets are hidden.
    Config(config::Options),
    /// Tell what changes in meaning between two configurations; exit with 1 if something does.
    Diff(diff::Options),
    /// Replay recorded traffic against another configuration, beside the one in force: which requests would be rejected.
    Backtest(Box<backtest::Options>),
    /// Explain how the configuration handles a request.
    Explain {
        /// The method, such as GET.
        method: String,
        /// The path, such as /api/v1/documents.
        path: String,
        /// A header of the request; may be given several times.
        #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = field)]
        headers: Vec<(HeaderName, HeaderValue)>,
        /// The remote address of the connection: a client's, or that of the proxy in front.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
        from: IpAddr,
    },
    /// Verify, search, export and erase the audit log.
    #[command(subcommand)]
    Audit(Box<audit::Audit>),
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command, such as outrigger-run.1.
    Man {
        /// An existing directory.
        directory: PathBuf,
    },
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // An empty variable does not name a file.
    let named = cli.config.filter(|file| !file.as_os_str().is_empty());
    match cli.command.unwrap_or_else(|| Command::Run(launch::Options::default())) {
        Command::Run(options) => run(named.as_deref(), &options),
        Command::Restart(options) => restart::run(named.as_deref(), &options),
        Command::Pause(options) => pause::pause(named.as_deref(), &options),
        Command::Resume(options) => pause::resume(named.as_deref(), &options),
        Command::Maintenance(options) => pause::maintenance(named.as_deref(), &options),
        Command::Reload(options) => apply::reload(named.as_deref(), &options),
        Command::Apply(options) => apply::apply(named.as_deref(), &options),
        Command::Confirm(options) => apply::confirm(named.as_deref(), &options),
        Command::Status(options) => status::run(named.as_deref(), &options),
        Command::Top(options) => status::top(named.as_deref(), &options),
        Command::Why(options) => why::run(named.as_deref(), *options),
        Command::Check(options) => check::run(options.file.clone().or(named).as_deref(), &options),
        Command::Config(options) => with_config(named.as_deref(), |config| config::run(config, &options)),
        Command::Diff(options) => diff::run(named.as_deref(), &options),
        Command::Backtest(options) => backtest::run(named.as_deref(), &options),
        Command::Explain { method, path, headers, from } => with_config(named.as_deref(), |config| {
            let mut fields = HeaderMap::new();
            for (name, value) in headers {
                fields.append(name, value);
            }
            match explain(config, from, &method, &path, &fields) {
                Ok(text) => say(&text),
                Err(e) => fail(&e),
            }
        }),
        Command::Audit(what) => audit::main(named.as_deref().unwrap_or(Path::new(DEFAULT_FILE)), *what),
        Command::Schema => say(&outrigger_rules::published::text()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut script);
            say(&String::from_utf8_lossy(&script))
        }
        Command::Man { directory } => match clap_mangen::generate_to(Cli::command(), &directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => fail(&format_args!("writing to {}: {e}", directory.display())),
        },
    }
}

/// The configuration file, unless another one is named.
const DEFAULT_FILE: &str = "config/proxy.toml";
/// How long the start waits for the addresses of names before it continues without them.
const START_PATIENCE: Duration = Duration::from_millis(300);
/// The same for `check`, which can wait for longer.
const CHECK_PATIENCE: Duration = Duration::from_secs(2);

/// The configuration file, and whether to load it. A named file must exist; the default file may be missing.
fn configuration(named: Option<&Path>) -> (&Path, bool) {
    let file = named.unwrap_or(Path::new(DEFAULT_FILE));
    let is_missing = || std::fs::metadata(file).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    (file, named.is_some() || !is_missing())
}

fn load(named: Option<&Path>, given: &Given, patience: Duration) -> Result<Checked, ConfigError> {
    let environment = |name: &str| given.and_environment(name);
    match configuration(named) {
        (file, true) => Checked::load(file, &environment, patience, &OwnListeners::default()),
        (file, false) => Checked::without_file(file, &environment, patience),
    }
}

/// Like [`load`], for commands that open no connections: names are not resolved.
fn load_alone(named: Option<&Path>) -> Result<Config, ConfigError> {
    load_given(named, &Given::default())
}

fn load_given(named: Option<&Path>, given: &Given) -> Result<Config, ConfigError> {
    let environment = |name: &str| given.and_environment(name);
    match configuration(named) {
        (file, true) => Config::load(file, &environment),
        (file, false) => Config::parse(file, "", &environment),
    }
}

fn run(named: Option<&Path>, options: &launch::Options) -> ExitCode {
    // A configuration that does not load is refused below.
    let listeners = |given: &Given| {
        load_given(named, given).map_or_else(|_| Vec::new(), |config| OwnListeners::of(&config).ports())
    };
    let given = match options.given(listeners) {
        Ok(given) => given,
        Err(e @ LaunchError::Port(_)) => {
            fail(&e);
            return ExitCode::from(EX_CONFIG);
        }
        Err(e) => return fail(&e),
    };
    // Hashes in the configuration depend on the seed, and the configuration names the file with the seed.
    if let Ok(Config { state: Some(rules), this, .. }) = load_given(named, &given) {
        choose_seed(&rules, this.as_ref());
    }
    let (file, _) = configuration(named);
    match load(named, &given, START_PATIENCE) {
        Ok(checked) => {
            let command = options.command(&checked.config.app.address);
            match crate::start::run(checked, file, Launch { command, given }) {
                Ok(code) => ExitCode::from(code.0),
                Err(e) => fail(&e),
            }
        }
        Err(e) => refuse(&e),
    }
}

fn with_config(named: Option<&Path>, then: impl FnOnce(&Config) -> ExitCode) -> ExitCode {
    match load_alone(named) {
        Ok(config) => then(&config),
        Err(e) => refuse(&e),
    }
}

fn refuse(error: &ConfigError) -> ExitCode {
    // If standard error is closed, the message is lost. Colours are for terminals only, and not with NO_COLOR.
    let _ = write!(anstream::stderr(), "{}", error.styled());
    ExitCode::from(EX_CONFIG)
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "outrigger: {error}");
    ExitCode::FAILURE
}

fn say(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that stops early, such as `head`, is not a failure.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}
