//! Simulates an app of `k` servers with a first-in-first-out queue, a concurrency limit in front of it, and an open-loop
//! load. Discrete events and its own random numbers: the same scenario and seed give the same run everywhere.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use outrigger_policy::concurrency::{Concurrency, Ended, Sample};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

/// A control algorithm for the concurrency limit.
pub trait Law {
    fn limit(&self) -> u32;
    fn record(&mut self, now: u64, sample: Sample);
}

impl Law for Concurrency {
    fn limit(&self) -> u32 {
        Concurrency::limit(self)
    }
    fn record(&mut self, now: u64, sample: Sample) {
        Concurrency::record(self, now, sample);
    }
}

#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            random.draw();
        }
        random
    }
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// Returns a number in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.draw() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
    pub fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// The distribution of service times around their mean.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Fixed,
    /// Uniform within ±10 %.
    Jitter,
    Exponential,
    /// Sigma of the logarithm; 1.0 has a coefficient of variation of 1.3.
    Lognormal(f64),
    /// One request in ten takes ten times as long as the others.
    Bimodal,
}

impl Shape {
    fn sample(self, random: &mut Random) -> f64 {
        match self {
            Self::Fixed => 1.0,
            Self::Jitter => 0.9 + 0.2 * random.unit(),
            Self::Exponential => random.exponential(),
            Self::Lognormal(sigma) => (sigma * random.normal() - sigma * sigma / 2.0).exp(),
            Self::Bimodal => (if random.unit() < 0.1 { 10.0 } else { 1.0 }) / 1.9,
        }
    }
}

/// A kind of request: its fraction of arrivals, its mean service time in nanoseconds, and the distribution.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub share: f64,
    pub service: u64,
    pub shape: Shape,
}

/// The conditions from `from` until the next stage.
#[derive(Clone, Debug)]
pub struct Stage {
    pub from: u64,
    pub servers: u32,
    /// A factor for service times.
    pub slowness: f64,
    /// The rate of arrivals, as a multiple of this stage's capacity.
    pub load: f64,
    /// Replaces the kinds' own shares if the mix changes.
    pub shares: Option<Vec<f64>>,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub kinds: Vec<Kind>,
    pub stages: Vec<Stage>,
    pub end: u64,
    /// Maximum number of requests that wait for a permit; more are rejected.
    pub queue: usize,
    pub poisson: bool,
}

impl Scenario {
    pub fn steady(servers: u32, service: u64, shape: Shape, load: f64, end: u64) -> Self {
        Self {
            kinds: vec![Kind { share: 1.0, service, shape }],
            stages: vec![Stage { from: 0, servers, slowness: 1.0, load, shares: None }],
            end,
            queue: 16,
            poisson: true,
        }
    }

    /// Adds a stage from `from` on: the last stage with changes.
    pub fn then(mut self, from: u64, change: impl FnOnce(&mut Stage)) -> Self {
        let mut stage = self.stages.last().expect("a scenario begins with a stage").clone();
        stage.from = from;
        change(&mut stage);
        self.stages.push(stage);
        self
    }

    fn mean_service(&self, stage: &Stage) -> f64 {
        self.kinds.iter().enumerate().map(|(i, kind)| stage.share(i, kind) * kind.service as f64).sum::<f64>()
            * stage.slowness
    }
}

impl Stage {
    fn share(&self, index: usize, kind: &Kind) -> f64 {
        self.shares.as_ref().map_or(kind.share, |shares| shares[index])
    }
}

/// One request that got a response. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub at: u64,
    pub latency: u64,
    /// Its service time: the latency without a queue.
    pub service: u64,
}

#[derive(Debug, Default)]
pub struct Run {
    pub answers: Vec<Answer>,
    /// Time and new value of each change of the limit.
    pub limits: Vec<(u64, u32)>,
    pub refused: u64,
}

/// Statistics of a time span.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Work done, as a fraction of the servers' capacity.
    pub throughput: f64,
    /// Mean latency divided by mean service time.
    pub mean: f64,
    /// 99th percentile of latency divided by that of service time.
    pub p99: f64,
    /// 5th percentile, median and 95th percentile of the limit over time.
    pub limit: [u32; 3],
}

impl Run {
    /// Computes the statistics of a span in which `servers` servers work.
    pub fn figures(&self, from: u64, to: u64, servers: u32) -> Figures {
        let answers: Vec<_> = self.answers.iter().filter(|a| (from..to).contains(&a.at)).collect();
        let (mut latency, mut service): (Vec<u64>, Vec<u64>) = answers.iter().map(|a| (a.latency, a.service)).unzip();
        let worked: f64 = service.iter().map(|&s| s as f64).sum();
        let taken: f64 = latency.iter().map(|&s| s as f64).sum();
        latency.sort_unstable();
        service.sort_unstable();
        let p99 = |sorted: &[u64]| sorted.get(sorted.len() * 99 / 100).map_or(f64::NAN, |&v| v as f64);
        Figures {
            throughput: worked / ((to - from) as f64 * f64::from(servers)),
            mean: taken / worked,
            p99: p99(&latency) / p99(&service),
            limit: self.limit_quantiles(from, to),
        }
    }

