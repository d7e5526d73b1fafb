//! The commands. Exit codes: 0 done, 1 failed, 78 the configuration is wrong (`EX_CONFIG` of sysexits.h). `audit` has more.

mod audit;

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::{Config, process_environment};
use crate::explain::{explain, field};

/// The exit code of a wrong configuration.
const EX_CONFIG: u8 = 78;

/// A resilience sidecar: stands in front of a web app and keeps it answering.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration.
    #[arg(long, global = true, env = "OUTRIGGER_CONFIG", default_value = "config/proxy.toml", value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM; the default.
    Run,
    /// Say everything that is wrong with a configuration; exit 78 if anything is.
    Check {
        /// Instead of --config.
        file: Option<PathBuf>,
    },
    /// Say what the configuration would do with a request.
    Explain {
        /// Such as GET.
        method: String,
        /// Such as /api/v1/documents.
        path: String,
        /// A field of the request; may be given several times.
        #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = field)]
        headers: Vec<(HeaderName, HeaderValue)>,
        /// The address at the other end of the connection: a client's, or that of the proxy in front.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
        from: IpAddr,
    },
    /// Verify, search, export and erase what the audit trail knows.
    #[command(subcommand)]
    Audit(Box<audit::Audit>),
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => run(&cli.config),
        Command::Check { file } => check(&file.unwrap_or(cli.config)),
        Command::Explain { method, path, headers, from } => with_config(&cli.config, |config| {
            let mut fields = HeaderMap::new();
            for (name, value) in headers {
                fields.append(name, value);
            }
            match explain(config, from, &method, &path, &fields) {
                Ok(text) => say(&text),
                Err(e) => fail(&e),
            }
        }),
        Command::Audit(what) => audit::main(&cli.config, *what),
        Command::Schema => match serde_json::to_string_pretty(&crate::config::schema()) {
            Ok(text) => say(&format!("{text}\n")),
            Err(e) => fail(&e),
        },
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut script);
            say(&String::from_utf8_lossy(&script))
        }
    }
}

fn run(file: &Path) -> ExitCode {
    match Config::load(file, &process_environment) {
        Ok(config) => match crate::run(config, file) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => fail(&e),
        },
        Err(e) => refuse(&e),
    }
}

fn check(file: &Path) -> ExitCode {
    let shown = file.display().to_string();
    with_config(file, |config| {
        // The health endpoints and the default are always there.
        let routes = config.routes.all().len() - crate::route::BUILT_IN.len() - 1;
        for warning in &config.warnings {
            // Standard error that is gone cannot be told about.
            let _ = writeln!(io::stderr(), "warning: {warning}");
        }
        let limits = if config.limits_unset { "; rate limits are in monitor: there is no [rate_limits]" } else { "" };
        say(&format!("{shown}: in order, {routes} routes{limits}\n"))
    })
}

fn with_config(file: &Path, then: impl FnOnce(&Config) -> ExitCode) -> ExitCode {
    match Config::load(file, &process_environment) {
        Ok(config) => then(&config),
        Err(e) => refuse(&e),
    }
}

fn refuse(error: &crate::config::ConfigError) -> ExitCode {
    // Standard error that is gone cannot be told about.
    let _ = write!(io::stderr(), "{error}");
    ExitCode::from(EX_CONFIG)
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "outrigger: {error}");
    ExitCode::FAILURE
}

fn say(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough, such as `head`, is no failure.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}
