//! Three Machines of real processes: an app, and a proxy in front of it, which are killed, stopped, started and told things.
//!
//! All functions block: call them off the runtime.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xtask::error::While;
use xtask::http::Answer;
use xtask::{Error, Process, Program, Result, Signal, http, ports, process, wait};

use crate::PATIENCE;
use crate::traffic::Ports;

pub const NUMBER: usize = 3;
/// Names of the Machines.
pub const NAMES: [&str; NUMBER] = ["a", "b", "c"];

const RULES: &str = include_str!("../proxy.toml");
const TOKEN: &str = "the-token-of-the-soaks-operator";

/// Maximum size of a process's log: its beginning is moved aside.
const LOG_BYTES: u64 = 64 << 20;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Machines(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    dir: PathBuf,
    /// The PostgreSQL to which audit logs are shipped.
    database: Option<String>,
    machines: Vec<Mutex<Machine>>,
    addresses: Vec<Addresses>,
}

#[derive(Clone, Copy, Debug)]
struct Addresses {
    public: Ports,
    app: SocketAddr,
    admin: SocketAddr,
    peers: SocketAddr,
}

#[derive(Debug, Default)]
struct Machine {
    app: Option<Process>,
    proxy: Option<Process>,
    /// Counters of the proxy's earlier processes.
    before: BTreeMap<String, f64>,
    reloads: u32,
}

fn local() -> Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, ports::free()?).into())
}

impl Machines {
    /// Starts all, and waits until they know each other.
    pub fn start(program: &Path, dir: &Path, database: Option<String>) -> Result<Self> {
        let mut addresses = Vec::new();
        for _ in 0..NUMBER {
            let public = Ports { http1: local()?, http2: local()? };
            addresses.push(Addresses { public, app: local()?, admin: local()?, peers: local()? });
        }
        let machines = (0..NUMBER).map(|_| Mutex::default()).collect();
        let inner = Inner { program: program.to_owned(), dir: dir.to_owned(), database, machines, addresses };
        let all = Self(Arc::new(inner));
        for n in 0..NUMBER {
            all.start_app(n)?;
            all.start_proxy(n)?;
        }
        let known = |n: usize| all.metrics(n).is_ok_and(|text| sum(&text, "outrigger_peers", "\"ready\"") == 2.0);
        wait::until("all proxies to know each other", PATIENCE, || (0..NUMBER).all(known))?;
        Ok(all)
    }

    fn lock(&self, n: usize) -> MutexGuard<'_, Machine> {
        self.0.machines[n].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn public(&self) -> Vec<Ports> {
        self.0.addresses.iter().map(|addresses| addresses.public).collect()
    }

    /// Starts an app, and waits until it takes connections.
    pub fn start_app(&self, n: usize) -> Result<()> {
        let address = self.0.addresses[n].app;
        // Not `current_exe`, which is gone if this crate is rebuilt meanwhile.
        let mut app = Program::new(format!("/proc/{}/exe", std::process::id()))
            .args(["app", "--listen", &address.to_string(), "--orders"])
            .arg(self.0.dir.join("orders"))
            .start("the app", &self.0.dir.join(format!("{}-app.log", NAMES[n])))?;
        app.ready(PATIENCE, || std::net::TcpStream::connect(address).is_ok())?;
        self.lock(n).app = Some(app);
        Ok(())
    }

    pub fn kill_app(&self, n: usize) {
        let gone = self.lock(n).app.take();
        drop(gone);
    }

    /// Stops the app by a signal, so that it hangs, or lets it go on.
    pub fn hang(&self, n: usize, does_hang: bool) {
        if let Some(app) = &mut self.lock(n).app {
            if does_hang { app.pause() } else { app.resume() }
        }
    }

    /// Tells the app how many milliseconds more each request takes, and how many connections it resets.
    pub fn control(&self, n: usize, slow: u128, resets: u32) -> Result<()> {
        let path = format!("/control?slow={slow}&resets={resets}");
        http::send("PUT", self.0.addresses[n].app, &path, &[], "", PATIENCE).map(drop)
    }

    fn rules_file(&self, n: usize) -> PathBuf {
        self.0.dir.join(format!("{}.toml", NAMES[n]))
    }

