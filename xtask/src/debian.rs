//! Debian packages: installed with apt if the system needs them, else only unpacked below `target/tools`.
//!
//! Unpacking does not change the system: no service is enabled, and root is not needed.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Error, Program, Result, error::While, paths, say};

/// Installs packages without starting their services and without creating a database cluster; see the script.
const INSTALL: &str = include_str!("apt-install.sh");

/// Whether this system has Debian's package tools.
pub fn is_here() -> bool {
    paths::in_path("apt-get").is_some() && paths::in_path("dpkg-deb").is_some()
}

/// Installs packages for the whole system, as root or through sudo. Shows apt's own progress.
pub fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let by_hand = format!("let an administrator run: apt-get install --no-install-recommends {list}");
    let missing = || Error::new(format_args!("these Debian packages are missing: {list}")).hint(&by_hand);
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("sh")
    } else {
        // Never asks for a password without a terminal, as in CI.
        let sudo = paths::in_path("sudo").ok_or_else(missing)?;
        let asks = !Command::new(&sudo).args(["-n", "true"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        if asks && !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
            return Err(missing());
        }
        let mut command = Command::new(sudo);
        command.arg("sh");
        command
    };
    say(format_args!("installing Debian packages: {list}"));
    let status = command.args(["-c", INSTALL, "apt-install"]).args(packages).status().while_("running apt-get")?;
    if status.success() { Ok(()) } else { Err(Error::new(format_args!("apt-get: {status}")).hint(by_hand)) }
}

/// Unpacks a package below `target/tools`. Returns a script there that runs one of its programs with the libraries
/// that the system lacks.
pub fn unpack(package: &str, program: &str) -> Result<PathBuf> {
    let root = paths::tools().join("debian").join(package);
    // Another program of the package needed it.
    if root.join(program).exists() && !lacks_libraries(&root, &root.join(program))? {
        return wrapper(&root, &root.join(program));
    }
    say(format_args!("unpacking Debian's {package} below target/tools"));
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root).while_(format_args!("creating {}", root.display()))?;
    if !has_candidate(package) {
        update_lists()?;
    }
    let real = root.join(program);
    let mut wanted = BTreeSet::from([package.to_owned()]);
    let mut done = BTreeSet::new();
    while !wanted.is_empty() {
        let debs = download(&root, &wanted)?;
        done.append(&mut wanted);
        for deb in debs {
            let file = deb.as_os_str();
            Program::new("dpkg-deb").arg("-x").arg(file).arg(&root).output()?;
            let depends = Program::new("dpkg-deb").arg("-f").arg(file).arg("Depends").output()?;
            wanted.extend(
                libraries(&depends).filter(|name| !done.contains(*name) && !is_installed(name)).map(Into::into),
            );
            let _ = fs::remove_file(deb);
        }
        // Dependencies may list more than needed; the loader tells which libraries the program really lacks.
        if real.exists() && !lacks_libraries(&root, &real)? {
            break;
        }
    }
    wrapper(&root, &real)
}

/// The directories for `LD_LIBRARY_PATH`.
fn library_path(root: &Path) -> String {
    let mut dirs = vec![];
    for base in ["usr/lib", "lib"] {
        let base = root.join(base);
        let inner = fs::read_dir(&base).into_iter().flatten().flatten().map(|entry| entry.path());
        dirs.extend(inner.filter(|dir| dir.is_dir() && dir.to_string_lossy().contains("-linux-")));
        dirs.push(base);
    }
    dirs.iter().map(|dir| dir.to_string_lossy().into_owned()).collect::<Vec<_>>().join(":")
}

fn lacks_libraries(root: &Path, program: &Path) -> Result<bool> {
    let listed = Program::new("ldd").arg(program).env("LD_LIBRARY_PATH", library_path(root)).output();
    match listed {
        Ok(list) => Ok(list.contains("not found")),
        Err(error) if error.to_string().contains("not a dynamic executable") => Ok(false),
        Err(error) => Err(error),
    }
}

fn wrapper(root: &Path, program: &Path) -> Result<PathBuf> {
    let bin = paths::tools().join("bin");
    fs::create_dir_all(&bin).while_(format_args!("creating {}", bin.display()))?;
    let script = bin.join(program.file_name().unwrap_or_default());
    let text = format!("#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n", library_path(root), program.display());
    let doing = format!("writing {}", script.display());
    fs::write(&script, text).while_(&doing)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).while_(&doing)?;
    Ok(script)
}

/// `libfoo1 (>= 2) | libbar, adduser, zlib1g, tools (= 1.2)` results in `libfoo1`, `zlib1g` and `tools`: the first
/// alternative of libraries, and packages required in the same version, which are parts of the same program.
fn libraries(depends: &str) -> impl Iterator<Item = &str> {
    let first = |choice: &'_ str| -> Option<usize> { choice.find([' ', '|', '(', ':', '\n']) };
    depends
        .split(',')
        .map(str::trim)
        .map(move |choice| (choice, first(choice).map_or(choice, |end| &choice[..end])))
        .filter(|(choice, name)| name.starts_with("lib") || name.starts_with("zlib") || choice.contains("(= "))
        .map(|(_, name)| name)
}

fn is_installed(package: &str) -> bool {
    let status = Program::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output();
    status.is_ok_and(|status| status.ends_with(" installed"))
}

fn has_candidate(package: &str) -> bool {
    let policy = Program::new("apt-cache").args(["policy", package]).env("LC_ALL", "C").output();
    policy.is_ok_and(|policy| policy.contains("Candidate: ") && !policy.contains("Candidate: (none)"))
}

/// Downloads the packages into `dir`. An old list names files that the archive no longer has, so a failure updates
/// the lists and tries once more.
fn download(dir: &Path, packages: &BTreeSet<String>) -> Result<Vec<PathBuf>> {
    let fetch = Program::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download"])
        .args(packages)
        .dir(dir);
    fetch.output().or_else(|_| update_lists().and_then(|()| fetch.output()))?;
    let entries = fs::read_dir(dir).while_(format_args!("reading {}", dir.display()))?;
    let files = entries.flatten().map(|entry| entry.path());
    Ok(files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

fn update_lists() -> Result<()> {
    // Without packages, the script only updates the lists.
    install(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_are_followed_and_first_choices_taken() {
        let depends = "libssl3 (>= 3.0), adduser, libev4:any, libfoo1 | libbar2, zlib1g,\nprocps, tools (= 1:2.3-4)";
        assert_eq!(libraries(depends).collect::<Vec<_>>(), ["libssl3", "libev4", "libfoo1", "zlib1g", "tools"]);
    }
}
