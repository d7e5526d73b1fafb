//! `cargo xtask`: the commands for developers and CI.

#![allow(clippy::print_stdout, reason = "a command for people: its output is its result")]

mod bench;
mod experiment;
mod fuzz;
mod soak;
mod suite;
mod up;

use std::{path::Path, process::ExitCode};

use xtask::{Error, Result, Tool, say, tools};

const HELP: &str = "\
Usage: cargo xtask COMMAND

  up               start PostgreSQL, ChromaDB, the app and the proxy, and show a tour; Ctrl-C ends everything
  up --machines N  the same with N Machines behind a stand-in for Fly's edge
  up --app COMMAND the proxy and your own app, which listens on the port in PORT: docs/run.md
  test [ARGS]      install what is missing, then run every check and test, as CI does; ARGS go to `cargo test`
  soak [--minutes N | --hours N] [--seed N]
                   mixed traffic and faults against three proxies: nothing may grow, nothing may fail unexpectedly; writes
                   docs/soak.md; default 30 minutes; --quick only checks for a minute that it works
  soak --hangs [N] one app of three hangs, N times under load (default 1000); writes docs/soak.md
  soak --simulation SEEDS
                   the deterministic simulation, with thousands of seeds
  soak --tests [ARGS]
                   end-to-end tests that take too long for `test`, then two hours of fuzzing; ARGS name single tests
  fuzz [SECONDS]   fuzz all parsers of bytes from outside for SECONDS in total, default 60: docs/fuzzing.md
  fuzz --minutes N [TARGET…]
                   fuzz each target, or those named, for N minutes; every run goes on where the last one ended
  docs             check the links in doc comments, and that the proxy builds without its optional features
  deny [ARGS]      check advisories, licences, sources and duplicates of all dependencies; ARGS go to `cargo deny check`
  bench [SECONDS]  compare the CPU cost of a request with HAProxy and NGINX; SECONDS for each run, default 4
  bench websocket [CONNECTIONS] [SECONDS]
                   compare the CPU cost of an echoed WebSocket message with HAProxy; default 1000 and 4
  dist [--check]   build and pack a version for publishing, in target/dist; --check also installs and starts the results;
                   --program FILE packs this one, which was built so, instead of building it
  experiment       run an hour of faults in minutes, without and with Outrigger, and write docs/experiment.md; --quick
                   only checks that it works, --help has more options
  tools            only install what `up` and `test` need

Programs are looked for in PATH and below target/tools. Missing ones are installed with apt (as root or with sudo)
and pip. DATABASE_URL and CHROMA_URL, when set, are used by `up` instead of starting a server.
All state is below target/.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    let outcome = match args.first().map(String::as_str) {
        Some("up") => up::run(rest),
        Some("test") => suite::run(rest),
        Some("soak") => soak::run(rest),
        Some("fuzz") => fuzz::Plan::of(rest).and_then(|plan| fuzz::run(&plan)),
        Some("docs") => only(rest, 0).and_then(|()| suite::docs()),
        Some("deny") => suite::deny(rest),
        Some("bench") if rest.first().is_some_and(|what| what == "websocket") => {
            only(rest, 3).and_then(|()| bench::run_websocket(&rest[1..]))
        }
        Some("bench") => only(rest, 1).and_then(|()| bench::run(rest.first().map(String::as_str))),
        Some("dist") => dist(rest),
        Some("experiment") => experiment::run(rest),
        Some("tools") => only(rest, 0).and_then(|()| install_all()),
        // The upstreams of the comparisons, and the WebSocket load generator: separate processes, each on its CPU.
        Some("bench-backend") => bench::backend(rest),
        Some("bench-echo") => bench::echo(rest),
        Some("bench-talk") => bench::talk(rest),
        Some("help" | "--help" | "-h") => {
            println!("{HELP}");
            Ok(())
        }
        Some(other) => Err(Error::new(format_args!("there is no command `{other}`")).hint(HELP)),
        None => Err(Error::new("a command is missing").hint(HELP)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(error);
            ExitCode::FAILURE
        }
    }
}

fn dist(args: &[String]) -> Result<()> {
    let (mut check, mut given) = (false, None);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--check" => check = true,
            "--program" => given = rest.next().map(Path::new),
            other => return Err(Error::new(format_args!("`dist` has no option `{other}`")).hint(HELP)),
        }
    }
    xtask::dist::run(check, given)
}

fn only(args: &[String], most: usize) -> Result<()> {
    match args.get(most) {
        Some(extra) => Err(Error::new(format_args!("`{extra}` is one argument too many")).hint(HELP)),
        None => Ok(()),
    }
}

fn install_all() -> Result<()> {
    tools::install(&[Tool::RUN.as_slice(), &Tool::TEST].concat())?;
    for tool in Tool::RUN.iter().chain(&Tool::TEST) {
        println!("{:<12} {}", tool.name(), tool.get()?.display());
    }
    Ok(())
}
