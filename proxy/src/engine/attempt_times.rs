//! How long attempts may take, by route: fixed by the configuration, or from the latency of the route's recent responses.
//!
//! A task looks at the histograms of the time to the first byte once per second, so measuring costs a request nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrigger_identity::clock;
use outrigger_policy::latency::{self, Recent};
use outrigger_rules::sections::retry::RetryRules;
use outrigger_rules::sections::route_table::Route;
use outrigger_rules::units::{AutoSpan, Span};

use crate::engine::metrics::BUCKETS;
use crate::engine::state::State;

/// How often latencies are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The percentile.
const SHARE: f64 = 0.99;

/// The times of one route, in microseconds in one word, so that an attempt learns both with one load: the upper half is when a peer is
/// asked as well, the lower half when the attempt is overdue. 0: never.
#[derive(Debug, Default)]
pub struct AttemptTimes(AtomicU64);

impl AttemptTimes {
    /// Before anything is measured.
    pub fn new(rules: &RetryRules, route: &Route) -> Self {
        let times = Self::default();
        times.set(rules, route, None);
        times
    }

    /// Sets them for a route whose 99th percentile is known or not.
    fn set(&self, rules: &RetryRules, route: &Route, p99: Option<Duration>) {
        let time = |rule: AutoSpan, auto: &dyn Fn(Duration, Duration) -> Option<Duration>| {
            let time = match rule {
                _ if route.is_health => None,
                AutoSpan::Off => None,
                AutoSpan::Fixed(Span(time)) => Some(time),
                AutoSpan::Auto => p99.and_then(|p99| auto(p99, route.timeout)),
            };
            // Longer ones count as never: more than an hour.
            time.and_then(|time| u32::try_from(time.as_micros()).ok()).unwrap_or(0)
        };
        let hedge = time(rules.hedge, &latency::hedge_delay);
        let least = rules.attempt_timeout_min;
        let overdue = time(rules.attempt_timeout, &|p99, timeout| latency::attempt_timeout(p99, timeout, least));
        self.0.store(u64::from(hedge) << 32 | u64::from(overdue), Ordering::Relaxed);
    }

    /// After how long a peer is asked as well, and when an attempt is overdue. Zero: never.
    pub fn get(&self) -> (Duration, Duration) {
        let both = self.0.load(Ordering::Relaxed);
        (Duration::from_micros(both >> 32), Duration::from_micros(both & u64::from(u32::MAX)))
    }
}

/// Measures latencies for the life of the process.
pub async fn keep_measured(state: Arc<State>) {
    let mut recent: HashMap<Arc<str>, Recent<{ BUCKETS.len() }>> = HashMap::new();
    let mut last = clock::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = clock::now();
        let passed = now - std::mem::replace(&mut last, now);
        let rules = state.rules.load_full();
        let retry = &rules.config.retry;
        if retry.hedge != AutoSpan::Auto && retry.attempt_timeout != AutoSpan::Auto {
            recent.clear();
            continue;
        }
        let routes = rules.config.routes.all();
        let names: HashSet<&Arc<str>> = routes.iter().map(|route| &route.name).collect();
        recent.retain(|name, _| names.contains(name));
        for ((route, metrics), times) in routes.iter().zip(&rules.route_metrics).zip(&rules.attempt_times) {
            // Routes without requests cost nothing.
            let Some((counts, all)) = metrics.first_bytes() else { continue };
            let recent = recent.entry(Arc::clone(&route.name)).or_default();
            recent.add(counts, all, passed);
            times.set(retry, route, recent.quantile(SHARE, &BUCKETS));
            metrics.show_attempt_timeout(times.get().1);
        }
    }
}
