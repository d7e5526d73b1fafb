//! Samples counters and histograms once a second, for rates and quantiles of the last seconds.
//!
//! Its work each second is bounded, whatever the configuration: it reads the counters of at most [`ROUTES_READ`] routes and
//! [`LIMITS_READ`] limits, in turn if there are more, and the histograms of the [`ROUTES_TIMED`] routes that had the most
//! requests. It keeps the [`ROUTES_TIMED`] busiest routes and the sum of the others for 60 seconds, the sum of all for 5 minutes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use outrigger_identity::clock;
use outrigger_policy::priority::Priority;
use outrigger_rules::sections::route_table::Route;

use crate::control::status::windows::{Buckets, Counts, add};
use crate::engine::metrics::{BUCKETS, RouteMetrics};
use crate::engine::state::{Snapshot, State};
use crate::mechanism::outcome::Outcome;

/// Routes whose counters are read each second.
pub const ROUTES_READ: usize = 20_000;
/// Routes whose histograms are read each second.
pub const ROUTES_TIMED: usize = 256;
/// Rate limits whose counters are read each second.
pub const LIMITS_READ: usize = 2_000;
/// Rate limits that are remembered for each second: those with the most rejections.
const LIMITS_KEPT: usize = 64;
/// Seconds with routes and limits.
const DETAILED: usize = 60;
/// Seconds of all requests.
const TOTALS: usize = 300;

/// All requests of a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    /// The length of this second.
    pub seconds: f64,
    /// All requests.
    pub counts: Counts,
    /// Their durations.
    pub buckets: Buckets,
    /// By priority.
    pub priorities: [Counts; Priority::ALL.len()],
    /// By priority: requests that were rejected to protect the app.
    pub shed: [u64; Priority::ALL.len()],
}

/// A route's requests of a second.
#[derive(Clone, Copy, Debug)]
struct RouteSecond {
    route: usize,
    counts: Counts,
    buckets: Buckets,
}

/// A second in detail.
#[derive(Clone, Debug, Default)]
struct Detail {
    seconds: f64,
    routes: Vec<RouteSecond>,
    /// The routes beyond [`ROUTES_TIMED`].
    others: Counts,
    limits: Vec<(usize, u64)>,
    rejections: Vec<(&'static str, u64)>,
    failures: Vec<(&'static str, u64)>,
    retries: u64,
    retries_denied: u64,
}

/// The sums of some of the last seconds.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// How many seconds they are.
    pub seconds: f64,
    /// By the number of the route.
    pub routes: HashMap<usize, (Counts, Buckets)>,
    /// The other routes.
    pub others: Counts,
    /// Rejections by the number of the limit.
    pub limits: HashMap<usize, u64>,
    /// Rejections by reason.
    pub rejections: HashMap<&'static str, u64>,
    /// Failures by reason.
    pub failures: HashMap<&'static str, u64>,
    /// Retries.
    pub retries: u64,
    /// Retries that the budget did not allow.
    pub retries_denied: u64,
}

type OfOutcomes = [u64; Outcome::ALL.len()];
/// Cumulative counts of a histogram: all but the last are at most a bound.
type Cumulative = [u64; BUCKETS.len() + 1];

/// The counters as they were last read.
#[derive(Debug, Default)]
struct Seen {
    /// `None`: the route had no request yet.
    routes: Vec<Option<Box<OfOutcomes>>>,
    /// By route and outcome. A route that is not among the busiest for a while is forgotten.
    histograms: HashMap<(usize, usize), (Cumulative, u64)>,
    limits: Vec<u64>,
    rejections: HashMap<&'static str, u64>,
    failures: HashMap<&'static str, u64>,
    shed: [u64; Priority::ALL.len()],
    retries: u64,
    retries_denied: u64,
}

/// Samples; see the module.
#[derive(Debug)]
pub struct Sampler {
    /// The configuration that the numbers of routes and limits refer to.
    snapshot: Arc<Snapshot>,
    last: Instant,
    seconds_sampled: u64,
    next_route: usize,
    next_limit: usize,
    /// Several built-in routes have one name and share their counters: those after the first, which stands for them.
    twins: HashMap<usize, Vec<usize>>,
    is_twin: HashSet<usize>,
    seen: Seen,
    totals: VecDeque<Total>,
    details: VecDeque<Detail>,
    shed_since: [Option<Timestamp>; Priority::ALL.len()],
}

impl Sampler {
    /// Starts at this moment. Requests that ended before are not part of any second.
    pub fn new(state: &State) -> Self {
        let mut sampler = Self {
            snapshot: state.rules.load_full(),
            last: clock::now(),
            seconds_sampled: 0,
            next_route: 0,
            next_limit: 0,
            twins: HashMap::new(),
            is_twin: HashSet::new(),
            seen: Seen::default(),
            totals: VecDeque::new(),
            details: VecDeque::new(),
            shed_since: [None; Priority::ALL.len()],
        };
        sampler.find_twins();
        sampler.sample(state, sampler.last);
        sampler.totals.clear();
        sampler.details.clear();
        sampler
    }

