//! `cargo xtask soak`: everything that takes longer than CI may.

use std::{process::Command, thread};

use xtask::{Error, Result, Tool, error::While, paths, programs, say, tools};

use crate::{fuzz, suite};

/// For how long `--tests` fuzzes, in seconds.
const FUZZ_SECONDS: u64 = 2 * 60 * 60;

/// The soak itself, unless the first argument names something else.
pub fn run(args: &[String]) -> Result<()> {
    let rest = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("--tests") => tests(rest),
        Some("--simulation") => simulation(rest),
        _ => mixed_traffic(args),
    }
}

/// Runs the tests that take minutes, one after the other; then fuzzes, unless tests were named.
fn tests(names: &[String]) -> Result<()> {
    suite::ignored(names)?;
    if names.is_empty() { fuzz::run(&fuzz::Plan::all(FUZZ_SECONDS)) } else { Ok(()) }
}

/// Runs the simulation with this many seeds, from 0.
fn simulation(args: &[String]) -> Result<()> {
    let [seeds] = args else {
        return Err(Error::new("the number of seeds is missing").hint("cargo xtask soak --simulation 10000"));
    };
    let seeds: u64 = seeds.parse().map_err(|_| Error::new(format_args!("`{seeds}` is no number of seeds")))?;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let range = format!("0..{seeds}");
    built("outrigger-simulation", &["--seeds".to_owned(), range, "--threads".to_owned(), threads.to_string()])
}

/// Mixed traffic and faults, or hangs, against the proxy as it ships: `tests/soak/`.
fn mixed_traffic(args: &[String]) -> Result<()> {
    tools::install(&[Tool::Compiler, Tool::Cmake, Tool::Postgres])?;
    say("building the proxy and the soak with all optimisations, which takes minutes");
    // Built separately: together, the proxy would get features of its dependencies that only the soak enables.
    programs::build_packages(&["outrigger"], true)?;
    built("outrigger-soak", args)
}

/// Builds the program of this package with all optimisations, and runs it.
fn built(package: &str, args: &[String]) -> Result<()> {
    programs::build_packages(&[package], true)?;
    let program = paths::target().join("release").join(package);
    let status = Command::new(&program).args(args).status().while_(format_args!("running {}", program.display()))?;
    if status.success() { Ok(()) } else { Err(Error::new(format_args!("{package} did not pass; see above"))) }
}
