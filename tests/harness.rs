//! Starts the real proxy on free ports, exchanges raw bytes with it, and reads its log and metrics.
//!
//! All waits are for a condition, with a deadline. A failed test prints its proxy's log.

mod form;
mod over_http2;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use xtask::{Process, Program, Signal, http, paths, ports, programs, wait};

pub use self::form::{Form, every_form};
use self::over_http2::Session;
use crate::backend::Backend;

/// Time limit for events that should be immediate, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `look` is true. `what` completes the sentence "timed out after 15s waiting for …".
#[track_caller]
pub fn until(what: &str, look: impl FnMut() -> bool) {
    if let Err(e) = wait::until(what, PATIENCE, look) {
        panic!("{e}");
    }
}

/// A proxy with a directory and a config that is not running yet.
#[derive(Clone, Debug)]
pub struct Setup {
    /// All files of this proxy.
    pub dir: PathBuf,
    /// The config file.
    pub file: PathBuf,
    pub address: SocketAddr,
    pub h2c: SocketAddr,
    pub admin: SocketAddr,
    app: String,
    env: Vec<(String, String)>,
    /// A command that runs the proxy; empty: runs it directly.
    through: Vec<String>,
}

impl Setup {
    /// In front of `app`, with the given rules: lines such as `client.max_head = "1KiB"`, then `[[routes]]`.
    pub fn new(app: &Backend, rules: &str) -> Self {
        Self::before(app.address(), rules)
    }

    /// The same, in front of the upstream at this address.
    pub fn before(app: String, rules: &str) -> Self {
        let local = || SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free().expect("a free port")));
        let dir = fresh_dir();
        let file = dir.join("proxy.toml");
        let (address, h2c, admin) = (local(), local(), local());
        let setup = Self { dir, file, address, h2c, admin, app, env: Vec::new(), through: Vec::new() };
        fs::write(&setup.file, setup.text(rules)).expect("the rules can be written");
        setup
    }

    /// The config file's text: addresses, then `rules`. All tests are one client and make the app fail, so rate limits and
    /// circuit breakers are off unless the rules mention them, and so is guarded reload: it would take back what a test needs.
    pub fn text(&self, rules: &str) -> String {
        let Self { address, h2c, admin, app, .. } = self;
        let limits = if rules.contains("rate_limits.") { "" } else { "rate_limits.mode = \"off\"\n" };
        let breaker = if rules.contains("breaker.") { "" } else { "breaker.mode = \"off\"\n" };
        let reload = if rules.contains("reload.") { "" } else { "reload.mode = \"off\"\n" };
        let access = if rules.contains("log.access") { "" } else { "log.access = true\n" };
        format!(
            "server.listen = \"{address}\"\nserver.h2c_listen = \"{h2c}\"\nserver.threads = 2\n\
             admin.listen = \"{admin}\"\napp.address = \"{app}\"\nlog.level = \"debug\"\n{access}{limits}{breaker}{reload}{rules}\n"
        )
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the app's address as the config writes it; call it before [`Setup::start`].
    #[must_use]
    pub fn app_at(mut self, address: &str, rules: &str) -> Self {
        address.clone_into(&mut self.app);
        fs::write(&self.file, self.text(rules)).expect("the rules can be written");
        self
    }

    /// Runs the proxy by this command, with the program and its arguments appended.
    #[must_use]
    pub fn through(mut self, command: &[&str]) -> Self {
        self.through = command.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// Starts the proxy and waits until it serves.
    pub fn start(self) -> Proxy {
        self.launch().ready()
    }

    /// Starts the proxy and does not wait: see [`Proxy::ready`].
    pub fn launch(self) -> Proxy {
        let named = [OsString::from("run"), "--config".into(), self.file.clone().into()];
        self.launch_with(&named)
    }

    /// The same without naming a file: it finds `config/proxy.toml` in its directory, or none.
    pub fn start_without_naming_a_file(self) -> Proxy {
        self.launch_with(&["run".into()]).ready()
    }

    fn launch_with(self, args: &[OsString]) -> Proxy {
        let mut program = match self.through.split_first() {
            None => Program::new(outrigger()),
            Some((by, rest)) => Program::new(by).args(rest).arg(outrigger()),
        };
        program = program.args(args).dir(&self.dir);
        for name in foreign_variables() {
            program = program.without_env(name);
        }
        for (name, value) in &self.env {
            program = program.env(name, value);
        }
        let log = self.dir.join("outrigger.log");
        let process = program.start("outrigger", &log).expect("outrigger can be started");
        Proxy { setup: self, process }
    }

    /// Runs `outrigger` with these arguments to its end, in this proxy's directory.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("outrigger can be run")
    }

    /// The command of [`Self::run`].
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(outrigger());
        for name in foreign_variables() {
            command.env_remove(name);
        }
        command.args(args).envs(self.env.iter().cloned()).current_dir(&self.dir);
        command
    }
}

