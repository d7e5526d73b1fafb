//! Runs seeds of the simulation, and prints those that violate an invariant.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use outrigger_simulation::{Report, run};

/// Runs the deterministic simulation; see docs/simulation.md.
#[derive(Debug, Parser)]
struct Options {
    /// The seeds, as FROM..TO (without TO).
    #[arg(long, default_value = "0..100", value_parser = range)]
    seeds: (u64, u64),
    /// One seed, whose trace is printed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds at the same time, each on a thread.
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// Ends at the first seed that fails.
    #[arg(long)]
    first: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    parts.filter(|(from, to)| from < to).ok_or_else(|| format!("{text:?} is not FROM..TO, such as 0..1000"))
}

#[allow(clippy::print_stdout)]
fn main() -> ExitCode {
    let options = Options::parse();
    let Some(seed) = options.seed else { return run_all(&options) };
    let report = run(seed);
    report.trace.iter().for_each(|line| println!("{line}"));
    println!("seed {seed}: {} requests, {} violations", report.requests, report.violations.len());
    report.violations.iter().for_each(|violation| println!("  {violation}"));
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[allow(clippy::print_stdout)]
fn run_all(options: &Options) -> ExitCode {
    let (from, to) = options.seeds;
    let (next, failed, requests) = (AtomicU64::new(from), AtomicU64::new(0), AtomicU64::new(0));
    let output = Mutex::new(());
    let show = |report: &Report| {
        requests.fetch_add(report.requests as u64, Ordering::Relaxed);
        if let Some(failure) = report.failure() {
            failed.fetch_add(1, Ordering::Relaxed);
            let _alone = output.lock();
            println!("{failure}");
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to || (options.first && failed.load(Ordering::Relaxed) > 0) {
                        return;
                    }
                    show(&run(seed));
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("seeds {from}..{to}: {} requests, {failed} seeds failed", requests.into_inner());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
