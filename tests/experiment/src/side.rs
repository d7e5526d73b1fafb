//! One side, from its first process to its last request.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use outrigger_edge::settings::{Check, Concurrency, ConcurrencyKind, RetryBegun, Signal};
use outrigger_edge::{Edge, Settings, State};
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, interval, sleep, sleep_until};
use xtask::error::While;
use xtask::{Error, Result, ports, process, say};

use crate::autoscaler::{Autoscaler, Change, Rules};
use crate::clock::{FACTOR, seconds};
use crate::load::{self, Outcome};
use crate::machines::Machines;
use crate::platform;
use crate::prometheus::Prometheus;
use crate::script::{DEADLINE, Fault, Line, Script, times};

/// Machines of the side whose number changes: those that are started at its beginning, and all that there are.
pub const POOL: (usize, usize) = (2, 10);

/// The setup behind the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// One bare app.
    One,
    /// Three of them.
    Three,
    /// Three, each behind Outrigger.
    Outrigger,
    /// The same, behind an edge that never resends a request that a Machine had begun.
    OutriggerNoRetry,
    /// With Outrigger, and a number of Machines that fly-autoscaler chooses.
    Autoscaled,
}

impl Form {
    pub const ALL: [Self; 5] = [Self::One, Self::Three, Self::Outrigger, Self::OutriggerNoRetry, Self::Autoscaled];

    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Three => "three",
            Self::Outrigger => "outrigger",
            Self::OutriggerNoRetry => "outrigger-no-retry",
            Self::Autoscaled => "autoscaled",
        }
    }

    pub fn words(self) -> &'static str {
        match self {
            Self::One => "one bare app",
            Self::Three => "three bare apps",
            Self::Outrigger => "three with Outrigger",
            Self::OutriggerNoRetry => "three with Outrigger, edge without retries",
            Self::Autoscaled => "two to ten with Outrigger, autoscaled",
        }
    }

    /// Machines that are started at the beginning.
    fn machines(self) -> usize {
        match self {
            Self::One => 1,
            Self::Three | Self::Outrigger | Self::OutriggerNoRetry => 3,
            Self::Autoscaled => POOL.0,
        }
    }

    /// Whether Outrigger is in front of each app.
    pub fn has_proxy(self) -> bool {
        !matches!(self, Self::One | Self::Three)
    }
}

/// Results of a side.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    pub form: Form,
    pub seed: u64,
    pub outcomes: Vec<Outcome>,
    pub overload: Vec<Outcome>,
    /// Machines that were started when the overload began.
    pub machines_at_overload: usize,
    pub busy: Vec<Busy>,
    pub busy_overload: Vec<Busy>,
    /// Where the number of Machines changes.
    pub scaling: Option<Scaling>,
}

/// How the number of Machines changed. Times are those of the run, from the beginning of the hour.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaling {
    /// Each change by fly-autoscaler.
    pub changes: Vec<Change>,
    /// Started Machines, several times a second.
    pub machines: Vec<(Duration, usize)>,
    /// When the overload began.
    pub overload: Duration,
}

/// CPU load of one second; 1 is the whole computer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Busy {
    pub all: f64,
    /// By the experiment: the load, the edge, and the processes behind it.
    pub ours: f64,
}

/// Runs one side; its logs are in this directory.
pub fn run(form: Form, script: &Script, seed: u64, dir: &Path) -> Result<Side> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).while_(format_args!("creating {}", dir.display()))?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().while_("starting a runtime")?;
    let side = runtime.block_on(go(form, script, seed, dir))?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(side)
}