    /// The configuration that the numbers in [`Sums`] refer to.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Reads the counters.
    pub fn sample(&mut self, state: &State, now: Instant) {
        self.follow(&state.rules.load_full());
        let seconds = now.saturating_duration_since(self.last).as_secs_f64();
        self.last = now;
        self.seconds_sampled += 1;
        let mut total = Total { seconds, ..Total::default() };
        let mut detail = Detail { seconds, ..Detail::default() };
        self.read_routes(&mut total, &mut detail);
        self.read_limits(&mut detail);
        let rejections = &state.metrics.rejections;
        detail.rejections = added(&mut self.seen.rejections, rejections.by_reason());
        detail.failures = added(&mut self.seen.failures, rejections.failures_by_reason());
        let attempts = &state.metrics.attempts;
        detail.retries = advance(&mut self.seen.retries, attempts.retries.get());
        detail.retries_denied = advance(&mut self.seen.retries_denied, attempts.retries_denied.get());
        for (number, priority) in Priority::ALL.into_iter().enumerate() {
            total.shed[number] = advance(&mut self.seen.shed[number], rejections.refusals.shed(priority));
        }
        keep(&mut self.totals, total, TOTALS);
        keep(&mut self.details, detail, DETAILED);
        self.note_shedding();
    }

    /// Moves what is known to the numbers of a new configuration.
    fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        let routes = snapshot.config.routes.all();
        self.seen.routes.resize_with(self.snapshot.config.routes.all().len().max(self.seen.routes.len()), || None);
        if Arc::ptr_eq(&self.snapshot, snapshot) {
            return;
        }
        let before = std::mem::replace(&mut self.snapshot, Arc::clone(snapshot));
        self.find_twins();
        let key = |route: &Route| (Arc::clone(&route.name), route.priority);
        // The first of those that share their counters, as in `find_twins`.
        let mut numbers: HashMap<_, usize> = HashMap::new();
        for (number, route) in routes.iter().enumerate() {
            numbers.entry(key(route)).or_insert(number);
        }
        let moved: HashMap<usize, usize> = before
            .config
            .routes
            .all()
            .iter()
            .enumerate()
            .filter_map(|(was, route)| Some((was, *numbers.get(&key(route))?)))
            .collect();
        let mut seen: Vec<Option<Box<OfOutcomes>>> = Vec::new();
        seen.resize_with(routes.len(), || None);
        for (was, is) in &moved {
            if let Some(known) = self.seen.routes[*was].take() {
                seen[*is] = Some(known);
            }
        }
        self.seen.routes = seen;
        let histograms = std::mem::take(&mut self.seen.histograms);
        let renumbered =
            histograms.into_iter().filter_map(|((was, outcome), value)| Some(((*moved.get(&was)?, outcome), value)));
        self.seen.histograms = renumbered.collect();
        let limits = |snapshot: &Snapshot| -> Vec<String> {
            snapshot.config.limits.all.iter().map(|limit| limit.name.to_string()).collect()
        };
        let (limits_before, limits) = (limits(&before), limits(snapshot));
        let numbers: HashMap<&str, usize> =
            limits.iter().enumerate().map(|(number, name)| (name.as_str(), number)).collect();
        let moved_limits: HashMap<usize, usize> = limits_before
            .iter()
            .enumerate()
            .filter_map(|(was, name)| Some((was, *numbers.get(name.as_str())?)))
            .collect();
        let mut seen = vec![0; limits.len()];
        for (was, is) in &moved_limits {
            seen[*is] = self.seen.limits.get(*was).copied().unwrap_or_default();
        }
        self.seen.limits = seen;
        for detail in &mut self.details {
            for second in std::mem::take(&mut detail.routes) {
                match moved.get(&second.route) {
                    Some(route) => detail.routes.push(RouteSecond { route: *route, ..second }),
                    None => detail.others += second.counts,
                }
            }
            detail.limits.retain_mut(|(limit, _)| moved_limits.get(limit).map(|is| *limit = *is).is_some());
        }
    }

