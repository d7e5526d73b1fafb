//! Simulates many clients, an app of `k` servers, and between them the real admission control or a rival (`shedders.rs`).
//! Discrete events and its own random numbers: the same scenario and seed give the same run everywhere, and the same
//! arrivals for each kind of admission control.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use outrigger_policy::admission::{Admission, Ask, Settings, Ticket, Turn, Verdict};
use outrigger_policy::concurrency::{self, Ended, Sample};
use outrigger_policy::priority::Priority;

use crate::simulator::{MS, Random, SECOND};

/// The clients that send the requests of a group.
#[derive(Clone, Copy, Debug)]
pub enum Population {
    /// This many clients with equal request rates.
    Equal(u64),
    /// This many clients; the n-th has 1/n of the first one's request rate.
    Zipf(u64),
    /// A new client for each request.
    Sybil,
}

/// A group of requests. Times are nanoseconds.
#[derive(Clone, Debug)]
pub struct Group {
    pub population: Population,
    pub priority: Priority,
    /// The request rate, as a multiple of the app's capacity.
    pub load: f64,
    /// Start and end of the arrivals.
    pub from: u64,
    pub to: u64,
    /// The mean service time of a request, and how far it may deviate, as a fraction (uniform).
    pub service: u64,
    pub deviation: f64,
    /// This many requests arrive at once at `from`; `load` is ignored.
    pub burst: Option<u32>,
    /// The group whose clients send these requests; its own if `None`.
    pub clients_of: Option<usize>,
    /// The number of the route; that of the group if `None`.
    pub route: Option<u16>,
    /// The requests arrive in equal intervals instead of at random.
    pub is_even: bool,
}

impl Group {
    pub fn new(population: Population, load: f64, end: u64) -> Self {
        Self {
            population,
            priority: Priority::Medium,
            load,
            from: 0,
            to: end,
            service: 20 * MS,
            deviation: 0.0,
            burst: None,
            clients_of: None,
            route: None,
            is_even: false,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Crowd {
    pub groups: Vec<Group>,
    pub servers: u32,
    /// From this time on, the app has so many servers.
    pub servers_later: Option<(u64, u32)>,
    pub settings: Settings,
    /// Treats all requests as those of one client: a queue without fairness, in order of arrival.
    pub is_blind: bool,
}

impl Crowd {
    /// Eight servers with the default settings.
    pub fn new(groups: Vec<Group>) -> Self {
        let concurrency = concurrency::Settings { min: 1, max: 1000, initial: 20 };
        let settings =
            Settings { concurrency, max_wait: Duration::from_millis(850), max_queue: 2000, max_held: 10_000 };
        Self { groups, servers: 8, servers_later: None, settings, is_blind: false }
    }
}

/// The decision about a request that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Go,
    Wait,
    Refuse,
}

/// Decides which requests are sent to the app, and in which order. `request` is the number of a request.
pub trait Gate {
    /// A request arrives. Requests that are rejected to make room for it are added to `displaced`.
    fn ask(&mut self, request: usize, ask: Ask, displaced: &mut Vec<usize>) -> Decision;
    /// Returns the next waiting request that is sent to the app.
    fn grant(&mut self, now: u64) -> Option<usize>;
    /// The client of a waiting request has disconnected.
    fn give_up(&mut self, request: usize);
    /// The app has responded.
    fn finish(&mut self, client: u64, priority: Priority, now: u64, sample: Sample);
    /// Returns the number of requests at the app.
    fn in_flight(&self) -> u32;
}

/// Outrigger's admission control.
#[derive(Debug)]
pub struct Outrigger {
    admission: Admission<usize>,
    tickets: HashMap<usize, Ticket>,
}

impl Outrigger {
    pub fn new(settings: Settings) -> Self {
        Self { admission: Admission::new(settings), tickets: HashMap::new() }
    }
}

impl Gate for Outrigger {
    fn ask(&mut self, request: usize, ask: Ask, displaced: &mut Vec<usize>) -> Decision {
        let before = displaced.len();
        let decision = match self.admission.ask(ask, |other, _| displaced.push(other)) {
            Verdict::Go => Decision::Go,
            Verdict::Wait(ticket) => {
                if let Some(name) = self.admission.waker(&ticket) {
                    *name = request;
                }
                self.tickets.insert(request, ticket);
                Decision::Wait
            }
            Verdict::Refuse => Decision::Refuse,
        };
        for other in &displaced[before..] {
            let ticket = self.tickets.remove(other).expect("only those that wait are displaced");
            assert_eq!(self.admission.collect(ticket), Ok(Turn::Displaced));
        }
        decision
    }

    fn grant(&mut self, _: u64) -> Option<usize> {
        let request = self.admission.grant()?;
        let ticket = self.tickets.remove(&request).expect("only those that wait are granted a permit");
        assert_eq!(self.admission.collect(ticket), Ok(Turn::Granted));
        Some(request)
    }

    fn give_up(&mut self, request: usize) {
        if let Some(ticket) = self.tickets.remove(&request) {
            self.admission.abandon(&ticket);
        }
    }

    fn finish(&mut self, client: u64, priority: Priority, now: u64, sample: Sample) {
        self.admission.record(now, sample);
        self.admission.finish(client, priority, now, now - sample.started);
    }

    fn in_flight(&self) -> u32 {
        self.admission.in_flight()
    }
}

/// One request and its result. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub group: usize,
    pub client: u64,
    pub at: u64,
    /// How long it waited for its permit or its rejection.
    pub waited: u64,
    /// Its service time.
    pub service: u64,
    pub is_served: bool,
    /// When the response came.
    pub answered: Option<u64>,
}

/// The results of the requests of some clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    pub asked: usize,
    pub served: usize,
    /// Wait of the served requests: median, 99th percentile, maximum, in milliseconds.
    pub waited_ms: [f64; 3],
    /// Median time until a rejection, in milliseconds.
    pub refused_ms: f64,
}

