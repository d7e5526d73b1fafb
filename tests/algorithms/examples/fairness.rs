//! Simulates many clients under overload and prints Markdown tables:
//! `cargo run -p outrigger-algorithms --release --example fairness`.
#![allow(clippy::print_stdout)]

use outrigger_algorithms::crowd::{Asked, Crowd, Fate, Group, Population, page_after_reports, run, run_with};
use outrigger_algorithms::shedders::{CRITICAL, KINDS, SEARCH, SHEDDERS, searches, utilisation, well_behaved};
use outrigger_algorithms::simulator::SECOND;

const END: u64 = 30 * SECOND;

fn main() {
    println!("Eight servers, 20 ms a request: 400 a second. Default settings, 30 s, seed 1.\n");
    println!(
        "| scenario | requests of | in order of arrival: served · wait p50, p99, longest (ms) · median refusal (ms) | **fair queue** |"
    );
    println!("|---|---|---|---|");
    let all = |_: &Asked| true;
    for clients in [10, 1_000, 100_000] {
        for load in [1.0, 2.0] {
            let crowd = Crowd::new(vec![Group::new(Population::Equal(clients), load, END)]);
            compare(&format!("{clients} equal clients, load {load}×"), &crowd, &[("all", &all)]);
        }
    }
    for clients in [10, 1_000, 100_000] {
        let crowd = Crowd::new(vec![Group::new(Population::Zipf(clients), 2.0, END)]);
        let rank = |asked: &Asked| asked.client & ((1 << 40) - 1);
        let (first, rest) =
            (move |asked: &Asked| rank(asked) == 0, move |asked: &Asked| rank(asked) >= 10.min(clients / 2));
        let what = format!("{clients} clients, the n-th asks 1/n as often as the first, load 2×");
        compare(
            &what,
            &crowd,
            &[("the first", &first), (if clients == 10 { "the last five" } else { "all but ten" }, &rest)],
        );
    }
    let group = |number: usize| move |asked: &Asked| asked.group == number;
    let modest = Group::new(Population::Equal(100), 0.5, END);
    for load in [2.0, 10.0] {
        let crowd = Crowd::new(vec![modest.clone(), Group::new(Population::Equal(1), load, END)]);
        let what = format!("100 modest clients, load 0.5×, and one greedy, {load}×");
        compare(&what, &crowd, &[("the modest", &group(0)), ("the greedy one", &group(1))]);
    }
    let mut slow = Group::new(Population::Equal(1), 5.0, END);
    slow.service = SECOND;
    let crowd = Crowd::new(vec![Group::new(Population::Equal(100), 0.25, END), slow]);
    compare(
        "100 modest clients, load 0.25×, and one whose requests take 1 s, 5×",
        &crowd,
        &[("the modest", &group(0)), ("the slow one", &group(1))],
    );
    for load in [0.4, 0.6, 2.0, 10.0] {
        let crowd = Crowd::new(vec![modest.clone(), Group::new(Population::Sybil, load, END)]);
        let what = format!("100 modest clients, load 0.5×, and a new client for each request, {load}×");
        compare(&what, &crowd, &[("the modest", &group(0)), ("the new ones", &group(1))]);
    }
    let crowd = Crowd::new(vec![
        Group::new(Population::Equal(79), 0.55, END),
        Group::new(Population::Equal(1), 0.55 * 80.0 / 79.0, END),
    ]);
    compare(
        "79 clients, and one that asks 80 times as often, load 1.1×",
        &crowd,
        &[("the 79", &group(0)), ("the one", &group(1))],
    );

    println!("\nA page with 100 parts, 10 ms each, after twelve reports:\n");
    println!("| reports of | refused of 100 | longest wait (ms) |\n|---|---|---|");
    for report in [SECOND, 3 * SECOND, 10 * SECOND] {
        let fate = page_after_reports(report);
        println!("| {} s | {} | {:.0} |", report / SECOND, fate.asked - fate.served, fate.waited_ms[2]);
    }
    compare_shedders();
}

/// Compares three ways to decide whose requests are rejected: the experiment's well-behaved clients, and others that send
/// searches.
fn compare_shedders() {
    println!(
        "\nThe experiment's 200 well-behaved addresses, and others who send searches: the second minute, seed 1.\n"
    );
    println!(
        "| scenario | shedding by | well-behaved served | critical | their searches | wait p99 (ms) | the others served | utilisation |\n|---|---|---|---|---|---|---|---|"
    );
    let end = 120 * SECOND;
    for servers in [8, 24] {
        let one_app = 8.0 / f64::from(servers);
        let scenarios = [
            ("a crowd of 200 addresses, 4× one app", searches(Population::Equal(200), 4.0 * one_app, end)),
            ("a crowd of 2,000 addresses, 4× one app", searches(Population::Equal(2_000), 4.0 * one_app, end)),
            ("one heavy client, 4× one app", searches(Population::Equal(1), 4.0 * one_app, end)),
            ("10 heavy clients, 4× one app", searches(Population::Equal(10), 4.0 * one_app, end)),
            ("a new client for each request, 4× one app", searches(Population::Sybil, 4.0 * one_app, end)),
        ];
        for (name, others) in scenarios {
            let mut groups = well_behaved(servers, end);
            groups.push(others);
            let crowd = Crowd { servers, ..Crowd::new(groups) };
            for (by, gate) in SHEDDERS {
                let asked = run_with(&crowd, &mut *gate(&crowd), 1);
                // DAGOR takes half a minute to reach its level.
                let from = 60 * SECOND;
                let of = |is_part: &dyn Fn(&Asked) -> bool| {
                    Fate::of(asked.iter().filter(|asked| asked.at >= from && is_part(asked)))
                };
                let behaved = of(&|asked| asked.group < KINDS);
                let others = of(&|asked| asked.group >= KINDS);
                let of_group = |group: usize| of(&move |asked| asked.group == group).share();
                println!(
                    "| {servers} servers, {name} | {by} | {:.2} % | {:.2} % | {:.1} % | {:.0} | {:.1} % | {:.0} % |",
                    100.0 * behaved.share(),
                    100.0 * of_group(CRITICAL),
                    100.0 * of_group(SEARCH),
                    behaved.waited_ms[1],
                    100.0 * others.share(),
                    100.0 * utilisation(&asked, servers, from, end),
                );
            }
        }
    }
}

/// A name for a subset of the requests, and its predicate.
type Part<'a> = (&'a str, &'a dyn Fn(&Asked) -> bool);

fn compare(what: &str, crowd: &Crowd, parts: &[Part<'_>]) {
    let fair = run(crowd, 1);
    let blind = run(&Crowd { is_blind: true, ..crowd.clone() }, 1);
    for (who, is_part) in parts {
        let [blind, fair] = [&blind, &fair].map(|asked| {
            // Leaves out the first 5 s, in which the concurrency limit adapts.
            let fate = Fate::of(asked.iter().filter(|asked| asked.at > 5 * SECOND && is_part(asked)));
            let [p50, p99, longest] = fate.waited_ms;
            format!("{:.1} % · {p50:.0}, {p99:.0}, {longest:.0} · {:.0}", 100.0 * fate.share(), fate.refused_ms)
        });
        println!("| {what} | {who} | {blind} | {fair} |");
    }
}
