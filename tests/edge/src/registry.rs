//! All Machines: what they are, what routing believes of them, and what was counted.
//!
//! Routing does not see a change at once: each goes on its way and arrives after [`Routing::propagation`](crate::settings::Routing). So a
//! Machine has a truth, and what the edge has heard of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::code::Code;
use crate::machine::{Health, Machine, State};
use crate::routing::{self, Candidate, Wish};
use crate::settings::Settings;

#[derive(Debug)]
pub struct Registry {
    settings: Arc<Settings>,
    /// Whether there is somebody who can start stopped Machines.
    can_wake: bool,
    inner: Mutex<Inner>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    entries: BTreeMap<String, Entry>,
    random: fastrand::Rng,
    waiting: usize,
    births: u64,
    counts: Counts,
}

/// What the edge has done so far.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Clients' requests.
    pub requests: u64,
    /// Requests that were sent again because of `fly-replay`.
    pub replays: u64,
    /// Requests that came back to who replayed them.
    pub fallbacks: u64,
    pub errors: BTreeMap<Code, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    state: State,
    is_cordoned: bool,
    is_healthy: bool,
}

#[derive(Debug)]
struct Entry {
    machine: Machine,
    state: State,
    health: Health,
    is_cordoned: bool,
    is_soft_cordoned: bool,
    is_starting: bool,
    stopped: Option<Instant>,
    /// What routing believes, and what it will hear when.
    heard: View,
    on_the_way: VecDeque<(Instant, View)>,
    /// Tells Machines of the same id apart.
    birth: u64,
    /// Counts starts, so that what a check found about an earlier run does not count for this one.
    run: u64,
    results_in_a_row: (bool, u32),
    load: usize,
    requests: u64,
    connections: u64,
}

/// One Machine as it is.
#[derive(Debug, Clone)]
pub struct MachineSnapshot {
    pub machine: Machine,
    pub state: State,
    pub health: Health,
    pub is_cordoned: bool,
    /// By autostop or by a deploy that removes Machines from routing first.
    pub is_soft_cordoned: bool,
    /// Whether routing, which may not have heard the latest, would use it.
    pub is_routed: bool,
    /// Requests that are with it now.
    pub load: usize,
    /// Requests that were sent to it, and connections that were made to it.
    pub requests: u64,
    pub connections: u64,
}

/// Everything, at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub machines: Vec<MachineSnapshot>,
    /// Requests that wait for a Machine.
    pub waiting: usize,
    pub counts: Counts,
}

impl Snapshot {
    pub fn machine(&self, id: &str) -> Option<&MachineSnapshot> {
        self.machines.iter().find(|m| m.machine.id == id)
    }

    /// How often this happened.
    pub fn errors(&self, code: Code) -> u64 {
        self.counts.errors.get(&code).copied().unwrap_or_default()
    }
}

/// Which Machines a request has tried in vain.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    of: HashMap<String, u32>,
    pub(crate) total: u32,
}

impl Tries {
    pub(crate) fn add(&mut self, id: &str) {
        *self.of.entry(id.to_owned()).or_default() += 1;
        self.total += 1;
    }

    pub(crate) fn of(&self, id: &str) -> u32 {
        self.of.get(id).copied().unwrap_or_default()
    }
}

/// What there is for a request.
#[derive(Debug)]
pub(crate) enum Pick {
    Go(Slot),
    /// It sleeps, and is marked as starting: whoever gets this has to start it.
    Wake(Machine),
    /// There may be one later; this is what is missing.
    Wait(Code),
    Never(Code),
}

/// A place at a Machine. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    registry: Arc<Registry>,
    pub(crate) machine: Machine,
    /// It was stopped a moment ago, routing has not heard of it, and there is another.
    pub(crate) bounces: bool,
    /// Everybody is above the soft limit, and this one sleeps; marked as starting.
    pub(crate) wake: Option<Machine>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.registry.change(|inner| {
            if let Some(entry) = inner.entries.get_mut(&self.machine.id) {
                entry.load = entry.load.saturating_sub(1);
            }
        });
    }
}

