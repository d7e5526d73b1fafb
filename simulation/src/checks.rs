//! The invariants: they hold in each run, with any faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger::engine::state::State;

use crate::ledger::{End, Entry, Id, Ledger};
use crate::machine::Machine;
use crate::plan::LIMIT;

/// An attempt and its retries, and those of a peer that took the request.
const MOST_EXECUTIONS: usize = 8;

/// Within this time a budget gets as much without requests as it can save: see `policy/src/retry.rs`.
const SAVED: Duration = Duration::from_secs(2);

/// How often queues are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Requests: each has one end, and one that its app, or its client, is the reason for.
pub fn requests(ledger: &Ledger, crashes: &[(usize, Duration)]) {
    for (id, entry) in ledger.requests() {
        let Some((end, at)) = entry.end else {
            ledger.violated(format!("request {id} has no end"));
            continue;
        };
        let has_crashed = |(machine, since): &(usize, Duration)| {
            crashes.iter().any(|(crashed, when)| crashed == machine && when >= since && *when <= at)
        };
        let is_excused = entry.was_broken_off || entry.was_garbled || entry.executions.iter().any(has_crashed);
        match end {
            End::Closed => ledger.violated(format!("request {id} gets no response, and its connection ends")),
            End::Partial(status) if !is_excused => {
                ledger.violated(format!("the response to request {id} ({status}) breaks off, but the app's did not"));
            }
            _ => {}
        }
        if entry.executions.len() > MOST_EXECUTIONS {
            ledger.violated(format!("request {id} was executed {} times", entry.executions.len()));
        }
    }
}

/// Retries and hedged requests stay within their budgets.
pub fn amplification(ledger: &Ledger, machines: &[Machine]) {
    let requests = ledger.requests();
    let again = |entry: &Entry| entry.executions.len().saturating_sub(1 + entry.hung);
    let repeated = || requests.values().filter(|entry| again(entry) > 0);
    let began = repeated().map(|entry| entry.sent).min();
    let ended = repeated().flat_map(|entry| entry.executions.last()).map(|(_, at)| *at).max();
    let (Some(began), Some(ended)) = (began, ended) else { return };
    let executed: usize = repeated().map(again).sum();
    // Saved tokens count as well.
    let length = ended - began + SAVED;
    let allowed = machines.iter().enumerate().map(|(number, machine)| {
        // A request counts at the Machine where it arrives, and at a peer that gets it.
        let is_here = |entry: &&Entry| {
            let was_then = (began..=ended).contains(&entry.sent);
            was_then && (entry.machine == number || entry.executions.iter().any(|(at, _)| *at == number))
        };
        machine.second_requests(requests.values().filter(is_here).count(), length)
    });
    let allowed: u64 = allowed.sum();
    if executed as u64 > allowed {
        ledger.violated(format!("the apps got {executed} requests more than once, and the budgets allow {allowed}"));
    }
}

/// A rate limit holds in each interval, over reloads as well.
pub fn limits(ledger: &Ledger) {
    let requests = ledger.requests();
    let mut by_client: BTreeMap<(usize, usize), Vec<(Duration, Id)>> = BTreeMap::new();
    let is_counted = |entry: &&Entry| entry.path == "/limited" && !entry.executions.is_empty();
    for (id, entry) in requests.iter().filter(|(_, entry)| is_counted(entry)) {
        by_client.entry((entry.client, entry.machine)).or_default().push((entry.sent, *id));
    }
    for ((client, machine), mut served) in by_client {
        served.sort_unstable();
        for (first, (from, _)) in served.iter().enumerate() {
            for (last, (until, id)) in served.iter().enumerate().skip(first) {
                let allowed = LIMIT as f64 * (1.0 + (*until - *from).as_secs_f64());
                if (last - first + 1) as f64 > allowed + 0.01 {
                    ledger.violated(format!(
                        "client {client} has {} requests within {:?} at m{machine}, up to request {id}; {allowed:.2} are allowed",
                        last - first + 1,
                        *until - *from,
                    ));
                    return;
                }
            }
        }
    }
}

/// Looks all the time: no request waits in a queue while a permit is free, and no probe is in progress without a request. Does
/// not end.
pub async fn keep_watching(ledger: Ledger, states: Vec<Arc<State>>) {
    let waits_for_nothing = |state: &Arc<State>| {
        let gate = state.gate.standing();
        gate.waiting.iter().sum::<u32>() > 0 && gate.in_flight < gate.limit && !state.reach.is_away()
    };
    let probes_for_nothing =
        |state: &Arc<State>| state.in_flight() == 0 && state.breakers.all().iter().any(|cell| cell.probes() > 0);
    let mut before = vec![(false, false); states.len()];
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for (number, (state, before)) in states.iter().zip(&mut before).enumerate() {
            let now = (waits_for_nothing(state), probes_for_nothing(state));
            let (has_waited, has_probed) = std::mem::replace(before, now);
            if now.0 && has_waited {
                ledger.violated(format!("requests wait in the queue of m{number}, although a permit is free"));
                return;
            }
            if now.1 && has_probed {
                ledger.violated(format!("m{number} has a probe of a circuit breaker in progress, but no request"));
                return;
            }
        }
    }
}

/// Nothing is in use once all clients have gone, and no table is larger than it may be.
pub fn rest(ledger: &Ledger, machines: &[Machine]) {
    for (number, machine) in machines.iter().enumerate() {
        for leak in machine.leaks() {
            ledger.violated(format!("m{number} is idle, and has {leak}"));
        }
    }
    sizes(ledger, machines);
}

/// No table is larger than it may be.
pub fn sizes(ledger: &Ledger, machines: &[Machine]) {
    for (number, machine) in machines.iter().enumerate() {
        for table in machine.outgrown() {
            ledger.violated(format!("m{number} has outgrown a bound: {table}"));
        }
    }
}

/// After the faults, requests succeed.
pub fn recovery(ledger: &Ledger, machine: usize, statuses: &[Option<u16>]) {
    if statuses.iter().any(|status| *status != Some(200)) {
        ledger.violated(format!("m{machine} has not recovered: its app is well, and requests get {statuses:?}"));
    }
}
