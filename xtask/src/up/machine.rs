//! One Machine of the stack: an app and a proxy in front of it. Several Machines are peers.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use xtask::{Error, Process, Program, Result, Signal, http, paths, ports, programs, say};

use super::trail::Secrets;

/// The app only has the SHA-256 of the tour's key.
const KEY_SHA256: &str = "e587b71720a61b2fed9121a17b552ada9cbeec6d468f3bfb1be92300b821729a";
const START: Duration = Duration::from_secs(60);
/// Longer than either program's own drain.
const STOP: Duration = Duration::from_secs(60);

/// Settings that all Machines share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The state directory of the stack.
    pub(super) state: PathBuf,
    /// URL of PostgreSQL.
    pub(super) database_url: String,
    /// URL of ChromaDB.
    pub(super) chroma_url: String,
    /// The secret with which the app verifies JWTs.
    pub(super) token_secret: String,
    /// Secrets of the audit log.
    pub(super) trail: Secrets,
    /// Settings for peers; `None` for a single Machine.
    pub(super) peers: Option<Peers>,
}

/// Settings for peers.
#[derive(Debug)]
pub(super) struct Peers {
    /// The edge's name server.
    pub(super) resolver: SocketAddr,
    /// The port on which each Machine listens for its peers, at its own address.
    pub(super) port: u16,
    /// The key that signs cookies and hops.
    pub(super) key: String,
}

/// The addresses of a Machine's listeners.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) proxy: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) app: SocketAddr,
}

impl Addresses {
    /// Uses free ports.
    pub(super) fn free() -> Result<Self> {
        let any = || Ok::<_, Error>((Ipv4Addr::LOCALHOST, ports::free()?).into());
        Ok(Self { proxy: any()?, admin: any()?, app: any()? })
    }

    pub(super) fn all(&self) -> [SocketAddr; 3] {
        [self.proxy, self.admin, self.app]
    }
}

/// A running Machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) number: u8,
    pub(super) at: Addresses,
    pub(super) app: Process,
    pub(super) proxy: Process,
}

impl Machine {
    /// Starts it and waits until it serves.
    pub(super) fn start(shared: &Shared, number: u8, at: Addresses) -> Result<Self> {
        let socket = paths::socket(&shared.state, &named(shared, "app", number, "sock"))?;
        let app = start_app(shared, number, at, &socket)?;
        let proxy = start_proxy(shared, number, at, &socket)?;
        Ok(Self { number, at, app, proxy })
    }

    /// Its description for the edge: name, listener, and private address.
    pub(super) fn for_edge(&self) -> String {
        format!("{},{},{}", name(self.number), self.at.proxy, private(self.number))
    }

    /// Restarts it if one of its processes has ended, as Fly does with a Machine.
    pub(super) fn revive(&mut self, shared: &Shared) -> Result<()> {
        let ended = [&mut self.app, &mut self.proxy]
            .into_iter()
            .find_map(|process| process.ended().map(|_| process.name().to_owned()));
        let Some(ended) = ended else { return Ok(()) };
        say(format_args!("{ended} has ended; Machine {} starts again", name(self.number)));
        self.stop();
        *self = Self::start(shared, self.number, self.at)?;
        Ok(())
    }

    /// Its processes.
    pub(super) fn processes(&mut self) -> [&mut Process; 2] {
        [&mut self.app, &mut self.proxy]
    }

    /// Stops the proxy first, so that the app completes requests in flight.
    pub(super) fn stop(&mut self) {
        for process in [&mut self.proxy, &mut self.app] {
            if process.is_running() && process.stop(Signal::TERM, STOP).is_err() {
                say(format_args!("{} did not end in time and was killed", process.name()));
            }
        }
    }
}

/// `m1` and so on.
fn name(number: u8) -> String {
    format!("m{number}")
}

/// The Machine's own address in 127.0.0.0/8, all of which is this computer.
fn private(number: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, number.saturating_add(1)])
}

/// The name of a Machine's file; without the Machine's name if there is only one.
fn named(shared: &Shared, what: &str, number: u8, suffix: &str) -> String {
    match shared.peers {
        Some(_) => format!("{what}-{}.{suffix}", name(number)),
        None => format!("{what}.{suffix}"),
    }
}

fn called(shared: &Shared, what: &str, number: u8) -> String {
    match shared.peers {
        Some(_) => format!("{what} of {}", name(number)),
        None => what.to_owned(),
    }
}

/// The audit directory of a Machine's proxy. It is kept when the Machine ends.
pub(super) fn spool(shared: &Shared, number: u8) -> PathBuf {
    shared.state.join(match shared.peers {
        Some(_) => format!("audit-{}", name(number)),
        None => "audit".to_owned(),
    })
}

