//! `outrigger check`: all problems of a configuration, for people, programs and code hosts.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use outrigger_rules::environment::{Given, unknown_variables};
use outrigger_rules::error::{ConfigError, Place, Problem};
use outrigger_rules::finding::{Finding, Rule, to_json, to_sarif};
use outrigger_rules::sections::route_table::BUILT_IN;

use super::{CHECK_PATIENCE, EX_CONFIG, configuration, load, refuse, say};
use crate::transport::upstream::checked::Checked;

/// Options of `outrigger check`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The configuration file, instead of --config.
    pub file: Option<PathBuf>,
    /// How the problems are printed: for people to standard error, for programs to standard output.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Print JSON: the same as --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Exit with 78 for warnings, too.
    #[arg(long)]
    deny_warnings: bool,
}

/// How problems are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// With the lines of the file.
    Text,
    /// One object.
    Json,
    /// SARIF 2.1.0, which code hosts and editors show at the lines.
    Sarif,
}

/// Runs `outrigger check`.
pub fn run(named: Option<&Path>, options: &Options) -> ExitCode {
    let (file, is_there) = configuration(named);
    let format = if options.json { Format::Json } else { options.format };
    let checked = load(named, &Given::default(), CHECK_PATIENCE);
    let referred = match &checked {
        Ok(checked) => checked.config.variables(),
        Err(e) => e.variables.iter().map(String::as_str).collect(),
    };
    let unknown = unknown_in_environment(file, &referred);
    let warnings = unknown.problems.len() + checked.as_ref().map_or(0, |checked| checked.config.warnings.len());
    let is_refused = checked.is_err() || (options.deny_warnings && warnings > 0);
    let code = if is_refused { ExitCode::from(EX_CONFIG) } else { ExitCode::SUCCESS };
    if format != Format::Text {
        let mut findings = match &checked {
            Ok(checked) => checked.config.warnings.clone(),
            Err(e) => e.findings(),
        };
        findings.extend(unknown.findings());
        return say_findings(file, format, &findings, code);
    }
    let Checked { config, upstreams } = match checked {
        Ok(checked) => checked,
        Err(e) => {
            tell(&unknown.findings());
            return refuse(&e);
        }
    };
    tell(&config.warnings);
    tell(&unknown.findings());
    if is_refused {
        // If standard error is closed, the message is lost.
        let _ = writeln!(io::stderr(), "outrigger: warnings count as errors here, by --deny-warnings");
        return code;
    }
    // The health endpoints and the default route always exist.
    let routes = config.routes.all().len() - BUILT_IN.len() - 1;
    let shown = file.display();
    let limits = if config.limits_unset { "; rate limits are in monitor: there is no [rate_limits]" } else { "" };
    let mut text = if is_there {
        format!("{shown}: valid, {routes} routes{limits}\n")
    } else {
        format!("{shown} does not exist: all settings have their defaults{limits}\n")
    };
    for name in upstreams.unknown_names() {
        text.push_str(&format!("note: {name} has no address now; the lookup is repeated until it has one\n"));
    }
    say(&text)
}

fn say_findings(file: &Path, format: Format, findings: &[Finding], code: ExitCode) -> ExitCode {
    let json = match format {
        Format::Sarif => to_sarif(findings),
        Format::Json | Format::Text => to_json(&file.display().to_string(), findings),
    };
    let said = say(&format!("{json:#}\n"));
    if said == ExitCode::SUCCESS { code } else { said }
}

/// Prints warnings. If standard error is closed, they are lost.
fn tell(warnings: &[Finding]) {
    for warning in warnings {
        let _ = writeln!(io::stderr(), "{warning}");
    }
}

/// Warnings about variables with our prefix that do not exist.
fn unknown_in_environment(file: &Path, referred: &[&str]) -> ConfigError {
    let problem = |(name, meant): (String, Option<&'static str>)| {
        let hint = match meant {
            Some(meant) => format!("did you mean {meant}?"),
            None => "remove it; config/proxy.toml of the repository names the variables at their keys".to_owned(),
        };
        Problem::new(Place::Variable(name), "there is no such variable", hint).of(Rule::Suspicious)
    };
    ConfigError::new(file, "", unknown_variables(referred).into_iter().map(problem).collect())
}
