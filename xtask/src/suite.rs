//! `cargo xtask test`: what CI runs, and nothing that CI does not.

use std::{env, process::Command, time::Instant};

use xtask::{Error, Result, Tool, error::While, paths, programs, say, tools};

/// Installs what is missing, then runs every step, also after a failed one, so that one run tells everything.
pub fn run(args: &[String]) -> Result<()> {
    tools::install(&[Tool::RUN.as_slice(), &Tool::TEST].concat())?;
    // Built first: cargo builds no program of another package for a test. Together with the tests, since cargo unites the
    // features of what is built together: built alone, the programs would need many dependencies a second time.
    step("build", || checked(&mut cargo(&["build", "--workspace", "--bins", "--tests", "--examples"])))?;
    let steps = [
        ("format", cargo(&["fmt", "--all", "--check"])),
        ("lints", cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])),
        ("tests", tests(args)?),
    ];
    let failed: Vec<&str> = steps
        .into_iter()
        .filter_map(|(name, mut command)| step(name, || checked(&mut command)).err().map(|_| name))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::new(format_args!("failed: {}", failed.join(", "))))
}

/// What takes minutes, one after the other.
pub fn soak(args: &[String]) -> Result<()> {
    tools::install(&[Tool::RUN.as_slice(), &Tool::TEST].concat())?;
    step("build", || programs::build(false))?;
    let mut soak = with_tools(cargo(&["test", "--package", "outrigger-tests", "--test", "e2e", "--"]))?;
    soak.args(["--ignored", "--test-threads", "1", "--nocapture"]).args(args);
    step("soak", || checked(&mut soak))
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    say(format_args!("{name} …"));
    let start = Instant::now();
    let outcome = work();
    let took = start.elapsed().as_secs();
    match &outcome {
        Ok(()) => say(format_args!("{name}: passed in {took} s")),
        Err(error) => say(format_args!("{name}: failed after {took} s: {error}")),
    }
    outcome
}

fn tests(args: &[String]) -> Result<Command> {
    let mut command = with_tools(cargo(&["test", "--workspace", "--no-fail-fast"]))?;
    command.args(args);
    Ok(command)
}

/// The tests of programs that are built.
fn with_tools(mut command: Command) -> Result<Command> {
    command.env(programs::BUILT, "1");
    // The tests find the tools by themselves; told, all of them use the same.
    for tool in Tool::RUN.iter().chain(&Tool::TEST) {
        command.env(tool.variable(), tool.get()?);
    }
    // A developer's own databases must not become the tests'.
    command.env_remove("DATABASE_URL").env_remove("CHROMA_URL");
    Ok(command)
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(paths::root());
    programs::forget_package(&mut command);
    command
}

fn checked(command: &mut Command) -> Result<()> {
    let status = command.status().while_("running cargo")?;
    if status.success() { Ok(()) } else { Err(Error::new(status)) }
}
