//! Metrics of the concurrency limit and its queue.

use outrigger_metrics::{Declare, Gauge, Histogram, IntGauge, IntGaugeVec, Result};
use outrigger_policy::priority::Priority;

use crate::gate::Standing;

/// Metrics of the concurrency limit and its queue.
#[derive(Debug)]
pub struct GateMetrics {
    limit: IntGauge,
    in_flight: IntGauge,
    queue: IntGaugeVec,
    room: IntGauge,
    latency: Gauge,
    /// How long requests waited for the permit that they got.
    pub wait: Histogram,
}

impl GateMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Concurrency limit");
        Ok(Self {
            limit: area
                .when("It falls: the app became slower with more requests at a time.")
                .gauge("outrigger_admission_limit", "Concurrency limit: requests that the app may handle at a time.")?,
            in_flight: area
                .when("Compare with the limit: at the limit, requests wait.")
                .gauge("outrigger_admission_in_flight", "Requests that hold a permit of the concurrency limit.")?,
            queue: area
                .when("Is there room? Above 0 the app is saturated.")
                .of("priority", Priority::ALL.map(Priority::name))
                .gauges("outrigger_admission_queue", "Requests that wait for a permit.")?,
            room: area
                .when("The queue is at this length: requests are rejected with 503.")
                .gauge("outrigger_admission_queue_limit", "Requests that may wait for a permit now.")?,
            latency: area
                .when("Is it us or the app? This is the app's part of a request's duration.")
                .real("outrigger_admission_latency_seconds", "The app's latency, up to the head of its response.")?,
            wait: area
                .when("Is it us or the app? This is the queue's part of a request's duration.")
                .histogram("outrigger_admission_wait_seconds", "How long requests waited for the permit they got.")?,
        })
    }

    /// Shows the state of the concurrency limit.
    pub fn show(&self, gate: &Standing) {
        self.limit.set(gate.limit.into());
        self.in_flight.set(gate.in_flight.into());
        self.room.set(gate.room.into());
        self.latency.set(gate.latency.unwrap_or_default().as_secs_f64());
        for (priority, waiting) in Priority::ALL.into_iter().zip(gate.waiting) {
            self.queue.with_label_values(&[priority.name()]).set(waiting.into());
        }
    }
}