    fn find_twins(&mut self) {
        let mut firsts: HashMap<(&str, Priority), usize> = HashMap::new();
        (self.twins, self.is_twin) = Default::default();
        for (number, route) in self.snapshot.config.routes.all().iter().enumerate() {
            let first = *firsts.entry((&*route.name, route.priority)).or_insert(number);
            if first != number {
                self.twins.entry(first).or_default().push(number);
                self.is_twin.insert(number);
            }
        }
    }

    /// The metrics of a route, and of those that share its counters.
    fn metrics_of<'s>(&self, snapshot: &'s Snapshot, number: usize) -> Vec<&'s RouteMetrics> {
        let twins = self.twins.get(&number).into_iter().flatten();
        std::iter::once(&number).chain(twins).map(|number| &snapshot.route_metrics[*number]).collect()
    }

    fn read_routes(&mut self, total: &mut Total, detail: &mut Detail) {
        let snapshot = Arc::clone(&self.snapshot);
        let routes = snapshot.config.routes.all();
        self.seen.routes.resize_with(routes.len(), || None);
        let mut changed = Vec::new();
        for number in in_turn(&mut self.next_route, routes.len(), ROUTES_READ) {
            if self.is_twin.contains(&number) {
                continue;
            }
            let counts = self.read_counts(number, &snapshot);
            if counts.requests > 0 {
                total.counts += counts;
                total.priorities[routes[number].priority as usize] += counts;
                changed.push((counts, number));
            }
        }
        changed.sort_unstable_by_key(|(counts, number)| (std::cmp::Reverse(counts.requests), *number));
        for (counts, route) in changed.iter().take(ROUTES_TIMED).copied() {
            let buckets = self.read_durations(route, &snapshot, counts.requests);
            add(&mut total.buckets, &buckets);
            detail.routes.push(RouteSecond { route, counts, buckets });
        }
        changed.iter().skip(ROUTES_TIMED).for_each(|(counts, _)| detail.others += *counts);
        if self.seen.histograms.len() > ROUTES_TIMED * 8 {
            // Only those of this second; the others begin anew.
            let busy: HashSet<usize> = detail.routes.iter().map(|second| second.route).collect();
            self.seen.histograms.retain(|(route, _), _| busy.contains(route));
        }
    }

    fn read_counts(&mut self, number: usize, snapshot: &Snapshot) -> Counts {
        let mut counts = Counts::default();
        let mut now = snapshot.route_metrics[number].counts();
        for twin in self.twins.get(&number).into_iter().flatten() {
            // One counter, which each sees only once it has used it.
            let seen = snapshot.route_metrics[*twin].counts();
            now.iter_mut().zip(seen).for_each(|(now, seen)| *now = seen.max(*now));
        }
        if now.iter().all(|count| *count == 0) {
            return counts;
        }
        let before = self.seen.routes[number].get_or_insert_default();
        for (outcome, (before, now)) in Outcome::ALL.into_iter().zip(before.iter_mut().zip(now)) {
            // After a change of the configuration, an outcome is 0 until the next request with it.
            counts += Counts::of(outcome, advance(before, now.max(*before)));
        }
        counts
    }

    /// Rejections have no duration that says anything about the app. A series that is new here counts only if all of it is of
    /// this second, `most` requests.
    fn read_durations(&mut self, number: usize, snapshot: &Snapshot, most: u64) -> Buckets {
        let mut buckets = Buckets::default();
        let metrics = self.metrics_of(snapshot, number);
        for outcome in Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Rejected) {
            let shown = metrics.iter().find_map(|metrics| metrics.durations::<{ BUCKETS.len() }>(outcome));
            let Some((bounded, all)) = shown else { continue };
            let mut now = [all; BUCKETS.len() + 1];
            now[..BUCKETS.len()].copy_from_slice(&bounded);
            let before = self.seen.histograms.insert((number, outcome as usize), (now, self.seconds_sampled));
            let before = match before {
                Some((before, _)) => before,
                None if all <= most => Cumulative::default(),
                None => continue,
            };
            let mut below = 0;
            for (bucket, (now, before)) in buckets.iter_mut().zip(now.iter().zip(before)) {
                let up_to = now.saturating_sub(before);
                *bucket = bucket.saturating_add(u32::try_from(up_to.saturating_sub(below)).unwrap_or(u32::MAX));
                below = up_to.max(below);
            }
        }
        buckets
    }

    fn read_limits(&mut self, detail: &mut Detail) {
        let snapshot = Arc::clone(&self.snapshot);
        self.seen.limits.resize(snapshot.limit_metrics.len(), 0);
        for number in in_turn(&mut self.next_limit, snapshot.limit_metrics.len(), LIMITS_READ) {
            let refused = advance(&mut self.seen.limits[number], snapshot.limit_metrics[number].enforced.get());
            if refused > 0 {
                detail.limits.push((number, refused));
            }
        }
        detail.limits.sort_unstable_by_key(|(_, refused)| std::cmp::Reverse(*refused));
        detail.limits.truncate(LIMITS_KEPT);
    }

    fn note_shedding(&mut self) {
        let recent = self.last_totals(Duration::from_secs(10));
        for (since, number) in self.shed_since.iter_mut().zip(0..) {
            let is_shed = recent.shed[number] > 0;
            *since = if is_shed { since.or_else(|| Some(Timestamp::now())) } else { None };
        }
    }

    /// Since when requests of each priority are rejected to protect the app.
    pub fn shed_since(&self) -> [Option<Timestamp>; Priority::ALL.len()] {
        self.shed_since
    }

    /// The sum of all requests of the last seconds.
    pub fn last_totals(&self, length: Duration) -> Total {
        let mut sum = Total::default();
        for total in self.totals.iter().rev() {
            if sum.seconds + total.seconds / 2.0 > length.as_secs_f64() {
                break;
            }
            add_total(&mut sum, total);
        }
        sum
    }

    /// The sums of each `length` samples, the oldest first.
    pub fn points(&self, length: usize) -> Vec<Total> {
        let newest_first: Vec<&Total> = self.totals.iter().rev().collect();
        let mut points: Vec<Total> = newest_first
            .chunks(length)
            .map(|chunk| {
                let mut sum = Total::default();
                chunk.iter().for_each(|total| add_total(&mut sum, total));
                sum
            })
            .collect();
        points.reverse();
        points
    }

    /// The sums of the last seconds in detail.
    pub fn last(&self, length: Duration) -> Sums {
        let mut sums = Sums::default();
        for detail in self.details.iter().rev() {
            if sums.seconds + detail.seconds / 2.0 > length.as_secs_f64() {
                break;
            }
            sums.seconds += detail.seconds;
            for second in &detail.routes {
                let (counts, buckets) = sums.routes.entry(second.route).or_default();
                *counts += second.counts;
                add(buckets, &second.buckets);
            }
            sums.others += detail.others;
            detail.limits.iter().for_each(|(limit, refused)| *sums.limits.entry(*limit).or_default() += refused);
            detail.rejections.iter().for_each(|(reason, count)| *sums.rejections.entry(reason).or_default() += count);
            detail.failures.iter().for_each(|(reason, count)| *sums.failures.entry(reason).or_default() += count);
            sums.retries += detail.retries;
            sums.retries_denied += detail.retries_denied;
        }
        sums
    }
}

