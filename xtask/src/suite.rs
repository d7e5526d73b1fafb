//! `cargo xtask test`: the same checks as in CI.

use std::{env, process::Command, time::Instant};

use xtask::{Error, Result, Tool, error::While, paths, programs, say, tools};

/// Installs missing tools, then runs every step, even after a failure, so that one run reports all failures.
pub fn run(args: &[String]) -> Result<()> {
    tools::install(&[Tool::RUN.as_slice(), &Tool::TEST].concat())?;
    // Built first, since cargo does not build programs of other packages for a test. Built together with the tests,
    // since cargo unifies the features of one build: separately, the programs would need many dependencies a second
    // time.
    step("build", || checked(&mut cargo(&["build", "--workspace", "--bins", "--tests", "--examples"])))?;
    let steps = [
        ("format", cargo(&["fmt", "--all", "--check"])),
        ("lints", cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])),
        ("documentation", documentation()),
        // The proxy and its floors without what is optional.
        ("features", cargo(&["check", "--package", "outrigger", "--no-default-features", "--quiet"])),
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

/// Runs the tests that take minutes, one after the other.
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

/// Links in doc comments lead somewhere.
fn documentation() -> Command {
    let mut command = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
    // Private items are documented as well, so links to them lead somewhere.
    command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    command
}

fn tests(args: &[String]) -> Result<Command> {
    let mut command = with_tools(cargo(&["test", "--workspace", "--no-fail-fast"]))?;
    command.args(args);
    Ok(command)
}

/// Adds the environment of tests whose programs are already built.
fn with_tools(mut command: Command) -> Result<Command> {
    command.env(programs::BUILT, "1");
    // The tests find the tools by themselves; this makes all of them use the same.
    for tool in Tool::RUN.iter().chain(&Tool::TEST) {
        command.env(tool.variable(), tool.get()?);
    }
    // Tests must not use a developer's own databases.
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
