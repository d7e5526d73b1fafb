//! All Machines: their state, routing's view of them, and counters.
//!
//! Routing does not see a change at once: each arrives after [`Routing::propagation`](crate::settings::Routing). So a Machine
//! has an actual state, and the state that the edge knows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::code::Code;
use crate::machine::{Health, Machine, State};
use crate::settings::Settings;
use crate::snapshot::{Counts, MachineSnapshot, Snapshot};

#[derive(Debug)]
pub struct Registry {
    pub(crate) settings: Arc<Settings>,
    /// Whether stopped Machines can be started.
    pub(crate) can_wake: bool,
    inner: Mutex<Inner>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) random: fastrand::Rng,
    pub(crate) waiting: usize,
    births: u64,
    counts: Counts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) state: State,
    pub(crate) is_cordoned: bool,
    pub(crate) is_healthy: bool,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) machine: Machine,
    pub(crate) state: State,
    health: Health,
    is_cordoned: bool,
    is_soft_cordoned: bool,
    pub(crate) is_starting: bool,
    failed_starts: u32,
    pub(crate) stopped: Option<Instant>,
    /// Routing's view, and pending changes with their times of arrival.
    pub(crate) heard: View,
    on_the_way: VecDeque<(Instant, View)>,
    /// Tells Machines of the same id apart.
    birth: u64,
    /// Counts starts, so that a check of an earlier run does not count for this one.
    run: u64,
    results_in_a_row: (bool, u32),
    pub(crate) load: usize,
    requests: u64,
    connections: u64,
}

impl Registry {
    pub(crate) fn new(settings: Arc<Settings>, can_wake: bool) -> Self {
        let random = fastrand::Rng::with_seed(settings.seed);
        let inner = Inner { entries: BTreeMap::new(), random, waiting: 0, births: 0, counts: Counts::default() };
        Self { settings, can_wake, inner: Mutex::new(inner), changes: watch::channel(()).0 }
    }

    /// Adds a new Machine. Replaces one of the same id, and forgets Machines that are known to be destroyed.
    /// Returns the number that tells it from others of its id.
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
            failed_starts: 0,
            stopped: None,
            // Routing does not know it yet; a new Machine looks as if it had never been started.
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

    /// Removes it without a trace: routing knows at once.
    pub(crate) fn remove(&self, id: &str) {
        self.change(|inner| inner.entries.remove(id));
    }

    /// True if there is such a Machine; the same holds for the functions below.
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

    /// The Machine runs, after a start or an update in place, perhaps elsewhere or in another version; its health is unknown.
    pub(crate) fn started(&self, machine: &Machine) -> bool {
        let first_health = self.first_health();
        self.update(&machine.id, |entry| {
            entry.machine = machine.clone();
            entry.state = State::Started;
            entry.begin_run(first_health);
        })
    }

    /// Sets the data of a Machine that does not run, for its next start.
    pub(crate) fn describe(&self, machine: &Machine) -> bool {
        self.update(&machine.id, |entry| entry.machine = machine.clone())
    }

    pub(crate) fn start_failed(&self, id: &str) {
        self.update(id, |entry| {
            entry.is_starting = false;
            entry.failed_starts += 1;
        });
    }

    /// Records a check's result for this run.
    pub(crate) fn checked(&self, id: &str, run: u64, passed: bool, failures_to_remove: u32, successes_to_return: u32) {
        self.update(id, |entry| {
            if entry.run != run {
                return;
            }
            let (last, count) = entry.results_in_a_row;
            entry.results_in_a_row = (passed, if last == passed { count.saturating_add(1) } else { 1 });
            let needed = if passed { successes_to_return } else { failures_to_remove };
            // The first result of a run sets its health, regardless of the thresholds.
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

    /// The start was abandoned.
    pub(crate) fn start_given_up(&self, id: &str) {
        self.update(id, |entry| entry.is_starting = false);
    }

    /// Delivers all pending changes to routing.
    pub(crate) fn settle(&self) {
        self.change(|inner| {
            for entry in inner.entries.values_mut() {
                if let Some((_, latest)) = entry.on_the_way.drain(..).next_back() {
                    entry.heard = latest;
                }
            }
        });
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

    /// Started Machines, as known to DNS.
    pub(crate) fn heard_started(&self) -> Vec<Machine> {
        let inner = self.lock();
        let started = inner.entries.values().filter(|entry| entry.heard.state == State::Started);
        started.map(|entry| entry.machine.clone()).collect()
    }

    /// Waits until `look` returns a value, or until the deadline.
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

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.hear(Instant::now());
        inner
    }

    pub(crate) fn change<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
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
    /// Delivers the changes that are due to routing.
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

    /// Marks it as starting; also returns the number of failed starts.
    pub(crate) fn begin_wake(&mut self, id: &str) -> Option<(Machine, u32)> {
        let entry = self.entries.get_mut(id)?;
        let is_first = !std::mem::replace(&mut entry.is_starting, true);
        is_first.then(|| (entry.machine.clone(), entry.failed_starts))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Check;

    #[test]
    fn results_of_checks_of_an_earlier_run_do_not_count() {
        let settings = Settings { check: Some(Check::of("/health")), ..Settings::default() };
        let registry = Registry::new(Arc::new(settings), false);
        let public = "127.0.0.2:1".parse().unwrap();
        let region = "ams".to_owned();
        let machine = Machine { id: "a".to_owned(), region, version: 1, public, private: public.ip() };
        let birth = registry.add(machine.clone(), State::Started, false);
        let run = || match registry.run_of("a", birth) {
            Run::Number(run, _) => run,
            other => panic!("{other:?}"),
        };
        let health = || registry.snapshot().machine("a").unwrap().health;
        let first = run();
        registry.started(&machine);
        registry.checked("a", first, true, 1, 1);
        assert_eq!(health(), Health::Pending);
        registry.checked("a", run(), true, 1, 1);
        assert_eq!(health(), Health::Passing);
    }
}