fn add_total(sum: &mut Total, total: &Total) {
    sum.seconds += total.seconds;
    sum.counts += total.counts;
    add(&mut sum.buckets, &total.buckets);
    sum.priorities.iter_mut().zip(total.priorities).for_each(|(sum, counts)| *sum += counts);
    sum.shed.iter_mut().zip(total.shed).for_each(|(sum, shed)| *sum += shed);
}

/// At most `most` of `all` numbers, after those of the last time.
fn in_turn(next: &mut usize, all: usize, most: usize) -> impl Iterator<Item = usize> + use<> {
    let (first, number) = (if *next < all { *next } else { 0 }, all.min(most));
    *next = if all == 0 { 0 } else { (first + number) % all };
    (first..first + number).map(move |at| at % all)
}

/// How much a counter has increased.
fn advance(before: &mut u64, now: u64) -> u64 {
    now.saturating_sub(std::mem::replace(before, now))
}

fn added(
    seen: &mut HashMap<&'static str, u64>,
    now: impl Iterator<Item = (&'static str, u64)>,
) -> Vec<(&'static str, u64)> {
    now.map(|(reason, count)| (reason, advance(seen.entry(reason).or_default(), count)))
        .filter(|(_, added)| *added > 0)
        .collect()
}

fn keep<T>(list: &mut VecDeque<T>, entry: T, most: usize) {
    if list.len() == most {
        list.pop_front();
    }
    list.push_back(entry);
}

#[cfg(test)]
mod tests;
