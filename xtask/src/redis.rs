//! Runs a Redis server without persistence: its data is gone after a restart.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Error, Program, Result, Service, Tool, error::While, ports};

const START: Duration = Duration::from_secs(20);
/// Timeout for one command.
const ANSWER: Duration = Duration::from_secs(5);

/// A running server, or a stopped one that can be restarted on the same port. Stopped on drop.
///
/// Listens on 127.0.0.1 and, if there is IPv6, on `::1`. Has no password by default.
#[derive(Debug)]
pub struct Redis {
    program: PathBuf,
    dir: PathBuf,
    port: u16,
    args: Vec<String>,
    service: Service,
}

impl Redis {
    /// Starts on a free port. `dir` contains its log.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &[])
    }

    /// Like [`Self::start`], with further options such as `["--tls-port", "6380"]`.
    pub fn start_with(dir: &Path, args: &[&str]) -> Result<Self> {
        let dir = dir.join("redis");
        fs::create_dir_all(&dir).while_(format_args!("creating {}", dir.display()))?;
        let args = args.iter().map(ToString::to_string).collect();
        let mut server =
            Self { program: Tool::RedisServer.get()?, dir, port: ports::free()?, args, service: Service::default() };
        server.start_again()?;
        Ok(server)
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
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

    /// Restarts a stopped server, on the same port. Does nothing if it is running.
    pub fn start_again(&mut self) -> Result<()> {
        if self.service.is_running() {
            return Ok(());
        }
        let mut process = Program::new(&self.program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "-::1"])
            // No persistence, so that a full or slow disk cannot affect a test.
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(&self.dir)
            .args(&self.args)
            .dir(&self.dir)
            .start("Redis", &self.log())?;
        let answers = || self.command("PING").is_ok();
        process.ready(START, answers)?;
        self.service.runs(process);
        Ok(())
    }

    /// Sends one command as a line of words, such as `FLUSHALL`. Returns the first line or the bulk string of the
    /// response. An error response is an error, except `NOAUTH`, which shows that the server runs.
    pub fn command(&self, words: &str) -> Result<String> {
        let doing = format!("asking Redis: {words}");
        let mut stream = TcpStream::connect_timeout(&self.address(), ANSWER).while_(&doing)?;
        stream.set_read_timeout(Some(ANSWER)).while_(&doing)?;
        stream.write_all(format!("{words}\r\nQUIT\r\n").as_bytes()).while_(&doing)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).while_(&doing)?;
        let answer = answer.trim_end_matches("+OK\r\n").trim_end();
        match answer.split_at_checked(1) {
            Some(("-", error)) if !error.starts_with("NOAUTH") => Err(Error::new(format_args!("{doing}: {error}"))),
            Some(("$", bulk)) => Ok(bulk.split_once("\r\n").map_or("", |(_, text)| text).to_owned()),
            Some((_, rest)) => Ok(rest.to_owned()),
            None => Ok("OK".to_owned()),
        }
    }
}

impl Deref for Redis {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl DerefMut for Redis {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.service
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    /// Needs Redis, which `cargo xtask test` unpacks.
    #[test]
    fn a_server_stops_crashes_and_returns_empty() {
        let mut server = Redis::start(&paths::state("redis-test").unwrap()).unwrap();
        assert_eq!(server.command("SET a 1").unwrap(), "OK");
        assert_eq!(server.command("GET a").unwrap(), "1");
        assert!(server.command("NONSENSE").unwrap_err().to_string().contains("unknown command"));
        server.crash();
        assert!(server.command("PING").is_err());
        server.start_again().unwrap();
        assert_eq!(server.command("GET a").unwrap(), "");
        server.stop().unwrap();
        assert!(server.command("PING").is_err());
    }
}
