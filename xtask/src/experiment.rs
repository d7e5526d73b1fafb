//! `cargo xtask experiment`: builds the availability experiment and the release build of the proxy, gets Prometheus, and runs it.
//! See `tests/experiment/`.

use std::process::Command;

use xtask::{Error, Result, Tool, error::While, paths, programs, say, tools};

/// `args` are passed to the program.
pub fn run(args: &[String]) -> Result<()> {
    tools::install(&Tool::EXPERIMENT)?;
    say("building the proxy and the experiment with all optimisations, which takes minutes");
    // Built separately: together, the proxy would get features of its dependencies that only the experiment enables.
    for package in ["outrigger", "outrigger-experiment"] {
        programs::build_packages(&[package], true)?;
    }
    let program = paths::target().join("release/outrigger-experiment");
    let status = Command::new(&program).args(args).status().while_(format_args!("running {}", program.display()))?;
    if status.success() { Ok(()) } else { Err(Error::new("the experiment did not complete; see above")) }
}
