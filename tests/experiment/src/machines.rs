//! Machines made of real processes: an app, and on one side a proxy in front of it. They are started, stopped and killed as
//! their hosts and supervisors would.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fs};

use async_trait::async_trait;
use outrigger_edge::{Fleet, FleetError, Machine, settings};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use xtask::error::While;
use xtask::{Error, Process, Program, Result, Signal, http, paths, ports, wait};

use crate::PATIENCE;
use crate::clock::{self, seconds};
use crate::platform::Meter;
use crate::script::{QUEUE, WORKERS, times};

/// State that all Machines of a side share. Cheap to clone.
#[derive(Clone)]
pub struct Machines(Arc<Inner>);

struct Inner {
    has_proxy: bool,
    dns: SocketAddr,
    peers_port: u16,
    dir: PathBuf,
    running: Mutex<BTreeMap<String, Running>>,
    /// The last byte of the next address; each Machine has its own, from 127.0.0.2.
    made: AtomicU8,
    database_percent: AtomicU64,
    is_deploying: AtomicBool,
}

/// A Machine's state in Fly's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Stopped,
    /// It boots.
    Starting,
    /// Its processes run, whether or not they are healthy.
    Started,
    Stopping,
    /// Its host has failed: only another host can start it.
    Lost,
}

/// One Machine, running or not.
struct Running {
    machine: Machine,
    phase: Phase,
    meter: Meter,
    app_address: SocketAddr,
    admin: SocketAddr,
    app: Option<Process>,
    proxy: Option<Process>,
}

fn local() -> Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, ports::free()?).into())
}

fn failed(e: impl std::fmt::Display) -> FleetError {
    FleetError(e.to_string())
}

/// Runs `work` off the runtime: starting and stopping processes blocks.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::new(e)))
}

impl Machines {
    pub fn new(has_proxy: bool, dns: SocketAddr, dir: &Path) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            has_proxy,
            dns,
            peers_port: ports::free()?,
            dir: dir.to_owned(),
            running: Mutex::default(),
            made: AtomicU8::new(2),
            database_percent: AtomicU64::new(100),
            is_deploying: AtomicBool::new(false),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_phase(&self, phase: Phase) -> Vec<String> {
        self.lock().iter().filter(|(_, running)| running.phase == phase).map(|(id, _)| id.clone()).collect()
    }

    /// The ids of the started Machines, in order.
    pub fn started(&self) -> Vec<String> {
        self.in_phase(Phase::Started)
    }

    /// The ids of the stopped Machines, in order.
    pub fn stopped(&self) -> Vec<String> {
        self.in_phase(Phase::Stopped)
    }

    /// The n-th started Machine, starting over from the first where there are fewer.
    pub fn nth(&self, n: usize) -> Option<String> {
        let all = self.started();
        all.get(n % all.len().max(1)).cloned()
    }

    pub fn machine(&self, id: &str) -> Result<Machine> {
        self.of(id, |running| running.machine.clone())
    }

    /// Whether a deploy replaces Machines at present.
    pub fn is_deploying(&self) -> bool {
        self.0.is_deploying.load(Ordering::Relaxed)
    }

    pub fn set_deploying(&self, is_deploying: bool) {
        self.0.is_deploying.store(is_deploying, Ordering::Relaxed);
    }

    /// How busy each started Machine has been.
    pub fn meters(&self) -> Vec<(String, Meter)> {
        let all = self.lock();
        let started = all.iter().filter(|(_, running)| running.phase == Phase::Started);
        started.map(|(id, running)| (id.clone(), running.meter)).collect()
    }

    /// Asks all apps how busy they were. One that does not respond keeps its last value.
    pub async fn read_meters(&self) {
        let machines = self.clone();
        let read = move || {
            let apps: Vec<(String, SocketAddr)> = {
                let all = machines.lock();
                let running = all.iter().filter(|(_, running)| running.app.is_some());
                running.map(|(id, running)| (id.clone(), running.app_address)).collect()
            };
            for (id, app) in apps {
                let answer = http::get(app, "/busy", METER_PATIENCE).ok();
                if let Some(micros) = answer.and_then(|answer| answer.body.parse::<u64>().ok()) {
                    let _ = machines.of(&id, |running| running.meter.read(micros as f64 / 1e6));
                }
            }
            Ok(())
        };
        let _ = aside(read).await;
    }

    /// The admin listener of each started Machine's proxy.
    pub fn admins(&self) -> Vec<(String, SocketAddr)> {
        let all = self.lock();
        let started = all.iter().filter(|(_, running)| running.phase == Phase::Started && running.proxy.is_some());
        started.map(|(id, running)| (id.clone(), running.admin)).collect()
    }

