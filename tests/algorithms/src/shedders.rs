//! Other ways to decide whose requests are rejected, as their sources describe them, with their usual constants, and the
//! scenarios in which they are compared.

use std::collections::{BTreeMap, HashMap, VecDeque};

use outrigger_policy::admission::Ask;
use outrigger_policy::concurrency::{Concurrency, Sample};
use outrigger_policy::priority::Priority;

use crate::crowd::{Asked, Crowd, Decision, Gate, Group, Outrigger, Population};
use crate::simulator::{MS, SECOND};

/// A queue in order of arrival.
#[derive(Debug, Default)]
struct Queue(VecDeque<(usize, u64)>);

impl Queue {
    fn give_up(&mut self, request: usize) {
        self.0.retain(|(waiting, _)| *waiting != request);
    }
}

/// After failsafe-go's `PriorityLimiter` with a `UsageTracker` (`adaptivelimiter`, `priority`): a queue in order of arrival
/// before a concurrency limit. From twice the limit on, it rejects requests below a level; from three times the limit on,
/// all. The level is the quantile of the recently admitted levels at the rejection rate, computed at an interval (one
/// second in its documentation). A request
/// has one of 100 levels of its priority, by the rank of its client's usage (execution time in the last minute) among all
/// clients. The limit is Outrigger's, so that only the choice of whom to reject differs.
#[derive(Debug)]
pub struct RankedUsage {
    concurrency: Concurrency,
    in_flight: u32,
    queue: Queue,
    /// The levels of the last requests that were admitted.
    admitted: VecDeque<u32>,
    threshold: u32,
    /// Usage by client in nanoseconds: by [`BUCKET`], and the rank, 0 to 1.
    users: BTreeMap<u64, (HashMap<u64, u64>, Option<f64>)>,
    calibrated: u64,
    /// The time between two calibrations.
    interval: u64,
    levels: HashMap<usize, u32>,
}

const LEVELS: usize = 1000;
const BUCKET: u64 = 2 * SECOND;
const BUCKETS: u64 = 30;

impl RankedUsage {
    pub fn new(crowd: &Crowd, interval: u64) -> Self {
        Self {
            interval,
            concurrency: Concurrency::new(crowd.settings.concurrency),
            in_flight: 0,
            queue: Queue::default(),
            admitted: VecDeque::new(),
            threshold: 0,
            users: BTreeMap::new(),
            calibrated: 0,
            levels: HashMap::new(),
        }
    }

    fn level(&self, ask: &Ask) -> u32 {
        let lowest = 100 * (Priority::ALL.len() - 1 - ask.priority as usize) as u32;
        let rank = self.users.get(&ask.client).and_then(|(_, rank)| *rank);
        rank.map_or(lowest + 99, |rank| lowest + (99.0 * (1.0 - rank)) as u32)
    }

    fn calibrate(&mut self, now: u64) {
        if now - self.calibrated < self.interval {
            return;
        }
        self.calibrated = now;
        let (queued, limit) = (self.queue.0.len() as f64, f64::from(self.concurrency.limit()));
        let rate = ((queued - 2.0 * limit) / limit).clamp(0.0, 1.0);
        self.threshold = 0;
        if rate > 0.0 && !self.admitted.is_empty() {
            let mut levels: Vec<u32> = self.admitted.iter().copied().collect();
            levels.sort_unstable();
            self.threshold = levels[((levels.len() as f64 * rate).ceil() as usize).max(1) - 1];
        }
        for (buckets, _) in self.users.values_mut() {
            buckets.retain(|bucket, _| bucket + BUCKETS > now / BUCKET);
        }
        self.users.retain(|_, (buckets, _)| !buckets.is_empty());
        let mut usages: Vec<u64> = self.users.values().map(|(buckets, _)| buckets.values().sum()).collect();
        usages.sort_unstable();
        for (buckets, rank) in self.users.values_mut() {
            let below = usages.partition_point(|other| *other < buckets.values().sum());
            *rank = Some((100.0 * below as f64 / usages.len() as f64).round() / 100.0);
        }
    }

    fn admit(&mut self, request: usize) {
        self.in_flight += 1;
        // A level counts when its request gets a permit.
        self.admitted.push_back(self.levels.remove(&request).unwrap_or(0));
        if self.admitted.len() > LEVELS {
            self.admitted.pop_front();
        }
    }
}

impl Gate for RankedUsage {
    fn ask(&mut self, request: usize, ask: Ask, _: &mut Vec<usize>) -> Decision {
        self.calibrate(ask.now);
        let level = self.level(&ask);
        let limit = self.concurrency.limit();
        if self.in_flight < limit && self.queue.0.is_empty() {
            self.levels.insert(request, level);
            self.admit(request);
            return Decision::Go;
        }
        if self.queue.0.len() >= 3 * limit as usize || level < self.threshold {
            return Decision::Refuse;
        }
        self.levels.insert(request, level);
        self.queue.0.push_back((request, ask.now));
        Decision::Wait
    }

    fn grant(&mut self, _: u64) -> Option<usize> {
        if self.in_flight >= self.concurrency.limit() {
            return None;
        }
        let (request, _) = self.queue.0.pop_front()?;
        self.admit(request);
        Some(request)
    }

    fn give_up(&mut self, request: usize) {
        self.queue.give_up(request);
        self.levels.remove(&request);
    }

    fn finish(&mut self, client: u64, _: Priority, now: u64, sample: Sample) {
        self.in_flight -= 1;
        self.concurrency.record(now, sample);
        *self.users.entry(client).or_default().0.entry(now / BUCKET).or_default() += now - sample.started;
    }

    fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

/// After WeChat's DAGOR (Zhou et al., SoCC 2018): the app has a queue in order of arrival, and requests above an admission
/// level are rejected. The level is a pair of the business priority and one of 128 user priorities, a hash of the client
/// that changes every hour. Each second or 2,000 requests it changes: if they queued for more than 20 ms on average, so
/// that 5 % fewer requests would have been admitted, otherwise 1 % of all requests more. It knows the number of servers:
/// it runs inside the app.
#[derive(Debug)]
pub struct Dagor {
    servers: u32,
    in_flight: u32,
    queue: Queue,
    /// Requests with a higher compound priority than this are rejected (0 is the most important).
    level: usize,
    arrived: Vec<u32>,
    received: u32,
    admitted: u32,
    queued_ns: u64,
    begun: u32,
    began: u64,
}

const USERS: usize = 128;
const HOUR: u64 = 3_600 * SECOND;

impl Dagor {
    pub fn new(crowd: &Crowd) -> Self {
        let levels = Priority::ALL.len() * USERS;
        Self {
            servers: crowd.servers,
            in_flight: 0,
            queue: Queue::default(),
            level: levels - 1,
            arrived: vec![0; levels],
            received: 0,
            admitted: 0,
            queued_ns: 0,
            begun: 0,
            began: 0,
        }
    }

    fn adjust(&mut self, now: u64) {
        if now - self.began < SECOND && self.received < 2_000 {
            return;
        }
        let is_overloaded = match self.begun {
            0 => !self.queue.0.is_empty(),
            begun => self.queued_ns / u64::from(begun) > 20 * MS,
        };
        let admitted = f64::from(self.admitted);
        let wanted = if is_overloaded { 0.95 * admitted } else { admitted + 0.01 * f64::from(self.received) };
        let mut sum = 0.0;
        let reaches = |arrived: &u32| {
            sum += f64::from(*arrived);
            sum >= wanted
        };
        // At least 5 % fewer, or at least 1 % more. Without overload the level never falls, even if few requests arrived.
        let level = self.arrived.iter().position(reaches).unwrap_or(self.arrived.len() - 1);
        self.level = match is_overloaded {
            true if sum > wanted => level.saturating_sub(1).min(self.level),
            true => level.min(self.level),
            false => level.max(self.level),
        };
        self.arrived.fill(0);
        (self.received, self.admitted, self.queued_ns, self.begun, self.began) = (0, 0, 0, 0, now);
    }
}

impl Gate for Dagor {
    fn ask(&mut self, request: usize, ask: Ask, _: &mut Vec<usize>) -> Decision {
        self.adjust(ask.now);
        let hash = (ask.client ^ (ask.now / HOUR)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let level = ask.priority as usize * USERS + hash as usize % USERS;
        self.arrived[level] += 1;
        self.received += 1;
        if level > self.level {
            return Decision::Refuse;
        }
        self.admitted += 1;
        self.queue.0.push_back((request, ask.now));
        Decision::Wait
    }

    fn grant(&mut self, now: u64) -> Option<usize> {
        if self.in_flight >= self.servers {
            return None;
        }
        let (request, since) = self.queue.0.pop_front()?;
        (self.queued_ns, self.begun, self.in_flight) =
            (self.queued_ns + now - since, self.begun + 1, self.in_flight + 1);
        Some(request)
    }

    fn give_up(&mut self, request: usize) {
        self.queue.give_up(request);
    }

    fn finish(&mut self, _: u64, _: Priority, _: u64, _: Sample) {
        self.in_flight -= 1;
    }

    fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

/// The names of those that are compared, and how they are made.
pub type Maker = fn(&Crowd) -> Box<dyn Gate>;
pub const SHEDDERS: [(&str, Maker); 4] = [
    ("failsafe-go, ranked usage", |crowd| Box::new(RankedUsage::new(crowd, SECOND))),
    ("the same, calibrated every 0.1 s", |crowd| Box::new(RankedUsage::new(crowd, SECOND / 10))),
    ("DAGOR", |crowd| Box::new(Dagor::new(crowd))),
    ("**Outrigger**", |crowd| Box::new(Outrigger::new(crowd.settings))),
];

/// The number of groups of [`well_behaved`]; the second to last is critical.
pub const KINDS: usize = 4;
pub const CRITICAL: usize = 2;
pub const SEARCH: usize = 3;

/// The clients of `cargo xtask experiment`: 200 addresses, 130 requests a second of its mix (reads, writes, checkouts,
/// searches), for an app of this many servers.
pub fn well_behaved(servers: u32, end: u64) -> Vec<Group> {
    let kind = |share: f64, priority, service: u64, route| Group {
        priority,
        service,
        deviation: 0.5,
        clients_of: Some(0),
        route: Some(route),
        ..Group::new(Population::Equal(200), 130.0 * share * service as f64 / SECOND as f64 / f64::from(servers), end)
    };
    vec![
        kind(0.6, Priority::Medium, 20 * MS, 0),
        kind(0.2, Priority::High, 30 * MS, 1),
        kind(0.1, Priority::Critical, 25 * MS, 2),
        kind(0.1, Priority::Low, 80 * MS, SEARCH as u16),
    ]
}

/// Searches of others, as a multiple of the capacity of the app.
pub fn searches(population: Population, load: f64, end: u64) -> Group {
    Group {
        priority: Priority::Low,
        service: 80 * MS,
        deviation: 0.5,
        route: Some(SEARCH as u16),
        ..Group::new(population, load, end)
    }
}

/// Returns the fraction of the servers' time in which they worked on requests that arrived between `from` and `to`.
pub fn utilisation(asked: &[Asked], servers: u32, from: u64, to: u64) -> f64 {
    let served = asked.iter().filter(|asked| asked.is_served && (from..to).contains(&asked.at));
    served.map(|asked| asked.service as f64).sum::<f64>() / (f64::from(servers) * (to - from) as f64)
}