/// A running proxy; killed when dropped.
#[derive(Debug)]
pub struct Proxy {
    setup: Setup,
    process: Process,
}

impl std::ops::Deref for Proxy {
    type Target = Setup;

    fn deref(&self) -> &Setup {
        &self.setup
    }
}

impl Proxy {
    /// In front of `app`, with every default.
    pub fn start(app: &Backend) -> Self {
        Self::with(app, "")
    }

    /// See [`Setup::new`].
    pub fn with(app: &Backend, rules: &str) -> Self {
        Setup::new(app, rules).start()
    }

    /// Waits until it serves.
    #[must_use]
    pub fn ready(mut self) -> Self {
        let admin = self.admin;
        let serves = || http::get(admin, "/healthz", PATIENCE).is_ok_and(|answer| answer.status == 200);
        self.process.ready(PATIENCE, serves).expect("outrigger serves");
        self
    }

    /// A new connection to the public port.
    pub fn connect(&self) -> Client {
        Client::connect(self.address).expect("the proxy takes connections").with_h2c(self.h2c)
    }

    /// The same from 127.0.0.`last`, which is a separate client.
    pub fn connect_as(&self, last: u8) -> Client {
        let client = Client::connect_from(Ipv4Addr::new(127, 0, 0, last), self.address);
        client.expect("the proxy takes connections").with_h2c(self.h2c)
    }

    /// One request of the client at 127.0.0.`last`.
    pub fn ask_as(&self, last: u8, request: &str) -> Answer {
        self.connect_as(last).send(request).answer()
    }

    /// One request on its own connection.
    pub fn ask(&self, request: &str) -> Answer {
        self.connect().send(request).answer()
    }

    /// `GET path` on its own connection.
    pub fn get(&self, path: &str) -> Answer {
        self.ask(&get(path))
    }

    /// The admin listener's response.
    pub fn admin(&self, path: &str) -> http::Answer {
        http::get(self.admin, path, PATIENCE).expect("the admin listener answers")
    }

    /// A page of metrics as OpenMetrics.
    pub fn openmetrics(&self, path: &str) -> String {
        let accept = [("accept", crate::openmetrics::ACCEPT)];
        http::send("GET", self.admin, path, &accept, "", PATIENCE).expect("the admin listener answers").body
    }

