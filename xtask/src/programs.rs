//! Outrigger's own programs, built for development.

use std::{
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
};

use crate::{Error, Result, error::While, paths};

/// Set by `cargo xtask test`, which has already built them.
pub const BUILT: &str = "XTASK_PROGRAMS_BUILT";

/// Builds `outrigger`, `outrigger-app`, `outrigger-edge` and `xtask`, with cargo's own progress on standard error.
pub fn build(release: bool) -> Result<()> {
    build_packages(&["outrigger", "outrigger-app", "outrigger-edge", "xtask"], release)
}

/// Builds the programs of these packages.
pub fn build_packages(packages: &[&str], release: bool) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--bins"]).current_dir(paths::root());
    for package in packages {
        cargo.args(["--package", package]);
    }
    if release {
        cargo.arg("--release");
    }
    forget_package(&mut cargo);
    let status = cargo.status().while_("running cargo build")?;
    if status.success() { Ok(()) } else { Err(Error::new("the programs do not build; see above")) }
}

/// Removes the variables in which cargo describes the package of the running program. Some build scripts depend on
/// them, so a nested cargo would rebuild those and all their dependents.
pub fn forget_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let is_of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(is_of_package) {
            command.env_remove(name);
        }
    }
}

/// Builds them for development, once per process, unless [`BUILT`] says that they are built.
pub fn ensure_built() -> Result<()> {
    static BUILT_HERE: Mutex<bool> = Mutex::new(false);
    let mut is_built = BUILT_HERE.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_built && std::env::var_os(BUILT).is_none() {
        build(false)?;
    }
    *is_built = true;
    Ok(())
}

/// The path of a program, built for development. In a test run without `cargo xtask test`, the first call builds it,
/// since cargo does not build programs of other packages for a test.
pub fn find(name: &str) -> Result<PathBuf> {
    ensure_built()?;
    let path = directory().join(name);
    if path.exists() {
        return Ok(path);
    }
    Err(Error::new(format_args!("{} is not there", path.display())).hint("run `cargo build --workspace --bins`"))
}

/// The profile's directory: that of the running test, else that of the dev profile.
fn directory() -> PathBuf {
    let test = std::env::current_exe().ok();
    let deps = test.as_ref().and_then(|test| test.parent()).filter(|dir| dir.ends_with("deps"));
    deps.and_then(|deps| deps.parent()).map_or_else(|| paths::target().join("debug"), Into::into)
}