    /// Creates a Machine that is not running yet.
    pub fn make(&self, version: u64) -> Result<Machine> {
        let number = self.0.made.fetch_add(1, Ordering::Relaxed);
        let private = IpAddr::from([127, 0, 0, number]);
        let machine =
            Machine { id: format!("m{number:02}"), region: "ams".to_owned(), version, public: local()?, private };
        // Without a proxy, the edge connects to the app.
        let app_address = if self.0.has_proxy { local()? } else { machine.public };
        let running = Running {
            machine: machine.clone(),
            phase: Phase::Stopped,
            meter: Meter::new(),
            app_address,
            admin: local()?,
            app: None,
            proxy: None,
        };
        self.lock().insert(machine.id.clone(), running);
        Ok(machine)
    }

    /// Boots the Machine, and waits until it reports that it is healthy.
    pub async fn run(&self, id: &str) -> Result<()> {
        self.of(id, |running| running.phase = Phase::Starting)?;
        sleep(seconds(times::MACHINE_BOOT)).await;
        self.of(id, |running| (running.phase, running.meter) = (Phase::Started, Meter::new()))?;
        self.start_app(id).await?;
        let (machines, id) = (self.clone(), id.to_owned());
        aside(move || {
            let public = if machines.0.has_proxy {
                machines.start_proxy(&id)?
            } else {
                machines.of(&id, |m| m.machine.public)?
            };
            let is_healthy = || http::get(public, "/health", PATIENCE).is_ok_and(|answer| answer.status == 200);
            wait::until(&format!("Machine {id} to be healthy"), PATIENCE, is_healthy)
        })
        .await
    }

    fn of<T>(&self, id: &str, look: impl FnOnce(&mut Running) -> T) -> Result<T> {
        self.lock().get_mut(id).map(look).ok_or_else(|| Error::new(format_args!("there is no Machine {id}")))
    }

    /// Starts the app again, as its supervisor does, unless the Machine was stopped meanwhile.
    pub async fn restart_app(&self, id: &str) -> Result<()> {
        if self.of(id, |running| running.phase)? == Phase::Started { self.start_app(id).await } else { Ok(()) }
    }

    /// Starts the app of a Machine.
    pub async fn start_app(&self, id: &str) -> Result<()> {
        let (machines, id) = (self.clone(), id.to_owned());
        aside(move || {
            let address = machines.of(&id, |running| running.app_address)?;
            let milliseconds = |real: f64| seconds(real).as_millis().to_string();
            // Not `current_exe`, which is gone if this crate is rebuilt meanwhile.
            let app = Program::new(format!("/proc/{}/exe", std::process::id()))
                .args(["app", "--listen", &address.to_string()])
                .args(["--start-after", &milliseconds(times::APP_START), "--grace", &milliseconds(times::APP_GRACE)])
                .args(["--workers", &WORKERS.to_string(), "--queue", &QUEUE.to_string()])
                .args(["--database", &machines.0.database_percent.load(Ordering::Relaxed).to_string()])
                .start("the app", &machines.0.dir.join(format!("{id}-app.log")))?;
            machines.of(&id, |running| running.app = Some(app))
        })
        .await
    }

