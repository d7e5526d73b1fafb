//! Simulates Machines that share rate limits through Redis and prints Markdown tables:
//! `cargo run -p outrigger-algorithms --release --example machines`.
#![allow(clippy::print_stdout)]

use outrigger_algorithms::fleet::{Fleet, Report, Spread, run};
use outrigger_algorithms::simulator::{MS, SECOND};
use outrigger_policy::limiter::Quota;

const MACHINES: [u32; 4] = [3, 10, 30, 100];
const SEED: u64 = 1;

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A key's largest excess over burst + rate × time, of what the bound allows.
fn excess(fleet: &Fleet, report: &Report, machines: u32) -> String {
    let burst = u64::from(fleet.quota.burst());
    format!("{:.0} of {}", report.most(fleet.quota) - burst as f64, fleet.bound(machines) - burst)
}

fn main() {
    println!(
        "Each key may 100 a second, a burst of 600, and is asked for 1,000 a second. 1 ms to Redis, a minute, seed 1.\n"
    );
    println!(
        "| Machines | requests arrive | more than exact, of the bound | limit used | commands a second, each Machine | in total |\n|---|---|---|---|---|---|"
    );
    for machines in MACHINES {
        for (name, spread) in
            [("evenly", Spread::Even), ("1/n at the n-th", Spread::Skewed), ("at one Machine", Spread::Sessions)]
        {
            let fleet = Fleet { spread, ..Fleet::new(machines) };
            let report = run(&fleet, SEED);
            let each = report.commands_each();
            println!(
                "| {machines} | {name} | {} | {} | {each:.1} | {:.0} |",
                excess(&fleet, &report, machines),
                percent(report.share(fleet.quota, 20 * SECOND, 60 * SECOND)),
                each * f64::from(machines),
            );
        }
    }

    println!("\nThe same, evenly, by the round trip to Redis.\n");
    println!(
        "| Machines | round trip | more than exact, of the bound | limit used | commands a second in total |\n|---|---|---|---|---|"
    );
    for machines in [10, 100] {
        for round_trip in [1, 5, 20, 80] {
            let fleet = Fleet { round_trip: round_trip * MS, ..Fleet::new(machines) };
            let report = run(&fleet, SEED);
            println!(
                "| {machines} | {round_trip} ms | {} | {} | {:.0} |",
                excess(&fleet, &report, machines),
                percent(report.share(fleet.quota, 20 * SECOND, 60 * SECOND)),
                report.commands_each() * f64::from(machines),
            );
        }
    }

    println!("\nRedis is unavailable from second 20 to 40.\n");
    println!(
        "| Machines | requests arrive | limit used before | in the outage | in the 10 s after it | more than exact |\n|---|---|---|---|---|---|"
    );
    for machines in MACHINES {
        for (name, spread) in
            [("evenly", Spread::Even), ("1/n at the n-th", Spread::Skewed), ("at one Machine", Spread::Sessions)]
        {
            let outage = Some((20 * SECOND, 40 * SECOND));
            let fleet = Fleet { spread, outage, ..Fleet::new(machines) };
            let report = run(&fleet, SEED);
            let share = |from: u64, to: u64| percent(report.share(fleet.quota, from * SECOND, to * SECOND));
            println!(
                "| {machines} | {name} | {} | {} | {} | {} |",
                share(11, 21),
                share(22, 41),
                share(42, 52),
                excess(&fleet, &report, machines)
            );
        }
    }

    println!(
        "\nThe number of Machines triples at second 20, and two thirds crash at second 40; the others notice within 6 s.\n"
    );
    println!(
        "| Machines | `machines` in the file | limit used, second 10–20 | 20–30 | 40–50 | more than exact |\n|---|---|---|---|---|---|"
    );
    for machines in [3, 10, 33] {
        for configured in [1, 3 * machines] {
            let changes = vec![(20 * SECOND, 3 * machines), (40 * SECOND, machines)];
            let fleet = Fleet { configured, changes, ..Fleet::new(machines) };
            let report = run(&fleet, SEED);
            let share = |from: u64, to: u64| percent(report.share(fleet.quota, from * SECOND, to * SECOND));
            println!(
                "| {machines} → {} → {machines} | {configured} | {} | {} | {} | {} |",
                3 * machines,
                share(11, 21),
                share(21, 31),
                share(41, 51),
                excess(&fleet, &report, 3 * machines)
            );
        }
    }

    println!("\nAll requests arrive at one Machine, and from second 30 on at another.\n");
    println!(
        "| Machines | limit used in the last second before | in the first 0.1 s | 0.3 s | second |\n|---|---|---|---|---|"
    );
    for machines in MACHINES {
        let fleet = Fleet { spread: Spread::MovesAt(30 * SECOND), ..Fleet::new(machines) };
        let report = run(&fleet, SEED);
        let share = |from: u64, to: u64| percent(report.share(fleet.quota, SECOND + from * MS, SECOND + to * MS));
        println!(
            "| {machines} | {} | {} | {} | {} |",
            share(29_000, 30_000),
            share(30_000, 30_100),
            share(30_000, 30_300),
            share(30_000, 31_000)
        );
    }

    println!(
        "\nA new client: a page of 30 requests at once, by the limit (all at one Machine), and a flood of 2,000 a second on 10/1m (evenly).\n"
    );
    println!(
        "| Machines | at once, 1000/1m | 200/1m | 100/1m | 30/1m | of the flood, in 10 s: exact 11 | bound |\n|---|---|---|---|---|---|---|"
    );
    for machines in MACHINES {
        let page = |per_minute: u32| {
            let quota = Quota::from_parts(60 * SECOND / u64::from(per_minute), per_minute);
            let (spread, end) = (Spread::Sessions, SECOND / 1_000);
            // With the first of the other requests.
            run(&Fleet { quota, page: 29, spread, rate: 1.0, end, ..Fleet::new(machines) }, SEED).admitted[0].len()
        };
        let fleet =
            Fleet { quota: Quota::from_parts(6 * SECOND, 10), rate: 2_000.0, end: 10 * SECOND, ..Fleet::new(machines) };
        println!(
            "| {machines} | {} | {} | {} | {} | {} | {} |",
            page(1_000),
            page(200),
            page(100),
            page(30),
            run(&fleet, SEED).admitted[0].len(),
            fleet.bound(machines) + 1,
        );
    }

    println!("\n1,000 clients with 100/1m each send 1,000 requests a second in total.\n");
    println!(
        "| Machines | requests arrive | admitted | commands a second, each Machine | in total | batches a second, each |\n|---|---|---|---|---|---|"
    );
    for machines in MACHINES {
        for (name, spread) in [("evenly", Spread::Even), ("by session", Spread::Sessions)] {
            let quota = Quota::from_parts(60 * SECOND / 100, 100);
            let fleet = Fleet { quota, keys: 1_000, spread, ..Fleet::new(machines) };
            let report = run(&fleet, SEED);
            let admitted: usize = report.admitted.iter().map(Vec::len).sum();
            let each = report.commands_each();
            println!(
                "| {machines} | {name} | {} | {each:.1} | {:.0} | {:.1} |",
                percent(admitted as f64 / report.asked as f64),
                each * f64::from(machines),
                report.batches as f64 / report.machine_seconds
            );
        }
    }
}
