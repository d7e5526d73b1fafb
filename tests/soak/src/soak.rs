//! A soak, from its first request to its verdict.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use xtask::error::While;
use xtask::{Result, say};

use crate::faults::{Fault, Planned, RESETS_LAST, RESTARTED, plan};
use crate::judge::{Breaks, Kind, is_expected};
use crate::machines::{Machines, NAMES, NUMBER, sum};
use crate::sample::{Busy, Sample, Sampler};
use crate::slope::{self, Allowance, Point, Trend};
use crate::traffic::{self, Failed, Mix, Results, Shared};
use crate::{PATIENCE, aside};

/// The clients' timeout: longer than `app.timeout`, so that each response of the proxy arrives.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The share of the run that does not count for slopes.
pub const WARM_UP: f64 = 0.2;
/// In a shorter run, bounds are not full yet and a fault is a large part of it: its slopes are shown only.
const SHORTEST_JUDGED: Duration = Duration::from_secs(600);

/// A fault with the time that it took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Happened {
    pub fault: Fault,
    pub from: Duration,
    pub to: Duration,
}

/// A measurement over time that must not grow.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub name: String,
    pub unit: &'static str,
    /// Means or percentiles of blocks.
    pub points: Vec<Point>,
    pub allowance: Allowance,
    pub trend: Option<Trend>,
}

impl Series {
    pub fn grows(&self) -> bool {
        self.trend.is_some_and(|trend| trend.grows(self.allowance))
    }
}

/// Results of a run.
#[derive(Debug)]
pub struct Soak {
    pub seed: u64,
    pub length: Duration,
    pub results: Results,
    pub happened: Vec<Happened>,
    pub samples: Vec<Sample>,
    pub busy: Vec<Busy>,
    pub counters: BTreeMap<String, f64>,
    pub series: Vec<Series>,
    /// Anything else that is wrong, such as a permit that is still held at the end.
    pub wrong: Vec<String>,
}

impl Soak {
    pub fn breaks(&self) -> Breaks {
        let breaking = self.happened.iter().filter(|happened| happened.fault.breaks());
        Breaks(breaking.map(|happened| (happened.from, happened.to)).collect())
    }

    /// Failures, and whether each is expected.
    pub fn failed(&self) -> Vec<(&Failed, bool)> {
        let breaks = self.breaks();
        let expected = |one: &Failed| is_expected(one.kind, &one.failure, breaks.within(one.from, one.to));
        self.results.failed.iter().map(|failed| (failed, expected(failed))).collect()
    }

    pub fn unexpected(&self) -> usize {
        self.failed().iter().filter(|(_, is_expected)| !is_expected).count()
    }

    /// Whether it is long enough for its slopes to mean anything.
    pub fn is_judged(&self) -> bool {
        self.length >= SHORTEST_JUDGED
    }

    /// Measurements that grow.
    pub fn growing(&self) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| self.is_judged() && series.grows())
    }

    pub fn passes(&self) -> bool {
        self.unexpected() == 0 && self.wrong.is_empty() && self.growing().next().is_none()
    }

    /// The fault at this time, or just before.
    pub fn during(&self, from: Duration, to: Duration) -> &'static str {
        let settles = Duration::from_secs(2);
        let under_way = |happened: &&Happened| happened.from <= to && from <= happened.to + settles;
        self.happened.iter().rev().find(under_way).map_or("calm", |happened| happened.fault.name())
    }
}

