//! Metrics of requests, by route.

use std::sync::OnceLock;
use std::time::Duration;

use outrigger_metrics::{Declare, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Result, cumulative};
use outrigger_policy::priority::Priority;

use crate::mechanism::outcome::Outcome;

/// Upper bounds in seconds for connections that stay open: event streams and upgraded connections, from a second to a day.
const STREAM_BUCKETS: [f64; 9] = [1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];

/// A response that stays open for as long as both sides like: its duration says nothing about how quickly the app responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// A response with the media type `text/event-stream`.
    EventStream,
    /// A connection that switched protocols (101), such as a WebSocket.
    Upgrade,
}

impl StreamKind {
    const ALL: [Self; 2] = [Self::EventStream, Self::Upgrade];

    /// The label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EventStream => "event_stream",
            Self::Upgrade => "upgrade",
        }
    }
}

/// The metrics of one route. Series are created on first use, so that a thousand routes do not create ten thousand empty
/// ones.
#[derive(Debug)]
pub struct RouteMetrics {
    name: String,
    priority: Priority,
    requests: IntCounterVec,
    durations: HistogramVec,
    streams: HistogramVec,
    counted: [OnceLock<IntCounter>; Outcome::ALL.len()],
    timed: [OnceLock<Histogram>; Outcome::ALL.len()],
    streamed: [OnceLock<Histogram>; StreamKind::ALL.len()],
}

impl RouteMetrics {
    /// Requests that ended with a complete response of the app.
    pub fn answered(&self) -> u64 {
        let outcomes = [Outcome::Success, Outcome::Redirect, Outcome::ClientError, Outcome::ServerError];
        outcomes.iter().filter_map(|outcome| self.counted[*outcome as usize].get()).map(IntCounter::get).sum()
    }

    /// Requests that ended since the process started, by outcome. An outcome that this version of the configuration has not seen
    /// yet is 0.
    pub fn counts(&self) -> [u64; Outcome::ALL.len()] {
        std::array::from_fn(|outcome| self.counted[outcome].get().map_or(0, IntCounter::get))
    }

    /// How many requests with an outcome took at most each of the bounds, and how many there were in all. `None`: none yet.
    pub fn durations<const N: usize>(&self, outcome: Outcome) -> Option<([u64; N], u64)> {
        self.timed[outcome as usize].get().map(cumulative)
    }

    /// Counts a request that ended. Streams have a histogram of their own for their duration.
    pub fn record(&self, outcome: Outcome, duration: Duration, stream: Option<StreamKind>) {
        let name = self.name.as_str();
        let count = self.counted[outcome as usize]
            .get_or_init(|| self.requests.with_label_values(&[name, self.priority.name(), outcome.name()]));
        count.inc();
        let histogram = match stream {
            Some(kind) => {
                self.streamed[kind as usize].get_or_init(|| self.streams.with_label_values(&[name, kind.name()]))
            }
            None => {
                self.timed[outcome as usize].get_or_init(|| self.durations.with_label_values(&[name, outcome.name()]))
            }
        };
        histogram.observe(duration.as_secs_f64());
    }
}

/// Metrics of requests.
#[derive(Debug)]
pub struct RequestMetrics {
    ended: IntCounterVec,
    durations: HistogramVec,
    streams: HistogramVec,
    /// Requests between their head and the end of their response.
    pub in_flight: IntGauge,
}

impl RequestMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        Ok(Self {
            ended: declare.counters(
                "outrigger_requests_total",
                "Requests that ended, by route, priority and outcome.",
                &["route", "priority", "outcome"],
            )?,
            durations: declare.histograms(
                "outrigger_request_duration_seconds",
                "From the end of a request's header section to the end of its response, by route and outcome; \
                 without event streams and upgraded connections.",
                &["route", "outcome"],
            )?,
            streams: declare.histograms_in(
                &STREAM_BUCKETS,
                "outrigger_stream_duration_seconds",
                "How long event streams and upgraded connections (WebSocket) lasted, by route and kind.",
                &["route", "kind"],
            )?,
            in_flight: declare.gauge("outrigger_requests_in_flight", "Requests whose response is not complete yet.")?,
        })
    }

    /// The metrics of a route.
    pub fn for_route(&self, name: &str, priority: Priority) -> RouteMetrics {
        RouteMetrics {
            name: name.to_owned(),
            priority,
            requests: self.ended.clone(),
            durations: self.durations.clone(),
            streams: self.streams.clone(),
            counted: std::array::from_fn(|_| OnceLock::new()),
            timed: std::array::from_fn(|_| OnceLock::new()),
            streamed: std::array::from_fn(|_| OnceLock::new()),
        }
    }

    /// Removes the series of a route that the configuration no longer has.
    pub fn forget_route(&self, name: &str, priority: Priority) {
        for outcome in Outcome::ALL {
            // Removing a series that was never created is an error, and harmless.
            let _ = self.ended.remove_label_values(&[name, priority.name(), outcome.name()]);
            let _ = self.durations.remove_label_values(&[name, outcome.name()]);
        }
        for kind in StreamKind::ALL {
            let _ = self.streams.remove_label_values(&[name, kind.name()]);
        }
    }
}
