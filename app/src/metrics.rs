//! The metrics of the app, each declared beside its mechanism.
//!
//! Label values come from enums, the configuration and the router's path templates, never from a request.

use outrigger_metrics::{Catalogue, Declare, Gauge, Histogram, IntCounter, IntGauge, Result};

use crate::audit::metrics::AuditMetrics;
use crate::breaker::metrics::BreakerMetrics;
use crate::exchange::RequestMetrics;
use crate::health::HealthMetrics;
use crate::outbox::OutboxMetrics;
use crate::pool::metrics::PoolMetrics;

/// Upper bounds in seconds, 0.5 ms to 60 s: the proxy's without its last.
const DURATION_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Handles to every metric. Clones are cheap and refer to the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    catalogue: Catalogue,
    pub requests: RequestMetrics,
    pub pool: PoolMetrics,
    pub outbox: OutboxMetrics,
    pub health: HealthMetrics,
    pub breaker: BreakerMetrics,
    pub audit: AuditMetrics,
    pub searches_degraded: IntCounter,
    pub event_loop: LoopMetrics,
    pub draining: IntGauge,
}

impl Metrics {
    /// All metrics at zero, in a new registry.
    ///
    /// # Errors
    /// A name is declared twice or is invalid: a bug that the tests find.
    pub fn new() -> Result<Self> {
        let declare = Declare::new(&DURATION_BUCKETS);
        let area = declare.area("Requests");
        declare.program("app_build_info", env!("CARGO_PKG_VERSION"))?;
        Ok(Self {
            requests: RequestMetrics::new(&declare)?,
            pool: PoolMetrics::new(&declare)?,
            outbox: OutboxMetrics::new(&declare)?,
            health: HealthMetrics::new(&declare)?,
            breaker: BreakerMetrics::new(&declare)?,
            audit: AuditMetrics::new(&declare)?,
            searches_degraded: area
                .when("Search results are incomplete: PostgreSQL does not respond.")
                .counter("app_searches_degraded_total", "Searches served from ChromaDB alone.")?,
            event_loop: LoopMetrics::new(&declare)?,
            draining: declare
                .area("Process")
                .when("During a deploy: which process is leaving?")
                .gauge("app_draining", "1 from SIGTERM on.")?,
            catalogue: declare.finish(),
        })
    }

    /// All metrics, as docs/metrics.md describes them: see [`Catalogue::reference`].
    #[must_use]
    pub fn reference(&self) -> &str {
        self.catalogue.reference()
    }

    /// The text exposition of all metrics.
    ///
    /// # Errors
    /// A metric cannot be encoded: a bug.
    pub fn render(&self) -> Result<String> {
        self.catalogue.render()
    }
}

/// How late timers fire.
#[derive(Clone, Debug)]
pub struct LoopMetrics {
    pub lag: Gauge,
    pub lag_seen: Histogram,
}

impl LoopMetrics {
    fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Process");
        Ok(Self {
            lag: area.when("The same, now.").real("app_event_loop_lag_seconds", "How late the last timer fired.")?,
            lag_seen: area
                .when("Everything is slow: a handler blocks a thread, or the processor is busy.")
                .histogram("app_event_loop_lag_distribution_seconds", "How late timers fire, measured every 100 ms.")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for line in Metrics::new().unwrap().reference().lines() {
            let [_, name, kind, _, _, help, when] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            assert!(name.starts_with("app_") || name.starts_with("process_"), "{name}");
            assert!(!help.is_empty() && !when.is_empty(), "{name} has no help");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        }
    }

    #[test]
    fn the_reference_has_every_metric() {
        let metrics = Metrics::new().unwrap();
        xtask::reference::metrics("docs/metrics.md", "app metrics", metrics.reference()).unwrap();
    }
}
