//! Makes snapshots of the state, and restores them after a restart.
//!
//! Circuit breakers, bans, this Machine's own rate limits, the concurrency limit and the retry budget. Shared rate limits are in Redis,
//! whose state is newer than any snapshot of this Machine.

use std::time::Duration;

use outrigger_identity::clock;
use outrigger_identity::hash::seed;
use outrigger_policy::abuse::Offence;
use outrigger_policy::retry::Budget;
use outrigger_policy::saved::{Saved, SavedKey, Shift};
use outrigger_rules::config::Config;
use outrigger_rules::sections::limits::MARKS;
use outrigger_rules::sections::state::StateRules;

use crate::engine::notices;
use crate::engine::state::State;
use crate::mechanism::saved::unix_ns;

/// The state that was restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Bans in force.
    pub bans: usize,
    /// Circuit breakers that are not closed.
    pub breakers: usize,
    /// Keys of rate limits.
    pub limits: usize,
    /// Keys of rate limits that were dropped: their limit is gone or shared now, or hashes are other ones.
    pub dropped: usize,
    /// The concurrency limit, if it was restored.
    pub concurrency: Option<u32>,
}

/// The rate limits and offences whose keys survive, by the mark in their tags: how far ahead an arrival time may be, in nanoseconds.
struct Marks(Box<[u64]>);

impl Marks {
    fn of(config: &Config) -> Self {
        let mut ahead = vec![0; MARKS as usize].into_boxed_slice();
        let own = config.limits.all.iter().filter(|limit| !limit.is_shared);
        let limits = own.map(|limit| (limit.mark(), limit.most_ahead_ns()));
        let quota = |offence: Offence| config.abuse.quotas[offence as usize].map_or(0, |quota| quota.burst_ns());
        for (mark, ns) in limits.chain(Offence::ALL.map(|offence| (offence as u64, quota(offence)))) {
            // Two limits may have one mark, by chance.
            let most: &mut u64 = &mut ahead[(mark % MARKS) as usize];
            *most = (*most).max(ns);
        }
        Self(ahead)
    }

    /// How far ahead the arrival time of this key may be; 0 if its limit is unknown.
    fn most_ahead(&self, tag: u64) -> u64 {
        self.0[(tag % MARKS) as usize]
    }
}

/// Makes a snapshot of the state now.
pub fn snapshot(state: &State, rules: &StateRules) -> Saved {
    let loaded = state.rules.load();
    let config = &loaded.config;
    let now = state.nanoseconds(clock::now());
    let marks = Marks::of(config);
    let seed = seed();
    Saved {
        machine: rules.machine.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        unix_ns: unix_ns(),
        clock_ns: now,
        fingerprint: seed.fingerprint(),
        // With keys, it is derived from them.
        seed: config.this.is_none().then(|| seed.to_bytes()),
        concurrency: Some(state.gate.saved_limit()),
        retries: Some(state.budgets().retries.saved()),
        breakers: state.breakers.saved(),
        bans: state.bans.saved(now, &config.abuse),
        limits: state.limits.keys(now).filter(|key| marks.most_ahead(key.tag) > 0).collect(),
    }
}

/// Restores this Machine's own snapshot.
pub fn restore(state: &State, saved: &Saved, age: Duration) -> Restored {
    let loaded = state.rules.load();
    let now = state.nanoseconds(clock::now());
    let shift = shift(saved, now, age);
    if let Some(budget) = saved.retries {
        state.budgets().retries = Budget::restored(budget, shift, loaded.config.retry.budget);
    }
    let is_same_seed = saved.fingerprint == seed().fingerprint();
    let mut breakers = saved.breakers.clone();
    if !is_same_seed {
        breakers.iter_mut().for_each(|(_, breaker)| breaker.forget_names());
    }
    let changed = state.breakers.restore(&breakers, shift);
    for (cell, change) in &changed {
        notices::breaker_changed(state, cell, *change);
    }
    let concurrency = saved.concurrency.filter(|limit| state.gate.restore_limit(*limit, age));
    let mut restored = restore_clients(state, saved, shift);
    restored.breakers = changed.len();
    restored.concurrency = concurrency.map(|_| state.gate.standing().limit);
    restored
}

/// Restores what peers know of clients, and starts with their concurrency limit: each Machine has an app of its own, so its circuit
/// breakers and retry budget begin anew.
pub fn restore_from_peers(state: &State, peers: &[(Saved, Duration)]) -> Restored {
    let now = state.nanoseconds(clock::now());
    let mut all = Restored::default();
    for (saved, age) in peers {
        let restored = restore_clients(state, saved, shift(saved, now, *age));
        all.limits += restored.limits;
        all.dropped += restored.dropped;
    }
    all.bans = state.bans.held(now);
    let mut limits: Vec<(f64, Duration)> =
        peers.iter().filter_map(|(saved, age)| Some((saved.concurrency?, *age))).collect();
    limits.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
    // The lower one of two in the middle.
    if let Some((limit, age)) = limits.get(limits.len().saturating_sub(1) / 2)
        && state.gate.restore_limit(*limit, *age)
    {
        all.concurrency = Some(state.gate.standing().limit);
    }
    all
}

/// Restores bans and rate limits.
fn restore_clients(state: &State, saved: &Saved, shift: Shift) -> Restored {
    let loaded = state.rules.load();
    let config = &loaded.config;
    let is_same_seed = saved.fingerprint == seed().fingerprint();
    let bans = state.bans.restore(&saved.bans, shift, &config.abuse, is_same_seed);
    let marks = Marks::of(config);
    let restore = |key: &SavedKey| {
        let most = marks.most_ahead(key.tag);
        let tat = shift.moved(key.tat).min(shift.now.saturating_add(most));
        is_same_seed && most > 0 && (tat <= shift.now || state.limits.restore(SavedKey { tat, ..*key }, shift.now))
    };
    let limits = saved.limits.iter().filter(|key| restore(key)).count();
    Restored { bans, limits, dropped: saved.limits.len() - limits, ..Restored::default() }
}

fn shift(saved: &Saved, now: u64, age: Duration) -> Shift {
    Shift { was: saved.clock_ns, now, age: u64::try_from(age.as_nanos()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests;