/// Runs traffic and faults for this time.
pub async fn run(machines: &Machines, length: Duration, seed: u64) -> Result<Soak> {
    say(format_args!("traffic and faults for {} s, seed {seed}", length.as_secs()));
    let shared = Arc::new(Shared::new(machines.public(), TIMEOUT, seed));
    let sampler = Sampler::start(machines, shared.begin);
    let scraper = scrape(machines);
    let clients = traffic::start(&shared, Mix::ALL);
    let mut happened = Vec::new();
    for planned in plan(seed, length, NUMBER) {
        sleep_until(shared.begin + planned.at).await;
        let from = shared.begin.elapsed();
        befall(machines, &shared, planned).await.while_(planned.fault.name())?;
        happened.push(Happened { fault: planned.fault, from, to: shared.begin.elapsed() });
        if happened.len().is_multiple_of(50) {
            say(format_args!("  {} s: {} faults", from.as_secs(), happened.len()));
        }
    }
    sleep_until(shared.begin + length).await;
    let (samples, busy) = sampler.stop().await;
    shared.stop();
    let results = traffic::finish(clients).await;
    let scrapes = scraper.stop().await;
    let mut wrong = still_held(machines).await?;
    let all = machines.clone();
    let counters = aside(move || all.counters()).await?;
    wrong.extend(lost(&counters));
    wrong.extend(scrapes);
    let all = machines.clone();
    wrong.extend(aside(move || Ok(all.end())).await?);
    let all = machines.clone();
    wrong.extend(wrong_orders(&results.done, &aside(move || all.executed()).await?));
    let series = series(&samples, &results, length.as_secs_f64());
    Ok(Soak { seed, length, results, happened, samples, busy, counters, series, wrong })
}

async fn befall(machines: &Machines, shared: &Arc<Shared>, planned: Planned) -> Result<()> {
    let Planned { machine, fault, .. } = planned;
    let blocking = |work: fn(&Machines, usize) -> Result<()>| {
        let machines = machines.clone();
        aside(move || work(&machines, machine))
    };
    let control = |slow: Duration, resets: u32| {
        let machines = machines.clone();
        aside(move || machines.control(machine, slow.as_millis(), resets))
    };
    match fault {
        Fault::Kill(length) => {
            blocking(|all, n| {
                all.kill_app(n);
                Ok(())
            })
            .await?;
            sleep(length).await;
            blocking(Machines::start_app).await
        }
        Fault::Hang(length) => {
            machines.hang(machine, true);
            sleep(length).await;
            machines.hang(machine, false);
            Ok(())
        }
        Fault::Slow(slow, length) => {
            control(slow, 0).await?;
            sleep(length).await;
            control(Duration::ZERO, 0).await
        }
        Fault::Resets(number) => {
            control(Duration::ZERO, number).await?;
            sleep(RESETS_LAST).await;
            control(Duration::ZERO, 0).await
        }
        Fault::Reload => blocking(Machines::reload).await,
        Fault::Pause(length) => {
            blocking(|all, n| all.order(n, "/pause", "{\"for\": \"30s\"}")).await?;
            sleep(length).await;
            blocking(|all, n| all.order(n, "/resume", "{}")).await
        }
        Fault::Restart => {
            let (machines, shared) = (machines.clone(), Arc::clone(shared));
            aside(move || machines.restart_proxy(machine, |is_routed| shared.route(machine, is_routed))).await
        }
    }
}

/// Scrapes all metrics every five seconds.
struct Scraper {
    task: JoinHandle<Vec<String>>,
    over: tokio::sync::watch::Sender<bool>,
}

fn scrape(machines: &Machines) -> Scraper {
    let (over, mut is_over) = tokio::sync::watch::channel(false);
    let machines = machines.clone();
    let task = tokio::spawn(async move {
        let mut wrong = Vec::new();
        let mut ticks = interval(Duration::from_secs(5));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = is_over.changed() => return wrong,
            }
            for (n, name) in NAMES.iter().enumerate() {
                let all = machines.clone();
                let done = aside(move || all.scrape(n)).await;
                // The one that is restarted may be away.
                if let Err(e) = done
                    && n != RESTARTED
                {
                    wrong.push(format!("a scrape of {name}: {e}"));
                }
            }
        }
    });
    Scraper { task, over }
}

impl Scraper {
    async fn stop(self) -> Vec<String> {
        let _ = self.over.send(true);
        self.task.await.unwrap_or_default()
    }
}