    /// Starts the proxy of a Machine; returns its public address.
    fn start_proxy(&self, id: &str) -> Result<SocketAddr> {
        let (machine, app, admin) = self.of(id, |m| (m.machine.clone(), m.app_address, m.admin))?;
        let Inner { dns, peers_port, dir, .. } = &*self.0;
        let places: toml::Table = toml::from_str(&format!(
            "server.listen = \"{}\"\nserver.machine = \"{id}\"\nadmin.listen = \"{admin}\"\napp.address = \"{app}\"\n\
             peers.listen = \"{}:{peers_port}\"\npeers.dns = \"app.internal\"\npeers.resolver = \"{dns}\"\nlog.access = true\n",
            machine.public, machine.private
        ))
        .while_("writing the rules")?;
        let mut rules: toml::Table = toml::from_str(&clock::rules()).while_("reading the rules")?;
        for (section, keys) in places {
            let (Some(into), toml::Value::Table(keys)) =
                (rules.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut(), keys)
            else {
                continue;
            };
            into.extend(keys);
        }
        let file = dir.join(format!("{id}.toml"));
        fs::write(&file, rules.to_string()).while_(format_args!("writing {}", file.display()))?;
        let mut program = Program::new(outrigger()?)
            .args(["run", "--config"])
            .arg(&file)
            .dir(dir)
            .env("OUTRIGGER_AFFINITY_KEYS", KEYS);
        // Removes a developer's own proxy variables.
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("OUTRIGGER_") || name.starts_with("FF_"))
                && name != KEYS_NAME
            {
                program = program.without_env(name);
            }
        }
        let mut proxy = program.start("outrigger", &dir.join(format!("{id}-outrigger.log")))?;
        let serves = || http::get(admin, "/healthz", PATIENCE).is_ok_and(|answer| answer.status == 200);
        proxy.ready(PATIENCE, serves)?;
        self.of(id, |running| running.proxy = Some(proxy))?;
        Ok(machine.public)
    }

    /// Simulates a failed host: all its processes are gone without notice.
    pub async fn kill(&self, id: &str) -> Result<()> {
        let gone = self.of(id, |running| {
            running.phase = Phase::Lost;
            (running.proxy.take(), running.app.take())
        })?;
        aside(move || {
            drop(gone);
            Ok(())
        })
        .await
    }

    /// The app crashes.
    pub async fn kill_app(&self, id: &str) -> Result<()> {
        let gone = self.of(id, |running| running.app.take())?;
        aside(move || {
            drop(gone);
            Ok(())
        })
        .await
    }

    /// The app is stopped by a signal, as if it hung.
    pub fn freeze_app(&self, id: &str) -> Result<()> {
        self.of(id, |running| {
            if let Some(app) = &mut running.app {
                app.pause();
            }
        })
    }

    /// Sets how many times as long the database takes, also in apps that start later.
    pub async fn database(&self, factor: f64) -> Result<()> {
        let percent = (100.0 * factor).round() as u64;
        self.0.database_percent.store(percent, Ordering::Relaxed);
        let apps: Vec<SocketAddr> =
            self.lock().values().filter(|running| running.app.is_some()).map(|running| running.app_address).collect();
        aside(move || {
            for app in apps {
                http::send("PUT", app, &format!("/database?{percent}"), &[], "", PATIENCE)?;
            }
            Ok(())
        })
        .await
    }

    /// Whether every proxy sees every other one as ready.
    pub async fn know_each_other(&self) -> Result<()> {
        if !self.0.has_proxy {
            return Ok(());
        }
        let machines = self.clone();
        aside(move || {
            let known = |admin: &SocketAddr, others: usize| {
                let metrics = http::get(*admin, "/metrics", PATIENCE).map(|answer| answer.body).unwrap_or_default();
                let ready =
                    metrics.lines().find(|line| line.starts_with("outrigger_peers{") && line.contains("\"ready\""));
                ready.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()) == Some(others)
            };
            wait::until("all proxies to know each other", PATIENCE, || {
                // Their number may change meanwhile.
                let all = machines.admins();
                !all.is_empty() && all.iter().all(|(_, admin)| known(admin, all.len() - 1))
            })
        })
        .await
    }
}

/// How long an app may take to say how busy it was.
const METER_PATIENCE: Duration = Duration::from_millis(50);

const KEYS_NAME: &str = "OUTRIGGER_AFFINITY_KEYS";
const KEYS: &str = "a-key-of-the-experiment-that-nobody-guesses";

/// The proxy as it ships, next to this program in cargo's directory.
fn outrigger() -> Result<PathBuf> {
    let us = env::current_exe().while_("looking for this program")?;
    let beside = us.parent().unwrap_or(Path::new(".")).join("outrigger");
    let release = paths::target().join("release/outrigger");
    [beside, release].into_iter().find(|path| path.exists()).ok_or_else(|| {
        Error::new("the program `outrigger` is not there").hint("run `cargo xtask experiment`, which builds it")
    })
}

#[async_trait]
impl Fleet for Machines {
    async fn create(&self, _: &str, version: u64) -> Result<Machine, FleetError> {
        self.make(version).map_err(failed)
    }

    async fn start(&self, machine: &Machine) -> Result<Machine, FleetError> {
        self.run(&machine.id).await.map_err(failed)?;
        Ok(machine.clone())
    }

    async fn stop(&self, machine: &Machine, how: settings::Stop) -> Result<(), FleetError> {
        let taken = self.of(&machine.id, |running| {
            running.phase = Phase::Stopping;
            (running.proxy.take(), running.app.take())
        });
        let (proxy, app) = taken.map_err(failed)?;
        let (machines, id) = (self.clone(), machine.id.clone());
        aside(move || {
            // As supervisord does: the proxy stops first, while the app still serves. Processes that do not end are killed.
            for mut process in [proxy, app].into_iter().flatten() {
                let _ = process.stop(Signal::TERM, how.timeout);
            }
            machines.of(&id, |running| running.phase = Phase::Stopped)
        })
        .await
        .map_err(failed)
    }

    async fn suspend(&self, _: &Machine) -> Result<(), FleetError> {
        Err(failed("these Machines are never suspended"))
    }

    async fn destroy(&self, machine: &Machine) -> Result<(), FleetError> {
        let gone = self.lock().remove(&machine.id);
        aside(move || {
            drop(gone);
            Ok(())
        })
        .await
        .map_err(failed)
    }
}