/// A place among those who wait. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place(Arc<Registry>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.change(|inner| inner.waiting -= 1);
    }
}

impl Registry {
    pub(crate) fn new(settings: Arc<Settings>, can_wake: bool) -> Self {
        let random = fastrand::Rng::with_seed(settings.seed);
        let inner = Inner { entries: BTreeMap::new(), random, waiting: 0, births: 0, counts: Counts::default() };
        Self { settings, can_wake, inner: Mutex::new(inner), changes: watch::channel(()).0 }
    }

    /// A Machine as it comes into being. Replaces one of the same id; those that are destroyed and known to be so are forgotten.
    /// The answer is what tells it from others of its id.
    pub(crate) fn add(&self, machine: Machine, state: State, is_cordoned: bool) -> u64 {
        let health = self.first_health();
        let view = View { state, is_cordoned, is_healthy: health == Health::Passing };
        let mut entry = Entry {
            machine,
            state,
            health,
            is_cordoned,
            is_soft_cordoned: false,
            is_starting: false,
            stopped: None,
            // Nobody has heard of it; a Machine that is new is like one that was never started.
            heard: View { state: State::Created, is_cordoned: false, is_healthy: false },
            on_the_way: VecDeque::from([(Instant::now() + self.propagation(), view)]),
            birth: 0,
            run: 1,
            results_in_a_row: (true, 0),
            load: 0,
            requests: 0,
            connections: 0,
        };
        self.change(|inner| {
            inner.entries.retain(|_, old| old.heard.state != State::Destroyed || old.load > 0);
            inner.births += 1;
            entry.birth = inner.births;
            inner.entries.insert(entry.machine.id.clone(), entry);
            inner.births
        })
    }

    /// As if it had never been: routing knows at once.
    pub(crate) fn remove(&self, id: &str) {
        self.change(|inner| inner.entries.remove(id));
    }

    /// True if there is such a Machine; so with all that follow.
    pub(crate) fn cordon(&self, id: &str, is_cordoned: bool) -> bool {
        self.update(id, |entry| entry.is_cordoned = is_cordoned)
    }

    pub(crate) fn soft_cordon(&self, id: &str, is_cordoned: bool) -> bool {
        self.update(id, |entry| entry.is_soft_cordoned = is_cordoned)
    }

    pub(crate) fn set_state(&self, id: &str, state: State) -> bool {
        let first_health = self.first_health();
        self.update(id, |entry| {
            let was = std::mem::replace(&mut entry.state, state);
            if state == State::Started && was != State::Started {
                entry.begin_run(first_health);
            } else if state != State::Started && was == State::Started {
                entry.stopped = Some(Instant::now());
            }
        })
    }

    /// It runs, after a start or an update in place, perhaps elsewhere or in another version; nobody knows how it is.
    pub(crate) fn started(&self, machine: &Machine) -> bool {
        let first_health = self.first_health();
        self.update(&machine.id, |entry| {
            entry.machine = machine.clone();
            entry.state = State::Started;
            entry.begin_run(first_health);
        })
    }

    /// It does not run, and will be this when it does.
    pub(crate) fn describe(&self, machine: &Machine) -> bool {
        self.update(&machine.id, |entry| entry.machine = machine.clone())
    }

    pub(crate) fn start_failed(&self, id: &str) {
        self.update(id, |entry| entry.is_starting = false);
    }

    /// What a check of this run found.
    pub(crate) fn checked(&self, id: &str, run: u64, passed: bool, failures_to_remove: u32, successes_to_return: u32) {
        self.update(id, |entry| {
            if entry.run != run {
                return;
            }
            let (last, count) = entry.results_in_a_row;
            entry.results_in_a_row = (passed, if last == passed { count.saturating_add(1) } else { 1 });
            let needed = if passed { successes_to_return } else { failures_to_remove };
            // The first result of a run is its health, whatever the thresholds.
            if entry.health == Health::Pending || entry.results_in_a_row.1 >= needed {
                entry.health = if passed { Health::Passing } else { Health::Failing };
            }
        });
    }

