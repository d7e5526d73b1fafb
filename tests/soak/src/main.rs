//! The soak: mixed traffic and faults for half an hour, or for days, while nothing may grow and nothing may fail unexpectedly.
//!
//! ```text
//! content.rs   bodies that follow from an id, and checksums                                               (pure)
//! judge.rs     kinds of requests, and which failures are expected                                         (pure)
//! slope.rs     whether a measurement grows                                                                (pure)
//! faults.rs    the faults with their times                                                                (pure)
//! app.rs       the app: a process of its own, which hangs, crashes, is slow and resets connections
//! machines.rs  three Machines of real processes
//! client.rs    a connection over HTTP/1.1 or HTTP/2
//! traffic.rs   the clients, which check every response
//! websocket.rs frames of WebSocket                                                                        (pure)
//! sample.rs    memory, descriptors and threads, once a second
//! soak.rs      a soak from its first process to its verdict
//! hangs.rs     the thousand hangs
//! report.rs    the figures in the document                                                                (pure)
//! plot.rs      the pictures
//! ```

mod app;
mod client;
mod content;
mod faults;
mod hangs;
mod judge;
mod machines;
mod plot;
mod report;
mod sample;
mod slope;
mod soak;
mod traffic;
mod websocket;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tokio::task::spawn_blocking;
use xtask::error::While;
use xtask::{Error, Postgres, Result, paths, say};

use crate::machines::Machines;

/// Runs mixed traffic and faults against three proxies, and checks that nothing grows and nothing fails unexpectedly.
#[derive(Debug, Parser)]
#[command(name = "outrigger-soak", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// For how long.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// For how long, instead of --minutes.
    #[arg(long)]
    hours: Option<u64>,
    /// A minute, to check that everything works; slopes are not judged, and the document is not changed.
    #[arg(long)]
    quick: bool,
    /// Instead: hangs of one app of three, this many.
    #[arg(long, num_args = 0..=1, default_missing_value = "1000")]
    hangs: Option<u32>,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Directory for the document and its pictures. Unset: `docs`, or with --quick `target/soak`.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The program of the proxy. Unset: `outrigger` next to this program, or in `target/release`.
    #[arg(long)]
    proxy: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The app, as the soak starts it.
    App(app::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        Some(Command::App(app)) => app::run(app),
        None => run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let state = paths::state("soak")?;
    let dir = state.join("run");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).while_(format_args!("creating {}", dir.display()))?;
    let postgres = Postgres::start(&state)?;
    postgres.drop_database("soak")?;
    postgres.create_database("soak")?;
    let program = outrigger(arguments)?;
    say(format_args!("three proxies of {}", program.display()));
    let machines = Machines::start(&program, &dir, Some(postgres.url("soak")))?;
    let threads = Builder::new_multi_thread().worker_threads(2).enable_all().build().while_("starting a runtime")?;
    let out = match (&arguments.out, arguments.quick) {
        (Some(out), _) => out.clone(),
        (None, true) => state.clone(),
        (None, false) => paths::root().join("docs"),
    };
    let outcome = match arguments.hangs {
        Some(number) => run_hangs(arguments, &threads, &machines, number, &out),
        None => run_soak(arguments, &threads, &machines, &state, &out),
    };
    threads.shutdown_timeout(Duration::from_secs(1));
    outcome
}

fn run_soak(arguments: &Arguments, threads: &Runtime, machines: &Machines, state: &Path, out: &Path) -> Result<()> {
    let minutes = arguments.hours.map_or(arguments.minutes, |hours| 60 * hours);
    let length = Duration::from_secs(60 * if arguments.quick { 1 } else { minutes });
    let found = threads.block_on(soak::run(machines, length, arguments.seed))?;
    let file = state.join("failures.tsv");
    fs::write(&file, report::failures(&found)).while_(format_args!("writing {}", file.display()))?;
    let pictures = out.join("soak");
    fs::create_dir_all(&pictures).while_(format_args!("creating {}", pictures.display()))?;
    plot::all(&pictures, &found)?;
    write(out, report::SOAK, &report::soak(&found))?;
    say(report::summary(&found));
    say(format_args!("every failed request is in {}", file.display()));
    if found.passes() { Ok(()) } else { Err(Error::new("the soak has failed; see above")) }
}

fn run_hangs(arguments: &Arguments, threads: &Runtime, machines: &Machines, number: u32, out: &Path) -> Result<()> {
    let (number, rest) = if arguments.quick { (number.min(20), 10) } else { (number, 60) };
    say(format_args!("{number} hangs"));
    let found = threads.block_on(hangs::run(machines, number, arguments.seed, Duration::from_secs(rest)))?;
    let text = report::hangs(&found);
    write(out, report::HANGS, &text)?;
    say(text);
    for failed in found.results.failed.iter().take(20) {
        say(report::failed(failed));
    }
    if found.passes() { Ok(()) } else { Err(Error::new("the hangs had effects that they must not have; see above")) }
}

/// Replaces one part of the document.
fn write(out: &Path, part: (&str, &str), text: &str) -> Result<()> {
    let document = out.join("soak.md");
    let template = paths::root().join("docs/soak.md");
    let from = if document.exists() { &document } else { &template };
    let before = fs::read_to_string(from).while_(format_args!("reading {}", from.display()))?;
    let after = report::replaced(&before, part, text).ok_or_else(|| {
        Error::new(format_args!("{} has no place for the figures: `{}` and `{}`", from.display(), part.0, part.1))
    })?;
    fs::write(&document, after).while_(format_args!("writing {}", document.display()))?;
    say(format_args!("the document is {}", document.display()));
    Ok(())
}

/// The proxy as it ships.
fn outrigger(arguments: &Arguments) -> Result<PathBuf> {
    let us = env::current_exe().while_("looking for this program")?;
    let beside = us.parent().unwrap_or(Path::new(".")).join("outrigger");
    let release = paths::target().join("release/outrigger");
    let all = arguments.proxy.iter().cloned().chain([beside, release]);
    all.into_iter().find(|path| path.exists()).ok_or_else(|| {
        Error::new("the program `outrigger` is not there").hint("run `cargo xtask soak`, which builds it")
    })
}

/// Runs `work` off the runtime: starting and stopping processes blocks.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::new(e)))
}

/// Time limit for events that should be immediate, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
