//! A server that can be stopped and restarted at any time.

use std::time::Duration;

use crate::{Process, Result, Signal};

const STOP: Duration = Duration::from_secs(10);

/// The process of a server, if it is running.
#[derive(Debug, Default)]
pub struct Service {
    process: Option<Process>,
}

impl Service {
    /// Sets the running process.
    pub(crate) fn runs(&mut self, process: Process) {
        self.process = Some(process);
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// The server's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The process, to detect its unexpected end.
    pub fn process_mut(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Stops it gracefully.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.stop(Signal::TERM, STOP).map(drop),
            None => Ok(()),
        }
    }

    /// `kill -9`.
    pub fn crash(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Freezes it: the kernel still accepts connections, but the server does not respond.
    pub fn pause(&mut self) {
        if let Some(process) = self.process.as_mut() {
            process.pause();
        }
    }

    pub fn resume(&mut self) {
        if let Some(process) = self.process.as_mut() {
            process.resume();
        }
    }
}
