//! One start of the command: its environment, signals, and what it leaves behind.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use outrigger_rules::sections::run::Output;
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, kill_process, kill_process_group, prlimit,
    test_kill_process_group, wait,
};

use crate::mechanism::log::LogQueue;
use crate::run::{ExitCode, output};

/// The command of the app.
#[derive(Clone, Debug)]
pub struct Command {
    /// The program.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables of its environment that are set or, with `None`, removed.
    pub environment: Vec<(OsString, Option<OsString>)>,
    /// The limit of open files that it gets: Outrigger raises its own.
    pub open_files: Rlimit,
}

impl Command {
    /// The command, with this process's limits as they are now.
    pub fn new(program: OsString, arguments: Vec<OsString>, environment: Vec<(OsString, Option<OsString>)>) -> Self {
        Self { program, arguments, environment, open_files: getrlimit(Resource::Nofile) }
    }

    /// Starts it in a process group of its own, with this process's standard output and error. It reads from no terminal: only the
    /// terminal's foreground group may.
    ///
    /// # Errors
    /// It cannot be started, with the exit code of a shell for that.
    pub fn start(&self, output: Output, queue: &LogQueue) -> Result<Pid, (ExitCode, io::Error)> {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.arguments).process_group(0);
        if io::stdin().is_terminal() {
            command.stdin(Stdio::null());
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let code = |e: io::Error| (ExitCode(if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 }), e);
        if output == Output::Json {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        // `reap` waits for it, together with all others.
        let mut child = command.spawn().map_err(code)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| code(io::Error::other("the system gave no process id")))?;
        let number = pid.as_raw_nonzero().get();
        let out = child.stdout.take().map(|stream| output::pass_on(stream, "stdout", number, queue.clone()));
        let errors = child.stderr.take().map(|stream| output::pass_on(stream, "stderr", number, queue.clone()));
        for error in [out, errors].into_iter().flatten().filter_map(Result::err) {
            tracing::error!("the app's output is lost: {error}");
        }
        // It may have ended already. Programs that use select() fail with more than 1024 files.
        let _ = prlimit(Some(pid), Resource::Nofile, self.open_files);
        Ok(pid)
    }
}

/// A child that has ended.
pub type Ended = (Pid, ExitCode);

/// The next child that has ended, of those that the app or its children left to this process, too.
pub fn reap() -> Option<Ended> {
    loop {
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Err(Errno::INTR) => continue,
            Ok(None) | Err(_) => return None,
        };
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => continue,
        };
        return Some((pid, ExitCode(u8::try_from(code).unwrap_or(u8::MAX))));
    }
}

/// Sends a signal to one process. It may have ended already.
pub fn signal(process: Pid, signal: Signal) {
    let _ = kill_process(process, signal);
}

/// Processes that the app has started and that are left: the process group `group`, and those that this process has got because their
/// parents ended (`PR_SET_CHILD_SUBREAPER`), except `main`.
pub fn signal_rest(group: Pid, main: Option<Pid>, signal: Signal) {
    let _ = kill_process_group(group, signal);
    for orphan in adopted(main) {
        let _ = kill_process(orphan, signal);
    }
}

/// Whether nothing that the app has started is left.
pub fn is_cleared(group: Pid) -> bool {
    test_kill_process_group(group).is_err() && adopted(None).next().is_none()
}

/// The children of this process, except `main`.
fn adopted(main: Option<Pid>) -> impl Iterator<Item = Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let children = all().filter(move |process| process.parent == own);
    children.filter_map(|process| Pid::from_raw(process.pid)).filter(move |pid| Some(*pid) != main)
}

/// A process, as /proc shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// The id of its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
}

/// All processes that /proc shows.
pub fn all() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // The name, in parentheses, may contain anything.
        let stat = fs::read(entry.path().join("stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(1).map(|field| field.parse().ok());
        Some(Process { pid, parent: fields.next()??, group: fields.next()?? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_listed_with_its_parent_and_group() {
        let own = Process {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            parent: rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get()),
            group: rustix::process::getpgrp().as_raw_nonzero().get(),
        };
        assert!(all().any(|process| process == own));
    }

    #[test]
    fn a_command_that_is_not_there_has_a_shells_exit_code() {
        let dropped = crate::engine::metrics::Metrics::new().unwrap().log.dropped;
        let (queue, _) = LogQueue::start(outrigger_rules::sections::log::LogFormat::Json, dropped).unwrap();
        let command = |program: &str| Command::new(program.into(), Vec::new(), Vec::new());
        let start = |program: &str| command(program).start(Output::Inherit, &queue).unwrap_err().0;
        assert_eq!(start("/nonexistent"), ExitCode(127));
        assert_eq!(start("/etc/passwd"), ExitCode(126));
    }
}
