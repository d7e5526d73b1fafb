//! A run of a fleet: its events in order of time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};

use outrigger_policy::lease::{self, Account, UsageReport};

use super::{Fleet, Report, Spread};
use crate::simulator::{MS, Random, SECOND};

/// The constants of the task in `mechanism/src/limits/settling.rs` and `ledger.rs`.
const SETTLE_EVERY: u64 = 200 * MS;
const BATCH: usize = 512;
const LOOK_EVERY: u64 = 2 * MS;
const LISTEN: u64 = 5 * MS;
const REST: u64 = 20 * MS;
const AWAKE: u64 = 200 * MS;
const SIGN_OF_LIFE: u64 = 400 * MS;
const FIRST_RETRY: u64 = 100 * MS;
const LAST_RETRY: u64 = SECOND;
/// The default of `rate_limits.redis.timeout`.
const TIMEOUT: u64 = 250 * MS;
/// How long it takes until all Machines know that one has joined or left: a look at the name server and a probe.
const NOTICED_WITHIN: u64 = 6 * SECOND;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Change(usize),
    /// The Machine learns how many there are.
    Learns(u32, u32),
    /// The number of the process keeps the turns of a crashed Machine from those of the one that takes its place.
    Turn(u32, u64),
    Arrives(u32, u64),
    Returns(u32, u64),
    Lost(u32, u64),
    Request,
}

/// A key as one Machine knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    account: Account,
    /// The arrival time under this Machine's share.
    tat: u64,
    since: u64,
    settled_at: u64,
    is_queued: bool,
    is_urgent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Shared,
    /// Redis is unavailable: this Machine's share applies.
    Alone,
    /// Redis is back: all debt is reported before it decides again.
    CatchingUp,
}

#[derive(Debug)]
struct Machine {
    process: u64,
    known: u32,
    state: State,
    cells: HashMap<u32, Cell>,
    /// Keys with a charge since the last look, and those that are queued.
    dirty: HashSet<u32>,
    urgent: VecDeque<u32>,
    soon: BinaryHeap<Reverse<(u64, u32)>>,
    /// The batch in flight: usage reports with the debt that they include, then the replies.
    batch: Vec<(u32, UsageReport, i32, u64)>,
    awake_until: u64,
    retry: u64,
    heard_at: u64,
}

impl Machine {
    /// As `Ledger::collect`: queues the keys that were charged. Returns whether there were any.
    fn collect(&mut self, now: u64) -> bool {
        let mut dirty: Vec<u32> = self.dirty.drain().collect();
        dirty.sort_unstable();
        for key in &dirty {
            let cell = self.cells.entry(*key).or_default();
            if !cell.is_queued {
                (cell.is_queued, cell.since) = (true, now);
                self.soon.push(Reverse(((cell.settled_at + SETTLE_EVERY).max(now), *key)));
            }
            if cell.is_urgent {
                self.urgent.push_back(*key);
            }
        }
        if !dirty.is_empty() {
            self.awake_until = now + AWAKE;
        }
        !dirty.is_empty()
    }

    /// As `Settler::come_back`.
    fn catch_up(&mut self) {
        (self.state, self.retry) = (State::CatchingUp, FIRST_RETRY);
        let mut keys: Vec<u32> = self.cells.keys().copied().collect();
        keys.sort_unstable();
        self.urgent = keys.into();
        self.cells.values_mut().for_each(|cell| cell.is_queued = true);
    }
}

struct Run<'a> {
    fleet: &'a Fleet,
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    machines: Vec<Machine>,
    store: HashMap<u32, u64>,
    report: Report,
    processes: u64,
    changed_at: u64,
    weights: Vec<f64>,
}

/// Runs the simulation.
pub fn run(fleet: &Fleet, seed: u64) -> Report {
    let mut run = Run {
        fleet,
        random: Random::new(seed),
        events: BinaryHeap::new(),
        order: 0,
        machines: Vec::new(),
        store: HashMap::new(),
        report: Report { admitted: vec![Vec::new(); fleet.keys as usize], ..Report::default() },
        processes: 0,
        changed_at: SECOND,
        weights: Vec::new(),
    };
    run.resize(SECOND, fleet.machines);
    run.machines.iter_mut().for_each(|machine| machine.known = fleet.machines.max(fleet.configured));
    for (index, (at, _)) in fleet.changes.iter().enumerate() {
        run.push(SECOND + at, Event::Change(index));
    }
    for _ in 0..fleet.page {
        run.request(SECOND, 0);
    }
    run.push(SECOND, Event::Request);
    // Time begins at one second: an arrival time of 0 is a key that nobody has asked for.
    while let Some(Reverse((now, _, event))) = run.events.pop() {
        if now >= SECOND + fleet.end {
            break;
        }
        run.on(now, event);
    }
    run.report.machine_seconds +=
        (SECOND + fleet.end - run.changed_at) as f64 * run.machines.len() as f64 / SECOND as f64;
    run.report
}

