//! Python packages, each set in its own virtual environment below `target/tools`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Program, Result, debian, error::While, paths, say};

/// The virtual environment's directory, if it is complete and has exactly these requirements.
pub fn find(name: &str, requirements: &[&str]) -> Option<PathBuf> {
    let venv = paths::tools().join(name);
    let noted = fs::read_to_string(note(&venv)).ok()?;
    // The interpreter is a symlink, whose target a system upgrade may have removed.
    (noted == requirements.join("\n") && venv.join("bin/python").exists()).then_some(venv)
}

/// Recreates the virtual environment. `--no-deps`: every package is listed and pinned.
pub fn install(name: &str, requirements: &[&str]) -> Result<PathBuf> {
    let python = interpreter()?;
    let venv = paths::tools().join(name);
    say(format_args!("installing Python packages: {}", requirements.join(" ")));
    let _ = fs::remove_dir_all(&venv);
    Program::new(python).args(["-m", "venv"]).arg(&venv).output()?;
    Program::new(venv.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
        .args(requirements)
        .output()
        .map_err(|error| error.hint("is the Python package index, or a mirror in pip's configuration, in reach?"))?;
    let note = note(&venv);
    fs::write(&note, requirements.join("\n")).while_(format_args!("writing {}", note.display()))?;
    Ok(venv)
}

fn note(venv: &Path) -> PathBuf {
    venv.join("outrigger-requirements.txt")
}

/// A Python 3 that can create virtual environments, for which Debian has a separate package.
fn interpreter() -> Result<PathBuf> {
    let candidates = || paths::in_path("python3").into_iter().chain([PathBuf::from("/usr/bin/python3")]);
    let able = |python: &PathBuf| Program::new(python).args(["-c", "import venv, ensurepip"]).output().is_ok();
    if let Some(python) = candidates().find(able) {
        return Ok(python);
    }
    if debian::is_here() {
        debian::install(&["python3", "python3-venv", "ca-certificates"])?;
    }
    candidates().find(able).ok_or_else(|| {
        Error::new("there is no Python 3 with venv and pip")
            .hint("install Python 3.9 or later with its venv module, so that `python3 -m venv DIR` works")
    })
}
