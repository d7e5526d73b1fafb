//! A thousand hangs: one app of three is stopped by a signal for a moment, again and again, under load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;
use xtask::{Result, say};

use crate::faults::between;
use crate::judge::Kind;
use crate::machines::{Machines, NUMBER};
use crate::traffic::{self, Mix, Results, Shared};
use crate::{aside, slope, soak};

/// Attempts at all apps for each request, at most.
pub const MOST_ATTEMPTS: f64 = 1.05;
/// The clients' timeout.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds that a hang lasts, and that are between two.
pub const LASTS: (f64, f64) = (0.3, 2.0);
pub const BETWEEN: (f64, f64) = (0.2, 2.0);

/// Results of a run.
#[derive(Debug)]
pub struct Hangs {
    pub number: u32,
    pub seed: u64,
    pub length: Duration,
    pub results: Results,
    /// Requests that arrived at the apps, those included whose clients had left.
    pub arrived: usize,
    /// Orders that were executed twice.
    pub twice: usize,
    pub counters: BTreeMap<String, f64>,
}

impl Hangs {
    /// Failed requests that may be repeated, or all others.
    pub fn failed(&self, is_repeatable: bool) -> usize {
        self.results.failed.iter().filter(|failed| failed.kind.is_repeatable() == is_repeatable).count()
    }

    pub fn requests(&self, is_repeatable: bool) -> usize {
        let of_them = self.results.requests.iter().filter(|(kind, _)| kind.is_repeatable() == is_repeatable);
        of_them.map(|(_, number)| number).sum()
    }

    /// By the apps' count or by that of the proxies, whichever is higher: an app may miss one that was cancelled while it hung.
    pub fn attempts(&self) -> usize {
        let sent = self.counters.get("outrigger_app_attempts_total").copied().unwrap_or_default();
        self.arrived.max(sent as usize)
    }

    pub fn attempts_per_request(&self) -> f64 {
        self.attempts() as f64 / self.results.total().max(1) as f64
    }

    /// The latencies of good responses, sorted.
    pub fn latencies(&self, is_repeatable: bool) -> Vec<f64> {
        let of_them = |kind: &&Kind| kind.is_repeatable() == is_repeatable;
        let all = Kind::ALL.iter().filter(of_them).filter_map(|kind| self.results.latencies.get(kind));
        let mut all: Vec<f64> = all.flatten().map(|point| point.1).collect();
        all.sort_unstable_by(f64::total_cmp);
        all
    }

    pub fn passes(&self) -> bool {
        self.results.failed.is_empty() && self.twice == 0 && self.attempts_per_request() <= MOST_ATTEMPTS
    }

    /// p50, p99 and maximum in milliseconds.
    pub fn percentiles(&self, is_repeatable: bool) -> [f64; 3] {
        let all = self.latencies(is_repeatable);
        [50.0, 99.0, 100.0].map(|percent| slope::percentile(&all, percent))
    }
}

/// Runs the load, and as many hangs.
pub async fn run(machines: &Machines, number: u32, seed: u64, rest: Duration) -> Result<Hangs> {
    let shared = Arc::new(Shared::new(machines.public(), TIMEOUT, seed));
    let before = machines_arrived(machines).await?;
    let clients = traffic::start(&shared, Mix::REQUESTS);
    // Until routes have the latencies from which attempt timeouts follow.
    sleep(rest).await;
    let mut random = Rng::with_seed(seed ^ 0x4a11);
    for n in 1..=number {
        sleep(between(&mut random, BETWEEN.0, BETWEEN.1)).await;
        let (machine, length) = (random.usize(0..NUMBER), between(&mut random, LASTS.0, LASTS.1));
        machines.hang(machine, true);
        sleep(length).await;
        machines.hang(machine, false);
        if n.is_multiple_of(50) {
            say(format_args!("  {n} hangs"));
        }
    }
    shared.stop();
    let results = traffic::finish(clients).await;
    let length = shared.begin.elapsed();
    // Requests that an app read after their clients had their response from another one.
    sleep(Duration::from_secs(1)).await;
    let arrived = machines_arrived(machines).await? - before;
    let all = machines.clone();
    let counters = aside(move || all.counters()).await?;
    let all = machines.clone();
    let twice = soak::twice(&aside(move || all.executed()).await?);
    Ok(Hangs { number, seed, length, results, arrived, twice, counters })
}

async fn machines_arrived(machines: &Machines) -> Result<usize> {
    let machines = machines.clone();
    aside(move || machines.arrived()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Failure;
    use crate::traffic::Failed;

    fn hangs(failed: &[Kind], sent: usize) -> Hangs {
        let (from, to) = (Duration::ZERO, TIMEOUT);
        let late = |kind: &Kind| Failed { kind: *kind, from, to, failure: Failure::Late, request: String::new() };
        let failed = failed.iter().map(late).collect();
        let requests = [(Kind::Get, 800), (Kind::Post, 200)].into();
        let latencies = [(Kind::Get, vec![(0.0, 5.0), (1.0, 3.0)])].into();
        let results = Results { requests, latencies, failed, ..Results::default() };
        let counters = [("outrigger_app_attempts_total".to_owned(), sent as f64)].into();
        Hangs { number: 1, seed: 1, length: TIMEOUT, results, arrived: 1000, twice: 0, counters }
    }

    #[test]
    fn one_failed_request_or_too_many_attempts_fail_the_run() {
        assert!(hangs(&[], 1050).passes());
        assert!(!hangs(&[], 1051).passes());
        assert!(!Hangs { arrived: 1051, ..hangs(&[], 1000) }.passes());
        assert!(!Hangs { twice: 1, ..hangs(&[], 1000) }.passes());
        for kind in [Kind::Get, Kind::Post] {
            assert!(!hangs(&[kind], 1000).passes(), "{kind:?}");
        }
        let both = hangs(&[Kind::Get, Kind::Put, Kind::Post], 0);
        assert_eq!((both.failed(true), both.failed(false)), (2, 1));
        assert_eq!((both.requests(true), both.requests(false)), (800, 200));
        assert_eq!(both.percentiles(true), [3.0, 5.0, 5.0]);
    }
}
