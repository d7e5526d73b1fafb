//! A ChromaDB server of our own: the Rust server inside the Python package, without the rest of that package.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Process, Program, Result, Signal, Tool, error::While, http, ports};

const RUN: &str = "import sys, chromadb_rust_bindings as b; b.cli(['chroma'] + sys.argv[1:])";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(10);

/// A running server, or one that was stopped and can be started again on the same port. Dropping it ends it.
///
/// It knows no passwords: whoever is on this machine can reach it.
#[derive(Debug)]
pub struct Chroma {
    python: PathBuf,
    dir: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Chroma {
    /// Starts on a free port. `dir` keeps the data: what was there before is there again.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_on(dir, ports::free()?)
    }

    pub fn start_on(dir: &Path, port: u16) -> Result<Self> {
        let dir = dir.join("chroma");
        fs::create_dir_all(&dir).while_(format_args!("creating {}", dir.display()))?;
        let mut server = Self { python: Tool::Chroma.get()?, dir, port, process: None };
        server.start_again()?;
        Ok(server)
    }

    /// The address without a path: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The process, for who waits for its unexpected end.
    pub fn process_mut(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Starts a stopped server again, on the same port and data. One that runs is left alone.
    pub fn start_again(&mut self) -> Result<()> {
        if self.process.as_mut().is_some_and(Process::is_running) {
            return Ok(());
        }
        let mut process = Program::new(&self.python)
            .args(["-c", RUN, "run", "--path"])
            .arg(self.dir.join("data"))
            .args(["--host", "127.0.0.1", "--port", &self.port.to_string()])
            .env("ANONYMIZED_TELEMETRY", "False")
            .dir(&self.dir)
            .start("ChromaDB", &self.log())?;
        let address = self.address();
        // With its port in use it exits with 0, so only the health check tells.
        process.ready(START, || {
            let answer = http::get(address, "/api/v2/healthcheck", Duration::from_secs(1));
            answer.is_ok_and(|answer| answer.status == 200)
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it in order.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.stop(Signal::TERM, STOP).map(drop),
            None => Ok(()),
        }
    }

    /// `kill -9`; everything acknowledged is there after the next start.
    pub fn crash(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Freezes it: connections are still accepted by the kernel, and nothing answers.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    /// Needs ChromaDB, which `cargo xtask test` installs.
    #[test]
    fn a_server_stops_crashes_pauses_and_comes_back() {
        let second = Duration::from_secs(1);
        let mut server = Chroma::start(&paths::state("chroma-test").unwrap()).unwrap();
        let beats = |server: &Chroma| http::get(server.address(), "/api/v2/heartbeat", second).is_ok();
        assert!(beats(&server));
        server.pause();
        assert!(!beats(&server));
        server.resume();
        assert!(beats(&server));
        server.crash();
        assert!(!beats(&server));
        server.start_again().unwrap();
        assert!(beats(&server));
        server.stop().unwrap();
        assert!(!beats(&server) && server.pid().is_none());
    }
}
