//! Many Machines behind a stand-in for Fly's edge: real proxies, each with its own app, discovered by DNS; and clients that
//! keep their cookies.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use outrigger_edge::{
    Background, FleetError, Machine, Settings, State,
    settings::{self, Check, Concurrency, ConcurrencyKind, Stop},
};
use xtask::{Signal, ports};

use crate::{
    backend::{Backend, Play},
    harness::{Answer, Client, Proxy, Setup, get, until, with_fields},
    machines::{KEYS, cookie},
};

/// Seconds of a test for one second of Fly's.
const TIME_SCALE: f64 = 0.05;

/// A peer is probed five times while it leaves, as by default, ten times as fast.
const QUICK: &str = "peers.interval = \"100ms\"\nserver.lame_duck = \"500ms\"\n";
/// Path at which each app returns its name.
pub const WHO: &str = "/who";

/// The edge and its Machines.
#[derive(Debug)]
pub struct Fleet {
    pub edge: Background,
    pub machines: Arc<Machines>,
}

/// The Machines' processes.
#[derive(Debug)]
pub struct Machines {
    dns: SocketAddr,
    peers_port: u16,
    rules: String,
    running: Mutex<HashMap<String, Running>>,
    /// The last byte of the next address; each Machine has its own, from 127.0.0.2.
    made: AtomicU8,
}

#[derive(Debug)]
struct Running {
    app: Backend,
    proxy: Option<Proxy>,
    private: IpAddr,
}

/// Runs `work` on its own thread: starting and stopping processes and apps blocks, and they have their own runtimes.
fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().expect("it does not panic"))
}

fn failed(e: impl std::fmt::Display) -> FleetError {
    FleetError(e.to_string())
}

impl Machines {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, version: u64) -> Machine {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let id = format!("m{number}");
        let private = IpAddr::from([127, 0, 0, number]);
        let app = Backend::start();
        app.at(WHO, Play::Say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{id}", id.len()).into()));
        app.at("/ws", Play::Upgrade);
        self.lock().insert(id.clone(), Running { app, proxy: None, private });
        let nowhere = (Ipv4Addr::LOCALHOST, 1).into();
        Machine { id, region: "ams".to_owned(), version, public: nowhere, private }
    }

    fn run(&self, machine: &Machine) -> Result<Machine, FleetError> {
        let setup = {
            let all = self.lock();
            let running = all.get(&machine.id).ok_or_else(|| failed("there is no such Machine"))?;
            let (id, private, port, dns) = (&machine.id, running.private, self.peers_port, self.dns);
            let pace = if self.rules.contains("peers.interval") { "" } else { QUICK };
            let rules = format!(
                "server.machine = \"{id}\"\nserver.drain_timeout = \"3s\"\n\
                 identity.edge = \"fly\"\nlog.access = false\n\
                 peers.listen = \"{private}:{port}\"\npeers.dns = \"app.internal\"\npeers.resolver = \"{dns}\"\n\
                 peers.refresh = \"200ms\"\n{pace}{}",
                self.rules
            );
            Setup::new(&running.app, &rules).env("OUTRIGGER_AFFINITY_KEYS", KEYS)
        };
        let proxy = setup.start();
        let started = Machine { public: proxy.address, ..machine.clone() };
        if let Some(running) = self.lock().get_mut(&machine.id) {
            running.proxy = Some(proxy);
        }
        Ok(started)
    }

    fn take(&self, id: &str) -> Option<Proxy> {
        self.lock().get_mut(id)?.proxy.take()
    }

    /// Runs `work` with a Machine's proxy and app.
    pub fn with<T>(&self, id: &str, work: impl FnOnce(&Proxy, &mut Backend) -> T) -> T {
        let mut all = self.lock();
        let Running { app, proxy, .. } = all.get_mut(id).expect("there is such a Machine");
        work(proxy.as_ref().expect("it runs"), app)
    }

    /// The sum of a metric over all running Machines.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.lock().values().filter_map(|running| running.proxy.as_ref()).map(|proxy| proxy.metric(name, labels)).sum()
    }
}