    /// Writes the configuration. Each time it differs a little from the one before.
    fn write_rules(&self, n: usize) -> Result<()> {
        let Addresses { public, app, admin, peers } = self.0.addresses[n];
        let (name, dir) = (NAMES[n], self.0.dir.join(NAMES[n]).display().to_string());
        let reloads = self.lock(n).reloads;
        let others: Vec<String> =
            (0..NUMBER).filter(|m| *m != n).map(|m| format!("\"{}\"", self.0.addresses[m].peers)).collect();
        let places: toml::Table = toml::from_str(&format!(
            "server.listen = \"{}\"\nserver.h2c_listen = \"{}\"\nserver.machine = \"{name}\"\nadmin.listen = \"{admin}\"\n\
             app.address = \"{app}\"\npeers.listen = \"{peers}\"\npeers.list = [{}]\nstate.directory = \"{dir}/state\"\n\
             audit.directory = \"{dir}/audit\"\ntraffic.directory = \"{dir}/traffic\"\nretry.max_backoff = \"{}ms\"\n",
            public.http1,
            public.http2,
            others.join(", "),
            250 + reloads % 50,
        ))
        .while_("writing the rules")?;
        let mut rules: toml::Table = toml::from_str(RULES).while_("reading the rules")?;
        for (section, keys) in places {
            let into = rules.entry(section).or_insert_with(|| toml::Table::new().into());
            if let (Some(into), toml::Value::Table(keys)) = (into.as_table_mut(), keys) {
                into.extend(keys);
            }
        }
        // In one step, as an editor does.
        let (file, new) = (self.rules_file(n), self.0.dir.join(format!("{name}.toml.new")));
        fs::write(&new, rules.to_string()).while_(format_args!("writing {}", new.display()))?;
        fs::rename(&new, &file).while_(format_args!("renaming {}", new.display()))
    }

    /// The environment of the proxy and its commands: no variables of a developer's own proxy.
    fn outrigger(&self) -> Program {
        let mut program = Program::new(&self.0.program).dir(&self.0.dir);
        for (name, _) in std::env::vars_os() {
            let is_ours = |name: &str| name.starts_with("OUTRIGGER_") || name.starts_with("FF_");
            if name.to_str().is_some_and(is_ours) {
                program = program.without_env(name);
            }
        }
        program = program
            .env("OUTRIGGER_AFFINITY_KEYS", "a-key-of-the-soak-test-that-nobody-guesses")
            .env("OUTRIGGER_AUDIT_KEYS", "soak:a-secret-of-the-soak-test-that-nobody-guesses")
            .env("OUTRIGGER_ADMIN_TOKEN", TOKEN);
        match &self.0.database {
            Some(url) => program.env("OUTRIGGER_AUDIT_DATABASE_URL", url),
            None => program,
        }
    }

    pub fn start_proxy(&self, n: usize) -> Result<()> {
        self.write_rules(n)?;
        let log = self.0.dir.join(format!("{}-outrigger.log", NAMES[n]));
        let program = self.outrigger().args(["run", "--config"]).arg(self.rules_file(n));
        let mut proxy = program.start("outrigger", &log)?;
        let public = self.0.addresses[n].public.http1;
        proxy.ready(PATIENCE, || http::get(public, "/health", PATIENCE).is_ok_and(|answer| answer.status == 200))?;
        self.lock(n).proxy = Some(proxy);
        Ok(())
    }

    /// Restarts a proxy as a deploy does. `route` says whether the edge routes to it.
    pub fn restart_proxy(&self, n: usize, route: impl Fn(bool)) -> Result<()> {
        let counters = counters(&self.metrics(n)?);
        let Some(mut proxy) = self.lock(n).proxy.take() else { return Err(Error::new("there is no proxy")) };
        proxy.signal(Signal::TERM);
        let public = self.0.addresses[n].public.http1;
        let fails = || http::get(public, "/health", PATIENCE).is_ok_and(|answer| answer.status == 503);
        wait::until("health checks to fail", PATIENCE, fails)?;
        route(false);
        let status = proxy.wait(Duration::from_secs(40))?;
        if !status.success() {
            return Err(Error::new(format_args!("the proxy ended with {status}")).hint(proxy.log_tail(10)));
        }
        for (name, value) in counters {
            *self.lock(n).before.entry(name).or_default() += value;
        }
        self.start_proxy(n)?;
        route(true);
        Ok(())
    }

    /// Changes the configuration file.
    pub fn reload(&self, n: usize) -> Result<()> {
        self.lock(n).reloads += 1;
        self.write_rules(n)
    }

    /// An order of the operator.
    pub fn order(&self, n: usize, path: &str, body: &str) -> Result<()> {
        let token = format!("Bearer {TOKEN}");
        let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
        let answer = http::send("POST", self.0.addresses[n].admin, path, &headers, body, PATIENCE)?;
        if answer.status == 200 { Ok(()) } else { Err(Error::new(format_args!("POST {path}: {answer:?}"))) }
    }

