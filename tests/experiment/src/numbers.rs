//! Statistics of the requests.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::failures::why;
use crate::load::Outcome;
use crate::script::{Kind, Script, WORKERS};

/// Totals of some requests.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    pub requests: usize,
    pub good: usize,
    /// Latencies of good responses, sorted.
    latencies: Vec<Duration>,
}

impl Tally {
    pub fn of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Self {
        let mut tally = Self::default();
        for outcome in outcomes {
            tally.requests += 1;
            if outcome.is_good() {
                tally.good += 1;
                tally.latencies.push(outcome.latency);
            }
        }
        tally.latencies.sort_unstable();
        tally
    }

    pub fn bad(&self) -> usize {
        self.requests - self.good
    }

    /// The share of requests with a good response; 1 if there were none.
    pub fn availability(&self) -> f64 {
        if self.requests == 0 { 1.0 } else { self.good as f64 / self.requests as f64 }
    }

    /// The latency within which this percentage of the good responses arrived. `None` without any.
    pub fn percentile(&self, percent: f64) -> Option<Duration> {
        percentile(&self.latencies, percent)
    }
}

/// The nearest-rank percentile of a sorted list.
fn percentile(sorted: &[Duration], percent: f64) -> Option<Duration> {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Requests of well-behaved clients.
pub fn well_behaved(outcomes: &[Outcome]) -> impl Iterator<Item = &Outcome> + Clone {
    outcomes.iter().filter(|outcome| !outcome.arrival.is_flood)
}

/// Requests of floods.
pub fn floods(outcomes: &[Outcome]) -> impl Iterator<Item = &Outcome> + Clone {
    outcomes.iter().filter(|outcome| outcome.arrival.is_flood)
}

pub fn of_kind(outcomes: &[Outcome], kind: Kind) -> Tally {
    Tally::of(well_behaved(outcomes).filter(|outcome| outcome.arrival.kind == kind))
}

/// Failed requests of well-behaved clients, by the fault at the time.
pub fn by_fault(outcomes: &[Outcome], script: &Script) -> BTreeMap<&'static str, usize> {
    let mut all = BTreeMap::new();
    for outcome in well_behaved(outcomes).filter(|outcome| !outcome.is_good()) {
        *all.entry(script.during(outcome.arrival.at, outcome.ended())).or_default() += 1;
    }
    all
}

/// The same by how they ended.
pub fn by_end(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for outcome in well_behaved(outcomes).filter(|outcome| !outcome.is_good()) {
        *all.entry(why(outcome)).or_default() += 1;
    }
    all
}

/// Good responses per second under overload, after the warm-up. The rest of a longer overload does not count.
pub fn goodput(overload: &[Outcome], script: &Script) -> f64 {
    goodput_between(overload, script.warm_up, script.overload)
}

/// The same between two times since the beginning of the overload.
pub fn goodput_between(overload: &[Outcome], from: Duration, to: Duration) -> f64 {
    good_between(overload, from, to).count() as f64 / (to - from).as_secs_f64()
}

/// The goodput as a share of the apps' capacity, by the work in those responses.
pub fn work_done(overload: &[Outcome], script: &Script, apps: usize) -> f64 {
    let (from, to) = (script.warm_up, script.overload);
    let done: f64 = good_between(overload, from, to).map(|outcome| outcome.arrival.kind.work().0.as_secs_f64()).sum();
    done / (to - from).as_secs_f64() / (f64::from(WORKERS) * apps as f64)
}

fn good_between(overload: &[Outcome], from: Duration, to: Duration) -> impl Iterator<Item = &Outcome> {
    overload.iter().filter(move |outcome| (from..to).contains(&outcome.arrival.at) && outcome.is_good())
}

/// The requests sent in each slice of time, in order.
pub fn slices<'a>(
    outcomes: impl IntoIterator<Item = &'a Outcome>,
    length: Duration,
    width: Duration,
) -> Vec<(Duration, Tally)> {
    let slices = (length.as_secs_f64() / width.as_secs_f64()).ceil() as usize;
    let mut all: Vec<Vec<&Outcome>> = vec![Vec::new(); slices];
    for outcome in outcomes {
        let slice = (outcome.arrival.at.as_secs_f64() / width.as_secs_f64()) as usize;
        if let Some(slice) = all.get_mut(slice) {
            slice.push(outcome);
        }
    }
    let start = |number: usize| width.mul_f64(number as f64);
    all.into_iter().enumerate().map(|(number, slice)| (start(number), Tally::of(slice))).collect()
}

/// Minimum availability.
pub const AVAILABILITY: f64 = 0.9999;
/// Maximum of the 99th percentile of good responses, with any seed.
pub const P99: Duration = Duration::from_millis(165);
/// Minimum of good responses per second under overload, with any seed.
pub const GOODPUT: f64 = 968.0;

/// What the bounds are about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub availability: f64,
    pub failed: usize,
    pub p99: Option<Duration>,
    pub goodput: f64,
}

impl Figures {
    pub fn of(outcomes: &[Outcome], overload: &[Outcome], script: &Script) -> Self {
        let tally = Tally::of(well_behaved(outcomes));
        Self {
            availability: tally.availability(),
            failed: tally.bad(),
            p99: tally.percentile(99.0),
            goodput: goodput(overload, script),
        }
    }

    pub fn is_available(&self) -> bool {
        self.availability >= AVAILABILITY
    }

    pub fn is_fast(&self) -> bool {
        self.p99.is_some_and(|p99| p99 <= P99)
    }

