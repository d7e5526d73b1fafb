//! npm packages, each set in its own directory below `target/tools`.

use std::{fs, path::PathBuf};

use crate::{Error, Program, Result, debian, error::While, paths, say};

/// The directory of this set, if it matches the lock file.
pub fn find(name: &str, lock: &str) -> Option<PathBuf> {
    let dir = paths::tools().join(name);
    let installed = fs::read_to_string(dir.join(DONE)).ok()?;
    (installed == lock).then_some(dir)
}

/// Written last: if it exists, the set is complete.
const DONE: &str = "outrigger-lock.json";

/// Installs the packages pinned by the lock file, with their digests, and runs no package scripts.
pub fn install(name: &str, manifest: &str, lock: &str) -> Result<PathBuf> {
    let npm = program()?;
    let dir = paths::tools().join(name);
    say(format_args!("installing npm packages: {name}"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).while_(format_args!("creating {}", dir.display()))?;
    let write = |file: &str, text: &str| fs::write(dir.join(file), text).while_(format_args!("writing {file}"));
    write("package.json", manifest)?;
    write("package-lock.json", lock)?;
    Program::new(npm)
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        .dir(&dir)
        .output()
        .map_err(|error| error.hint("is the npm registry, or a mirror in npm's configuration, in reach?"))?;
    write(DONE, lock)?;
    Ok(dir)
}

fn program() -> Result<PathBuf> {
    if paths::in_path("npm").is_none() && debian::is_here() {
        debian::install(&["npm"])?;
    }
    paths::in_path("npm").ok_or_else(|| {
        Error::new("there is no npm").hint("install Node.js 18 or later with npm, so that `npm` is in PATH")
    })
}
