//! Runs a PostgreSQL server in a private directory on a free port; does not touch the system's own server.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Error, Process, Program, Result, Signal, Tool,
    error::While,
    paths::{self, User},
    ports, process, wait,
};

/// The role that owns everything. Its password is random, since every process on this machine can reach the port.
const ROLE: &str = "app";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(30);
const REAP: Duration = Duration::from_secs(5);

/// A running server, or a stopped one that can be restarted on the same port. Stopped on drop.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    dir: PathBuf,
    data: PathBuf,
    user: Option<User>,
    password: String,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    /// Starts on a free port. `dir` keeps the data between runs.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_on(dir, ports::free()?)
    }

    /// Starts on this port. As root, runs PostgreSQL as the user `postgres` or `nobody`, since PostgreSQL refuses to
    /// run as root. If that user cannot reach `dir`, the data is in a private directory of the system's temporary
    /// one, always the same.
    pub fn start_on(dir: &Path, port: u16) -> Result<Self> {
        let programs = Tool::Postgres.get()?;
        let user = unprivileged()?;
        let dir = match user {
            Some(user) if !user.reaches(&dir.join("data")) => paths::outside(dir)?,
            _ => dir.to_path_buf(),
        };
        // One directory per major version, since a version cannot start on another one's data.
        let version = major_version(&programs)?;
        let dir = dir.join(format!("postgresql-{version}"));
        let password = prepare(&programs, &dir, user)?;
        let mut server = Self { programs, data: dir.join("data"), dir, user, password, port, process: None };
        server.start_again()?;
        Ok(server)
    }

    /// The connection URL: `postgres://ROLE:PASSWORD@127.0.0.1:PORT/DATABASE`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's main process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The main process, to detect its unexpected end.
    pub fn process_mut(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Restarts a stopped server, on the same port and data. Does nothing if it is running.
    pub fn start_again(&mut self) -> Result<()> {
        if self.process.as_mut().is_some_and(Process::is_running) {
            return Ok(());
        }
        self.clear_zombie();
        // The data is disposable, and only processes crash here, not the machine: no fsync.
        let settings = ["fsync=off", "full_page_writes=off", "unix_socket_directories=", "max_connections=300"];
        let mut process = Program::new(self.programs.join("postgres"))
            .arg("-D")
            .arg(&self.data)
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .dir(&self.dir)
            .user(self.user)
            .start("PostgreSQL", &self.log())?;
        let pid = process.pid().to_string();
        let status = self.data.join("postmaster.pid");
        process.ready(START, || {
            // Line 1 is the process id, line 8 the state of the start.
            let status = fs::read_to_string(&status).unwrap_or_default();
            let line = |number: usize| status.lines().nth(number).unwrap_or_default().trim();
            line(0) == pid && line(7) == "ready"
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops it gracefully: disconnects clients and writes all data.
    pub fn stop(&mut self) -> Result<()> {
        self.resume();
        match self.process.take() {
            Some(mut process) => process.stop(Signal::INT, STOP).map(drop),
            None => Ok(()),
        }
    }

    /// Stops it like a crash; the next start recovers.
    pub fn crash(&mut self) -> Result<()> {
        self.resume();
        match self.process.take() {
            Some(mut process) => process.stop(Signal::QUIT, STOP).map(drop),
            None => Ok(()),
        }
    }

    /// Freezes the whole server: the kernel still accepts connections, but the server does not respond.
    pub fn pause(&mut self) {
        self.signal_all(Signal::STOP);
    }

    pub fn resume(&mut self) {
        self.signal_all(Signal::CONT);
    }

    /// Creates a database unless it exists.
    pub fn create_database(&self, name: &str) -> Result<()> {
        let known = self.sql("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{name}'"))?;
        if known.is_empty() {
            self.sql("postgres", &format!("CREATE DATABASE \"{name}\""))?;
        }
        Ok(())
    }

    /// Drops a database and disconnects its clients.
    pub fn drop_database(&self, name: &str) -> Result<()> {
        self.sql("postgres", &format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).map(drop)
    }

    /// Runs one statement through `psql`. Returns rows as lines, columns separated by `|`.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let output = Program::new(self.programs.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database), "-c", statement])
            .env("PGCONNECT_TIMEOUT", "5")
            .output()?;
        Ok(output.trim_end().to_owned())
    }

    /// Waits for a killed server to be reaped by its new parent. As a zombie, it looks alive to the next server,
    /// which then refuses to start.
    fn clear_zombie(&self) {
        let status = self.data.join("postmaster.pid");
        let noted = fs::read_to_string(&status).unwrap_or_default();
        let Some(old) = noted.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else { return };
        let is_zombie = || process::stat(old).is_some() && !process::exists(old);
        // In some containers, init never reaps. By now the server's children have noticed its end and exited.
        if is_zombie() && wait::until("the old server to be reaped", REAP, || !is_zombie()).is_err() {
            let _ = fs::remove_file(&status);
        }
    }

    fn signal_all(&mut self, signal: Signal) {
        let Some(process) = self.process.as_mut() else { return };
        // Parent first, so that it starts no child after the children are signalled.
        process.signal(signal);
        for child in process::children(process.pid()) {
            process::signal(child, signal);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its children exit when they notice its end, which frozen ones never do.
        self.resume();
        if let Some(mut process) = self.process.take() {
            let _ = process.stop(Signal::QUIT, Duration::from_secs(5));
        }
    }
}

/// The user to run as, if this process is root, which PostgreSQL refuses.
fn unprivileged() -> Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let user = User::named("postgres").or_else(|| User::named("nobody"));
    user.map(Some).ok_or_else(|| {
        Error::new("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as")
            .hint("add a system user `postgres`, or run this as an ordinary user")
    })
}

fn major_version(programs: &Path) -> Result<u32> {
    // postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
    let said = Program::new(programs.join("postgres")).arg("--version").output()?;
    let number = said.split_whitespace().find_map(|word| word.split(['.', 'b', 'r', 'd']).next()?.parse().ok());
    number.ok_or_else(|| Error::new(format_args!("{}: no version in {said:?}", programs.display())))
}

/// Creates the directory and, the first time, the cluster. Returns the password.
fn prepare(programs: &Path, dir: &Path, user: Option<User>) -> Result<String> {
    let doing = format!("preparing {}", dir.display());
    if let Some(above) = dir.parent() {
        fs::create_dir_all(above).while_(&doing)?;
    }
    if !dir.exists() {
        fs::DirBuilder::new().mode(0o700).create(dir).while_(&doing)?;
    }
    if let Some(User { uid, gid }) = user {
        chown(dir, Some(uid), Some(gid)).while_(&doing)?;
    }
    let secret = dir.join("password");
    let data = dir.join("data");
    if data.join("PG_VERSION").exists() {
        return fs::read_to_string(&secret).while_(format_args!("reading {}", secret.display()));
    }
    let password = random_hex(16)?;
    fs::write(&secret, &password).while_(&doing)?;
    if let Some(User { uid, gid }) = user {
        chown(&secret, Some(uid), Some(gid)).while_(&doing)?;
    }
    // Created under another name and renamed, so that an interrupted run leaves no partial cluster.
    let fresh = dir.join("data.new");
    let _ = fs::remove_dir_all(&fresh);
    Program::new(programs.join("initdb"))
        .arg("-D")
        .arg(&fresh)
        .arg("--pwfile")
        .arg(&secret)
        .args(["-U", ROLE, "--auth=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8"])
        .args(["--no-sync", "--no-instructions"])
        .dir(dir)
        .user(user)
        .output()?;
    fs::rename(&fresh, &data).while_(&doing)?;
    Ok(password)
}

/// Random bytes in hex.
pub fn random_hex(bytes: usize) -> Result<String> {
    use std::io::Read;
    let mut random = vec![0; bytes];
    let source = fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random));
    source.while_("reading /dev/urandom")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs PostgreSQL, which `cargo xtask test` installs.
    #[test]
    fn a_server_stops_crashes_pauses_and_comes_back_with_its_data() {
        let dir = paths::state("postgres-test").unwrap();
        let mut server = Postgres::start(&dir).unwrap();
        server.drop_database("life").unwrap();
        server.create_database("life").unwrap();
        server.create_database("life").unwrap();
        server.sql("life", "CREATE TABLE t (n int)").unwrap();
        server.sql("life", "INSERT INTO t VALUES (7)").unwrap();

        server.crash().unwrap();
        assert!(server.sql("life", "SELECT 1").is_err());
        server.start_again().unwrap();
        assert_eq!(server.sql("life", "SELECT n FROM t").unwrap(), "7");

        server.pause();
        let frozen = std::net::TcpStream::connect(server.address()).is_ok();
        assert!(frozen, "the kernel still accepts");
        server.resume();
        assert_eq!(server.sql("life", "SELECT n FROM t").unwrap(), "7");

        let pid = server.pid().unwrap();
        server.stop().unwrap();
        assert!(!process::exists(pid));
        server.start_again().unwrap();
        let pid = server.pid().unwrap();
        let family = process::children(pid);
        assert!(!family.is_empty());
        server.pause();
        drop(server);
        let gone = || family.iter().chain([&pid]).all(|pid| !process::exists(*pid));
        wait::until("the server and its children to be gone", Duration::from_secs(5), gone).unwrap();
    }

    #[test]
    fn a_password_is_asked_for() {
        let server = Postgres::start(&paths::state("postgres-password-test").unwrap()).unwrap();
        let url = format!("postgres://{ROLE}:wrong@127.0.0.1:{}/postgres", server.port());
        let psql = Program::new(server.programs.join("psql")).args(["-X", "-d", &url, "-c", "SELECT 1"]).output();
        assert!(psql.unwrap_err().to_string().contains("password authentication failed"));
    }
}
