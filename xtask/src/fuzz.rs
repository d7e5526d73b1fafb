//! `cargo xtask fuzz`: runs the programs of `fuzz/`, which are compiled with LLVM's coverage counters. These need no nightly
//! compiler and no further tool: libFuzzer is compiled from the crate `libfuzzer-sys`.

use std::{
    collections::VecDeque,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use xtask::{Error, Result, Tool, error::While, paths, programs, say, tools};

/// Counters on each edge, and the operands of comparisons.
const FLAGS: &str = "--cfg=fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// The largest input, in bytes.
const MOST_BYTES: usize = 4096;

/// Fuzzes for `seconds` in total: all targets, as many at a time as there are processors. Inputs that cover something new stay in
/// `target/fuzz/corpus`, those that fail in `target/fuzz/failed`.
pub fn run(seconds: u64) -> Result<()> {
    tools::install(&Tool::BUILD)?;
    let host = host()?;
    let all = paths::state("fuzz")?;
    let source = paths::root().join("fuzz");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With `--target`, build scripts are compiled without the flags.
    cargo.args(["build", "--release", "--locked", "--bins", "--target", &host]).current_dir(&source);
    cargo.arg("--target-dir").arg(&all).env("RUSTFLAGS", FLAGS);
    programs::forget_package(&mut cargo);
    if !cargo.status().while_("running cargo build")?.success() {
        return Err(Error::new("the fuzz targets do not build; see above"));
    }
    let names = names(&source.join("fuzz_targets"))?;
    let at_a_time = thread::available_parallelism().map_or(1, usize::from).min(names.len());
    let each = (seconds * at_a_time as u64 / names.len() as u64).max(1);
    let (waiting, failures) = (Mutex::new(VecDeque::from(names)), Mutex::new(Vec::new()));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(name) = next() {
                    if let Err(error) = fuzz(&all, &host, &name, each) {
                        failures.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failures.is_empty() { Ok(()) } else { Err(Error::new(failures.join("\n"))) }
}

/// The triple of this machine.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().while_("running rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Error::new("rustc does not say for which machine it is"))
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let files = fs::read_dir(directory).while_(format_args!("reading {}", directory.display()))?;
    let mut names: Vec<String> =
        files.flatten().filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn fuzz(all: &Path, host: &str, name: &str, seconds: u64) -> Result<()> {
    let made = |directory: &str| -> Result<PathBuf> {
        let path = all.join(directory).join(name);
        fs::create_dir_all(&path).while_(format_args!("creating {}", path.display()))?;
        Ok(path)
    };
    let (corpus, failed) = (made("corpus")?, made("failed")?);
    let log = all.join(format!("{name}.log"));
    let file = fs::File::create(&log).while_(format_args!("creating {}", log.display()))?;
    let mut program = Command::new(all.join(host).join("release").join(name));
    program.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={MOST_BYTES}"));
    program.args(["-timeout=10", "-rss_limit_mb=512", "-print_final_stats=1"]);
    program.arg(format!("-artifact_prefix={}/", failed.display()));
    // New inputs go to the first directory; the second one has the committed ones.
    program.arg(corpus).arg(paths::root().join("fuzz/corpus").join(name));
    program.stdout(Stdio::null()).stderr(file);
    let status = program.status().while_(format_args!("running {name}"))?;
    let text = fs::read_to_string(&log).unwrap_or_default();
    if !status.success() {
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        return Err(Error::new(format_args!("{name} has found something:\n{last}"))
            .hint(format_args!("the input is in {}; copy it to fuzz/corpus/{name}/", failed.display())));
    }
    let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    say(format_args!("{name}: {} inputs in {seconds} s", runs.unwrap_or("?").trim()));
    Ok(())
}