    /// The sum of all samples of `name` that have these labels; 0 if there are none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.admin("/metrics").body, name, labels)
    }

    /// Waits until exactly this many requests were rejected for this reason. A request is counted when it ends, which may be a
    /// moment after its response.
    #[track_caller]
    pub fn counts_rejections(&self, reason: &str, count: usize) {
        self.counts("outrigger_rejections_total", &[("reason", reason)], count);
    }

    /// Waits until the samples of `name` with these labels add up to exactly this.
    #[track_caller]
    pub fn counts(&self, name: &str, labels: &[(&str, &str)], count: usize) {
        let mut now = f64::NAN;
        let what = format!("{name} {labels:?} to be {count}");
        let reached = wait::until(&what, PATIENCE, || {
            now = self.metric(name, labels);
            now >= count as f64
        });
        assert!(reached.is_ok() && now == count as f64, "waited for {what}; it is {now}");
    }

    /// The admin listener's response, as JSON.
    #[track_caller]
    pub fn shows(&self, path: &str) -> serde_json::Value {
        let answer = self.admin(path);
        serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {path}: {}", answer.body))
    }

    /// Waits until there is a receipt for this reason, and checks the rule that it names.
    #[track_caller]
    pub fn has_receipt(&self, reason: &str, rule: &str) {
        until(&format!("a receipt for {reason}"), || {
            let receipts = self.shows("/requests?limit=500");
            let found = receipts["receipts"].as_array().expect("a list");
            found.iter().any(|receipt| receipt["reason"] == reason && receipt["rule"] == rule)
        });
    }

    /// Saves these rules and waits until they are in force.
    #[track_caller]
    pub fn changes_to(&self, rules: &str) {
        let version = self.metric("outrigger_config_version", &[]);
        fs::write(&self.file, self.text(rules)).expect("the rules can be written");
        until("the change to be in force", || self.metric("outrigger_config_version", &[]) > version);
    }

    /// Waits until no request is in flight and no client is connected.
    #[track_caller]
    pub fn comes_to_rest(&self) {
        until("the proxy to come to rest", || {
            let text = self.admin("/metrics").body;
            sum(&text, "outrigger_requests_in_flight", &[]) == 0.0
                && sum(&text, "outrigger_open_connections", &[]) == 0.0
        });
    }

    /// Disconnects this client, then does the same.
    #[track_caller]
    pub fn comes_to_rest_after(&self, client: Client) {
        drop(client);
        self.comes_to_rest();
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.process.log()).unwrap_or_default()
    }

    /// Waits for a log line that contains `text`, and returns it.
    #[track_caller]
    pub fn says(&self, text: &str) -> String {
        let what = format!("the log to say {text:?}");
        let line = || self.log().lines().find(|line| line.contains(text)).map(str::to_owned);
        wait::for_some(&what, PATIENCE, line).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// The exit status.
    pub fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait(limit).expect("the proxy ends")
    }

    /// Resident memory in KiB: now, and its peak.
    pub fn memory_kib(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).expect("the proxy runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux shows it");
            line.trim().trim_end_matches(" kB").parse().expect("a number")
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- what {} said last ---\n{}\n---", self.setup.file.display(), self.process.log_tail(40));
        }
    }
}

/// The built program.
pub fn outrigger() -> PathBuf {
    programs::find("outrigger")
        .expect("outrigger is built: run `cargo xtask test`, or `cargo build --package outrigger`")
}

/// A developer's own proxy variables, which must not reach the tests' proxies.
fn foreign_variables() -> impl Iterator<Item = String> {
    let ours = |name: &String| name.starts_with("OUTRIGGER_") || name.starts_with("FF_");
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(ours)
}

/// An empty directory under `target/e2e/`, named after the process and the test, so that concurrent test runs in one clone do
/// not collide. Files of ended runs stay until the next run begins.
pub fn fresh_dir() -> PathBuf {
    static OF_THIS_RUN: LazyLock<PathBuf> = LazyLock::new(|| {
        let all = paths::state("e2e").expect("target/e2e");
        for old in fs::read_dir(&all).expect("target/e2e").flatten() {
            let is_alive = Path::new("/proc").join(old.file_name()).exists();
            if !is_alive {
                // Another run that begins now may delete it first.
                let _ = fs::remove_dir_all(old.path());
            }
        }
        all.join(std::process::id().to_string())
    });
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let test = thread::current().name().unwrap_or("main").replace("::", "-");
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let dir = OF_THIS_RUN.join(format!("{test}-{number}"));
    fs::create_dir_all(&dir).expect("a directory under target/e2e");
    dir
}

