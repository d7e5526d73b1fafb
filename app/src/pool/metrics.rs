//! Metrics of the databases' pools.

use outrigger_metrics::{Declare, HistogramVec, IntCounterVec, IntGaugeVec, Result};

/// Metrics of the databases' pools; each has the label `pool`.
#[derive(Clone, Debug)]
pub struct PoolMetrics {
    pub connections: IntGaugeVec,
    pub waiting: IntGaugeVec,
    pub acquire: HistogramVec,
    pub acquire_failures: IntCounterVec,
    pub connection_errors: IntCounterVec,
    pub opened: IntCounterVec,
    pub closed: IntCounterVec,
    pub leaks: IntCounterVec,
    /// Failures of the database since its last success.
    pub failures: IntGaugeVec,
}

impl PoolMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        Ok(Self {
            connections: declare.gauges(
                "app_pool_connections",
                "Connections of a pool, and its bounds.",
                &["pool", "state"],
            )?,
            waiting: declare.gauges("app_pool_waiting", "Requests waiting for a connection.", &["pool"])?,
            acquire: declare.histograms(
                "app_pool_acquire_seconds",
                "How long requests waited for a connection, whether they got one or not.",
                &["pool"],
            )?,
            acquire_failures: declare.counters(
                "app_pool_acquire_failures_total",
                "Waits for a connection that ended without one.",
                &["pool", "reason"],
            )?,
            connection_errors: declare.counters(
                "app_pool_connection_errors_total",
                "Connections that could not be opened or failed their check.",
                &["pool"],
            )?,
            opened: declare.counters("app_pool_connections_opened_total", "Connections opened.", &["pool"])?,
            closed: declare.counters(
                "app_pool_connections_closed_total",
                "Connections closed.",
                &["pool", "reason"],
            )?,
            leaks: declare.counters(
                "app_pool_leaks_total",
                "Connections held longer than DB_POOL_LEAK_AFTER.",
                &["pool"],
            )?,
            failures: declare.gauges(
                "app_dependency_consecutive_failures",
                "Failures since the last success.",
                &["dependency"],
            )?,
        })
    }
}