#[async_trait]
impl outrigger_edge::Fleet for Machines {
    async fn create(&self, _: &str, version: u64) -> Result<Machine, FleetError> {
        Ok(aside(|| self.make(version)))
    }

    async fn start(&self, machine: &Machine) -> Result<Machine, FleetError> {
        aside(|| self.run(machine))
    }

    async fn stop(&self, machine: &Machine, how: Stop) -> Result<(), FleetError> {
        let Some(mut proxy) = self.take(&machine.id) else { return Ok(()) };
        assert_eq!(how.signal, settings::Signal::Terminate, "what fly.toml says");
        aside(|| {
            proxy.signal(Signal::TERM);
            proxy.ends_within(how.timeout);
        });
        Ok(())
    }

    async fn suspend(&self, _: &Machine) -> Result<(), FleetError> {
        Err(failed("these Machines are never suspended"))
    }

    async fn destroy(&self, machine: &Machine) -> Result<(), FleetError> {
        aside(|| drop(self.lock().remove(&machine.id)));
        Ok(())
    }
}

impl Fleet {
    /// This many Machines with these rules; `set` may change the edge's settings.
    pub fn start(number: usize, rules: &str, set: impl FnOnce(&mut Settings)) -> Self {
        let dns = (Ipv4Addr::LOCALHOST, ports::free().expect("a free port")).into();
        let peers_port = ports::free().expect("a free port");
        let machines = Arc::new(Machines {
            dns,
            peers_port,
            rules: rules.to_owned(),
            running: Mutex::default(),
            made: AtomicU8::new(2),
        });
        // As in fly.toml.
        let mut check = Check::of("/health");
        check.interval = Duration::from_secs(5);
        let mut settings = Settings {
            dns: Some(dns),
            time_scale: TIME_SCALE,
            concurrency: Concurrency { kind: ConcurrencyKind::Requests, soft_limit: 200, hard_limit: Some(1000) },
            check: Some(check),
            ..Settings::default()
        };
        settings.deploy.max_unavailable = 1.0;
        settings.deploy.stop.signal = settings::Signal::Terminate;
        settings.deploy.stop.timeout = Duration::from_secs(80);
        // Long enough that a busy machine does not matter.
        settings.deploy.wait_timeout = Duration::from_secs(600);
        settings.routing.connect_timeout = Duration::from_secs(20);
        set(&mut settings);
        let edge = Background::start(settings, Some(Arc::clone(&machines) as _)).expect("the edge can listen");
        for _ in 0..number {
            let machine = machines.run(&machines.make(1)).expect("a Machine can be started");
            edge.add(machine, State::Started);
        }
        let fleet = Self { edge, machines };
        fleet.knows_itself(number);
        fleet
    }

    /// Waits until the edge routes to all Machines and each of them knows all others.
    pub fn knows_itself(&self, number: usize) {
        until("all Machines to be routed to", || {
            self.edge.snapshot().machines.iter().filter(|machine| machine.is_routed).count() == number
        });
        until("all Machines to know each other", || {
            let known = |labels: &[(&str, &str)]| self.machines.metric("outrigger_peers", labels) as usize;
            known(&[("state", "ready")]) == number * (number - 1) && known(&[]) == number * (number - 1)
        });
    }

    /// The names of the running Machines.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.machines.lock().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Simulates a failed host: the Machine is gone without notice. The edge and the DNS learn of it at once, or a moment
    /// later.
    pub fn kill(&self, id: &str) {
        drop(self.machines.take(id));
        self.edge.set_state(id, State::Stopped);
    }

    pub fn visitor(&self) -> Visitor {
        Visitor { edge: self.edge.address(), connection: None, cookie: None, at: None, moves: 0 }
    }
}

/// A client that keeps its cookie and its connection.
#[derive(Debug)]
pub struct Visitor {
    edge: SocketAddr,
    connection: Option<Client>,
    cookie: Option<String>,
    /// The Machine whose app served the last request, and how often it differed from the one before.
    pub at: Option<String>,
    pub moves: usize,
}

