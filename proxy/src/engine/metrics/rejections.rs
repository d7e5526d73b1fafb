//! Metrics of requests that Outrigger rejects, and of those that fail at the app.

use std::sync::OnceLock;

use outrigger_metrics::{Declare, IntCounter, IntCounterVec, Result};
use outrigger_policy::flags::Mode;
use outrigger_policy::priority::Priority;
use outrigger_policy::tier::Tier;

use crate::engine::rejection::{Failure, Rejection};

/// Metrics of rejections and failures, by reason.
#[derive(Debug)]
pub struct RejectionMetrics {
    rejections: Vec<(&'static str, IntCounter)>,
    failures: [IntCounter; Failure::ALL.len()],
    /// Rejections by rate limits, bans, circuit breakers and the concurrency limit.
    pub refusals: Refusals,
}

impl RejectionMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Rejections and failures");
        let rejected = area
            .when("Who is refused and by which rule? docs/operations.md explains each reason.")
            .of("reason", Rejection::all().map(|rejection| rejection.problem().label))
            .counters("outrigger_rejections_total", "Requests that Outrigger rejected, by reason.")?;
        Ok(Self {
            rejections: Rejection::all()
                .map(|rejection| rejection.problem().label)
                .map(|label| (label, rejected.with_label_values(&[label])))
                .collect(),
            failures: area.when("Clients get 502, 503 or 504: how does the app fail?").counter_for_each(
                "outrigger_app_failures_total",
                "Requests that failed at the app, by reason.",
                "reason",
                Failure::ALL.map(|failure| failure.problem().label),
            )?,
            refusals: Refusals::new(declare)?,
        })
    }

    /// Counts a rejection.
    pub fn rejected(&self, rejection: Rejection) {
        let label = rejection.problem().label;
        if let Some((_, counter)) = self.rejections.iter().find(|(known, _)| *known == label) {
            counter.inc();
        }
    }

    /// Rejections since the process started, by reason.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.rejections.iter().map(|(label, counter)| (*label, counter.get()))
    }

    /// Failures of the app since the process started, by reason.
    pub fn failures_by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Failure::ALL.into_iter().zip(&self.failures).map(|(failure, counter)| (failure.problem().label, counter.get()))
    }

    /// Counts a failure of the app.
    pub fn failed(&self, failure: Failure) {
        self.failures[failure as usize].inc();
    }
}

/// Rejections by priority and tier.
#[derive(Debug)]
pub struct Refusals {
    counters: IntCounterVec,
    /// Created on first use; by reason, priority, tier and mode.
    made: [OnceLock<IntCounter>; REASONS.len() * Priority::ALL.len() * Tier::ALL.len() * 2],
}

/// The reasons that are counted by priority and tier.
const REASONS: [Rejection; 6] = [
    Rejection::BANNED,
    Rejection::QUOTA_EXCEEDED,
    Rejection::Overloaded,
    Rejection::BREAKER_OPEN,
    Rejection::AppRestarting,
    Rejection::AddressNotAllowed,
];

impl Refusals {
    fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Rejections and failures");
        Ok(Self {
            counters: area
                .when("Who is refused? The least important should be refused most.")
                .of("reason", REASONS.map(|reason| reason.problem().label))
                .of("priority", Priority::ALL.map(Priority::name))
                .of("tier", Tier::ALL.map(Tier::name))
                .of("mode", [Mode::Enforce, Mode::Monitor].map(Mode::name))
                .counters(
                    "outrigger_refusals_total",
                    "Requests rejected (enforce), or that would be (monitor), by limits, bans, \
                     breakers, overload or the address.",
                )?,
            made: std::array::from_fn(|_| OnceLock::new()),
        })
    }

    /// Counts a request that was rejected.
    pub fn enforced(&self, rejection: Rejection, priority: Priority, tier: Tier) {
        self.count(rejection, priority, tier, Mode::Enforce);
    }

    /// Counts a request that `enforce` would have rejected.
    pub fn monitored(&self, rejection: Rejection, priority: Priority, tier: Tier) {
        self.count(rejection, priority, tier, Mode::Monitor);
    }

    /// Requests of a priority that were rejected to protect the app: at the concurrency limit, or while it restarts.
    pub fn shed(&self, priority: Priority) -> u64 {
        let is_shed = |reason: &usize| matches!(REASONS[*reason], Rejection::Overloaded | Rejection::AppRestarting);
        let rows = (0..REASONS.len()).filter(is_shed).flat_map(|reason| {
            Tier::ALL.map(|tier| (reason * Priority::ALL.len() + priority as usize) * Tier::ALL.len() + tier as usize)
        });
        rows.filter_map(|row| self.made[row * 2].get()).map(IntCounter::get).sum()
    }

    fn count(&self, rejection: Rejection, priority: Priority, tier: Tier, mode: Mode) {
        let label = rejection.problem().label;
        let Some(reason) = REASONS.iter().position(|known| known.problem().label == label) else { return };
        let row = (reason * Priority::ALL.len() + priority as usize) * Tier::ALL.len() + tier as usize;
        let labels = [label, priority.name(), tier.name(), mode.name()];
        let index = row * 2 + usize::from(mode == Mode::Monitor);
        self.made[index].get_or_init(|| self.counters.with_label_values(&labels)).inc();
    }
}