impl Run<'_> {
    fn push(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    /// Starts Machines or lets the last ones crash, with what they have not reported.
    fn resize(&mut self, now: u64, machines: u32) {
        self.report.machine_seconds += (now - self.changed_at) as f64 * self.machines.len() as f64 / SECOND as f64;
        self.changed_at = now;
        self.machines.truncate(machines as usize);
        while self.machines.len() < machines as usize {
            self.processes += 1;
            let number = self.machines.len() as u32;
            self.machines.push(Machine {
                process: self.processes,
                known: self.fleet.configured,
                state: State::Shared,
                cells: HashMap::new(),
                dirty: HashSet::new(),
                urgent: VecDeque::new(),
                soon: BinaryHeap::new(),
                batch: Vec::new(),
                awake_until: 0,
                retry: FIRST_RETRY,
                heard_at: now,
            });
            let first = now + self.random.draw() % REST;
            self.push(first, Event::Turn(number, self.processes));
        }
        for number in 0..machines {
            let learns = now + self.random.draw() % NOTICED_WITHIN;
            self.push(learns, Event::Learns(number, machines));
        }
        let mut sum = 0.0;
        self.weights = (1..=machines)
            .map(|n| {
                sum += 1.0 / f64::from(n);
                sum
            })
            .collect();
    }

    fn is_away(&self, now: u64) -> bool {
        self.fleet.outage.is_some_and(|(from, to)| (SECOND + from..SECOND + to).contains(&now))
    }

    fn on(&mut self, now: u64, event: Event) {
        match event {
            Event::Change(index) => self.resize(now, self.fleet.changes[index].1),
            Event::Learns(number, machines) => {
                let known = machines.max(self.fleet.configured);
                if let Some(machine) = self.machines.get_mut(number as usize) {
                    machine.known = known;
                }
            }
            Event::Turn(number, process) => self.turn(number, process, now),
            Event::Arrives(number, process) => self.settle(number, process, now),
            Event::Returns(number, process) => self.returns(number, process, now),
            Event::Lost(number, process) => self.lost(number, process, now),
            Event::Request => {
                let key = (self.random.draw() % u64::from(self.fleet.keys)) as u32;
                self.request(now, key);
                let next = now + (self.random.exponential() * SECOND as f64 / self.fleet.rate) as u64 + 1;
                self.push(next, Event::Request);
            }
        }
    }

    fn machine(&mut self, key: u32, now: u64) -> usize {
        let machines = self.machines.len();
        match self.fleet.spread {
            Spread::Even => (self.random.draw() % machines as u64) as usize,
            Spread::Sessions => (u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % machines,
            Spread::Skewed => {
                let drawn = self.random.unit() * self.weights.last().copied().unwrap_or(1.0);
                self.weights.partition_point(|sum| *sum < drawn).min(machines - 1)
            }
            Spread::MovesAt(at) => {
                if now < SECOND + at {
                    0
                } else {
                    machines - 1
                }
            }
        }
    }

    /// As `Cells::spend`.
    fn request(&mut self, now: u64, key: u32) {
        self.report.asked += 1;
        let number = self.machine(key, now);
        let quota = self.fleet.quota;
        let machine = &mut self.machines[number];
        let cell = machine.cells.entry(key).or_default();
        if machine.state == State::Shared {
            let Ok(spent) = cell.account.spend(quota, machine.known, now, 1) else { return };
            cell.account.debt = spent.debt;
            cell.is_urgent |= spent.is_urgent;
        } else {
            let Ok(after) = quota.share(machine.known, 1).take(cell.tat, now, 1) else { return };
            cell.tat = after;
            cell.account.debt += 1;
        }
        machine.dirty.insert(key);
        self.report.admitted[key as usize].push(now);
    }

    /// As `Settler::turn`, `Ledger::collect` and `Ledger::bills`.
    fn turn(&mut self, number: u32, process: u64, now: u64) {
        let is_away = self.is_away(now);
        let round_trip = self.fleet.round_trip as f64;
        let there = (round_trip * (0.25 + 0.25 * self.random.exponential())) as u64;
        let quota = self.fleet.quota;
        let Some(machine) = self.machines.get_mut(number as usize).filter(|machine| machine.process == process) else {
            return;
        };
        if machine.state == State::Alone {
            if is_away {
                let retry = machine.retry;
                machine.retry = (2 * retry).min(LAST_RETRY);
                self.push(now + retry, Event::Turn(number, process));
                return;
            }
            machine.catch_up();
        }
        let is_asked = machine.state == State::Shared && machine.collect(now);
        while machine.batch.len() < BATCH {
            let key = match machine.urgent.pop_front() {
                Some(key) => key,
                None if machine.soon.peek().is_some_and(|Reverse((due, _))| *due <= now) => {
                    machine.soon.pop().map_or(0, |Reverse((_, key))| key)
                }
                None => break,
            };
            let Some(cell) = machine.cells.get_mut(&key).filter(|cell| cell.is_queued) else { continue };
            (cell.is_queued, cell.is_urgent) = (false, false);
            if cell.account.debt == 0 {
                continue;
            }
            let (debt, ago_ns) = match machine.state {
                State::Shared => (cell.account.debt, now - cell.since),
                _ => (lease::remaining_debt(cell.account.debt, quota, machine.known, cell.tat, now), 0),
            };
            let bill = UsageReport { debt, ago_ns, known_ns: cell.account.told.saturating_sub(now) };
            machine.batch.push((key, bill, cell.account.debt, 0));
        }
        let is_silent = now - machine.heard_at >= SIGN_OF_LIFE;
        if !machine.batch.is_empty() || is_silent {
            let (commands, batches) = (machine.batch.len() as u64, u64::from(!machine.batch.is_empty()));
            self.report.commands += commands;
            self.report.batches += batches;
            self.report.heartbeats += 1 - batches;
            if is_away {
                self.push(now + TIMEOUT, Event::Lost(number, process));
            } else {
                self.push(now + there, Event::Arrives(number, process));
            }
            return;
        }
        machine.state = State::Shared;
        let rest = match now < machine.awake_until {
            _ if is_asked => LOOK_EVERY,
            true => LISTEN,
            false => REST,
        };
        self.push(now + rest, Event::Turn(number, process));
    }

    /// The store: as the script in `mechanism/src/limits/settling/link.rs`.
    fn settle(&mut self, number: u32, process: u64, now: u64) {
        let back = (self.fleet.round_trip as f64 * (0.25 + 0.25 * self.random.exponential())) as u64;
        let Some(machine) = self.machines.get_mut(number as usize).filter(|machine| machine.process == process) else {
            return;
        };
        for (key, bill, _, told) in &mut machine.batch {
            *told = lease::settle(self.store.get(key).copied(), *bill, self.fleet.quota, machine.known, now);
            self.store.insert(*key, *told);
        }
        self.push(now + back, Event::Returns(number, process));
    }

    fn returns(&mut self, number: u32, process: u64, now: u64) {
        let Some(machine) = self.machines.get_mut(number as usize).filter(|machine| machine.process == process) else {
            return;
        };
        for (key, _, debt, told) in machine.batch.drain(..) {
            let cell = machine.cells.entry(key).or_default();
            cell.account = Account { told, debt: cell.account.debt - debt };
            cell.settled_at = if machine.state == State::Shared { now } else { 0 };
        }
        machine.heard_at = now;
        // All debt after an outage is reported at once, one batch after the other.
        let rest = if machine.state == State::Shared { LOOK_EVERY } else { 0 };
        self.push(now + rest, Event::Turn(number, process));
    }

    /// As `Settler::fail` and `Cell::stand_alone`.
    fn lost(&mut self, number: u32, process: u64, now: u64) {
        let quota = self.fleet.quota;
        let Some(machine) = self.machines.get_mut(number as usize).filter(|machine| machine.process == process) else {
            return;
        };
        machine.batch.clear();
        machine.state = State::Alone;
        for cell in machine.cells.values_mut() {
            let furthest = now + lease::furthest(quota, machine.known);
            cell.tat = cell.account.arrival(quota, machine.known, now).min(furthest);
        }
        let retry = machine.retry;
        self.push(now + retry, Event::Turn(number, process));
    }
}