impl Visitor {
    /// Sends a request with its cookie, and returns the response.
    ///
    /// # Errors
    /// The connection failed.
    pub fn ask(&mut self, request: &str) -> io::Result<Answer> {
        let request = match &self.cookie {
            Some(cookie) => with_fields(request, &[&format!("Cookie: {cookie}")]),
            None => request.to_owned(),
        };
        let mut client = match self.connection.take() {
            Some(client) => client,
            None => Client::connect(self.edge)?,
        };
        client.try_send(&request)?;
        let answer = client.try_answer()?;
        if !answer.closes() {
            self.connection = Some(client);
        }
        if let Some(new) = cookie(&answer) {
            self.cookie = Some(new).filter(|cookie| !cookie.ends_with('='));
        }
        Ok(answer)
    }

    /// Asks which Machine serves it, by `request`, and records it.
    ///
    /// # Errors
    /// The result that it got instead of a valid response.
    pub fn visit(&mut self, request: &str) -> Result<(), String> {
        let answer = self.ask(request).map_err(|e| format!("{request:.40}: {e}"))?;
        if answer.status != 200 {
            return Err(format!("{request:.40}: {answer:?}"));
        }
        let at = answer.text();
        if self.at.as_ref().is_some_and(|before| *before != at) {
            self.moves += 1;
        }
        self.at = Some(at);
        Ok(())
    }
}

/// Visitors that send requests at a steady rate from several threads, until they are stopped.
#[derive(Debug)]
pub struct Crowd {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Report>>,
}

/// Results of a crowd's requests.
#[derive(Debug, Default)]
pub struct Report {
    pub requests: usize,
    pub failures: Vec<String>,
    pub longest: Duration,
    pub visitors: Vec<Visitor>,
}

impl Crowd {
    /// `visitors` that together send about `per_second` requests.
    pub fn of(visitors: Vec<Visitor>, per_second: f64, request: fn(usize) -> String) -> Self {
        const THREADS: usize = 8;
        let is_over = Arc::new(AtomicBool::new(false));
        let mut shares: Vec<Vec<Visitor>> = (0..THREADS).map(|_| Vec::new()).collect();
        for (number, visitor) in visitors.into_iter().enumerate() {
            shares[number % THREADS].push(visitor);
        }
        let pause = Duration::from_secs_f64(THREADS as f64 / per_second);
        let over = &is_over;
        let threads: Vec<_> = shares
            .into_iter()
            .filter(|share| !share.is_empty())
            .map(|mut visitors| {
                let is_over = Arc::clone(over);
                thread::spawn(move || {
                    let mut report = Report::default();
                    let mut next = Instant::now();
                    while !is_over.load(Ordering::Relaxed) {
                        let turn = report.requests % visitors.len();
                        let began = Instant::now();
                        if let Err(e) = visitors[turn].visit(&request(report.requests)) {
                            report.failures.push(e);
                        }
                        report.longest = report.longest.max(began.elapsed());
                        report.requests += 1;
                        next += pause;
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                    report.visitors = visitors;
                    report
                })
            })
            .collect();
        Self { is_over, threads }
    }

    /// Stops all visitors.
    pub fn ends(self) -> Report {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.into_iter().fold(Report::default(), |mut all, thread| {
            let mut report = thread.join().expect("visitors do not panic");
            all.requests += report.requests;
            all.failures.append(&mut report.failures);
            all.longest = all.longest.max(report.longest);
            all.visitors.append(&mut report.visitors);
            all
        })
    }
}

impl Report {
    /// Fails if any visitor saw a failure.
    #[track_caller]
    pub fn is_flawless(&self) {
        let shown: Vec<&String> = self.failures.iter().take(5).collect();
        assert!(self.failures.is_empty(), "{} of {} failed: {shown:#?}", self.failures.len(), self.requests);
    }
}

/// A request without side effects.
pub fn plain(_: usize) -> String {
    get(WHO)
}