async fn go(form: Form, script: &Script, seed: u64, dir: &Path) -> Result<Side> {
    let dns = (Ipv4Addr::LOCALHOST, ports::free()?).into();
    let machines = Machines::new(form.has_proxy(), dns, dir)?;
    let edge = Edge::start(settings(form, dns), Some(Arc::new(machines.clone()))).await.while_("starting the edge")?;
    let edge = Arc::new(edge);
    let pool = if form == Form::Autoscaled { POOL.1 } else { form.machines() };
    for number in 0..pool {
        let machine = machines.make(1)?;
        let is_started = number < form.machines();
        if is_started {
            machines.run(&machine.id).await?;
        }
        edge.add(machine, if is_started { State::Started } else { State::Stopped });
    }
    is_whole(&edge, form).await?;
    machines.know_each_other().await?;
    let prometheus = match form {
        Form::Autoscaled => Some(Prometheus::start(dir, platform::start(machines.clone()).await?).await?),
        _ => None,
    };

    say(format_args!("{}: {} s for {} minutes", form.words(), script.length().as_secs(), script.minutes));
    let begin = Instant::now() + Duration::from_millis(200);
    let scaler = match prometheus {
        None => None,
        Some(prometheus) => Some(Scaler {
            autoscaler: Autoscaler::start(
                Rules::read()?,
                prometheus,
                machines.clone(),
                Arc::clone(&edge),
                &dir.join("autoscaler.log"),
                begin,
            )?,
            count: Count::start(machines.clone(), begin),
        }),
    };
    let mut faults = JoinSet::new();
    for line in script.lines.clone() {
        let (machines, edge) = (machines.clone(), Arc::clone(&edge));
        faults.spawn(async move {
            sleep_until(begin + line.begins()).await;
            say(format_args!("  {} {}", crate::script::clock(line.begins()), line.fault.name()));
            befall(&machines, &edge, &line).await.while_(line.fault.name())
        });
    }
    let watch = Watch::start();
    let outcomes = load::run(edge.address(), begin, script.arrivals(seed), seconds(DEADLINE)).await;
    let busy = watch.stop();
    while let Some(done) = faults.join_next().await {
        done.while_("a fault")??;
    }

    is_whole(&edge, form).await?;
    machines.know_each_other().await?;
    say("  overload");
    let machines_at_overload = machines.started().len();
    let watch = Watch::start();
    let start = Instant::now() + Duration::from_millis(200);
    let length = if scaler.is_some() { script.long_overload } else { script.overload };
    let overload = load::run(edge.address(), start, Script::overload(length, seed), seconds(DEADLINE)).await;
    let busy_overload = watch.stop();
    let scaling = scaler.map(|scaler| Scaling {
        changes: scaler.autoscaler.changes(),
        machines: scaler.count.seen(),
        overload: start - begin,
    });
    Ok(Side { form, seed, outcomes, overload, machines_at_overload, busy, busy_overload, scaling })
}

/// What changes the number of Machines, and what counts them.
struct Scaler {
    autoscaler: Autoscaler,
    count: Count,
}

/// The edge as `fly.toml` configures it, otherwise with Fly's defaults.
fn settings(form: Form, dns: SocketAddr) -> Settings {
    let mut check = Check::of("/health");
    check.interval = Duration::from_secs(5);
    // Two seconds are 133 ms here, for which a busy computer may pause.
    check.timeout = Duration::from_secs(5);
    let mut settings = Settings {
        dns: Some(dns),
        time_scale: 1.0 / f64::from(FACTOR),
        concurrency: Concurrency { kind: ConcurrencyKind::Requests, soft_limit: 200, hard_limit: Some(1000) },
        check: Some(check),
        ..Settings::default()
    };
    settings.headers.client_address_field = Some(load::ADDRESS);
    settings.routing.propagation = Duration::from_secs(2);
    settings.routing.retry_begun =
        if form == Form::OutriggerNoRetry { RetryBegun::None } else { RetryBegun::Idempotent };
    settings.deploy.max_unavailable = 1.0;
    settings.deploy.stop.signal = Signal::Terminate;
    settings.deploy.stop.timeout = Duration::from_secs_f64(times::KILL_TIMEOUT);
    settings
}

/// Waits until the edge routes to all Machines that should be started.
async fn is_whole(edge: &Edge, form: Form) -> Result<()> {
    let all = |snapshot: &outrigger_edge::Snapshot| {
        let count = |is_so: fn(&outrigger_edge::MachineSnapshot) -> bool| {
            snapshot.machines.iter().filter(|machine| is_so(machine)).count()
        };
        let (started, routed) = (count(|machine| machine.state == State::Started), count(|machine| machine.is_routed));
        routed == started && (routed == form.machines() || form == Form::Autoscaled && routed >= form.machines())
    };
    if edge.until(crate::PATIENCE, all).await {
        return Ok(());
    }
    Err(Error::new(format_args!("the edge does not route to all Machines: {:?}", edge.snapshot().machines)))
}