    /// The Machine while it runs, and the number of this run.
    pub(crate) fn run_of(&self, id: &str, birth: u64) -> Run {
        match self.lock().entries.get(id).filter(|entry| entry.birth == birth) {
            None => Run::Gone,
            Some(entry) if entry.state == State::Destroyed => Run::Gone,
            Some(entry) if entry.state == State::Started => Run::Number(entry.run, entry.machine.clone()),
            Some(_) => Run::NotNow,
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    pub(crate) fn count(&self, code: Code) {
        self.count_with(|counts| *counts.errors.entry(code).or_default() += 1);
    }

    pub(crate) fn count_with(&self, add: impl FnOnce(&mut Counts)) {
        self.change(|inner| add(&mut inner.counts));
    }

    pub(crate) fn connected(&self, id: &str) {
        self.change(|inner| inner.entries.get_mut(id).map(|entry| entry.connections += 1));
    }

    pub(crate) fn sent(&self, id: &str) {
        self.change(|inner| inner.entries.get_mut(id).map(|entry| entry.requests += 1));
    }

    /// Started Machines as the DNS has heard of them.
    pub(crate) fn heard_started(&self) -> Vec<Machine> {
        let inner = self.lock();
        let started = inner.entries.values().filter(|entry| entry.heard.state == State::Started);
        started.map(|entry| entry.machine.clone()).collect()
    }

    /// A place among those who wait, unless there are too many.
    pub(crate) fn wait_in_line(self: &Arc<Self>) -> Option<Place> {
        let is_in = self.change(|inner| {
            let is_in = inner.waiting < self.settings.routing.queue_length;
            inner.waiting += usize::from(is_in);
            is_in
        });
        is_in.then(|| Place(Arc::clone(self)))
    }

    pub(crate) fn pick(self: &Arc<Self>, wish: &Wish, tries: &Tries) -> Pick {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let limits = self.settings.concurrency;
        let (mut candidates, mut asleep, mut missing) = (Vec::new(), Vec::new(), None);
        for (id, entry) in &inner.entries {
            let fits = wish.instance.as_ref().is_none_or(|wish| wish == id)
                && wish.elsewhere.as_ref().is_none_or(|not| not != id)
                && (!entry.heard.is_cordoned || (wish.reaches_cordoned && wish.instance.is_some()));
            let distance = fits.then(|| wish.distance(&entry.machine.region, &self.settings.region)).flatten();
            let Some(distance) = distance else { continue };
            match entry.heard.state {
                State::Stopped | State::Suspended if self.can_wake => asleep.push((distance, id.clone())),
                State::Started if !entry.heard.is_healthy => missing = missing.or(Some(Code::NoHealthyMachine)),
                State::Started if limits.hard_limit.is_some_and(|limit| entry.load >= limit) => {
                    missing = Some(Code::NoCapacity);
                }
                State::Started => candidates.push(Candidate { id, load: entry.load, distance, tries: tries.of(id) }),
                _ => {}
            }
        }
        asleep.sort();
        let is_waking = asleep.iter().any(|(_, id)| inner.entries.get(id).is_some_and(|entry| entry.is_starting));
        let sleeper = asleep.into_iter().next().map(|(_, id)| id).filter(|_| !is_waking);

        if let Some(chosen) = routing::choose(&candidates, limits, &mut inner.random) {
            let has_others = candidates.iter().any(|c| c.id != chosen.id && c.tries == 0);
            let needs_more = candidates.iter().all(|c| c.load >= limits.soft_limit);
            let id = chosen.id.to_owned();
            let wake = sleeper.filter(|_| needs_more).and_then(|id| inner.begin_wake(&id));
            let Some(entry) = inner.entries.get_mut(&id) else { return Pick::Never(Code::MachineNotFound) };
            entry.load += 1;
            let recently = self.settings.scaled(self.settings.routing.recently_stopped);
            let was_stopped = entry.state != State::Started && entry.stopped.is_some_and(|at| at.elapsed() < recently);
            let (machine, bounces) = (entry.machine.clone(), was_stopped && has_others);
            return Pick::Go(Slot { registry: Arc::clone(self), machine, bounces, wake });
        }
        if is_waking {
            return Pick::Wait(Code::WakeTimeout);
        }
        if let Some(machine) = sleeper.and_then(|id| inner.begin_wake(&id)) {
            return Pick::Wake(machine);
        }
        match missing {
            Some(code) => Pick::Wait(code),
            None if wish.instance.is_some() => Pick::Never(Code::MachineNotFound),
            None if wish.only_regions => Pick::Never(Code::NoHealthyMachine),
            None => Pick::Wait(Code::NoHealthyMachine),
        }
    }

    /// Waits until `look` finds something, or until the deadline.
    pub(crate) async fn until<T>(&self, deadline: Instant, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Some(found) = look() {
                return Some(found);
            }
            if Instant::now() >= deadline {
                return None;
            }
            let news = self.lock().next_news();
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep_until(news.map_or(deadline, |news| news.min(deadline))) => {}
            }
        }
    }

