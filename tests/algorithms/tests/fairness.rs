//! The fair queue in the simulator: many clients under overload, with several seeds each. The example `fairness` prints the
//! figures of docs/overload.md for the same scenarios.

use outrigger_algorithms::crowd::{Asked, Crowd, Fate, Group, Population, page_after_reports, run, run_with};
use outrigger_algorithms::shedders::{CRITICAL, KINDS, SEARCH, SHEDDERS, searches, utilisation, well_behaved};
use outrigger_algorithms::simulator::SECOND;

const SEEDS: std::ops::Range<u64> = 1..4;
const END: u64 = 12 * SECOND;

/// The outcomes of each group's requests, after the 5 s in which the concurrency limit adapts.
fn fates<const N: usize>(groups: &[Group; N], seed: u64, is_blind: bool) -> [Fate; N] {
    let asked = run(&Crowd { is_blind, ..Crowd::new(groups.to_vec()) }, seed);
    std::array::from_fn(|group| Fate::of(asked.iter().filter(|asked| asked.at > 5 * SECOND && asked.group == group)))
}

fn modest(load: f64) -> Group {
    Group::new(Population::Equal(100), load, END)
}

#[test]
fn a_greedy_client_delays_no_modest_one() {
    for seed in SEEDS {
        for load in [2.0, 10.0] {
            let greedy = Group::new(Population::Equal(1), load, END);
            let [modest, greedy] = fates(&[modest(0.5), greedy], seed, false);
            assert_eq!(modest.served, modest.asked, "seed {seed}, load {load}");
            assert!(modest.waited_ms[1] < 60.0, "seed {seed}, load {load}: {:?} ms", modest.waited_ms);
            assert!(greedy.served > 0, "the rest of the capacity is the greedy client's");
        }
    }
}

#[test]
fn clients_that_ask_alike_are_all_served_while_the_app_has_time_for_them() {
    for clients in [10, 1_000, 100_000] {
        let [all] = fates(&[Group::new(Population::Equal(clients), 0.9, END)], 1, false);
        assert_eq!(all.served, all.asked, "{clients} clients");
    }
}

#[test]
fn few_large_clients_are_rejected_before_many_small_ones() {
    let rank = |asked: &Asked| asked.client & ((1 << 40) - 1);
    for clients in [1_000, 100_000] {
        let crowd = Crowd::new(vec![Group::new(Population::Zipf(clients), 2.0, END)]);
        let [fair, blind] = [false, true].map(|is_blind| {
            let asked = run(&Crowd { is_blind, ..crowd.clone() }, 1);
            Fate::of(asked.iter().filter(|asked| asked.at > 5 * SECOND && rank(asked) >= 10)).share()
        });
        assert!(fair > blind + 0.1, "{clients} clients: {fair} with the fair queue, {blind} in order of arrival");
    }
}

/// A new key on each request: no algorithm can tell these from so many clients with one request each.
#[test]
fn clients_with_a_new_key_on_each_request_take_little_more_than_in_order_of_arrival() {
    for seed in SEEDS {
        let new = |load| Group::new(Population::Sybil, load, END);
        let [modest_ones, new_ones] = fates(&[modest(0.5), new(0.4)], seed, false);
        assert_eq!((modest_ones.served, new_ones.served), (modest_ones.asked, new_ones.asked), "seed {seed}");
        let ([fair, _], [blind, _]) =
            (fates(&[modest(0.5), new(2.0)], seed, false), fates(&[modest(0.5), new(2.0)], seed, true));
        assert!(fair.share() > 0.6 * blind.share(), "seed {seed}: {} against {}", fair.share(), blind.share());
    }
}

#[test]
fn a_page_with_many_parts_after_slow_reports_is_served_completely() {
    for report in [SECOND, 3 * SECOND, 10 * SECOND, 30 * SECOND] {
        let fate = page_after_reports(report);
        assert_eq!(fate.served, fate.asked, "after reports of {} s", report / SECOND);
    }
}

/// The experiment's crowd before three apps: its addresses send searches 30 times as often as each well-behaved address does.
#[test]
fn requests_of_a_crowd_are_rejected_and_not_those_of_clients_that_ask_rarely() {
    let (servers, from, end) = (24, 20 * SECOND, 50 * SECOND);
    let mut groups = well_behaved(servers, end);
    groups.push(searches(Population::Equal(200), 4.0 / 3.0, end));
    let crowd = Crowd { servers, ..Crowd::new(groups) };
    for seed in SEEDS {
        // The last one is Outrigger.
        let shares = SHEDDERS.map(|(by, gate)| {
            let asked = run_with(&crowd, &mut *gate(&crowd), seed);
            let share = |is_part: &dyn Fn(&Asked) -> bool| {
                Fate::of(asked.iter().filter(|asked| asked.at >= from && is_part(asked))).share()
            };
            let shares = [
                share(&|asked| asked.group < KINDS),
                share(&|asked| asked.group == CRITICAL),
                share(&|asked| asked.group == SEARCH),
                share(&|asked| asked.group >= KINDS),
            ];
            let used = utilisation(&asked, servers, from, end);
            assert!(used > 0.85, "seed {seed}, {by}: {used} of the app's time is used");
            shares
        });
        let [rivals @ .., [behaved, critical, searches, others]] = shares;
        let all = format!("seed {seed}: {shares:?}");
        assert!(behaved > 0.995 && searches > 0.97 && critical == 1.0, "{all}");
        assert!(others < 0.7, "{all}");
        assert!(rivals.iter().all(|[rival, ..]| *rival < behaved), "{all}");
    }
}
