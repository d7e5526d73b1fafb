//! What an edge shows of itself.

use std::collections::BTreeMap;

use crate::code::Code;
use crate::machine::{Health, Machine, State};

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
