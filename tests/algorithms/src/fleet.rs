//! Simulates Machines that share rate limits through Redis, with the real decisions of `outrigger_policy::lease`. Discrete
//! events and its own random numbers: the same fleet and seed give the same run everywhere.
//!
//! The task that syncs is a copy of `mechanism/src/limits/settling.rs` and its ledger, without sockets: one batch in flight,
//! usage is reported within 200 ms, at once when half of a lease is used up; while Redis is unavailable, each Machine
//! enforces its share.

mod run;

use outrigger_policy::limiter::Quota;

pub use self::run::run;
use crate::simulator::{MS, SECOND};

/// The Machine at which a request arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// At any.
    Even,
    /// All requests of a key at its home.
    Sessions,
    /// The n-th Machine gets 1/n of what the first one gets.
    Skewed,
    /// At the first until this time, afterwards at the last.
    MovesAt(u64),
}

/// A fleet and its requests. Times are nanoseconds.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub machines: u32,
    /// `rate_limits.redis.machines`.
    pub configured: u32,
    pub quota: Quota,
    /// Keys with this quota each, asked equally often.
    pub keys: u32,
    /// Requests a second of all keys.
    pub rate: f64,
    /// Additional requests of the first key that arrive together at the start.
    pub page: u32,
    pub spread: Spread,
    /// The mean time for a batch to Redis and back.
    pub round_trip: u64,
    /// Redis is unavailable from the first time until the second.
    pub outage: Option<(u64, u64)>,
    /// From each time on so many Machines run: the last ones have joined or crashed.
    pub changes: Vec<(u64, u32)>,
    pub end: u64,
}

impl Fleet {
    /// A fleet that asks for ten times a quota of 100 a second, a burst of 600, for a minute; 1 ms to Redis and back.
    pub fn new(machines: u32) -> Self {
        Self {
            machines,
            configured: 1,
            quota: Quota::from_parts(10 * MS, 600),
            keys: 1,
            rate: 1_000.0,
            page: 0,
            spread: Spread::Even,
            round_trip: MS,
            outage: None,
            changes: Vec::new(),
            end: 60 * SECOND,
        }
    }

    /// The documented bound on what a key can get in any time `t` in addition to rate × `t`: the burst, and a lease for each
    /// Machine that decides on an old value.
    pub fn bound(&self, machines: u32) -> u64 {
        let lease = (self.quota.burst() / machines.max(1)).max(1);
        u64::from(self.quota.burst()) + u64::from(lease) * u64::from(machines)
    }
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The times of the admitted requests, by key.
    pub admitted: Vec<Vec<u64>>,
    pub asked: u64,
    /// Usage reports, batches of them, and heartbeats.
    pub commands: u64,
    pub batches: u64,
    pub heartbeats: u64,
    pub machine_seconds: f64,
}

impl Report {
    /// The largest number that a key got in any time in addition to rate × time: at most the burst if it were exact.
    pub fn most(&self, quota: Quota) -> f64 {
        let interval = quota.charge_ns(1) as f64;
        let of_key = |times: &Vec<u64>| {
            let (mut most, mut since) = (0.0_f64, f64::MAX);
            for (count, at) in times.iter().enumerate() {
                let now = count as f64 - *at as f64 / interval;
                since = since.min(now);
                most = most.max(now - since + 1.0);
            }
            most
        };
        self.admitted.iter().map(of_key).fold(0.0, f64::max)
    }

    /// The requests admitted from the first time until the second, as a fraction of the rate of all keys.
    pub fn share(&self, quota: Quota, from: u64, to: u64) -> f64 {
        let admitted = self.admitted.iter().flatten().filter(|at| (from..to).contains(*at)).count();
        let due = self.admitted.len() as f64 * (to - from) as f64 / quota.charge_ns(1) as f64;
        admitted as f64 / due
    }

    /// Commands and heartbeats a second of one Machine.
    pub fn commands_each(&self) -> f64 {
        (self.commands + self.heartbeats) as f64 / self.machine_seconds
    }
}