fn start_app(shared: &Shared, number: u8, at: Addresses, socket: &Path) -> Result<Process> {
    // The app gets a pseudonym key in place of the keys that sign the audit log.
    let mut program = Program::new(programs::find("outrigger")?)
        .args(["audit", "keys", "exec", "--"])
        .arg(programs::find("outrigger-app")?);
    if shared.peers.is_some() {
        program = program.env("FLY_MACHINE_ID", name(number));
    }
    let mut app = program
        .env("DATABASE_URL", &shared.database_url)
        .env("CHROMA_URL", &shared.chroma_url)
        .env("APP_SOCKET", socket)
        .env("APP_LISTEN", at.app.to_string())
        .env("APP_API_KEYS", format!("demo:{KEY_SHA256}"))
        .env("APP_JWT_SECRET", &shared.token_secret)
        .env("APP_VECTOR_DIMENSION", "8")
        .env("OUTRIGGER_AUDIT_KEYS", &shared.trail.keys)
        .env("APP_LOG_FORMAT", "text")
        .start(&called(shared, "the app", number), &fresh_log(&shared.state, &named(shared, "app", number, "log")))?;
    app.ready(START, || is_ok(at.app, "/health/ready"))?;
    say(format_args!("{} is ready on {}, its log is {}", app.name(), socket.display(), app.log().display()));
    Ok(app)
}

fn start_proxy(shared: &Shared, number: u8, at: Addresses, socket: &Path) -> Result<Process> {
    let config = paths::root().join("config/proxy.toml");
    let mut program = Program::new(programs::find("outrigger")?)
        .args(["run", "--config"])
        .arg(&config)
        .env("OUTRIGGER_LISTEN", at.proxy.to_string())
        .env("OUTRIGGER_ADMIN_LISTEN", at.admin.to_string())
        .env("OUTRIGGER_APP_ADDRESS", format!("unix:{}", socket.display()))
        .env("OUTRIGGER_APP_METRICS", format!("http://{}/metrics", at.app))
        .env("OUTRIGGER_AUDIT_DIRECTORY", spool(shared, number))
        .env("OUTRIGGER_AUDIT_KEYS", &shared.trail.keys)
        .env("OUTRIGGER_AUDIT_DATABASE_URL", &shared.database_url)
        .env("OUTRIGGER_LOG_FORMAT", "text");
    if let Some(peers) = &shared.peers {
        program = program
            .env("OUTRIGGER_MACHINE", name(number))
            .env("OUTRIGGER_AFFINITY_KEYS", &peers.key)
            .env("OUTRIGGER_EDGE", "fly")
            .env("OUTRIGGER_PEERS_LISTEN", SocketAddr::new(private(number), peers.port).to_string())
            .env("OUTRIGGER_PEERS_DNS", format!("{APP}.internal"))
            .env("OUTRIGGER_PEERS_RESOLVER", peers.resolver.to_string());
    }
    let log = fresh_log(&shared.state, &named(shared, "proxy", number, "log"));
    let mut proxy = program.start(&called(shared, "the proxy", number), &log)?;
    proxy.ready(START, || is_ok(at.proxy, "/health/ready"))?;
    say(format_args!("{} is ready on {}, its log is {}", proxy.name(), at.proxy, proxy.log().display()));
    Ok(proxy)
}

/// The app's name on Fly.
pub(super) const APP: &str = "outrigger";

/// Starts the stand-in for Fly's edge, in front of several Machines.
pub(super) fn start_edge(shared: &Shared, listen: SocketAddr, machines: &[Machine]) -> Result<Process> {
    let Some(peers) = &shared.peers else { return Err(Error::new("one Machine has no edge")) };
    let mut program = Program::new(programs::find("outrigger-edge")?)
        .args(["--listen", &listen.to_string(), "--dns", &peers.resolver.to_string(), "--app", APP])
        .args(["--concurrency", "requests", "--soft-limit", "200", "--check-path", "/health", "--http"]);
    for machine in machines {
        program = program.args(["--machine", &machine.for_edge()]);
    }
    let mut edge = program.start("the edge", &fresh_log(&shared.state, "edge.log"))?;
    edge.ready(START, || is_ok(listen, "/health/ready"))?;
    say(format_args!("the stand-in for Fly's edge is ready on {listen}, its log is {}", edge.log().display()));
    Ok(edge)
}

/// One log per run: the end of the previous one could be mistaken for the start of this one.
fn fresh_log(state: &Path, name: &str) -> PathBuf {
    let log = state.join(name);
    let _ = fs::remove_file(&log);
    log
}

/// Whether a request for `path` returns 200.
pub(super) fn is_ok(address: SocketAddr, path: &str) -> bool {
    http::get(address, path, Duration::from_secs(2)).is_ok_and(|answer| answer.status == 200)
}
