//! Metrics of rate limits.

use outrigger_metrics::{Declare, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Result};
use outrigger_policy::flags;

use crate::limits::shared::Mode;

/// The states of keys: not idle, and all that fit.
const STATES: [&str; 2] = ["used", "room"];

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
        let area = declare.area("Rate limits");
        Ok(Self {
            overflow: area.when("Any increase: raise `rate_limits.max_keys`.").counter(
                "outrigger_limit_overflow_total",
                "Requests whose key did not fit into the table of rate limits; they share one quota.",
            )?,
            refusals: area
                .when("Who is refused and by which rule? And before `enforce`: who would be?")
                .named("limit", "a rate limit's name")
                .of("mode", [flags::Mode::Enforce, flags::Mode::Monitor].map(flags::Mode::name))
                .counters(
                    "outrigger_limit_refusals_total",
                    "Requests over a rate limit, rejected (enforce) or only counted (monitor).",
                )?,
            keys: area.when("Is there room? Near `room`, new clients share one quota.").of("state", STATES).gauges(
                "outrigger_limit_keys",
                "Keys of rate limits that are not idle (used), and how many fit into the table \
                 (room).",
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
        for (state, keys) in STATES.into_iter().zip([used, room]) {
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
        let area = declare.area("Rate limits");
        Ok(Self {
            states: area
                .when("Limits differ between Machines: do they count with Redis?")
                .of("state", Mode::ALL.map(Mode::name))
                .gauges(
                    "outrigger_shared_limits_state",
                    "How shared rate limits are enforced: 1 for one of shared (with Redis), degraded \
                     (per Machine), off.",
                )?,
            machines: area
                .when("A limit seems too strict: among how many Machines is it divided?")
                .gauge("outrigger_shared_limits_machines", "Machines among which quotas are divided.")?,
            keys: area
                .when("Is there room? How many clients use shared limits now?")
                .gauge("outrigger_shared_limits_keys", "Keys of shared rate limits that are not idle.")?,
            settled: area.when("It stands still while there is traffic: Redis gets no reports.").counter(
                "outrigger_shared_limits_leases_settled_total",
                "Usage reports, one per lease, that Redis has applied.",
            )?,
            spent: area.when("Part of the accounting: use of shared limits by all Machines.").counter(
                "outrigger_shared_limits_tokens_total",
                "Tokens spent, in usage reports that Redis has applied.",
            )?,
            given_back: area.when("Part of the accounting: what was charged and not used.").counter(
                "outrigger_shared_limits_tokens_returned_total",
                "Tokens given back, in usage reports that Redis has applied.",
            )?,
            exchanges: area.when("Shared limits are imprecise: is Redis slow?").histogram(
                "outrigger_shared_limits_exchange_seconds",
                "How long Redis takes for a batch of usage reports.",
            )?,
            errors: area
                .when("The state is `degraded`: why?")
                .of("kind", ["connect", "timeout", "closed", "refused", "nonsense"])
                .counters("outrigger_shared_limits_errors_total", "Failed exchanges with Redis, by kind of error.")?,
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