async fn befall(machines: &Machines, edge: &Edge, line: &Line) -> Result<()> {
    let of = |n| machines.nth(n).ok_or_else(|| Error::new("there is no Machine"));
    match line.fault {
        Fault::MachineKilled(n) => {
            let id = of(n)?;
            machines.kill(&id).await?;
            edge.set_state(&id, State::Stopped);
            sleep(seconds(times::REPLACEMENT)).await;
            machines.run(&id).await?;
            edge.set_state(&id, State::Started);
            Ok(())
        }
        Fault::AppCrash(n) => {
            let id = of(n)?;
            machines.kill_app(&id).await?;
            sleep(seconds(times::SUPERVISOR)).await;
            machines.restart_app(&id).await
        }
        Fault::AppHang(n) => {
            let id = of(n)?;
            machines.freeze_app(&id)?;
            sleep(seconds(times::WATCHDOG)).await;
            machines.kill_app(&id).await?;
            sleep(seconds(times::SUPERVISOR)).await;
            machines.restart_app(&id).await
        }
        Fault::SlowDatabase(factor) => {
            machines.database(factor).await?;
            sleep(line.ends() - line.begins()).await;
            machines.database(1.0).await
        }
        Fault::Deploy(strategy) => {
            machines.set_deploying(true);
            let outcome = edge.deploy(strategy).await.while_("deploying");
            machines.set_deploying(false);
            outcome
        }
        // Part of the load.
        Fault::Burst(_) => Ok(()),
    }
}

/// Counts the started Machines, until it is stopped.
struct Count {
    seen: Arc<Mutex<Vec<(Duration, usize)>>>,
    task: JoinHandle<()>,
}

impl Count {
    fn start(machines: Machines, begin: Instant) -> Self {
        let seen: Arc<Mutex<Vec<(Duration, usize)>>> = Arc::default();
        let into = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(250));
            loop {
                ticks.tick().await;
                let now = (Instant::now().saturating_duration_since(begin), machines.started().len());
                into.lock().unwrap_or_else(PoisonError::into_inner).push(now);
            }
        });
        Self { seen, task }
    }

    fn seen(&self) -> Vec<(Duration, usize)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Samples the CPU load once a second, until it is stopped.
struct Watch {
    seen: Arc<Mutex<Vec<Busy>>>,
    task: JoinHandle<()>,
}

impl Watch {
    fn start() -> Self {
        let seen: Arc<Mutex<Vec<Busy>>> = Arc::default();
        let into = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1));
            let mut before = None;
            loop {
                ticks.tick().await;
                let now = cpu();
                if let (Some(before), Some(now)) = (before, now) {
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(Ticks::between(before, now));
                }
                before = now;
            }
        });
        Self { seen, task }
    }

    fn stop(self) -> Vec<Busy> {
        self.task.abort();
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ticks of all CPUs since some time.
#[derive(Clone, Copy)]
struct Ticks {
    all: f64,
    busy: f64,
    ours: f64,
}

impl Ticks {
    fn between(before: Self, now: Self) -> Busy {
        let all = f64::max(now.all - before.all, 1.0);
        // A process that ends between two samples is missed for a moment.
        Busy { all: (now.busy - before.busy) / all, ours: f64::max(now.ours - before.ours, 0.0) / all }
    }
}

/// From the first line of `/proc/stat`, and the entries of this process and its children.
fn cpu() -> Option<Ticks> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let all: f64 = ticks.iter().take(8).sum();
    // The fields of a process count from the third: 14 and 15 are its own, 16 and 17 those of the children that have ended.
    let of = |pid: u32, fields: std::ops::Range<usize>| -> f64 {
        let stat = process::stat(pid).unwrap_or_default();
        fields.filter_map(|field| stat.get(field - 3)?.parse::<f64>().ok()).sum()
    };
    let us = std::process::id();
    let ours = of(us, 14..18) + process::children(us).into_iter().map(|child| of(child, 14..16)).sum::<f64>();
    // The fourth is idle, the fifth waits for disks.
    Some(Ticks { all, busy: all - ticks.get(3)? - ticks.get(4)?, ours })
}