/// A path for a Unix socket in `dir`.
pub fn socket(dir: &Path) -> PathBuf {
    paths::socket(dir, "app.sock").expect("a place for a socket")
}

/// The sum of all samples of `name` in an exposition that have these labels.
pub fn sum(exposition: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |line: &&str| {
        let rest = line.strip_prefix(name).unwrap_or_default();
        rest.starts_with(['{', ' ']) && labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")))
    };
    let value = |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
    exposition.lines().filter(fits).filter_map(value).sum()
}

/// A plain `GET`.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: outrigger.test\r\n\r\n")
}

/// A `POST` with `Content-Length`.
pub fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: outrigger.test\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The same request with more headers: lines such as `X-Api-Key: k`.
pub fn with_fields(request: &str, lines: &[&str]) -> String {
    let (head, body) = request.split_once("\r\n\r\n").expect("a head that ends");
    format!("{}\r\n\r\n{body}", [&[head], lines].concat().join("\r\n"))
}

/// The same request as a trusted edge forwards it.
pub fn from_address(request: &str, address: &str) -> String {
    with_fields(request, &[&format!("Fly-Client-IP: {address}")])
}

/// SHA-256 in hex, as in the table of keys.
pub fn sha256(text: &str) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One HTTP response.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    /// The header section as on the wire.
    pub head: String,
    /// Names in lower case; several values are joined by `, `.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    /// The header sections of 1xx responses before it.
    pub interim: Vec<String>,
    /// The trailer section after the last chunk.
    pub trailers: String,
    /// Whether its request was HTTP/1.0, after which the connection closes.
    pub is_to_http10: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: no JSON: {self:?}"))
    }

    /// A header of the request, as the app received and echoed it.
    #[track_caller]
    pub fn seen(&self, name: &str) -> Option<String> {
        self.json()["headers"][name].as_str().map(str::to_owned)
    }

    /// A header whose value is a number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let value = self.header(name).unwrap_or_else(|| panic!("no {name}: {self:?}"));
        value.parse().unwrap_or_else(|e| panic!("{name}: {value:?}: {e}"))
    }

    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Whether the connection can be used again, unless the form of the request excludes it.
    pub fn stays_open(&self) -> bool {
        self.is_to_http10 || !self.closes()
    }

    fn add(&mut self, name: &str, value: &str) {
        let joined = self.headers.entry(name.to_ascii_lowercase()).or_default();
        if !joined.is_empty() {
            joined.push_str(", ");
        }
        joined.push_str(value.trim());
    }

    /// Fails unless this is Outrigger's own response with this status and reason.
    #[track_caller]
    pub fn is_problem(&self, status: u16, reason: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        assert_eq!(body["status"], status, "{body}");
        // Registered with IANA, or Outrigger's own.
        let is_registered =
            matches!(reason, "quota_exceeded" | "temporary_reduced_capacity" | "abnormal_usage_detected");
        let registry =
            if is_registered { "https://iana.org/assignments/http-problem-types#" } else { "urn:outrigger:problem:" };
        assert_eq!(body["type"], format!("{registry}{}", reason.replace('_', "-")), "{body}");
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"), "{self:?}");
        for key in ["title", "detail"] {
            assert!(body[key].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        }
    }
}

/// One connection that can send any bytes, and one over HTTP/2 for requests of these forms; see [`Form`].
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Bytes read but not parsed yet.
    buffer: Vec<u8>,
    /// The proxy's listener for HTTP/2.
    h2c: Option<SocketAddr>,
    session: Option<Session>,
    /// The version of the last request.
    version: Version,
    /// Both ends of `stream`: a request after one over HTTP/1.0 needs another.
    ends: Option<(IpAddr, SocketAddr)>,
    state: State,
}

