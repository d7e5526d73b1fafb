//! The availability experiment: an hour of faults in minutes, against one bare app, three, three with Outrigger, and as many as
//! fly-autoscaler chooses.
//!
//! ```text
//! script.rs      the faults and requests with their times: the same for every side                      (pure)
//! clock.rs       how an hour becomes four minutes                                                       (pure)
//! app.rs         the app: its own process, with few workers and a short queue
//! machines.rs    Machines made of real processes, started, stopped and killed
//! load.rs        clients in an open loop
//! platform.rs    what Fly measures of Machines
//! prometheus.rs  a real one, which scrapes platform and proxies
//! autoscaler.rs  fly-autoscaler: its rules, with Prometheus' answers
//! side.rs        one side from its first process to its last request
//! numbers.rs     statistics of the requests                                                             (pure)
//! failures.rs    each failed request, its reason, and what the logs say of it
//! report.rs      the document: the results                                                              (pure)
//! setup.rs       the document: what was run, and how to read the results                                (pure)
//! plot.rs        the pictures
//! ```

mod app;
mod autoscaler;
mod clock;
mod failures;
mod load;
mod machines;
mod numbers;
mod platform;
mod plot;
mod prometheus;
mod report;
mod script;
mod setup;
mod side;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use xtask::error::While;
use xtask::{Result, paths, say};

use crate::script::Script;
use crate::side::{Form, Side};

/// Runs the same hour of faults, compressed, against an app without and with Outrigger.
#[derive(Debug, Parser)]
#[command(name = "outrigger-experiment", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// A few seconds for each side, to check that everything works; the document is not changed.
    #[arg(long)]
    quick: bool,
    /// Directory for the document and its pictures. Unset: `docs`, or with --quick `target/experiment`.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only these sides: `one`, `three`, `outrigger`, `outrigger-no-retry`, `autoscaled`.
    #[arg(long, value_enum, value_delimiter = ',')]
    sides: Vec<Form>,
    /// Seeds of the random numbers. The main figures are those of the first; the others are for the sides of --sides, unset: for
    /// `outrigger`.
    #[arg(long, value_delimiter = ',', default_values_t = [1_u64])]
    seeds: Vec<u64>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The app, as the experiment starts it.
    App(app::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Command::App(app)) => app::run(&app),
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
    let script = if arguments.quick { Script::short() } else { Script::hour() };
    let state = paths::state("experiment")?;
    let or = |all: &[Form]| if arguments.sides.is_empty() { all.to_vec() } else { arguments.sides.clone() };
    let mut sides: Vec<Side> = Vec::new();
    let mut others: Vec<Side> = Vec::new();
    for (number, seed) in arguments.seeds.iter().enumerate() {
        let is_first = number == 0;
        for form in if is_first { or(&Form::ALL) } else { or(&[Form::Outrigger]) } {
            let side = one_side(form, &script, *seed, is_first, &state)?;
            if is_first { &mut sides } else { &mut others }.push(side);
        }
    }
    let out = match (&arguments.out, arguments.quick) {
        (Some(out), _) => out.clone(),
        (None, true) => state,
        (None, false) => paths::root().join("docs"),
    };
    let pictures = out.join("experiment");
    fs::create_dir_all(&pictures).while_(format_args!("creating {}", pictures.display()))?;
    plot::all(&pictures, &sides, &script)?;
    let document = out.join("experiment.md");
    fs::write(&document, report::document(&sides, &others, &script))
        .while_(format_args!("writing {}", document.display()))?;
    say(format_args!("the document is {}", document.display()));
    Ok(())
}

/// Runs one side, and writes its failed requests.
fn one_side(form: Form, script: &Script, seed: u64, is_first: bool, state: &Path) -> Result<Side> {
    let name = if is_first { form.name().to_owned() } else { format!("{}-{seed}", form.name()) };
    let logs = state.join(&name);
    let side = side::run(form, script, seed, &logs)?;
    say(format_args!("{}{}", report::summary(&side, script), failures::summary(&side, script)));
    let table = state.join(format!("failures-{name}.tsv"));
    fs::write(&table, failures::table(&side, script, &logs)).while_(format_args!("writing {}", table.display()))?;
    say(format_args!("every failed request is in {}", table.display()));
    Ok(side)
}

/// Time limit for events that should be immediate, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