    /// The proxy's metrics.
    pub fn metrics(&self, n: usize) -> Result<String> {
        http::get(self.0.addresses[n].admin, "/metrics", PATIENCE).map(|answer| answer.body)
    }

    /// Scrapes a proxy as Prometheus does, and keeps its log short.
    pub fn scrape(&self, n: usize) -> Result<()> {
        let Answer { status, body } = http::get(self.0.addresses[n].admin, "/metrics/all", PATIENCE)?;
        if status != 200 || !body.contains("outrigger_requests_total") {
            return Err(Error::new(format_args!("/metrics/all: {status} {} bytes", body.len())));
        }
        let log = self.0.dir.join(format!("{}-outrigger.log", NAMES[n]));
        if fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_BYTES) {
            fs::copy(&log, log.with_extension("log.1")).while_("copying a log")?;
            let file = fs::OpenOptions::new().write(true).open(&log).while_("opening a log")?;
            file.set_len(0).while_("emptying a log")?;
        }
        Ok(())
    }

    /// All counters of all proxies, those of earlier processes included, by name.
    pub fn counters(&self) -> Result<BTreeMap<String, f64>> {
        let mut all = BTreeMap::new();
        for n in 0..NUMBER {
            let now = counters(&self.metrics(n)?);
            for (name, value) in self.lock(n).before.iter().chain(&now) {
                *all.entry(name.clone()).or_default() += value;
            }
        }
        Ok(all)
    }

    /// How many requests have arrived at the apps that run now.
    pub fn arrived(&self) -> Result<usize> {
        let mut all = 0.0;
        for addresses in &self.0.addresses {
            all += sum(&http::get(addresses.app, "/metrics", PATIENCE)?.body, "soak_requests_total", "");
        }
        Ok(all as usize)
    }

    /// The process of a proxy, while it runs. Its program replaces `setpriv`, which started it.
    pub fn pid(&self, n: usize) -> Option<u32> {
        self.lock(n).proxy.as_ref().map(Process::pid).filter(|pid| process::exists(*pid))
    }

    /// Ids of the orders and uploads that the apps have executed, in order.
    pub fn executed(&self) -> Result<Vec<u64>> {
        let file = self.0.dir.join("orders");
        let bytes = fs::read(&file).while_(format_args!("reading {}", file.display()))?;
        let mut all: Vec<u64> = bytes.as_chunks().0.iter().map(|id| u64::from_le_bytes(*id)).collect();
        all.sort_unstable();
        Ok(all)
    }

    /// Stops all proxies, and verifies their audit logs. Returns what is wrong.
    pub fn end(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (n, name) in NAMES.iter().enumerate() {
            let Some(mut proxy) = self.lock(n).proxy.take() else { continue };
            match proxy.stop(Signal::TERM, Duration::from_secs(40)) {
                Ok(status) if status.success() => {}
                Ok(status) => wrong.push(format!("the proxy {name} ended with {status}")),
                Err(e) => wrong.push(format!("the proxy {name}: {e}")),
            }
            let log = fs::read_to_string(proxy.log()).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                wrong.push(format!("the proxy {name}: {line}"));
            }
            let verify = self.outrigger().args(["audit", "verify", "--config"]).arg(self.rules_file(n));
            if let Err(e) = verify.output() {
                wrong.push(format!("the audit log of {name}: {e}"));
            }
        }
        wrong
    }
}

/// The sum of a metric's samples whose labels contain this text.
pub fn sum(text: &str, name: &str, labels: &str) -> f64 {
    let of_metric = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let lines = text.lines().filter(of_metric).filter(|line| line.contains(labels));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// All counters, each the sum of its samples; and the samples themselves, by name with labels.
fn counters(text: &str) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let name = series.split('{').next().unwrap_or(series);
        let Some(value) = value.parse::<f64>().ok().filter(|_| name.ends_with("_total")) else { continue };
        *all.entry(name.to_owned()).or_default() += value;
        if series != name {
            *all.entry(series.to_owned()).or_default() += value;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_more 9\nb 7\n";

    #[test]
    fn counters_are_summed_over_their_labels() {
        assert_eq!((sum(TEXT, "a_total", ""), sum(TEXT, "a_total", "\"2\""), sum(TEXT, "b", "")), (5.0, 3.0, 7.0));
        let all = counters(TEXT);
        assert_eq!((all["a_total"], all["a_total{x=\"2\"}"], all.get("b")), (5.0, 3.0, None));
    }
}
