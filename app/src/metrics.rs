//! Declares every metric of the app.
//!
//! Label values come from enums, the configuration and the router's path templates, never from a request.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// Upper bounds in seconds, 0.5 ms to 60 s, the same as the proxy's.
const DURATION_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Handles to every metric. Clones are cheap and refer to the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    reference: Reference,
    pub http_requests: IntCounterVec,
    pub http_duration: HistogramVec,
    pub http_in_flight: IntGauge,
    pub auth_refusals: IntCounterVec,
    pub panics: IntCounter,
    pub pool_connections: IntGaugeVec,
    pub pool_waiting: IntGaugeVec,
    pub pool_acquire: HistogramVec,
    pub pool_acquire_failures: IntCounterVec,
    pub pool_connection_errors: IntCounterVec,
    pub pool_opened: IntCounterVec,
    pub pool_closed: IntCounterVec,
    pub pool_leaks: IntCounterVec,
    pub outbox_depth: IntGauge,
    pub outbox_oldest_age: Gauge,
    pub outbox_applied: IntCounterVec,
    pub searches_degraded: IntCounter,
    pub dependency_up: IntGaugeVec,
    pub dependency_failures: IntGaugeVec,
    pub breaker_state: IntGaugeVec,
    pub breaker_transitions: IntCounterVec,
    pub breaker_refusals: IntCounterVec,
    pub audit_rows: IntCounterVec,
    pub audit_batches: IntCounterVec,
    pub audit_ingest: Histogram,
    pub audit_partitions: IntGauge,
    pub audit_events: IntCounterVec,
    pub loop_lag: Gauge,
    pub loop_lag_seen: Histogram,
    pub draining: IntGauge,
}

impl Metrics {
    /// All metrics at zero, in a new registry.
    ///
    /// # Errors
    /// A name is declared twice or is invalid: a bug that the tests find.
    pub fn new() -> Result<Self, prometheus::Error> {
        let r = Declare::default();
        let metrics = Self {
            http_requests: add(
                &r,
                IntCounterVec::new(
                    Opts::new("app_http_requests_total", "Requests completed, by path template, method and status."),
                    &["route", "method", "status"],
                )?,
            )?,
            http_duration: add(
                &r,
                HistogramVec::new(
                    histogram("app_http_request_duration_seconds", "Time from request head to response head."),
                    &["route"],
                )?,
            )?,
            http_in_flight: add(&r, IntGauge::new("app_http_requests_in_flight", "Requests in progress.")?)?,
            auth_refusals: counters(&r, "app_auth_refusals_total", "Requests rejected with 401.", &["reason"])?,
            panics: add(&r, IntCounter::new("app_panics_total", "Handlers that panicked; their clients got 500.")?)?,
            pool_connections: gauges(
                &r,
                "app_pool_connections",
                "Connections of a pool, and its bounds.",
                &["pool", "state"],
            )?,
            pool_waiting: gauges(&r, "app_pool_waiting", "Requests waiting for a connection.", &["pool"])?,
            pool_acquire: add(
                &r,
                HistogramVec::new(
                    histogram(
                        "app_pool_acquire_seconds",
                        "How long requests waited for a connection, whether they got one or not.",
                    ),
                    &["pool"],
                )?,
            )?,
            pool_acquire_failures: counters(
                &r,
                "app_pool_acquire_failures_total",
                "Waits for a connection that ended without one.",
                &["pool", "reason"],
            )?,
            pool_connection_errors: counters(
                &r,
                "app_pool_connection_errors_total",
                "Connections that could not be opened or failed their check.",
                &["pool"],
            )?,
            pool_opened: counters(&r, "app_pool_connections_opened_total", "Connections opened.", &["pool"])?,
            pool_closed: counters(&r, "app_pool_connections_closed_total", "Connections closed.", &["pool", "reason"])?,
            pool_leaks: counters(
                &r,
                "app_pool_leaks_total",
                "Connections held longer than DB_POOL_LEAK_AFTER.",
                &["pool"],
            )?,
            outbox_depth: add(
                &r,
                IntGauge::new(
                    "app_outbox_depth",
                    "Documents whose latest change ChromaDB does not have yet, of all Machines.",
                )?,
            )?,
            outbox_oldest_age: add(
                &r,
                Gauge::new(
                    "app_outbox_oldest_age_seconds",
                    "Age of the oldest change that ChromaDB does not have yet, or 0.",
                )?,
            )?,
            outbox_applied: counters(
                &r,
                "app_outbox_applied_total",
                "Attempts to bring a document up to date in ChromaDB.",
                &["by", "result"],
            )?,
            searches_degraded: add(
                &r,
                IntCounter::new("app_searches_degraded_total", "Searches served from ChromaDB alone.")?,
            )?,
            dependency_up: gauges(&r, "app_dependency_up", "1 when the last check succeeded.", &["dependency"])?,
            dependency_failures: gauges(
                &r,
                "app_dependency_consecutive_failures",
                "Failures since the last success.",
                &["dependency"],
            )?,
            breaker_state: gauges(
                &r,
                "app_breaker_state",
                "1 for the current state of a database's circuit breaker, 0 for the others.",
                &["dependency", "state"],
            )?,
            breaker_transitions: counters(
                &r,
                "app_breaker_transitions_total",
                "State changes of a database's circuit breaker, by new state.",
                &["dependency", "to"],
            )?,
            breaker_refusals: counters(
                &r,
                "app_breaker_refusals_total",
                "Calls that an open circuit breaker rejected, or would have (mode=monitor).",
                &["dependency", "mode"],
            )?,
            audit_rows: counters(
                &r,
                "app_audit_rows_total",
                "Audit entries received from proxies, by result.",
                &["result"],
            )?,
            audit_batches: counters(
                &r,
                "app_audit_batches_total",
                "Batches of audit entries received from proxies, by result.",
                &["result"],
            )?,
            audit_ingest: add(
                &r,
                Histogram::with_opts(histogram(
                    "app_audit_ingest_duration_seconds",
                    "Time to store a batch of audit entries, after it was read.",
                ))?,
            )?,
            audit_partitions: add(
                &r,
                IntGauge::new("app_audit_partitions", "Monthly partitions of the audit log, all classes.")?,
            )?,
            audit_events: counters(
                &r,
                "app_audit_events_total",
                "Operations on documents that the app records if they succeed, or would (mode=monitor).",
                &["type", "mode"],
            )?,
            loop_lag: add(&r, Gauge::new("app_event_loop_lag_seconds", "How late the last timer fired.")?)?,
            loop_lag_seen: add(
                &r,
                Histogram::with_opts(histogram(
                    "app_event_loop_lag_distribution_seconds",
                    "How late timers fire, measured every 100 ms.",
                ))?,
            )?,
            draining: add(&r, IntGauge::new("app_draining", "1 from SIGTERM on.")?)?,
            registry: r.registry.clone(),
            reference: Arc::clone(&r.reference),
        };
        let build =
            add(&r, GaugeVec::new(Opts::new("app_build_info", "Always 1; the label has the version."), &["version"])?)?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        let process = ProcessCollector::for_self();
        r.describe(&process);
        r.registry.register(Box::new(process))?;
        Ok(metrics)
    }

