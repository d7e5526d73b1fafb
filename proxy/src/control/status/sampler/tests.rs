use std::path::Path;

use super::*;
use crate::engine::metrics::Metrics;
use crate::mechanism::log::{AccessLog, LogQueue};
use crate::transport::upstream::Upstreams;
use crate::transport::upstream::checked::Checked;
use outrigger_rules::config::Config;
use outrigger_rules::sections::log::LogFormat;

fn config(text: &str) -> Config {
    Config::parse(Path::new("test"), text, &|_| None).unwrap()
}

fn state(text: &str) -> State {
    let metrics = Metrics::new().unwrap();
    let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log.dropped.clone()).unwrap();
    State::new(config(text), metrics, AccessLog::new(queue))
}

fn routes(names: impl IntoIterator<Item = String>) -> String {
    names.into_iter().map(|name| format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}/**\"\n")).collect()
}

fn number(state: &State, name: &str) -> usize {
    state.rules.load().config.routes.all().iter().position(|route| &*route.name == name).unwrap()
}

fn ends(state: &State, name: &str, outcome: Outcome, times: u32) {
    let rules = state.rules.load();
    let metrics = &rules.route_metrics[number(state, name)];
    (0..times).for_each(|_| metrics.record(outcome, Duration::from_millis(40), None));
}

/// Samples once a second from here on.
fn sampled(sampler: &mut Sampler, state: &State) {
    let next = sampler.last + Duration::from_secs(1);
    sampler.sample(state, next);
}

#[test]
fn each_second_has_what_it_added() {
    let state = state(&routes(["a".into(), "b".into()]));
    ends(&state, "a", Outcome::Success, 1000);
    let mut sampler = Sampler::new(&state);
    ends(&state, "a", Outcome::Success, 30);
    ends(&state, "a", Outcome::ServerError, 10);
    ends(&state, "b", Outcome::Rejected, 10);
    sampled(&mut sampler, &state);
    sampled(&mut sampler, &state);
    let total = sampler.last_totals(Duration::from_secs(10));
    assert_eq!((total.seconds, total.counts), (2.0, Counts { requests: 50, errors: 10, rejected: 10 }));
    assert_eq!(total.buckets.iter().sum::<u32>(), 40, "rejections have no duration");
    let sums = sampler.last(Duration::from_secs(60));
    assert_eq!(sums.routes[&number(&state, "a")].0.requests, 40);
    // A minute later it is forgotten in detail, and five minutes later altogether.
    (0..60).for_each(|_| sampled(&mut sampler, &state));
    assert!(sampler.last(Duration::from_secs(60)).routes.is_empty());
    assert_eq!(sampler.points(400).len(), 1);
    assert_eq!(sampler.points(400)[0].counts.requests, 50);
    (0..300).for_each(|_| sampled(&mut sampler, &state));
    assert_eq!(sampler.points(400)[0].counts.requests, 0);
    assert_eq!(sampler.points(5).len(), 60);
}

#[test]
fn a_reload_counts_no_request_twice_and_loses_none() {
    let state = state(&routes(["a".into(), "b".into()]));
    ends(&state, "a", Outcome::Success, 1000);
    ends(&state, "a", Outcome::Redirect, 1000);
    // Four routes have this name, and share their counters.
    ends(&state, "health", Outcome::Success, 1000);
    let mut sampler = Sampler::new(&state);
    ends(&state, "a", Outcome::Success, 3);
    sampled(&mut sampler, &state);
    let config = config(&routes(["new".into(), "b".into(), "a".into()]));
    let checked = Checked { upstreams: Upstreams::new(&config.app), config };
    state.rules.store(Arc::new(Snapshot::new(checked, 2, &state.metrics, &state.breakers)));
    sampled(&mut sampler, &state);
    ends(&state, "a", Outcome::Success, 4);
    ends(&state, "new", Outcome::Success, 1);
    ends(&state, "health", Outcome::Success, 1);
    sampled(&mut sampler, &state);
    let sums = sampler.last(Duration::from_secs(60));
    let (counts, buckets) = sums.routes[&number(&state, "a")];
    assert_eq!((counts.requests, buckets.iter().sum::<u32>()), (7, 7));
    assert_eq!(sums.routes[&number(&state, "new")].0.requests, 1);
    assert_eq!(sampler.last_totals(Duration::from_secs(60)).counts.requests, 9);
}

#[test]
fn thousands_of_routes_are_summed_beyond_the_busiest() {
    let state = state(&routes((0..2000).map(|n| format!("r{n}"))));
    let mut sampler = Sampler::new(&state);
    for round in 0..5 {
        let rules = state.rules.load();
        rules.route_metrics.iter().for_each(|route| route.record(Outcome::Success, Duration::from_millis(40), None));
        (0..round).for_each(|_| ends(&state, "r7", Outcome::Success, 1));
        sampled(&mut sampler, &state);
        assert!(sampler.seen.histograms.len() <= ROUTES_TIMED * 9, "{}", sampler.seen.histograms.len());
    }
    let sums = sampler.last(Duration::from_secs(60));
    let all = state.rules.load().route_metrics.len() as u64;
    assert!(sums.routes.len() <= ROUTES_TIMED * 5);
    assert_eq!(sampler.last_totals(Duration::from_secs(60)).counts.requests, 5 * all + 10);
    let listed: u64 = sums.routes.values().map(|(counts, _)| counts.requests).sum();
    assert_eq!(listed + sums.others.requests, 5 * all + 10);
}

#[test]
fn more_than_can_be_read_are_read_in_turn() {
    let mut next = 0;
    let mut read = |all, most| in_turn(&mut next, all, most).collect::<Vec<_>>();
    assert_eq!(read(5, 2), [0, 1]);
    assert_eq!(read(5, 2), [2, 3]);
    assert_eq!(read(5, 2), [4, 0]);
    assert_eq!(read(3, 9), [1, 2, 0]);
    assert!(read(0, 9).is_empty());
}
