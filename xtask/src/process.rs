//! Starts programs that end with this process: stopped on drop, killed by the kernel if this process is killed.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, OnceLock, mpsc},
    thread,
    time::Duration,
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group};

use crate::{Error, Result, error::While, paths::User, wait};

/// A program's command line and environment, for [`Program::start`].
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    dir: Option<PathBuf>,
    user: Option<User>,
    orphaned: &'static str,
}

impl Program {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: vec![], env: vec![], dir: None, user: None, orphaned: "KILL" }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes an inherited environment variable.
    #[must_use]
    pub fn without_env(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), None));
        self
    }

    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Runs it as this user; requires root.
    #[must_use]
    pub fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// The signal, such as `TERM`, that it gets if this process dies without stopping it. Default: `KILL`.
    ///
    /// A program with children needs `TERM`, since the kernel signals only the program itself.
    #[must_use]
    pub fn when_orphaned(mut self, signal: &'static str) -> Self {
        self.orphaned = signal;
        self
    }

    /// Starts it in its own process group, so that Ctrl-C in the terminal reaches only this process. Appends its
    /// standard output and error to `log`.
    pub fn start(&self, name: &str, log: &Path) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.while_(format_args!("opening {}", log.display()))?;
        let errors = file.try_clone().while_(format_args!("opening {}", log.display()))?;
        let mut command = self.command();
        command.process_group(0).stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = on_lasting_thread(move || command.spawn())
            .while_(format_args!("starting {name} ({})", self.path.display()))?;
        Ok(Process { name: name.to_owned(), child, log: log.to_path_buf() })
    }

    /// Runs it to its end; an exit code other than 0 is an error that contains the output.
    pub fn output(&self) -> Result<String> {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let doing = format!("running {}", self.path.display());
        let child = on_lasting_thread(move || command.spawn()).while_(&doing)?;
        let output = child.wait_with_output().while_(&doing)?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            return Ok(said(&output.stdout));
        }
        let said = said(&[output.stdout, output.stderr].concat());
        Err(Error::new(format_args!("{doing}: {}\n{}", output.status, said.trim_end())))
    }

    fn command(&self) -> Command {
        let mut command = if *CAN_BIND_TO_PARENT {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", self.orphaned, "--"]).arg(&self.path);
            command
        } else {
            Command::new(&self.path)
        };
        command.args(&self.args);
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        if let Some(User { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

/// Whether util-linux's `setpriv` is available, which makes a child end with its parent (`PR_SET_PDEATHSIG`).
///
/// Without it, a `kill -9` of this process leaves its children running; `Drop` covers every other case.
static CAN_BIND_TO_PARENT: LazyLock<bool> = LazyLock::new(|| {
    let probe = Command::new("setpriv").args(["--pdeathsig", "KILL", "--", "true"]).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
});

/// Runs `work` on a thread that lives as long as the process.
///
/// The kernel sends the parent-death signal when the *thread* that started the child ends, and the test runner's
/// threads end with each test. Starts are serialised, so `work` must be short.
fn on_lasting_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    type Job = Box<dyn FnOnce() + Send>;
    static THREAD: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let jobs = THREAD.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for job in inbox {
                job();
            }
        });
        jobs
    });
    let (answer, result) = mpsc::channel();
    let job = Box::new(move || drop(answer.send(work())));
    jobs.send(job).expect("the thread never ends");
    result.recv().expect("a job always answers")
}

/// A started program. Killed on drop, with its process group.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The path of its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// Sends a signal to this process, not to its children. Does nothing if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let _ = kill_process(raw(self.child.id()), signal);
        }
    }

    /// Freezes it: it stops responding, and does not notice.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Kills it and its process group.
    pub fn kill(&mut self) {
        if self.is_running() {
            let _ = kill_process_group(raw(self.child.id()), Signal::KILL);
            let _ = self.child.wait();
        }
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::for_some(&what, limit, || self.ended())
    }

    /// Sends the signal and waits for its end; after `limit`, kills it and returns an error.
    pub fn stop(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        self.signal(signal);
        self.resume();
        self.wait(limit).inspect_err(|_| self.kill())
    }

    /// Waits until `look` returns true. If the program ends instead, fails immediately with the end of its log.
    pub fn ready(&mut self, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
        let what = format!("{} to be ready", self.name);
        let outcome = wait::for_some(&what, limit, || match self.ended() {
            Some(status) => Some(Err(Error::new(format_args!("{} ended at its start: {status}", self.name)))),
            None => look().then_some(Ok(())),
        });
        outcome.and_then(|ended| ended).map_err(|error| {
            let log = self.log.display();
            error.hint(format_args!("the end of {log}:\n{}", self.log_tail(15)))
        })
    }

    /// The last lines of its output.
    pub fn log_tail(&self, lines: usize) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.child.id())
    }
}

/// The direct children of `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let parent = pid.to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // After the name in parentheses, which may contain anything: state, then parent.
    ids.filter(|id| stat(*id).is_some_and(|fields| fields.get(1) == Some(&parent))).collect()
}

/// Whether a process with this id exists and is not a zombie.
pub fn exists(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z" && state != "X"))
}

/// The fields of `/proc/PID/stat` from the third on: state, parent, …
pub fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// Sends a signal to any process; not an error if it has ended.
pub fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(raw(pid), signal);
}

fn raw(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id is positive and fits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    fn log(name: &str) -> PathBuf {
        let log = paths::state("process-test").unwrap().join(name);
        let _ = fs::remove_file(&log);
        log
    }

    #[test]
    fn a_dropped_process_leaves_no_child_behind() {
        let script = "sleep 300 & echo child $!; wait";
        let log = log("group.log");
        let shell = Program::new("sh").args(["-c", script]).start("shell", &log).unwrap();
        let child = wait::for_some("the child's id", Duration::from_secs(5), || {
            shell.log_tail(1).strip_prefix("child ")?.parse().ok()
        });
        let child = child.unwrap();
        drop(shell);
        wait::until("the child's end", Duration::from_secs(5), || !exists(child)).unwrap();
    }

    #[test]
    fn a_process_outlives_the_thread_that_started_it() {
        let log = log("thread.log");
        let start = move || Program::new("sleep").arg("300").start("sleep", &log).unwrap();
        let mut process = thread::spawn(start).join().unwrap();
        assert!(process.wait(Duration::from_millis(200)).is_err());
    }

    #[test]
    fn a_program_that_ends_at_its_start_shows_its_last_words() {
        let mut process =
            Program::new("sh").args(["-c", "echo no such thing; exit 3"]).start("shell", &log("words.log")).unwrap();
        let error = process.ready(Duration::from_secs(5), || false).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such thing"), "{error}");
    }
}
