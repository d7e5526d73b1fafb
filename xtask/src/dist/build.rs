//! Builds the static program for a target, without paths of this machine, and takes the debug information out of it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::{cargo, said_by, version};
use crate::{Error, Program, Result, error::While, paths, say};

/// The system that a program is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// As the compiler calls it.
    pub triple: &'static str,
    /// The architecture, as the compiler calls it.
    arch: &'static str,
    /// The architecture, as Debian calls it.
    pub debian: &'static str,
    /// The architecture, as images call it.
    pub oci: &'static str,
}

/// Targets that are built if the compiler has them: musl reads `/etc/hosts` and `/etc/resolv.conf` itself, so the program needs
/// no library at run time, not even for names.
const MUSL: [Target; 2] = [
    Target { triple: "x86_64-unknown-linux-musl", arch: "x86_64", debian: "amd64", oci: "amd64" },
    Target { triple: "aarch64-unknown-linux-musl", arch: "aarch64", debian: "arm64", oci: "arm64" },
];
/// Targets that are built on such a machine otherwise. Of name services, it has `files` and `dns`; others in
/// `/etc/nsswitch.conf` need the same version of glibc at run time.
const GLIBC: [Target; 2] = [
    Target { triple: "x86_64-unknown-linux-gnu", ..MUSL[0] },
    Target { triple: "aarch64-unknown-linux-gnu", ..MUSL[1] },
];

impl Target {
    /// The target of programs that run here.
    ///
    /// # Errors
    /// There are no packages for this machine's architecture.
    pub fn here() -> Result<Self> {
        let found = MUSL.into_iter().find(|target| target.runs_here());
        found.ok_or_else(|| Error::new(format_args!("there is no package for {}", env::consts::ARCH)))
    }

    /// Whether this machine runs programs of this target.
    pub fn runs_here(self) -> bool {
        self.arch == env::consts::ARCH
    }

    /// The C compiler, which is also the linker if it is for another architecture.
    fn compiler(self) -> Option<PathBuf> {
        if self.runs_here() {
            paths::in_path("musl-gcc")
        } else {
            paths::in_path(&format!("{}-linux-musl-gcc", self.arch))
        }
    }

    /// Why it cannot be built here.
    fn obstacle(self, sysroot: &Path) -> Option<String> {
        let triple = self.triple;
        if !sysroot.join("lib/rustlib").join(triple).join("lib").is_dir() {
            return Some(format!("{triple}: the compiler does not have it: rustup target add {triple}"));
        }
        let needs = if self.runs_here() {
            "musl-gcc (Debian: musl-tools)".to_owned()
        } else {
            format!("{}-linux-musl-gcc", self.arch)
        };
        self.compiler().is_none().then(|| format!("{triple}: there is no {needs}"))
    }
}

/// The targets that can be built here, the one of this machine first, and why others are left out.
///
/// # Errors
/// There are no packages for this machine's architecture.
pub fn targets() -> Result<(Vec<Target>, Vec<String>)> {
    Target::here()?;
    let sysroot = said_by(std::process::Command::new("rustc").args(["--print", "sysroot"]).current_dir(paths::root()))?;
    let sysroot = PathBuf::from(sysroot.trim());
    let (mut found, mut left_out) = (vec![], vec![]);
    for target in MUSL {
        match target.obstacle(&sysroot) {
            None if target.runs_here() => found.insert(0, target),
            None => found.push(target),
            Some(why) => left_out.push(why),
        }
    }
    if !found.iter().any(|target| target.runs_here()) {
        let glibc = GLIBC.into_iter().filter(|target| target.runs_here());
        found.splice(0..0, glibc);
        left_out.push("in its place, the program for this machine is static with glibc".to_owned());
    }
    Ok((found, left_out))
}

/// A program, and its debug information.
#[derive(Debug)]
pub struct Built {
    pub program: PathBuf,
    pub debug: PathBuf,
}

/// Puts the program for a target, and its debug information, into files of `directory`. Builds it, unless it is `given`.
pub fn build(target: Target, directory: &Path, given: Option<&Path>) -> Result<Built> {
    let name = format!("outrigger-{}-{}", version()?, target.triple);
    let built = given.map_or_else(|| compile(target), |given| Ok(given.to_path_buf()))?;
    split(target, &built, &directory.join(&name), &directory.join(format!("{name}.debug")))
}

fn compile(target: Target) -> Result<PathBuf> {
    let triple = target.triple;
    say(format_args!("building outrigger for {triple}, as it ships: minutes"));
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let places = [(paths::root(), "/outrigger"), (home.unwrap_or_default(), "/cargo")];
    let places: Vec<String> = places.iter().map(|(place, name)| format!("{}={name}", place.display())).collect();
    let flags = places.iter().map(|place| format!("--remap-path-prefix={place}"));
    let flags: Vec<String> = flags.chain(["-Ctarget-feature=+crt-static".to_owned()]).collect();
    let c_flags: Vec<String> = places.iter().map(|place| format!("-ffile-prefix-map={place}")).collect();
    let variable = triple.replace('-', "_");
    let mut command =
        cargo(&["build", "--locked", "--profile", "published", "--package", "outrigger", "--target", triple]);
    // With a target, these flags do not apply to build scripts and macros.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env(format!("CFLAGS_{variable}"), c_flags.join(" "));
    if triple.ends_with("musl")
        && let Some(compiler) = target.compiler()
    {
        if !target.runs_here() {
            command.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), &compiler);
        }
        // For x86-64, build scripts find it by themselves.
        if target.arch != "x86_64" || !target.runs_here() {
            command.env(format!("CC_{variable}"), compiler);
        }
    }
    let status = command.status().while_("running cargo build")?;
    if !status.success() {
        return Err(Error::new("the program does not build; see above"));
    }
    Ok(paths::target().join(triple).join("published/outrigger"))
}

/// Moves the debug information from a program into a file of its own. The names of functions stay, for the log of a panic.
fn split(target: Target, from: &Path, program: &Path, debug: &Path) -> Result<Built> {
    let of_target = format!("{}-linux-gnu-objcopy", target.arch);
    let objcopy = paths::in_path(&of_target).or_else(|| paths::in_path("objcopy"));
    let objcopy = objcopy.ok_or_else(|| Error::new("`objcopy` is not in PATH").hint("Debian: binutils"))?;
    Program::new(&objcopy).arg("--only-keep-debug").args([from, debug]).output()?;
    let link = format!("--add-gnu-debuglink={}", debug.display());
    Program::new(&objcopy).args(["--strip-debug", &link]).args([from, program]).output()?;
    let size = |path: &Path| fs::metadata(path).map_or(0.0, |meta| meta.len() as f64 / 1e6);
    say(format_args!("{}: {:.1} MB, without debug information {:.1} MB", target.triple, size(from), size(program)));
    Ok(Built { program: program.to_path_buf(), debug: debug.to_path_buf() })
}

/// A copy of any program without debug information: what the tests pack.
pub fn stripped(from: &Path, to: &Path) -> Result<()> {
    Program::new("strip").args(["--strip-debug", "-o"]).args([to, from]).output().map(drop)
}
