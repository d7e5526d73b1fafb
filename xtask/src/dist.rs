//! `cargo xtask dist`: a version as it is published, in `target/dist`: static programs, archives, Debian packages, images,
//! bills of materials and checksums.
//!
//! Read in this order: `build` makes a program for a target, [`Release`] is what surrounds it, `tarball`, `debian_package` and
//! `image` pack that, `bill` lists the dependencies. The same commit results in the same bytes, apart from the versions of the
//! compiler, gzip, and the CA certificates of the image. `roots` starts the results in directories without the libraries of
//! this system.

mod archive;
mod bill;
mod build;
mod check;
mod debian_package;
mod image;
mod roots;
mod tarball;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

pub use self::{
    archive::{Entry, ar, gzip, md5, sha256, tar},
    bill::{Bill, Package},
    build::{Target, stripped, targets},
    debian_package::debian_package,
    image::{Image, image},
    roots::{Root, can_change_root},
    tarball::tarball,
};
use crate::{Error, Program, Result, Tool, error::While, paths, programs, say, tools};

/// A version of the program for one target, and the files that belong to it.
#[derive(Clone, Debug)]
pub struct Release {
    pub version: String,
    pub target: Target,
    /// When the commit was made, in seconds since 1970: the time of all files.
    pub time: u64,
    /// Without debug information.
    pub program: Vec<u8>,
    /// The manual pages by their file names, such as `outrigger-run.1`.
    pub pages: Vec<(String, Vec<u8>)>,
    /// Completion scripts for bash, zsh and fish.
    pub completions: [Vec<u8>; 3],
    pub bill: Bill,
}

impl Release {
    /// `program` is packed; `runnable` is the same version for this machine, which prints its pages.
    ///
    /// # Errors
    /// A program that does not run, or a repository without a version.
    pub fn new(target: Target, program: &Path, runnable: &Path) -> Result<Self> {
        let dir = paths::state("dist-pages")?.join(format!("{}-{}", target.triple, std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).while_(format_args!("creating {}", dir.display()))?;
        Program::new(runnable).arg("man").arg(&dir).output()?;
        let mut pages = Vec::new();
        for entry in fs::read_dir(&dir).while_(format_args!("reading {}", dir.display()))?.flatten() {
            pages.push((entry.file_name().to_string_lossy().into_owned(), archive::read(&entry.path())?));
        }
        pages.sort();
        let _ = fs::remove_dir_all(&dir);
        let completions =
            |shell: &str| Program::new(runnable).args(["completions", shell]).output().map(String::into_bytes);
        Ok(Self {
            version: version()?,
            target,
            time: time()?,
            program: archive::read(program)?,
            pages,
            completions: [completions("bash")?, completions("zsh")?, completions("fish")?],
            bill: Bill::of(target)?,
        })
    }

    /// `outrigger-VERSION-TARGET`, the beginning of its files' names.
    pub fn name(&self) -> String {
        format!("outrigger-{}-{}", self.version, self.target.triple)
    }
}

/// A file of the repository.
fn file_of_repository(path: &str) -> Result<Vec<u8>> {
    archive::read(&paths::root().join(path))
}

/// The workspace's version.
fn version() -> Result<String> {
    let manifest = String::from_utf8_lossy(&file_of_repository("Cargo.toml")?).into_owned();
    let version =
        manifest.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"').map(str::to_owned));
    version.ok_or_else(|| Error::new("Cargo.toml has no version"))
}

/// The time of the commit, or `SOURCE_DATE_EPOCH` outside of a clone.
fn time() -> Result<u64> {
    let told = env::var("SOURCE_DATE_EPOCH").ok();
    let text = match told {
        Some(told) => told,
        None => Program::new("git")
            .args(["-c", "safe.directory=*", "log", "-1", "--format=%ct"])
            .dir(paths::root())
            .output()
            .map_err(|error| {
                error.hint(
                    "outside of a git clone, set SOURCE_DATE_EPOCH to the time of the version in seconds since 1970",
                )
            })?,
    };
    text.trim().parse().while_(format_args!("reading the time of the commit, `{}`", text.trim()))
}

/// The same time as RFC 3339 writes it.
fn written(time: u64) -> Result<String> {
    let written =
        Program::new("date").args(["--utc", "+%Y-%m-%dT%H:%M:%SZ"]).arg(format!("--date=@{time}")).output()?;
    Ok(written.trim().to_owned())
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(paths::root());
    programs::forget_package(&mut command);
    command
}

fn said_by(command: &mut Command) -> Result<String> {
    let output = command.output().while_("running cargo")?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::new(format_args!("cargo: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end())))
}

fn to_bytes(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// Builds and packs the targets that this machine can build, or packs the `given` program for this machine. With `check`, also
/// installs and starts the results.
///
/// # Errors
/// No target can be built, or a step fails.
pub fn run(check: bool, given: Option<&Path>) -> Result<()> {
    tools::install(&[Tool::Compiler, Tool::Cmake, Tool::MuslCompiler])?;
    let (targets, left_out) = match given {
        Some(_) => (vec![Target::here()?], vec![]),
        None => targets()?,
    };
    let directory = paths::target().join("dist");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).while_(format_args!("creating {}", directory.display()))?;
    let mut runnable: Option<PathBuf> = None;
    let mut unpacked = vec![];
    for target in targets {
        let built = build::build(target, &directory, given)?;
        let here = runnable.get_or_insert_with(|| built.program.clone());
        let release = Release::new(target, &built.program, here)?;
        pack(&release, &directory, Some(&built.debug))?;
        if check && target.runs_here() {
            check::check(&release, &directory)?;
        }
        unpacked.extend([built.program, built.debug]);
    }
    for file in unpacked {
        fs::remove_file(&file).while_(format_args!("removing {}", file.display()))?;
    }
    for reason in &left_out {
        say(format_args!("left out: {reason}"));
    }
    Ok(())
}

/// Writes all files of a release to the directory, and their checksums.
///
/// # Errors
/// A file that cannot be made.
pub fn pack(release: &Release, directory: &Path, debug: Option<&Path>) -> Result<()> {
    let name = release.name();
    let mut files = vec![
        (format!("{name}.tar.gz"), tarball(release)?),
        (format!("outrigger_{}_{}.deb", release.version, release.target.debian), debian_package(release)?),
        (format!("{name}.cdx.json"), release.bill.cyclonedx(release)?),
        (format!("{name}.oci.tar"), image(release)?.archive(release.time)?),
    ];
    if let Some(debug) = debug {
        files.push((format!("{name}.debug.gz"), gzip(&archive::read(debug)?)?));
    }
    for (name, content) in &files {
        archive::write(&directory.join(name), content)?;
        say(format_args!("{name}: {:.1} MB", content.len() as f64 / 1e6));
    }
    write_checksums(directory)
}

/// `SHA256SUMS` of all files in the directory, as `sha256sum --check` reads it.
fn write_checksums(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).while_(format_args!("reading {}", directory.display()))?;
    let is_published = |name: &String| [".gz", ".deb", ".json", ".tar"].iter().any(|end| name.ends_with(end));
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(is_published).collect();
    names.sort();
    let mut sums = String::new();
    for name in names {
        sums.push_str(&format!("{}  {name}\n", sha256(&archive::read(&directory.join(&name))?)?));
    }
    archive::write(&directory.join("SHA256SUMS"), sums.as_bytes())
}
