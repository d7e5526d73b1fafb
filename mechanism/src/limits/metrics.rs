//! Metrics of rate limits.

use outrigger_metrics::{Declare, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Result};
use outrigger_policy::flags;

use crate::limits::shared::Mode;

/// Metrics of rate limits.
#[derive(Debug)]
pub struct LimitsMetrics {
    /// Requests whose keys did not fit into the table of rate limits.
    pub overflow: IntCounter,
    refusals: IntCounterVec,
    keys: IntGaugeVec,
    /// Shared rate limits.
    pub shared: SharedLimits,
}

impl LimitsMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        Ok(Self {
            overflow: declare.counter(
                "outrigger_limit_overflow_total",
                "Requests whose key did not fit into the table of rate limits; they share one quota.",
            )?,
            refusals: declare.counters(
                "outrigger_limit_refusals_total",
                "Requests over a rate limit, rejected (enforce) or only counted (monitor).",
                &["limit", "mode"],
            )?,
            keys: declare.gauges(
                "outrigger_limit_keys",
                "Keys of rate limits that are not idle (used), and how many fit into the table (room).",
                &["state"],
            )?,
            shared: SharedLimits::new(declare)?,
        })
    }

    /// The counters of a rate limit.
    pub fn for_limit(&self, name: &str) -> LimitMetrics {
        LimitMetrics {
            enforced: self.refusals.with_label_values(&[name, flags::Mode::Enforce.name()]),
            monitored: self.refusals.with_label_values(&[name, flags::Mode::Monitor.name()]),
        }
    }

    /// Removes the series of a rate limit that the configuration no longer has.
    pub fn forget(&self, name: &str) {
        for mode in [flags::Mode::Enforce, flags::Mode::Monitor] {
            // Exists: it was created with the limit.
            let _ = self.refusals.remove_label_values(&[name, mode.name()]);
        }
    }

    /// Shows how many keys are not idle, and how many fit into the table.
    pub fn show(&self, (used, room): (usize, usize)) {
        for (state, keys) in [("used", used), ("room", room)] {
            self.keys.with_label_values(&[state]).set(i64::try_from(keys).unwrap_or(i64::MAX));
        }
    }
}

/// The counters of one rate limit.
#[derive(Debug)]
pub struct LimitMetrics {
    /// Requests that it rejected.
    pub enforced: IntCounter,
    /// Requests that it would have rejected.
    pub monitored: IntCounter,
}

/// The metrics of shared rate limits.
#[derive(Clone, Debug)]
pub struct SharedLimits {
    states: IntGaugeVec,
    /// The number of Machines among which quotas are divided.
    pub machines: IntGauge,
    /// Keys that are not idle.
    pub keys: IntGauge,
    /// Usage reports, one per lease, that Redis has applied.
    pub settled: IntCounter,
    /// Tokens spent, in these reports.
    pub spent: IntCounter,
    /// Tokens given back, in these reports.
    pub given_back: IntCounter,
    /// How long Redis took for a batch of usage reports.
    pub exchanges: Histogram,
    errors: IntCounterVec,
}

impl SharedLimits {
    fn new(declare: &Declare) -> Result<Self> {
        Ok(Self {
            states: declare.gauges(
                "outrigger_shared_limits_state",
                "How shared rate limits are enforced: 1 for one of shared (with Redis), degraded (per Machine), off.",
                &["state"],
            )?,
            machines: declare.gauge("outrigger_shared_limits_machines", "Machines among which quotas are divided.")?,
            keys: declare.gauge("outrigger_shared_limits_keys", "Keys of shared rate limits that are not idle.")?,
            settled: declare.counter(
                "outrigger_shared_limits_leases_settled_total",
                "Usage reports, one per lease, that Redis has applied.",
            )?,
            spent: declare.counter(
                "outrigger_shared_limits_tokens_total",
                "Tokens spent, in usage reports that Redis has applied.",
            )?,
            given_back: declare.counter(
                "outrigger_shared_limits_tokens_returned_total",
                "Tokens given back, in usage reports that Redis has applied.",
            )?,
            exchanges: declare.histogram(
                "outrigger_shared_limits_exchange_seconds",
                "How long Redis takes for a batch of usage reports.",
            )?,
            errors: declare.counters(
                "outrigger_shared_limits_errors_total",
                "Failed exchanges with Redis, by kind of error.",
                &["kind"],
            )?,
        })
    }

    /// Shows the mode in force.
    pub fn show(&self, mode: Mode) {
        for state in Mode::ALL {
            self.states.with_label_values(&[state.name()]).set((state == mode).into());
        }
    }

    /// Counts a failed exchange with Redis.
    pub fn failed(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
    }
}
