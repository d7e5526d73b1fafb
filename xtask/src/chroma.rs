//! Runs a ChromaDB server: the Rust server of the Python package, without the rest of that package.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Program, Result, Service, Tool, error::While, http, ports};

const RUN: &str = "import sys, chromadb_rust_bindings as b; b.cli(['chroma'] + sys.argv[1:])";
const START: Duration = Duration::from_secs(60);

/// A running server, or a stopped one that can be restarted on the same port. Stopped on drop.
///
/// Acknowledged writes survive a crash. There are no passwords: every process on this machine can connect.
#[derive(Debug)]
pub struct Chroma {
    python: PathBuf,
    dir: PathBuf,
    port: u16,
    service: Service,
}

impl Chroma {
    /// Starts on a free port. `dir` keeps the data between runs.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_on(dir, ports::free()?)
    }

    pub fn start_on(dir: &Path, port: u16) -> Result<Self> {
        let dir = dir.join("chroma");
        fs::create_dir_all(&dir).while_(format_args!("creating {}", dir.display()))?;
        let mut server = Self { python: Tool::Chroma.get()?, dir, port, service: Service::default() };
        server.start_again()?;
        Ok(server)
    }

    /// The URL without a path: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Restarts a stopped server, on the same port and data. Does nothing if it is running.
    pub fn start_again(&mut self) -> Result<()> {
        if self.service.is_running() {
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
        // If its port is in use, it exits with 0, so only the health check tells.
        process.ready(START, || {
            let answer = http::get(address, "/api/v2/healthcheck", Duration::from_secs(1));
            answer.is_ok_and(|answer| answer.status == 200)
        })?;
        self.service.runs(process);
        Ok(())
    }
}

impl Deref for Chroma {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl DerefMut for Chroma {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.service
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