    pub fn does_enough(&self) -> bool {
        self.goodput >= GOODPUT
    }
}

/// The three claims of the experiment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claims {
    pub availability: f64,
    /// p99 of good responses relative to the other side's: 0.7 is 30 % less.
    pub p99: f64,
    pub goodput: f64,
}

impl Claims {
    /// Compares one side with another.
    pub fn of(ours: &[Outcome], theirs: &[Outcome], our_overload: f64, their_overload: f64) -> Self {
        let (us, them) = (Tally::of(well_behaved(ours)), Tally::of(well_behaved(theirs)));
        let p99 = |tally: &Tally| tally.percentile(99.0).map_or(f64::NAN, |latency| latency.as_secs_f64());
        Self { availability: us.availability(), p99: p99(&us) / p99(&them), goodput: our_overload / their_overload }
    }

    pub fn is_available(&self) -> bool {
        self.availability >= AVAILABILITY
    }

    pub fn is_faster(&self) -> bool {
        self.p99 <= 0.7
    }

    pub fn does_more(&self) -> bool {
        self.goodput >= 2.0
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::load::End;
    use crate::script::Arrival;

    /// A request of a well-behaved client that was sent at this second and took this many milliseconds.
    pub fn outcome(second: f64, ms: u64, end: End) -> Outcome {
        let arrival = Arrival { at: Duration::from_secs_f64(second), client: 1, kind: Kind::Read, is_flood: false };
        let (request_id, words) = ("01ABC-ams".to_owned(), String::new());
        Outcome { arrival, latency: Duration::from_millis(ms), end, request_id, words }
    }

    #[test]
    fn percentiles_cover_good_responses_by_the_nearest_rank() {
        let mut all: Vec<Outcome> = (1..=100).map(|ms| outcome(0.0, ms, End::Good)).collect();
        all.push(outcome(0.0, 9999, End::Late));
        let tally = Tally::of(&all);
        let p = |percent| tally.percentile(percent).unwrap().as_millis();
        assert_eq!((p(50.0), p(99.0), p(100.0)), (50, 99, 100));
        assert_eq!((tally.requests, tally.bad()), (101, 1));
        assert_eq!(Tally::default().percentile(50.0), None);
    }

    #[test]
    fn floods_do_not_count_towards_the_claims() {
        let mut flood = outcome(0.0, 600, End::Late);
        flood.arrival.is_flood = true;
        let all = [outcome(0.0, 10, End::Good), flood];
        assert_eq!(Tally::of(well_behaved(&all)).availability(), 1.0);
        assert_eq!(Tally::of(floods(&all)).availability(), 0.0);
    }

    #[test]
    fn slices_cover_the_whole_time_even_without_requests() {
        let all = [outcome(0.1, 1, End::Good), outcome(2.5, 1, End::Broken)];
        let seconds = Duration::from_secs;
        let found: Vec<_> =
            slices(&all, seconds(4), seconds(1)).into_iter().map(|(at, t)| (at.as_secs(), t.good, t.bad())).collect();
        assert_eq!(found, [(0, 1, 0), (1, 0, 0), (2, 0, 1), (3, 0, 0)]);
    }

    #[test]
    fn goodput_leaves_the_warm_up_out() {
        let script = Script { overload: Duration::from_secs(3), warm_up: Duration::from_secs(1), ..Script::short() };
        let all = [outcome(0.5, 1, End::Good), outcome(1.5, 1, End::Good), outcome(2.5, 1, End::Late)];
        assert_eq!(goodput(&all, &script), 0.5);
        // One read of 20 ms in two seconds of eight workers.
        assert!((work_done(&all, &script, 1) - 0.02 / 16.0).abs() < 1e-9);
    }

    #[test]
    fn bounds_hold_at_their_values_and_not_beyond() {
        let script = Script { overload: Duration::from_secs(2), warm_up: Duration::from_secs(1), ..Script::short() };
        let outcomes = |ms: u64, failed: usize| -> Vec<Outcome> {
            (0..10_000).map(|n| outcome(0.0, ms, if n < failed { End::Late } else { End::Good })).collect()
        };
        let overload = |good: usize| vec![outcome(1.5, 1, End::Good); good];
        let figures = Figures::of(&outcomes(165, 1), &overload(968), &script);
        assert!(figures.is_available() && figures.is_fast() && figures.does_enough(), "{figures:?}");
        let figures = Figures::of(&outcomes(166, 2), &overload(967), &script);
        assert!(!figures.is_available() && !figures.is_fast() && !figures.does_enough(), "{figures:?}");
        // A longer overload counts to the end of the usual one.
        assert_eq!(goodput(&[outcome(1.5, 1, End::Good), outcome(2.0, 1, End::Good)], &script), 1.0);
    }

    #[test]
    fn claims_hold_at_their_bounds_and_not_beyond() {
        let ours: Vec<_> = (0..10_000).map(|n| outcome(0.0, 69, if n == 0 { End::Late } else { End::Good })).collect();
        let theirs = [outcome(0.0, 100, End::Good)];
        let claims = Claims::of(&ours, &theirs, 200.0, 100.0);
        assert!(claims.is_available() && claims.is_faster() && claims.does_more(), "{claims:?}");
        let claims = Claims::of(&ours[..5000], &[outcome(0.0, 98, End::Good)], 199.0, 100.0);
        assert!(!claims.is_available() && !claims.is_faster() && !claims.does_more(), "{claims:?}");
    }
}