    fn first_health(&self) -> Health {
        if self.settings.check.is_some() { Health::Pending } else { Health::Passing }
    }

    fn propagation(&self) -> std::time::Duration {
        self.settings.scaled(self.settings.routing.propagation)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.hear(Instant::now());
        inner
    }

    fn change<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let result = act(&mut self.lock());
        self.changes.send_replace(());
        result
    }

    fn update(&self, id: &str, act: impl FnOnce(&mut Entry)) -> bool {
        let arrival = Instant::now() + self.propagation();
        self.change(|inner| {
            let Some(entry) = inner.entries.get_mut(id) else { return false };
            act(entry);
            let view = entry.view();
            let latest = entry.on_the_way.back().map_or(entry.heard, |(_, view)| *view);
            if view != latest {
                entry.on_the_way.push_back((arrival, view));
            }
            inner.hear(Instant::now());
            true
        })
    }
}

/// Whether a Machine runs, for its check.
#[derive(Debug)]
pub(crate) enum Run {
    Gone,
    NotNow,
    Number(u64, Machine),
}

impl Entry {
    fn view(&self) -> View {
        View {
            state: self.state,
            is_cordoned: self.is_cordoned || self.is_soft_cordoned,
            is_healthy: self.health == Health::Passing,
        }
    }

    fn begin_run(&mut self, health: Health) {
        self.run += 1;
        self.health = health;
        self.results_in_a_row = (true, 0);
        self.stopped = None;
        self.is_starting = false;
    }
}

impl Inner {
    /// Routing hears what has arrived by now.
    fn hear(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            while let Some((_, view)) = entry.on_the_way.pop_front_if(|(arrival, _)| *arrival <= now) {
                entry.heard = view;
            }
        }
    }

    fn next_news(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.on_the_way.front()).map(|(arrival, _)| *arrival).min()
    }

    fn begin_wake(&mut self, id: &str) -> Option<Machine> {
        let entry = self.entries.get_mut(id)?;
        let is_first = !std::mem::replace(&mut entry.is_starting, true);
        is_first.then(|| entry.machine.clone())
    }

    fn snapshot(&self) -> Snapshot {
        let machines = self.entries.values().map(|entry| MachineSnapshot {
            machine: entry.machine.clone(),
            state: entry.state,
            health: entry.health,
            is_cordoned: entry.is_cordoned,
            is_soft_cordoned: entry.is_soft_cordoned,
            is_routed: entry.heard == View { state: State::Started, is_cordoned: false, is_healthy: true },
            load: entry.load,
            requests: entry.requests,
            connections: entry.connections,
        });
        Snapshot { machines: machines.collect(), waiting: self.waiting, counts: self.counts.clone() }
    }
}