impl Fate {
    pub fn of<'a>(asked: impl Iterator<Item = &'a Asked>) -> Self {
        let (mut served, mut refused) = (Vec::new(), Vec::new());
        for one in asked {
            if one.is_served { served.push(one.waited) } else { refused.push(one.waited) }
        }
        served.sort_unstable();
        refused.sort_unstable();
        let at = |sorted: &[u64], share: f64| {
            let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
            sorted.get(index).map_or(0.0, |ns| *ns as f64 / MS as f64)
        };
        Self {
            asked: served.len() + refused.len(),
            served: served.len(),
            waited_ms: [0.5, 0.99, 1.0].map(|share| at(&served, share)),
            refused_ms: at(&refused, 0.5),
        }
    }

    pub fn share(&self) -> f64 {
        self.served as f64 / self.asked.max(1) as f64
    }
}

/// A page with 100 parts of 10 ms each, a minute after a burst of twelve reports that take `report` each: what becomes of its parts.
pub fn page_after_reports(report: u64) -> Fate {
    let burst = |requests, service, from| Group {
        burst: Some(requests),
        service,
        from,
        ..Group::new(Population::Equal(1), 0.0, 30 * SECOND)
    };
    let groups = vec![burst(12, report, 0), burst(100, 10 * MS, 60 * SECOND)];
    Fate::of(run(&Crowd::new(groups), 1).iter().filter(|asked| asked.group == 1))
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(usize),
    Done { request: usize, started: u64, in_flight: u32 },
    GivesUp(usize),
}

struct Run<'a> {
    crowd: &'a Crowd,
    gate: &'a mut dyn Gate,
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    asked: Vec<Asked>,
    waiting: HashSet<usize>,
    /// Cumulative weights of the first n clients (Zipf's law).
    zipf: Vec<f64>,
    in_the_app: VecDeque<(usize, u64, u32)>,
    busy: u32,
}

/// Runs the simulation with Outrigger's admission control and returns every request.
pub fn run(crowd: &Crowd, seed: u64) -> Vec<Asked> {
    run_with(crowd, &mut Outrigger::new(crowd.settings), seed)
}

