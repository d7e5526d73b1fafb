//! The registry's choice for a request: a Machine with capacity, a Machine to start, a wait, or an error.
//!
//! Sources: full and failing Machines make requests wait (docs:reference/load-balancing.html.md,
//! docs:apps/app-availability.html.markerb; facts: 5, 6.1); a Machine is started when all running ones are above the soft
//! limit, or when a request needs a sleeping one (docs:reference/fly-proxy-autostop-autostart.html.markerb,
//! docs:blueprints/connecting-to-user-machines.html.md; facts: 2.3, 6.1).

use std::collections::HashMap;
use std::sync::Arc;

use crate::code::Code;
use crate::machine::{Machine, State};
use crate::registry::Registry;
use crate::routing::{self, Candidate, Wish};

/// Failed attempts of a request, by Machine.
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

/// The choice for a request.
#[derive(Debug)]
pub(crate) enum Pick {
    Go(Slot),
    /// A sleeping Machine, marked as starting: the caller must start it. Also the number of its failed starts.
    Wake(Machine, u32),
    /// A Machine may become available later; this is missing now.
    Wait(Code),
    Never(Code),
}

/// Capacity reserved on a Machine; dropping it releases the capacity.
#[derive(Debug)]
pub(crate) struct Slot {
    registry: Arc<Registry>,
    pub(crate) machine: Machine,
    /// The Machine was stopped a moment ago, routing does not know yet, and there is another. Source:
    /// docs:monitoring/error-codes.html.md PM11 (facts: 7).
    pub(crate) bounces: bool,
    /// A sleeping Machine, marked as starting, because all others are above the soft limit.
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

/// A waiting request's share of the queue; dropping it releases the share.
#[derive(Debug)]
pub(crate) struct Place(Arc<Registry>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.change(|inner| inner.waiting -= 1);
    }
}

impl Registry {
    /// Joins the waiting requests, unless there are too many. They have no order: the first to wake up goes first.
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
            let wake = sleeper.filter(|_| needs_more).and_then(|id| inner.begin_wake(&id)).map(|(machine, _)| machine);
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
        if let Some((machine, failed)) = sleeper.and_then(|id| inner.begin_wake(&id)) {
            return Pick::Wake(machine, failed);
        }
        match missing {
            Some(code) => Pick::Wait(code),
            None if wish.instance.is_some() => Pick::Never(Code::MachineNotFound),
            None if wish.only_regions => Pick::Never(Code::NoHealthyMachine),
            None => Pick::Wait(Code::NoHealthyMachine),
        }
    }
}
