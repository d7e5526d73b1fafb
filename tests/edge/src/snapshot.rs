//! An edge's visible state.

use std::collections::BTreeMap;

use crate::code::Code;
use crate::machine::{Health, Machine, State};

/// One Machine's current state.
#[derive(Debug, Clone)]
pub struct MachineSnapshot {
    pub machine: Machine,
    pub state: State,
    pub health: Health,
    pub is_cordoned: bool,
    /// By autostop or by a deploy that removes Machines from routing first.
    pub is_soft_cordoned: bool,
    /// Whether routing, which may lag behind, would use it.
    pub is_routed: bool,
    /// Requests in flight there.
    pub load: usize,
    /// Requests sent to it, and connections made to it, in total.
    pub requests: u64,
    pub connections: u64,
}

/// Counters of the edge since its start.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Clients' requests.
    pub requests: u64,
    /// Requests that were sent again because of `fly-replay`.
    pub replays: u64,
    /// Requests that returned to the Machine that replayed them.
    pub fallbacks: u64,
    pub errors: BTreeMap<Code, u64>,
}

/// The whole state, at one moment.
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

    /// How often this error occurred.
    pub fn errors(&self, code: Code) -> u64 {
        self.counts.errors.get(&code).copied().unwrap_or_default()
    }
}
