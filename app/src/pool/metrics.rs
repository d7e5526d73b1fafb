//! Metrics of the databases' pools.

use outrigger_metrics::{Declare, HistogramVec, IntCounterVec, IntGaugeVec, Result};

use crate::error::Dependency;

/// Why a connection was closed.
pub const CLOSED: [&str; 4] = ["broken", "invalid", "lifetime", "idle"];

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
        let area = declare.area("Databases");
        Ok(Self {
            connections: area
                .when("Is there room? `active` at `max`: requests wait.")
                .of("pool", Dependency::ALL.map(Dependency::name))
                .of("state", ["total", "active", "idle", "max", "min"])
                .gauges("app_pool_connections", "Connections of a pool, and its bounds.")?,
            waiting: area
                .when("Is there room? Above 0, all connections are in use.")
                .of("pool", Dependency::ALL.map(Dependency::name))
                .gauges("app_pool_waiting", "Requests waiting for a connection.")?,
            acquire: area
                .when("Is it the app or a database? This is the wait for a connection.")
                .of("pool", Dependency::ALL.map(Dependency::name))
                .histograms(
                    "app_pool_acquire_seconds",
                    "How long requests waited for a connection, whether they got one or not.",
                )?,
            acquire_failures: area
                .when("Routes get 503: `exhausted` is the pool, `unavailable` the database.")
                .of("pool", Dependency::ALL.map(Dependency::name))
                .of("reason", ["exhausted", "unavailable"])
                .counters("app_pool_acquire_failures_total", "Waits for a connection that ended without one.")?,
            connection_errors: area
                .when("The database is up and does not accept connections.")
                .of("pool", Dependency::ALL.map(Dependency::name))
                .counters(
                    "app_pool_connection_errors_total",
                    "Connections that could not be opened or failed their check.",
                )?,
            opened: area
                .when("It rises with the traffic: connections are not kept.")
                .of("pool", Dependency::ALL.map(Dependency::name))
                .counters("app_pool_connections_opened_total", "Connections opened.")?,
            closed: area
                .when("Connections are opened all the time: why are they closed?")
                .of("pool", Dependency::ALL.map(Dependency::name))
                .of("reason", CLOSED)
                .counters("app_pool_connections_closed_total", "Connections closed.")?,
            leaks: area
                .when("Any increase: a handler holds a connection for too long.")
                .of("pool", Dependency::ALL.map(Dependency::name))
                .counters("app_pool_leaks_total", "Connections held longer than DB_POOL_LEAK_AFTER.")?,
            failures: area
                .when("Before a circuit breaker opens.")
                .of("dependency", Dependency::ALL.map(Dependency::name))
                .gauges("app_dependency_consecutive_failures", "Failures since the last success.")?,
        })
    }
}
