//! Rate limits that up to 100 Machines share, in the simulator, with several seeds. The example `machines` prints the figures
//! of docs/scale.md for the same fleets.

use outrigger_algorithms::fleet::{Fleet, Spread, run};
use outrigger_algorithms::simulator::{MS, SECOND};
use outrigger_policy::limiter::Quota;

const SEEDS: std::ops::Range<u64> = 1..4;

fn fleets() -> impl Iterator<Item = (Fleet, u64)> {
    let spreads = [Spread::Even, Spread::Sessions, Spread::Skewed, Spread::MovesAt(5 * SECOND)];
    let cases = [3, 10, 100].into_iter().flat_map(move |machines| {
        spreads.into_iter().flat_map(move |spread| [1, 20].map(|ms| (machines, spread, ms * MS)))
    });
    cases.flat_map(|(machines, spread, round_trip)| {
        SEEDS.map(move |seed| (Fleet { spread, round_trip, end: 10 * SECOND, ..Fleet::new(machines) }, seed))
    })
}

#[test]
fn no_time_gets_more_than_the_burst_and_a_lease_for_each_machine() {
    for (fleet, seed) in fleets() {
        for (per_second, burst) in [(100, 600), (10, 10), (1_000, 50)] {
            let quota = Quota::from_parts(SECOND / per_second, burst);
            let fleet = Fleet { quota, end: 5 * SECOND, ..fleet.clone() };
            let most = run(&fleet, seed).most(quota);
            let bound = fleet.bound(fleet.machines);
            // One more, since a window begins and ends with a request.
            assert!(most <= (bound + 1) as f64, "{most:.1} of {bound}, seed {seed}, {fleet:?}");
        }
    }
}

#[test]
fn the_whole_limit_is_used_wherever_its_requests_arrive() {
    for (fleet, seed) in fleets() {
        let report = run(&fleet, seed);
        let used = report.share(fleet.quota, 8 * SECOND, 11 * SECOND);
        // More where a part of the burst is left.
        assert!(used > 0.96, "{used:.3}, seed {seed}, {fleet:?}");
    }
}

#[test]
fn an_idle_share_moves_within_a_second() {
    for machines in [3, 10, 30, 100] {
        for seed in SEEDS {
            let fleet = Fleet { spread: Spread::MovesAt(8 * SECOND), end: 10 * SECOND, ..Fleet::new(machines) };
            let used = run(&fleet, seed).share(fleet.quota, 9 * SECOND, 10 * SECOND);
            assert!(used > 0.9, "{used:.3} in the first second, {machines} Machines, seed {seed}");
        }
    }
}

#[test]
fn an_outage_of_redis_changes_the_total_by_a_tenth_at_most_if_all_machines_get_requests() {
    for machines in [3, 10, 100] {
        for seed in SEEDS {
            let outage = Some((10 * SECOND, 30 * SECOND));
            let fleet = Fleet { outage, end: 40 * SECOND, ..Fleet::new(machines) };
            let report = run(&fleet, seed);
            let used = report.share(fleet.quota, 11 * SECOND, 41 * SECOND);
            assert!((0.9..1.1).contains(&used), "{used:.3}, {machines} Machines, seed {seed}");
        }
    }
}

#[test]
fn a_limit_needs_at_most_one_command_for_each_of_its_tokens() {
    for (fleet, seed) in fleets() {
        let report = run(&fleet, seed);
        let admitted: usize = report.admitted.iter().map(Vec::len).sum();
        assert!(report.commands <= admitted as u64, "{} of {admitted}, seed {seed}, {fleet:?}", report.commands);
    }
}