    fn limit_quantiles(&self, from: u64, to: u64) -> [u32; 3] {
        let mut spans: Vec<(u32, u64)> = Vec::new();
        for (index, &(at, limit)) in self.limits.iter().enumerate() {
            let until = self.limits.get(index + 1).map_or(to, |next| next.0).min(to);
            let since = at.max(from);
            if until > since {
                spans.push((limit, until - since));
            }
        }
        spans.sort_unstable();
        [0.05, 0.5, 0.95].map(|q| {
            let mut left = q * (to - from) as f64;
            for &(limit, span) in &spans {
                left -= span as f64;
                if left <= 0.0 {
                    return limit;
                }
            }
            spans.last().map_or(0, |s| s.0)
        })
    }

    /// Returns how long after `from` the limit enters `low..=high` and then stays there for `stay`; `to - from` if it never
    /// does.
    pub fn settled(&self, from: u64, to: u64, low: u32, high: u32, stay: u64) -> u64 {
        let mut since = None;
        for (index, &(at, limit)) in self.limits.iter().enumerate() {
            let until = self.limits.get(index + 1).map_or(to, |next| next.0).min(to);
            if until <= from || at >= to {
                continue;
            }
            since = (low..=high).contains(&limit).then(|| since.unwrap_or(at.max(from)));
            if let Some(since) = since
                && until - since >= stay
            {
                return since - from;
            }
        }
        to - from
    }
}

#[derive(Clone, Copy)]
struct Request {
    class: u16,
    started: u64,
    in_flight: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Done { class: u16, started: u64, in_flight: u32, service: u64 },
    Stage(usize),
}

pub fn run(law: &mut dyn Law, scenario: &Scenario, seed: u64) -> Run {
    let mut random = Random::new(seed);
    let mut out = Run::default();
    let mut events: BinaryHeap<Reverse<(u64, u64, Event)>> = BinaryHeap::new();
    let mut order = 0;
    let mut push = |events: &mut BinaryHeap<_>, at: u64, event: Event| {
        order += 1;
        events.push(Reverse((at, order, event)));
    };
    for (index, stage) in scenario.stages.iter().enumerate() {
        push(&mut events, stage.from, Event::Stage(index));
    }
    push(&mut events, 0, Event::Arrival);

    let mut stage = &scenario.stages[0];
    let mut gap = 0.0;
    let (mut busy, mut in_flight) = (0u32, 0u32);
    let mut at_the_gate: VecDeque<u16> = VecDeque::new();
    let mut in_the_app: VecDeque<Request> = VecDeque::new();

    while let Some(Reverse((now, _, event))) = events.pop() {
        if now >= scenario.end {
            break;
        }
        match event {
            Event::Stage(index) => {
                stage = &scenario.stages[index];
                gap = scenario.mean_service(stage) / f64::from(stage.servers) / stage.load;
            }
            Event::Arrival => {
                let mut left = random.unit();
                let mut class = 0u16;
                for (index, kind) in scenario.kinds.iter().enumerate() {
                    class = index as u16;
                    left -= stage.share(index, kind);
                    if left <= 0.0 {
                        break;
                    }
                }
                if at_the_gate.len() < scenario.queue || (at_the_gate.is_empty() && in_flight < law.limit()) {
                    at_the_gate.push_back(class);
                } else {
                    out.refused += 1;
                }
                let wait = if scenario.poisson { gap * random.exponential() } else { gap };
                push(&mut events, now + wait.max(1.0) as u64, Event::Arrival);
            }
            Event::Done { class, started, in_flight: then, service } => {
                busy -= 1;
                in_flight -= 1;
                out.answers.push(Answer { at: now, latency: now - started, service });
                law.record(now, Sample { class, started, in_flight: then, ended: Ended::Answered });
            }
        }
        let limit = law.limit();
        if out.limits.last().is_none_or(|last| last.1 != limit) {
            out.limits.push((now, limit));
        }
        while in_flight < limit {
            let Some(class) = at_the_gate.pop_front() else { break };
            in_flight += 1;
            in_the_app.push_back(Request { class, started: now, in_flight });
        }
        while busy < stage.servers {
            let Some(request) = in_the_app.pop_front() else { break };
            busy += 1;
            let kind = scenario.kinds[usize::from(request.class)];
            let service = (kind.service as f64 * stage.slowness * kind.shape.sample(&mut random)) as u64;
            let Request { class, started, in_flight } = request;
            push(&mut events, now + service, Event::Done { class, started, in_flight, service });
        }
    }
    out
}
