//! `cargo xtask test`: the same checks as in CI.

use std::{env, process::Command, thread, time::Instant};

use xtask::{Error, Result, Tool, error::While, paths, programs, say, tools};

const BUILD: [&str; 6] = ["build", "--workspace", "--bins", "--tests", "--examples", "--benches"];

/// Installs missing tools, then runs every step, even after a failure, so that one run reports all failures.
pub fn run(args: &[String]) -> Result<()> {
    tools::install(&Tool::BUILD)?;
    // The other tools arrive while the build runs: one waits for the network, the other for the processor.
    let others = thread::spawn(|| step("tools", || tools::install(&all_tools())));
    // Built first, since cargo does not build programs of other packages for a test. Built together with the tests,
    // since cargo unifies the features of one build: separately, the programs would need many dependencies a second
    // time.
    let lints = step("build and lints", || checked(&mut linted(cargo(&BUILD))));
    if lints.is_err() {
        // The lints may have stopped the build. The tests run all the same.
        step("build", || checked(&mut cargo(&BUILD)))?;
    }
    others.join().map_err(|_| Error::new("installing the tools has panicked"))??;
    let tests = tests(args)?;
    let steps = [
        ("format", cargo(&["fmt", "--all", "--check"])),
        // Workspaces of their own, with lock files of their own.
        ("fuzz/Cargo.lock", locked("fuzz/Cargo.toml")),
        ("bench/bare-pingora/Cargo.lock", locked("bench/bare-pingora/Cargo.toml")),
        ("dependencies", denied(&["--log-level", "error", "--locked", "check", "bans", "licenses", "sources"])?),
        // The same compiler as in the build, so that its result is used.
        ("tests", if lints.is_ok() { linted(tests) } else { tests }),
    ];
    let failed = steps.into_iter().filter_map(|(name, mut run)| step(name, || checked(&mut run)).err().map(|_| name));
    let failed: Vec<&str> = lints.err().map(|_| "build and lints").into_iter().chain(failed).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::new(format_args!("failed: {}", failed.join(", "))))
}

/// Runs the ignored end-to-end tests, or those with these names, one after the other.
pub fn ignored(names: &[String]) -> Result<()> {
    tools::install(&all_tools())?;
    step("build", || programs::build(false))?;
    let mut soak = with_tools(cargo(&["test", "--package", "outrigger-tests", "--test", "e2e", "--"]))?;
    soak.args(["--ignored", "--test-threads", "1", "--nocapture"]).args(names);
    step("soak", || checked(&mut soak))
}

/// The tools that tests need besides the compilers.
fn all_tools() -> Vec<Tool> {
    [Tool::RUN.as_slice(), &Tool::TEST].concat()
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

/// `cargo xtask docs`: links in doc comments lead somewhere, and the proxy builds without its optional features. Not part
/// of `cargo xtask test`: cargo would compile all dependencies a second time for it.
pub fn docs() -> Result<()> {
    let mut documentation = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
    // Private items are documented as well, so links to them lead somewhere.
    documentation.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    step("documentation", || checked(&mut documentation))?;
    step("features", || checked(&mut cargo(&["check", "--package", "outrigger", "--no-default-features", "--quiet"])))
}

/// `cargo xtask deny`: all checks of `deny.toml`. Not part of `cargo xtask test`: advisories are fetched from the network, and a
/// new one must not fail an unchanged commit.
pub fn deny(args: &[String]) -> Result<()> {
    tools::install(&[Tool::CargoDeny])?;
    let mut deny = denied(&["--locked", "check"])?;
    deny.args(args);
    step("dependencies", || checked(&mut deny))
}

fn denied(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(Tool::CargoDeny.get()?);
    command.args(args).current_dir(paths::root());
    programs::forget_package(&mut command);
    Ok(command)
}

/// Compiles the workspace's crates with clippy's driver: rustc with more lints. One compilation does for both, and the
/// dependencies are compiled once, while `cargo clippy` would check them once more.
fn linted(mut command: Command) -> Command {
    command.env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver");
    command.env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    command
}

/// Fails if the lock file of a workspace is out of date.
fn locked(manifest: &str) -> Command {
    cargo(&["tree", "--locked", "--depth", "0", "--manifest-path", manifest])
}

fn tests(args: &[String]) -> Result<Command> {
    let mut command = with_tools(cargo(&["test", "--workspace", "--no-fail-fast"]))?;
    command.args(args);
    Ok(command)
}

/// Adds the environment of tests whose programs are already built.
fn with_tools(mut command: Command) -> Result<Command> {
    command.env(programs::BUILT, "1");
    // They wait more than they compute: for timeouts, for programs to start.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if env::var_os("RUST_TEST_THREADS").is_none() {
        command.env("RUST_TEST_THREADS", (cores + 2).to_string());
    }
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
