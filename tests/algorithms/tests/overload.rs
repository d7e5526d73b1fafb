//! Tests the concurrency limit in the simulator, with several seeds each.

use outrigger_algorithms::simulator::{Figures, Kind, MS, Run, SECOND, Scenario, Shape, run};
use outrigger_policy::concurrency::{Concurrency, Ended, Sample, Settings};
use proptest::prelude::*;

const SEEDS: std::ops::Range<u64> = 11..15;

fn law() -> Concurrency {
    Concurrency::new(Settings { min: 1, max: 2000, initial: 20 })
}

fn simulate(scenario: &Scenario, seed: u64) -> Run {
    run(&mut law(), scenario, seed)
}

fn assert_good(figures: Figures, throughput: f64, mean: f64, what: &str) {
    assert!(figures.throughput >= throughput && figures.mean <= mean, "{what}: {figures:?}");
}

#[test]
fn an_even_app_is_kept_busy_and_hardly_queues() {
    for (servers, service, end) in [
        (3, 5 * MS, 60 * SECOND),
        (8, 20 * MS, 60 * SECOND),
        (50, 5 * MS, 10 * SECOND),
        (50, 5 * SECOND, 3_000 * SECOND),
        (500, 20 * MS, 16 * SECOND),
    ] {
        for seed in SEEDS {
            let run = simulate(&Scenario::steady(servers, service, Shape::Fixed, 5.0, end), seed);
            let what = format!("{servers} servers, {service} ns, seed {seed}");
            // A queueing delay of 1.5 ms is always allowed.
            let mean = if service == 5 * MS { 1.45 } else { 1.3 };
            assert_good(run.figures(end / 2, end, servers), 0.985, mean, &what);
        }
    }
}

#[test]
fn a_noisy_app_is_kept_busy_and_hardly_queues() {
    for shape in [Shape::Jitter, Shape::Exponential, Shape::Lognormal(1.0)] {
        for servers in [2, 8, 50] {
            let end = 160 * SECOND;
            let scenario = Scenario::steady(servers, 10 * MS, shape, 5.0, end);
            let mut throughput = 0.0;
            for seed in SEEDS {
                let figures = simulate(&scenario, seed).figures(end / 2, end, servers);
                // With few servers, one request more is a large fraction.
                assert_good(
                    figures,
                    0.93,
                    1.25 + 2.0 / f64::from(servers),
                    &format!("{shape:?}, {servers} servers, seed {seed}"),
                );
                throughput += figures.throughput / SEEDS.count() as f64;
            }
            assert!(throughput >= 0.97, "{shape:?}, {servers} servers: {throughput}");
        }
    }
}

#[test]
fn a_step_is_followed_within_a_few_service_times() {
    for service in [5 * MS, 20 * MS] {
        let change = 2_000 * service;
        let end = change + 100 * service;
        let scenario = Scenario::steady(28, service, Shape::Fixed, 5.0, end).then(change, |stage| stage.servers = 20);
        let mut settled: Vec<u64> = (11..31)
            .map(|seed| simulate(&scenario, seed).settled(change, end, 19, 27, 8 * service) / service)
            .collect();
        settled.sort_unstable();
        // A change during a dip falsifies the dip's result; the next dip corrects it.
        assert!(settled[18] <= 8 && settled[19] <= 80, "{settled:?}");
    }
}

#[test]
fn the_limit_adapts_to_an_initial_flood_within_two_seconds() {
    for shape in [Shape::Fixed, Shape::Jitter, Shape::Lognormal(0.1)] {
        let end = 6 * SECOND;
        let scenario = Scenario::steady(4, 50 * MS, shape, 12.0, end);
        for seed in 0..100 {
            let run = simulate(&scenario, seed);
            // 40 service times, for an app with a capacity of 80 requests per second.
            assert_good(run.figures(2 * SECOND, end, 4), 0.85, 1.5, &format!("{shape:?}, seed {seed}"));
        }
    }
}

#[test]
fn an_unusually_fast_first_response_does_not_distort_the_baseline() {
    for seed in 100..130 {
        let end = 40 * SECOND;
        let run = simulate(&Scenario::steady(50, 10 * MS, Shape::Exponential, 5.0, end), seed);
        assert_good(run.figures(end / 2, end, 50), 0.95, 1.5, &format!("seed {seed}"));
    }
}

#[test]
fn routes_of_very_different_lengths_are_no_congestion() {
    for seed in SEEDS {
        let end = 60 * SECOND;
        let mut scenario = Scenario::steady(50, 5 * MS, Shape::Fixed, 5.0, end);
        scenario.kinds = vec![
            Kind { share: 0.8, service: 5 * MS, shape: Shape::Fixed },
            Kind { share: 0.2, service: 500 * MS, shape: Shape::Fixed },
        ];
        let figures = simulate(&scenario, seed).figures(end / 2, end, 50);
        assert_good(figures, 0.97, 1.3, &format!("seed {seed}"));
    }
}