    /// Name, type, labels and help of each metric, one line each, separated by tabs: the source of docs/metrics.md.
    #[must_use]
    pub fn reference(&self) -> String {
        self.reference.lock().unwrap_or_else(PoisonError::into_inner).concat()
    }

    /// The text exposition of all metrics, and its content type.
    ///
    /// # Errors
    /// A metric cannot be encoded: a bug.
    pub fn render(&self) -> Result<(Vec<u8>, String), prometheus::Error> {
        let encoder = TextEncoder::new();
        let mut text = Vec::with_capacity(16 * 1024);
        encoder.encode(&self.registry.gather(), &mut text)?;
        Ok((text, encoder.format_type().to_owned()))
    }
}

type Reference = Arc<Mutex<Vec<String>>>;

/// Registers metrics and records their descriptions.
#[derive(Default)]
struct Declare {
    registry: Registry,
    reference: Reference,
}

impl Declare {
    fn describe(&self, collector: &dyn Collector) {
        let families = collector.collect();
        let kind = |name: &str| families.iter().find(|family| family.name() == name).map(|f| f.get_field_type());
        let lines = collector.desc().into_iter().map(|metric| {
            let kind = kind(&metric.fq_name).map_or_else(String::new, |kind| format!("{kind:?}").to_lowercase());
            format!("{}\t{kind}\t{}\t{}\n", metric.fq_name, metric.variable_labels.join(", "), metric.help)
        });
        self.reference.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
    }
}

fn add<C: Collector + Clone + 'static>(declare: &Declare, metric: C) -> Result<C, prometheus::Error> {
    declare.describe(&metric);
    declare.registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec())
}

fn counters(r: &Declare, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    add(r, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauges(r: &Declare, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    add(r, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new().unwrap();
        metrics.auth_refusals.with_label_values(&["missing"]).inc();
        for family in metrics.registry.gather() {
            let name = family.name();
            assert!(name.starts_with("app_") || name.starts_with("process_"), "{name}");
            assert!(!family.help().is_empty(), "{name} has no help");
            let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
            assert_eq!(counter, name.ends_with("_total"), "{name}");
        }
    }

    #[test]
    fn the_reference_has_every_metric() {
        let reference = Metrics::new().unwrap().reference();
        xtask::reference::metrics("docs/metrics.md", "app metrics", &reference).unwrap();
    }
}
