//! `outrigger backtest`: replays recorded traffic against another configuration.
//!
//! Exit codes: 0 success; 1 failure; 2 rejections rise by more than `--fail-if-refusals-rise`; 78 invalid configuration.

mod from_audit;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use outrigger_backtest::picture;
use outrigger_backtest::replay::{self, Question};
use outrigger_backtest::report::Report;
use outrigger_backtest::source::{RecordSource, Source};
use outrigger_rules::config::Config;

use self::from_audit::AuditSource;
use crate::cli::audit::requests::Wanted;
use crate::cli::audit::{Url, moment};

/// Exit code: rejections rise.
const REFUSALS_RISE: u8 = 2;

/// Options of `outrigger backtest`.
#[derive(Debug, Args)]
pub struct Options {
    /// The proposed configuration.
    new: PathBuf,
    /// The configuration that was in force. Default: the one of --config.
    #[arg(long, value_name = "FILE")]
    old: Option<PathBuf>,
    /// The directory of the traffic record. Default: traffic.directory of the configuration in force.
    #[arg(long, value_name = "DIRECTORY")]
    traffic: Option<PathBuf>,
    /// Read the audit log instead of the traffic record: it has only the requests that it is configured to have.
    #[arg(long, conflicts_with = "traffic")]
    audit: bool,
    /// Read the audit log in PostgreSQL. Without a URL, OUTRIGGER_AUDIT_DATABASE_URL is used, else DATABASE_URL: this keeps the password out
    /// of the process list.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "", conflicts_with = "traffic")]
    database: Option<Url>,
    /// Only the audit log's entries of this Machine.
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// Requests from then on: RFC 3339, or how long ago, such as 2h or 30d.
    #[arg(long, value_name = "TIME", value_parser = moment, default_value = "24h")]
    since: Timestamp,
    /// Requests before then. Default: now.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// The number of Machines that share rate limits through Redis.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    machines: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write a picture of the rejections over time, as SVG.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Exit with 2 if the proposed rules reject more requests than those in force, by more than this share of all requests.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    fail_if_refusals_rise: Option<f64>,
}

/// Parses `1%` or `0.5%`.
fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    let percent = number.filter(|percent| (0.0..=100.0).contains(percent));
    percent.map(|percent| percent / 100.0).ok_or_else(|| "write a share of all requests, such as 1%".to_owned())
}

/// Runs the command.
pub fn run(named: Option<&Path>, options: &Options) -> ExitCode {
    let (in_force, proposed) =
        match (super::load_alone(options.old.as_deref().or(named)), super::load_alone(Some(&options.new))) {
            (Ok(in_force), Ok(proposed)) => (in_force, proposed),
            (Err(e), _) | (_, Err(e)) => return super::refuse(&e),
        };
    match report(options, &in_force, &proposed) {
        Ok(report) => show(options, &report),
        Err(e) => super::fail(&e),
    }
}

/// The time before `--since` that is replayed, too.
const WARM_UP: SignedDuration = SignedDuration::from_nanos(replay::WARM_UP_NS as i64);

fn report(options: &Options, in_force: &Config, proposed: &Config) -> Result<Report, String> {
    let until = options.until.unwrap_or_else(Timestamp::now);
    if until <= options.since {
        return Err(format!("--until ({until}) is not after --since ({})", options.since));
    }
    let ns = |time: Timestamp| u64::try_from(time.as_nanosecond()).unwrap_or_default();
    let question =
        Question { in_force, proposed, between: (ns(options.since), ns(until)), machines: options.machines.max(1) };
    let source: Box<dyn Source> = if options.audit || options.database.is_some() {
        Box::new(AuditSource::read(&Wanted {
            directory: in_force.audit.as_ref().map(|audit| audit.directory.clone()),
            database: options.database.clone(),
            since: options.since - WARM_UP,
            until,
            machine: options.machine.clone(),
        })?)
    } else {
        Box::new(RecordSource::new(options.traffic.as_deref().unwrap_or(&in_force.traffic.directory)))
    };
    replay::run(&*source, question).map_err(|e| e.to_string())
}

fn show(options: &Options, report: &Report) -> ExitCode {
    if let Some(file) = &options.picture
        && let Err(e) = fs::write(file, picture::svg(report))
    {
        return super::fail(&format_args!("writing {}: {e}", file.display()));
    }
    let shown = if options.json {
        match serde_json::to_string_pretty(report) {
            Ok(json) => super::say(&format!("{json}\n")),
            Err(e) => super::fail(&e),
        }
    } else {
        super::say(&text::of(report))
    };
    match options.fail_if_refusals_rise {
        Some(most) if text::rise(report) > most => {
            let (rise, most) = (text::percent(text::rise(report)), text::percent(most));
            let _ = super::fail(&format_args!("rejections rise by {rise} of all requests, more than {most}"));
            ExitCode::from(REFUSALS_RISE)
        }
        _ => shown,
    }
}