/// Runs the simulation and returns every request.
pub fn run_with(crowd: &Crowd, gate: &mut dyn Gate, seed: u64) -> Vec<Asked> {
    let mut run = Run {
        crowd,
        gate,
        random: Random::new(seed),
        events: BinaryHeap::new(),
        order: 0,
        asked: Vec::new(),
        waiting: HashSet::new(),
        zipf: Vec::new(),
        in_the_app: VecDeque::new(),
        busy: 0,
    };
    for (group, of) in crowd.groups.iter().enumerate() {
        for _ in 0..of.burst.unwrap_or(1) {
            run.push(of.from, Event::Arrival(group));
        }
        if let Population::Zipf(clients) = of.population {
            let mut sum = 0.0;
            run.zipf = (1..=clients)
                .map(|n| {
                    sum += 1.0 / n as f64;
                    sum
                })
                .collect();
        }
    }
    while let Some(Reverse((now, _, event))) = run.events.pop() {
        run.on(now, event);
    }
    assert_eq!((run.gate.in_flight(), run.waiting.len()), (0, 0), "all is given back");
    run.asked
}

impl Run<'_> {
    fn push(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    fn client(&mut self, group: usize) -> u64 {
        let of = &self.crowd.groups[group];
        let number = match of.population {
            Population::Equal(clients) => self.random.draw() % clients,
            Population::Zipf(_) => {
                let drawn = self.random.unit() * self.zipf.last().copied().unwrap_or(1.0);
                self.zipf.partition_point(|sum| *sum < drawn) as u64
            }
            Population::Sybil => self.asked.len() as u64,
        };
        (of.clients_of.unwrap_or(group) as u64 + 1) << 40 | number
    }

    fn on(&mut self, now: u64, event: Event) {
        match event {
            Event::Arrival(group) => self.arrive(now, group),
            Event::GivesUp(request) => {
                if self.waiting.remove(&request) {
                    self.gate.give_up(request);
                    self.asked[request].waited = now - self.asked[request].at;
                }
            }
            Event::Done { request, started, in_flight } => {
                self.busy -= 1;
                self.asked[request].answered = Some(now);
                let group = self.asked[request].group;
                let class = self.crowd.groups[group].route.unwrap_or(group as u16);
                let sample = Sample { class, started, in_flight, ended: Ended::Answered };
                let priority = self.crowd.groups[group].priority;
                self.gate.finish(self.id(request), priority, now, sample);
            }
        }
        while let Some(request) = self.gate.grant(now) {
            assert!(self.waiting.remove(&request), "only those that wait are sent");
            self.goes(now, request);
        }
        let later = self.crowd.servers_later.filter(|(from, _)| *from <= now);
        while self.busy < later.map_or(self.crowd.servers, |(_, servers)| servers) {
            let Some((request, started, in_flight)) = self.in_the_app.pop_front() else { break };
            self.busy += 1;
            self.push(now + self.asked[request].service, Event::Done { request, started, in_flight });
        }
    }

    fn id(&self, request: usize) -> u64 {
        // Identities are hashes.
        if self.crowd.is_blind {
            1
        } else {
            self.asked[request].client.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
        }
    }

    fn goes(&mut self, now: u64, request: usize) {
        let asked = &mut self.asked[request];
        (asked.waited, asked.is_served) = (now - asked.at, true);
        self.in_the_app.push_back((request, now, self.gate.in_flight()));
    }

    fn arrive(&mut self, now: u64, group: usize) {
        let client = self.client(group);
        let request = self.asked.len();
        let of = &self.crowd.groups[group];
        let mut service = of.service;
        if of.deviation > 0.0 {
            service = (service as f64 * (1.0 + of.deviation * (2.0 * self.random.unit() - 1.0))) as u64;
        }
        self.asked.push(Asked { group, client, at: now, waited: 0, service, is_served: false, answered: None });
        let mut displaced = Vec::new();
        let ask = Ask { priority: of.priority, client: self.id(request), now };
        match self.gate.ask(request, ask, &mut displaced) {
            Decision::Go => self.goes(now, request),
            Decision::Wait => {
                self.waiting.insert(request);
                let max_wait = self.crowd.settings.max_wait.as_nanos() as u64;
                self.push(now + max_wait, Event::GivesUp(request));
            }
            Decision::Refuse => {}
        }
        for other in displaced {
            assert!(self.waiting.remove(&other), "only those that wait are displaced");
            self.asked[other].waited = now - self.asked[other].at;
        }
        if of.burst.is_none() {
            let per_second = of.load * f64::from(self.crowd.servers) * SECOND as f64 / of.service as f64;
            let gap = if of.is_even { 1.0 } else { self.random.exponential() };
            let next = now + (gap * SECOND as f64 / per_second) as u64 + 1;
            if next < of.to {
                self.push(next, Event::Arrival(group));
            }
        }
    }
}