/// The state of a client's connection in HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unused,
    Used,
    /// The next request needs a new one.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
    Http2,
}

impl Version {
    /// That of the request that begins with these bytes.
    fn of(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let version = bytes[..end].rsplit(|byte| *byte == b' ').next()?;
        match version {
            b"HTTP/1.0" => Some(Self::Http10),
            b"HTTP/1.1" => Some(Self::Http11),
            b"HTTP/2" => Some(Self::Http2),
            _ => None,
        }
    }
}

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Self {
        let ends = stream.local_addr().ok().zip(stream.peer_addr().ok());
        Self {
            ends: ends.map(|(from, to)| (from.ip(), to)),
            stream,
            buffer: Vec::new(),
            h2c: None,
            session: None,
            version: Version::Http11,
            state: State::Unused,
        }
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Ok(connected(Ipv4Addr::LOCALHOST.into(), address)?.into())
    }

    /// The same, from an address of this machine.
    pub fn connect_from(source: Ipv4Addr, address: SocketAddr) -> io::Result<Self> {
        Ok(connected(source.into(), address)?.into())
    }

    /// The same with the address for requests over HTTP/2.
    #[must_use]
    pub fn with_h2c(mut self, h2c: SocketAddr) -> Self {
        self.h2c = Some(h2c);
        self
    }

    /// Sends bytes. A failure to send shows when the response is read.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.try_send(bytes);
        self
    }

    /// Sends bytes, or a request over HTTP/2 that is written as [`Form`] says.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let (bytes, version) = (bytes.as_ref(), Version::of(bytes.as_ref()));
        if version == Some(Version::Http2) {
            return self.send_over_http2(bytes);
        }
        if let Some(version) = version {
            if self.state == State::Over {
                let (from, to) = self.ends.expect("it was connected");
                self.stream = connected(from, to)?;
            }
            self.version = version;
        }
        self.state = State::Used;
        self.stream.write_all(bytes)
    }

    fn send_over_http2(&mut self, request: &[u8]) -> io::Result<()> {
        if self.session.is_none() {
            let (h2c, (from, _)) = self.h2c.zip(self.ends).expect("a client of a proxy");
            self.session = Some(Session::begin(connected(from, h2c)?)?);
        }
        if self.state == State::Unused {
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
            self.state = State::Over;
        }
        self.version = Version::Http2;
        self.session.as_mut().expect("it has begun").send(request)
    }

    /// Sending fails from now on if the other side accepts no bytes for this long.
    pub fn gives_up_sending_after(&self, time: Duration) {
        self.stream.set_write_timeout(Some(time)).expect("a time that is not zero");
    }

    /// Shuts down the sending side.
    pub fn finish_sending(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// The next final response.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        self.try_answer().unwrap_or_else(|e| panic!("no answer: {e}; got {:?}", String::from_utf8_lossy(&self.buffer)))
    }

    /// The next final response without a body, regardless of its headers: that to a `HEAD`.
    #[track_caller]
    pub fn answer_to_head(&mut self) -> Answer {
        self.head().unwrap_or_else(|e| panic!("no answer: {e}"))
    }

    pub fn try_answer(&mut self) -> io::Result<Answer> {
        let mut answer = self.head()?;
        if let (Version::Http2, Some(session)) = (self.version, &mut self.session) {
            let deadline = Instant::now() + PATIENCE;
            while let piece = session.piece(deadline)?
                && !piece.is_empty()
            {
                answer.body.extend_from_slice(&piece);
            }
            answer.trailers = session.trailers()?;
            return Ok(answer);
        }
        if matches!(answer.status, 101 | 204 | 304) {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            loop {
                let line = self.take_through(b"\r\n")?;
                let size = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
                let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
                    .map_err(|_| broken(format!("{size:?} is no chunk's size")))?;
                if size == 0 {
                    break;
                }
                answer.body.extend(self.take(size)?);
                if self.take(2)? != b"\r\n" {
                    return Err(broken("a chunk does not end where it should"));
                }
            }
            loop {
                let line = self.take_through(b"\r\n")?;
                if line == b"\r\n" {
                    return Ok(answer);
                }
                answer.trailers.push_str(&String::from_utf8_lossy(&line));
            }
        }
        answer.body = match answer.header("content-length").map(str::parse) {
            Some(Ok(length)) => self.take(length)?,
            Some(Err(_)) => return Err(broken("a length that is no number")),
            None => self.rest()?,
        };
        Ok(answer)
    }

    /// The next final header section, with the interim ones before it.
    pub fn head(&mut self) -> io::Result<Answer> {
        if let (Version::Http2, Some(session)) = (self.version, &mut self.session) {
            return session.head(PATIENCE);
        }
        let is_to_http10 = self.version == Version::Http10;
        let mut interim = Vec::new();
        loop {
            let head = String::from_utf8_lossy(&self.take_through(b"\r\n\r\n")?).into_owned();
            let mut lines = head.trim_end().split("\r\n");
            let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
            let status = status.ok_or_else(|| broken(format!("no HTTP: {head:?}")))?;
            if (100..200).contains(&status) && status != 101 {
                interim.push(head);
                continue;
            }
            let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
            let mut answer = Answer { status, interim, is_to_http10, ..Answer::default() };
            fields.into_iter().for_each(|(name, value)| answer.add(name, value));
            if is_to_http10 {
                self.state = State::Over;
            }
            return Ok(Answer { head, ..answer });
        }
    }

    /// Exactly this many bytes.
    pub fn take(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        while self.buffer.len() < bytes {
            if self.fill(deadline)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = self.buffer.split_off(bytes);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// All bytes up to and including `end`.
    pub fn take_through(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return self.take(at + end.len());
            }
            if self.fill(deadline)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// All bytes until the other side closes.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        while self.fill(deadline)? > 0 {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// The next piece, of any size; empty at the end.
    pub fn piece(&mut self) -> io::Result<Vec<u8>> {
        if self.buffer.is_empty() {
            self.fill(Instant::now() + PATIENCE)?;
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Fails unless the other side closes now, without a reset and without another byte.
    #[track_caller]
    pub fn is_closed(&mut self) {
        match self.rest() {
            Ok(rest) => assert!(rest.is_empty(), "more came: {:?}", String::from_utf8_lossy(&rest)),
            Err(e) => panic!("the connection was not closed: {e}"),
        }
    }

    /// Whether no byte arrives for this long.
    pub fn stays_silent_for(&mut self, time: Duration) -> bool {
        let quiet = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        if let (Version::Http2, Some(session)) = (self.version, &mut self.session) {
            return session.comes(time).is_err_and(|e| quiet.contains(&e.kind()));
        }
        self.buffer.is_empty() && self.fill(Instant::now() + time).is_err_and(|e| quiet.contains(&e.kind()))
    }

    fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        if let (Version::Http2, Some(session)) = (self.version, &mut self.session) {
            let piece = session.piece(deadline)?;
            self.buffer.extend_from_slice(&piece);
            return Ok(piece.len());
        }
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left))?;
        let mut piece = [0; 64 << 10];
        let read = self.stream.read(&mut piece)?;
        self.buffer.extend_from_slice(&piece[..read]);
        Ok(read)
    }
}

/// A connection from this address.
fn connected(source: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
    let stream = if source == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        TcpStream::connect_timeout(&address, PATIENCE)?
    } else {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddr::new(source, 0))?;
        connect(&socket, &address)?;
        socket.into()
    };
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// A hash that is computed piece by piece (FNV-1a).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    }

    pub fn of(bytes: &[u8]) -> String {
        let mut hash = Self::default();
        hash.add(bytes);
        hash.text()
    }

    pub fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}
