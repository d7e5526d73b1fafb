//! `cargo xtask fuzz`: runs the programs of `fuzz/`, which are compiled with LLVM's coverage counters. These need no nightly
//! compiler and no further tool: libFuzzer is compiled from the crate `libfuzzer-sys`.

use std::{
    collections::VecDeque,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use xtask::{Error, Result, Tool, error::While, paths, programs, say, tools};

/// Counters on each edge, and the operands of comparisons.
const FLAGS: &str = "--cfg=fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// The largest input, in bytes.
const MOST_BYTES: usize = 4096;

/// The targets to fuzz, and the time for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    time: Time,
    /// Empty: all targets.
    targets: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    /// Seconds for all targets together.
    All(u64),
    /// Seconds for each target.
    Each(u64),
}

impl Plan {
    /// All targets, for this many seconds together.
    pub fn all(seconds: u64) -> Self {
        Self { time: Time::All(seconds), targets: Vec::new() }
    }

    /// Reads `[SECONDS]` or `--minutes N`, and names of targets.
    ///
    /// # Errors
    /// An argument is neither.
    pub fn of(args: &[String]) -> Result<Self> {
        let mut plan = Self::all(60);
        let number = |text: Option<&String>, what: &str| {
            let text = text.map_or("", String::as_str);
            text.parse::<u64>().map_err(|_| Error::new(format_args!("`{text}` is no number of {what}")))
        };
        let mut rest = args.iter().peekable();
        while let Some(arg) = rest.next() {
            if arg == "--minutes" {
                plan.time = Time::Each(number(rest.next(), "minutes")?.saturating_mul(60));
            } else if arg.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
                plan.time = Time::All(number(Some(arg), "seconds")?);
            } else {
                plan.targets.push(arg.clone());
            }
        }
        Ok(plan)
    }

    fn seconds_each(&self, targets: usize, at_a_time: usize) -> u64 {
        match self.time {
            Time::All(seconds) => (seconds * at_a_time as u64 / targets.max(1) as u64).max(1),
            Time::Each(seconds) => seconds.max(1),
        }
    }
}

/// Fuzzes as many targets at a time as there are processors. Inputs that cover something new stay in `target/fuzz/corpus`, where the
/// next run begins; those that fail are in `target/fuzz/failed`. Ends with a table of all targets, also after a failure.
pub fn run(plan: &Plan) -> Result<()> {
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
    let names = chosen(names(&source.join("fuzz_targets"))?, &plan.targets)?;
    let at_a_time = thread::available_parallelism().map_or(1, usize::from).min(names.len());
    let each = plan.seconds_each(names.len(), at_a_time);
    let (waiting, runs) = (Mutex::new(VecDeque::from(names)), Mutex::new(Vec::new()));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(name) = next() {
                    let run = fuzz(&all, &host, &name, each);
                    runs.lock().unwrap_or_else(PoisonError::into_inner).push((name, run));
                }
            });
        }
    });
    let mut runs = runs.into_inner().unwrap_or_else(PoisonError::into_inner);
    runs.sort_by(|(one, _), (other, _)| one.cmp(other));
    say(table(runs.iter().filter_map(|(name, run)| Some((name.as_str(), run.as_ref().ok()?)))));
    let failures: Vec<String> = runs
        .iter()
        .filter_map(|(_, run)| match run {
            Ok(run) => run.failure.clone(),
            Err(error) => Some(error.to_string()),
        })
        .collect();
    if failures.is_empty() { Ok(()) } else { Err(Error::new(failures.join("\n"))) }
}

/// The result of a target's run, from its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Run {
    seconds: u64,
    /// Inputs that were tried.
    inputs: u64,
    /// Edges of the program that they covered.
    edges: u64,
    /// Inputs that cover something that no other does.
    corpus: u64,
    failure: Option<String>,
}

impl Run {
    /// Reads libFuzzer's log: lines such as `#8192 pulse cov: 210 ft: 655 corp: 61/2201b …`, and statistics at its end.
    fn of(log: &str, seconds: u64) -> Self {
        let mut run = Self { seconds, ..Self::default() };
        for line in log.lines() {
            let mut words = line.split_ascii_whitespace();
            while let Some(word) = words.next() {
                let number = |text: Option<&str>| text.and_then(|text| text.split('/').next()?.parse().ok());
                match word {
                    "cov:" => run.edges = number(words.next()).unwrap_or(run.edges),
                    "corp:" => run.corpus = number(words.next()).unwrap_or(run.corpus),
                    "stat::number_of_executed_units:" => run.inputs = number(words.next()).unwrap_or(run.inputs),
                    _ => {}
                }
            }
        }
        run
    }
}

fn table<'r>(runs: impl Iterator<Item = (&'r str, &'r Run)>) -> String {
    let mut lines =
        vec![format!("{:<18} {:>14} {:>8} {:>8} {:>8}  found", "target", "inputs", "seconds", "edges", "corpus")];
    lines.extend(runs.map(|(name, run)| {
        let found = if run.failure.is_some() { "a failure" } else { "-" };
        format!("{name:<18} {:>14} {:>8} {:>8} {:>8}  {found}", run.inputs, run.seconds, run.edges, run.corpus)
    }));
    lines.join("\n")
}

/// The targets that were named; all if none was.
fn chosen(names: Vec<String>, wanted: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) {
        let hint = format!("the targets are {}", names.join(", "));
        return Err(Error::new(format_args!("there is no target `{unknown}`")).hint(hint));
    }
    Ok(if wanted.is_empty() { names } else { wanted.to_vec() })
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

fn fuzz(all: &Path, host: &str, name: &str, seconds: u64) -> Result<Run> {
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
    let start = Instant::now();
    let status = program.status().while_(format_args!("running {name}"))?;
    let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    let mut run = Run::of(&text, start.elapsed().as_secs());
    if !status.success() {
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        run.failure = Some(format!(
            "{name} has found something:\n{last}\nthe input is in {}; copy it to fuzz/corpus/{name}/",
            failed.display()
        ));
    }
    say(format_args!("{name}: {} inputs in {} s", run.inputs, run.seconds));
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &[&str]) -> Result<Plan> {
        Plan::of(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn time_is_for_all_targets_or_for_each() {
        let seconds = |args: &[&str]| plan(args).unwrap().seconds_each(20, 2);
        assert_eq!((seconds(&[]), seconds(&["28800"]), seconds(&["--minutes", "60"])), (6, 2880, 3600));
        assert_eq!(plan(&["--minutes", "1", "path"]).unwrap().targets, ["path"]);
        for wrong in [&["--minutes"][..], &["--minutes", "x"], &["1h"], &["--hours", "1"]] {
            assert!(plan(wrong).is_err(), "{wrong:?}");
        }
        assert!(chosen(vec!["path".to_owned()], &["paths".to_owned()]).is_err());
    }

    #[test]
    fn a_log_says_what_a_run_did() {
        let log = "#2 INITED cov: 12 ft: 13 corp: 1/1b exec/s: 0\n#8192 pulse  cov: 210 ft: 655 corp: 61/2201b lim: 80\n\
                   Done 9000 runs in 3 second(s)\nstat::number_of_executed_units: 9000\n";
        let run = Run::of(log, 3);
        assert_eq!(run, Run { seconds: 3, inputs: 9000, edges: 210, corpus: 61, failure: None });
        let shown = table([("path", &run)].into_iter());
        assert!(shown.ends_with("path                         9000        3      210       61  -"), "{shown}");
    }
}
