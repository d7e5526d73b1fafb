//! Overloads of different shapes, and the rival for them: a queue by priority in front of a concurrency limit that an operator
//! has set to the app's capacity, as `maxconn` and `set-priority-class` of HAProxy do. It is told of each change at once.

use std::collections::VecDeque;
use std::time::Duration;

use outrigger_policy::admission::Ask;
use outrigger_policy::concurrency::Sample;
use outrigger_policy::priority::Priority;

use crate::crowd::{Crowd, Decision, Gate, Group, Outrigger, Population, run_with};
use crate::simulator::{MS, SECOND};

/// How long a request waits in the rival's queue (`timeout queue`): long enough to be served within a second just before.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(800);

/// The rival.
#[derive(Debug)]
pub struct Told {
    servers: u32,
    servers_later: Option<(u64, u32)>,
    in_flight: u32,
    queues: [VecDeque<usize>; Priority::ALL.len()],
}

impl Told {
    pub fn new(crowd: &Crowd) -> Self {
        Self { servers: crowd.servers, servers_later: crowd.servers_later, in_flight: 0, queues: Default::default() }
    }

    fn limit(&self, now: u64) -> u32 {
        self.servers_later.filter(|(from, _)| *from <= now).map_or(self.servers, |(_, servers)| servers)
    }
}

impl Gate for Told {
    fn ask(&mut self, request: usize, ask: Ask, _: &mut Vec<usize>) -> Decision {
        self.queues[ask.priority as usize].push_back(request);
        Decision::Wait
    }

    fn grant(&mut self, now: u64) -> Option<usize> {
        if self.in_flight >= self.limit(now) {
            return None;
        }
        let next = self.queues.iter_mut().find_map(VecDeque::pop_front)?;
        self.in_flight += 1;
        Some(next)
    }

    fn give_up(&mut self, request: usize) {
        self.queues.iter_mut().for_each(|queue| queue.retain(|waiting| *waiting != request));
    }

    fn finish(&mut self, _: u64, _: Priority, _: u64, _: Sample) {
        self.in_flight -= 1;
    }

    fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

/// An overload: for ten seconds, a fifth of the requests are critical.
#[derive(Clone, Copy, Debug)]
pub struct Overload {
    pub name: &'static str,
    pub servers: u32,
    /// The service time of a request, in milliseconds.
    pub service: u64,
    /// Requests a second.
    pub rate: u64,
    pub clients: u64,
    /// The servers in the second half.
    pub later: u32,
}

/// As the app's capacity is unknown to Outrigger: other sizes, other service times, other clients, and changes.
pub const OVERLOADS: [Overload; 7] = {
    let usual = Overload { name: "usual", servers: 8, service: 20, rate: 2000, clients: 1, later: 8 };
    [
        usual,
        Overload { name: "service of 5 ms", service: 5, rate: 8000, ..usual },
        Overload { name: "service of 100 ms", service: 100, rate: 400, ..usual },
        Overload { name: "50 servers", servers: 50, rate: 7500, later: 50, ..usual },
        Overload { name: "capacity halved", later: 4, ..usual },
        Overload { name: "capacity doubled", later: 16, ..usual },
        Overload { name: "10,000 clients", clients: 10_000, ..usual },
    ]
};

/// What became of the requests of an overload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Result {
    /// Responses within a second of the request, a second.
    pub good: f64,
    /// The fraction of critical requests that got one.
    pub critical: f64,
}

impl Overload {
    const TIME: u64 = 10 * SECOND;

    fn crowd(&self) -> Crowd {
        let group = |priority, share: f64| Group {
            priority,
            service: self.service * MS,
            clients_of: Some(0),
            deviation: 0.05,
            is_even: true,
            ..Group::new(
                Population::Equal(self.clients),
                share * (self.rate * self.service) as f64 / 1000.0 / f64::from(self.servers),
                Self::TIME,
            )
        };
        let groups = vec![group(Priority::Critical, 0.2), group(Priority::Medium, 0.8)];
        let servers_later = (self.later != self.servers).then_some((Self::TIME / 2, self.later));
        Crowd { servers: self.servers, servers_later, ..Crowd::new(groups) }
    }

    /// Returns the results of Outrigger and of the rival, for the same arrivals.
    pub fn run(&self, seed: u64) -> [Result; 2] {
        let crowd = self.crowd();
        let mut told = crowd.clone();
        told.settings.max_wait = QUEUE_TIMEOUT;
        let ours = Self::count(&crowd, &mut Outrigger::new(crowd.settings), seed);
        [ours, Self::count(&told, &mut Told::new(&told), seed)]
    }

    fn count(crowd: &Crowd, gate: &mut dyn Gate, seed: u64) -> Result {
        let asked = run_with(crowd, gate, seed);
        let is_good = |at: u64, answered: Option<u64>| answered.is_some_and(|answered| answered - at <= SECOND);
        let good = asked.iter().filter(|one| is_good(one.at, one.answered)).count();
        let critical: Vec<_> = asked.iter().filter(|one| one.group == 0).collect();
        let in_time = critical.iter().filter(|one| is_good(one.at, one.answered)).count();
        Result {
            good: good as f64 * SECOND as f64 / Self::TIME as f64,
            critical: in_time as f64 / critical.len() as f64,
        }
    }
}
