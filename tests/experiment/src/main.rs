//! The availability experiment: an hour of faults in minutes, against one bare app, three, and three with Outrigger.
//!
//! ```text
//! script.rs    the faults and requests with their times: the same for every side                        (pure)
//! clock.rs     how an hour becomes four minutes                                                         (pure)
//! app.rs       the app: its own process, with few workers and a short queue
//! machines.rs  Machines made of real processes, started, stopped and killed
//! load.rs      clients in an open loop
//! side.rs      one side from its first process to its last request
//! numbers.rs   statistics of the requests                                                               (pure)
//! report.rs    the document                                                                             (pure)
//! plot.rs      the pictures
//! ```

mod app;
mod clock;
mod load;
mod machines;
mod numbers;
mod plot;
mod report;
mod script;
mod side;

use std::fs;
use std::path::PathBuf;
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
    /// Only these sides: `one`, `three`, `outrigger`, `outrigger-no-retry`.
    #[arg(long, value_enum, value_delimiter = ',')]
    sides: Vec<Form>,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
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
    let forms = if arguments.sides.is_empty() { Form::ALL.to_vec() } else { arguments.sides.clone() };
    let state = paths::state("experiment")?;
    let mut sides: Vec<Side> = Vec::new();
    for form in forms {
        let side = side::run(form, &script, arguments.seed, &state)?;
        say(report::summary(&side));
        let log = state.join(format!("failures-{}.tsv", form.name()));
        fs::write(&log, report::failures(&side, &script)).while_(format_args!("writing {}", log.display()))?;
        say(format_args!("every failed request is in {}", log.display()));
        sides.push(side);
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
    fs::write(&document, report::document(&sides, &script, arguments.seed))
        .while_(format_args!("writing {}", document.display()))?;
    say(format_args!("the document is {}", document.display()));
    Ok(())
}

/// Time limit for events that should be immediate, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