/// Gauges that are 0 once all clients have left.
const HELD: [&str; 5] = [
    "outrigger_admission_in_flight",
    "outrigger_admission_queue",
    "outrigger_body_memory_bytes",
    "outrigger_open_connections",
    "outrigger_paused",
];

/// Waits until nothing is held for a client, and returns what still is.
async fn still_held(machines: &Machines) -> Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = machines.clone();
        let held = aside(move || {
            let mut held = Vec::new();
            for (n, machine) in NAMES.iter().enumerate() {
                let text = all.metrics(n)?;
                let of = HELD.iter().map(|name| (name, sum(&text, name, ""))).filter(|(_, value)| *value != 0.0);
                held.extend(of.map(|(name, value)| format!("{name} of {machine} is {value} at the end")));
            }
            Ok(held)
        })
        .await?;
        if held.is_empty() || Instant::now() >= deadline {
            return Ok(held);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Counters that are 0 as long as nothing was lost.
const LOST: [&str; 5] = [
    "outrigger_audit_lost_total",
    "outrigger_audit_alarms_total",
    "outrigger_log_lines_dropped_total",
    "outrigger_traffic_lost_total",
    "outrigger_own_resources_exhausted_total",
];

fn lost(counters: &BTreeMap<String, f64>) -> Vec<String> {
    let count = |name: &&str| counters.get(*name).copied().unwrap_or_default();
    LOST.iter().filter(|name| count(name) > 0.0).map(|name| format!("{name} is {}", count(name))).collect()
}

/// How many of these ids, which are in order, occur twice.
pub fn twice(executed: &[u64]) -> usize {
    executed.windows(2).filter(|pair| pair[0] == pair[1]).count()
}

/// Orders that were executed twice, or got a response without being executed. `executed` is in order.
fn wrong_orders(done: &[u64], executed: &[u64]) -> Vec<String> {
    let twice = twice(executed);
    let never = done.iter().filter(|id| executed.binary_search(id).is_err()).count();
    let mut wrong = Vec::new();
    if twice > 0 {
        wrong.push(format!("{twice} orders were executed twice"));
    }
    if never > 0 {
        wrong.push(format!("{never} orders got a response and were not executed"));
    }
    wrong
}

const MEMORY: Allowance = Allowance { share: 0.02, floor: 1.0 };
const DESCRIPTORS: Allowance = Allowance { share: 0.02, floor: 8.0 };
const THREADS: Allowance = Allowance { share: 0.02, floor: 1.0 };
const MEDIAN: Allowance = Allowance { share: 0.02, floor: 0.5 };
/// Dominated by the few requests that wait for a fault.
const P99: Allowance = Allowance { share: 0.2, floor: 25.0 };

/// A measurement of a proxy: its name, unit and allowance, and its value in a sample.
type Measure = (&'static str, &'static str, Allowance, fn(&Sample) -> f64);

/// All measurements that must not grow. The proxy that is restarted begins anew each time, and is left out.
fn series(samples: &[Sample], results: &Results, length: f64) -> Vec<Series> {
    let from = WARM_UP * length;
    let measures: [Measure; 3] = [
        ("memory", "MiB", MEMORY, |sample| sample.memory),
        ("descriptors", "", DESCRIPTORS, |sample| sample.descriptors),
        ("threads", "", THREADS, |sample| sample.threads),
    ];
    let mut all = Vec::new();
    for (what, unit, allowance, of) in measures {
        for (n, name) in NAMES.iter().enumerate().filter(|(n, _)| *n != RESTARTED) {
            let points = samples.iter().filter(|sample| sample.machine == n).map(|sample| (sample.at, of(sample)));
            let points = slope::means(points, from, length);
            all.push(Series { name: format!("{what} of proxy {name}"), unit, points, allowance, trend: None });
        }
    }
    for kind in Kind::ALL {
        let Some(latencies) = results.latencies.get(&kind) else { continue };
        for (percent, allowance) in [(50.0, MEDIAN), (99.0, P99)] {
            let points = slope::percentiles(latencies.iter().copied(), from, length, percent);
            let name = format!("p{percent:.0} of {}", kind.name());
            all.push(Series { name, unit: "ms", points, allowance, trend: None });
        }
    }
    let number = all.len();
    for series in &mut all {
        series.trend = Trend::of(&series.points, number);
    }
    all
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::judge::Failure;

    /// A soak of ten minutes, in which proxy `a` grows by this much.
    pub fn soak(growth: f64, failed: Vec<Failed>) -> Soak {
        let mut random = fastrand::Rng::with_seed(1);
        let mut samples = Vec::new();
        for second in 0..600 {
            for machine in 0..NUMBER {
                let memory = 40.0 + random.f64() + if machine == 0 { growth * f64::from(second) / 600.0 } else { 0.0 };
                let at = f64::from(second);
                samples.push(Sample { at, machine, pid: 1, memory, descriptors: 60.0, threads: 9.0 });
            }
        }
        let get: Vec<Point> = (0..6000).map(|n| (f64::from(n) / 10.0, 5.0 + random.f64())).collect();
        let latencies = [(Kind::Get, get)].into();
        let requests = [(Kind::Get, 6000), (Kind::Post, 10)].into();
        let results = Results { requests, latencies, failed, ..Results::default() };
        let seconds = Duration::from_secs;
        let happened = vec![Happened { fault: Fault::Kill(seconds(2)), from: seconds(100), to: seconds(103) }];
        let (length, busy) = (seconds(600), vec![(1.0, 0.4), (2.0, 0.5)]);
        let series = series(&samples, &results, 600.0);
        let (counters, wrong) = Default::default();
        Soak { seed: 1, length, results, happened, samples, busy, counters, series, wrong }
    }

    pub fn failure(kind: Kind, second: u64, failure: Failure) -> Failed {
        let from = Duration::from_secs(second);
        Failed { kind, from, to: from + Duration::from_millis(5), failure, request: "/orders/1".to_owned() }
    }

    #[test]
    fn a_leak_of_one_proxy_fails_the_soak() {
        let calm = soak(0.0, Vec::new());
        assert!(calm.passes(), "{:?}", calm.series);
        assert_eq!(calm.series.len(), 2 * 3 + 2);
        let leak = soak(4.0, Vec::new());
        let growing: Vec<&str> = leak.growing().map(|one| one.name.as_str()).collect();
        assert_eq!(growing, ["memory of proxy a"]);
        assert!(!leak.passes());
        let short = Soak { length: Duration::from_secs(60), ..leak };
        assert!(short.passes());
    }

    #[test]
    fn one_unexpected_failure_fails_the_soak_and_an_expected_one_does_not() {
        let closed = || Failure::Rejected(502, "app-closed".to_owned());
        assert!(soak(0.0, vec![failure(Kind::Post, 101, closed())]).passes());
        for (kind, second) in [(Kind::Post, 50), (Kind::Get, 101)] {
            let failed = soak(0.0, vec![failure(kind, second, closed())]);
            assert_eq!((failed.unexpected(), failed.passes()), (1, false));
        }
        assert_eq!(soak(0.0, Vec::new()).during(Duration::from_secs(104), Duration::from_secs(105)), Fault::NAMES[0]);
    }

    #[test]
    fn orders_are_executed_once() {
        assert_eq!(wrong_orders(&[2, 1], &[1, 2, 3]), Vec::<String>::new());
        assert_eq!(wrong_orders(&[], &[1, 2, 2]), ["1 orders were executed twice"]);
        assert_eq!(wrong_orders(&[1, 4], &[1, 2]), ["1 orders got a response and were not executed"]);
    }

    #[test]
    fn lost_entries_are_found() {
        let counters = [("outrigger_audit_lost_total".to_owned(), 2.0), ("outrigger_requests_total".to_owned(), 9.0)];
        assert_eq!(lost(&counters.into()), ["outrigger_audit_lost_total is 2"]);
    }
}