#[test]
fn a_slower_a_faster_and_a_smaller_app_are_found_again_under_overload() {
    let (change, found, end) = (30 * SECOND, 36 * SECOND, 60 * SECOND);
    for servers in [8, 50] {
        for seed in SEEDS {
            let steady = Scenario::steady(servers, 20 * MS, Shape::Fixed, 5.0, end);
            let slower = simulate(&steady.clone().then(change, |stage| stage.slowness = 2.0), seed);
            assert_good(slower.figures(found, end, servers), 0.97, 1.4, &format!("slower, {servers}, {seed}"));
            let faster = simulate(&steady.clone().then(change, |stage| stage.slowness = 0.5), seed);
            assert_good(faster.figures(found, end, servers), 0.97, 1.4, &format!("faster, {servers}, {seed}"));
            let smaller = simulate(&steady.clone().then(change, |stage| stage.servers /= 2), seed);
            assert_good(smaller.figures(found, end, servers / 2), 0.97, 1.4, &format!("smaller, {servers}, {seed}"));
            let larger = simulate(&steady.then(change, |stage| stage.servers *= 2), seed);
            assert_good(larger.figures(found, end, servers * 2), 0.97, 1.4, &format!("larger, {servers}, {seed}"));
        }
    }
}

#[test]
fn a_quiet_period_leaves_the_limit_ready_for_load() {
    for seed in SEEDS {
        let (night, morning, end) = (20 * SECOND, 80 * SECOND, 100 * SECOND);
        let scenario = Scenario::steady(50, 20 * MS, Shape::Fixed, 5.0, end)
            .then(night, |stage| stage.load = 0.05)
            .then(morning, |stage| stage.load = 5.0);
        let run = simulate(&scenario, seed);
        assert_good(run.figures(morning, morning + SECOND, 50), 0.93, 1.5, &format!("first second, seed {seed}"));
    }
}

#[test]
fn slow_responses_to_few_requests_do_not_lower_the_limit() {
    let mut law = law();
    let mut now = 0;
    for n in 0..500_u64 {
        // One request at a time; after the first 100, the app is ten times as slow.
        let started = now;
        now += if n < 100 { 20 * MS } else { 200 * MS };
        law.record(now, Sample { class: 0, started, in_flight: 1, ended: Ended::Answered });
        assert!(law.limit() >= 20, "{} after {n}", law.limit());
    }
}

#[test]
fn the_limit_starts_as_configured_and_hardly_grows_unused() {
    assert_eq!(law().limit(), 20);
    let run = simulate(&Scenario::steady(50, 20 * MS, Shape::Fixed, 0.05, 60 * SECOND), 1);
    assert!(run.limits.iter().all(|&(_, limit)| limit <= 30), "{:?}", run.limits);
}

#[test]
fn dips_are_shallow() {
    let run = simulate(&Scenario::steady(50, 20 * MS, Shape::Fixed, 5.0, 60 * SECOND), 3);
    let lowest = run.limits.iter().filter(|&&(at, _)| at > 20 * SECOND).map(|&(_, limit)| limit).min();
    assert!(lowest.is_none_or(|lowest| lowest >= 36), "{lowest:?}");
}

fn sample() -> impl Strategy<Value = (u64, Sample)> {
    let times = prop_oneof![any::<u64>(), 0..1_000_000_000u64, Just(0), Just(u64::MAX)];
    let in_flight = prop_oneof![any::<u32>(), 0..64u32];
    (times.clone(), times, any::<u16>(), in_flight, any::<bool>()).prop_map(|(now, started, class, in_flight, late)| {
        let ended = if late { Ended::TimedOut } else { Ended::Answered };
        (now, Sample { class: class % 4 * 1021, started, in_flight, ended })
    })
}

proptest! {
    #[test]
    fn the_limit_is_always_within_bounds(
        min in any::<u32>(), max in any::<u32>(), initial in any::<u32>(),
        samples in proptest::collection::vec(sample(), 0..2000),
    ) {
        let mut law = Concurrency::new(Settings { min, max, initial });
        for (now, sample) in samples {
            law.record(now, sample);
            let least = min.max(1);
            prop_assert!((least..=max.max(least)).contains(&law.limit()));
            let _ = law.latency();
        }
        law.set_bounds(3, 7);
        prop_assert!((3..=7).contains(&law.limit()));
    }
}
