//! Compares algorithms for adaptive concurrency limits under the same load and prints Markdown tables:
//! `cargo run -p outrigger-algorithms --release --example overload`.
#![allow(clippy::print_stdout)]

mod rivals;

use outrigger_algorithms::simulator::{Kind, Law, MS, SECOND, Scenario, Shape, run};
use outrigger_policy::concurrency::{Concurrency, Settings};
use rivals::{Aimd, Envoy, Fixed, Gradient2, Pid, Vegas};

/// A scenario, the measured time span, and the number of servers in it.
struct Case {
    name: String,
    scenario: Scenario,
    from: u64,
    to: u64,
    servers: u32,
}

fn laws(case: &Case) -> Vec<(&'static str, Box<dyn Law>)> {
    let first = &case.scenario.stages[0];
    let mean: f64 = case.scenario.kinds.iter().map(|kind| kind.share * kind.service as f64).sum();
    vec![
        ("by hand, the capacity at first", Box::new(Fixed(first.servers))),
        ("AIMD, slow = 2 × service time", Box::new(Aimd { limit: 20.0, slow: 2.0 * mean })),
        ("Vegas", Box::new(Vegas { limit: 20.0, least: f64::MAX, samples: 0.0 })),
        ("Gradient2", Box::new(Gradient2 { limit: 20.0, long: 0.0 })),
        (
            "PI, 1.2 × service time",
            Box::new(Pid { limit: 20.0, wanted: 1.2 * mean, sum: 0.0, samples: 0.0, before: 0.0 }),
        ),
        (
            "gradient with probing",
            Box::new(Envoy { limit: 20.0, least: 0.0, measuring: true, until: 0, samples: vec![] }),
        ),
        ("**Outrigger**", Box::new(Concurrency::new(Settings { min: 1, max: 2000, initial: 20 }))),
    ]
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let steady = |name: &str, servers, service, shape, load, end: u64| Case {
        name: name.to_owned(),
        scenario: Scenario::steady(servers, service, shape, load, end),
        from: end / 2,
        to: end,
        servers,
    };
    for (servers, service, end) in [
        (2, 20 * MS, 200 * SECOND),
        (8, 20 * MS, 200 * SECOND),
        (50, 5 * SECOND, 4000 * SECOND),
        (500, 20 * MS, 20 * SECOND),
    ] {
        let name = format!("even service, {servers} servers, {} ms, load 5×", service / MS);
        cases.push(steady(&name, servers, service, Shape::Fixed, 5.0, end));
    }
    for (name, shape) in [
        ("exponential", Shape::Exponential),
        ("lognormal, sigma 1", Shape::Lognormal(1.0)),
        ("one in ten takes ten times as long", Shape::Bimodal),
    ] {
        for servers in [2, 8, 50] {
            let name = format!("{name}, {servers} servers, 20 ms, load 5×");
            cases.push(steady(&name, servers, 20 * MS, shape, 5.0, 400 * SECOND));
        }
    }
    for load in [0.7, 2.0, 10.0] {
        let name = format!("even service, 50 servers, 20 ms, load {load}×");
        cases.push(steady(&name, 50, 20 * MS, Shape::Fixed, load, 100 * SECOND));
    }
    let mut mix =
        steady("80 % of 5 ms and 20 % of 500 ms, 50 servers, load 5×", 50, 5 * MS, Shape::Fixed, 5.0, 200 * SECOND);
    mix.scenario.kinds =
        [(0.8, 5), (0.2, 500)].map(|(share, ms)| Kind { share, service: ms * MS, shape: Shape::Fixed }).to_vec();
    cases.push(mix);

    let (change, end) = (60 * SECOND, 120 * SECOND);
    for servers in [8, 50] {
        let base = || Scenario::steady(servers, 20 * MS, Shape::Fixed, 5.0, end);
        let mut step = |name: &str, scenario: Scenario, left: u32| {
            for (span, from, to) in [("first second", change, change + SECOND), ("after 5 s", change + 5 * SECOND, end)]
            {
                let name = format!("{name}, {servers} servers, 20 ms, load 5×: {span}");
                cases.push(Case { name, scenario: scenario.clone(), from, to, servers: left });
            }
        };
        step("service ×1.4", base().then(change, |stage| stage.slowness = 1.4), servers);
        step("service ×2", base().then(change, |stage| stage.slowness = 2.0), servers);
        step("service ÷2", base().then(change, |stage| stage.slowness = 0.5), servers);
        step("half of the servers", base().then(change, |stage| stage.servers /= 2), servers / 2);
        let quiet = base().then(change / 3, |stage| stage.load = 0.05).then(change, |stage| stage.load = 5.0);
        step("a quiet night, then a burst", quiet, servers);
    }
    cases
}

fn main() {
    for case in cases() {
        println!("\n### {}\n", case.name);
        println!(
            "| law | throughput, % of capacity | mean latency | p99 | limit ÷ servers, median [5–95 %] |\n|---|---|---|---|---|"
        );
        for (name, mut law) in laws(&case) {
            let figures = run(&mut *law, &case.scenario, 1).figures(case.from, case.to, case.servers);
            let [low, median, high] = figures.limit.map(|limit| f64::from(limit) / f64::from(case.servers));
            let throughput = 100.0 * figures.throughput;
            let (mean, p99) = (figures.mean, figures.p99);
            println!("| {name} | {throughput:.1} | {mean:.2} | {p99:.2} | {median:.2} [{low:.2}–{high:.2}] |");
        }
    }
}
