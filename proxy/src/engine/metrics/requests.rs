//! Metrics of requests, by route.

use std::sync::OnceLock;
use std::time::Duration;

use http::Method;
use outrigger_metrics::{
    Declare, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Result, cumulative,
};
use outrigger_policy::priority::Priority;
use outrigger_wire::trace_context::{SpanId, TraceId};

use crate::engine::metrics::exemplars::Exemplars;
use crate::mechanism::outcome::Outcome;

/// Upper bounds in seconds for connections that stay open: event streams and upgraded connections, from a second to a day.
const STREAM_BUCKETS: [f64; 9] = [1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];

/// The histogram that has exemplars.
const DURATIONS: &str = "outrigger_request_duration_seconds";

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

/// A request's method, as a label: a client may send any name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodLabel {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// DELETE
    Delete,
    /// CONNECT
    Connect,
    /// OPTIONS
    Options,
    /// TRACE
    Trace,
    /// PATCH
    Patch,
    /// Any other one, also if the request was rejected before it was parsed.
    Other,
}

impl MethodLabel {
    const ALL: [Self; 10] = [
        Self::Get,
        Self::Head,
        Self::Post,
        Self::Put,
        Self::Delete,
        Self::Connect,
        Self::Options,
        Self::Trace,
        Self::Patch,
        Self::Other,
    ];

    /// The label of a method.
    pub fn of(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::DELETE => Self::Delete,
            Method::CONNECT => Self::Connect,
            Method::OPTIONS => Self::Options,
            Method::TRACE => Self::Trace,
            Method::PATCH => Self::Patch,
            _ => Self::Other,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
            Self::Other => "other",
        }
    }
}

/// The class of a response's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusClass {
    /// The client disconnected before there was a response.
    None,
    /// 1xx: the connection switched protocols.
    Informational,
    /// 2xx
    Successful,
    /// 3xx
    Redirection,
    /// 4xx
    ClientError,
    /// 5xx
    ServerError,
}

impl StatusClass {
    const ALL: [Self; 6] =
        [Self::None, Self::Informational, Self::Successful, Self::Redirection, Self::ClientError, Self::ServerError];

    /// The class of a status; 0 is none.
    pub const fn of(status: u16) -> Self {
        match status {
            0..100 => Self::None,
            100..200 => Self::Informational,
            200..300 => Self::Successful,
            300..400 => Self::Redirection,
            400..500 => Self::ClientError,
            _ => Self::ServerError,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Informational => "1xx",
            Self::Successful => "2xx",
            Self::Redirection => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
        }
    }
}

/// The families that have series for each route.
#[derive(Clone, Debug)]
struct RouteFamilies {
    requests: IntCounterVec,
    responses: IntCounterVec,
    durations: HistogramVec,
    first_bytes: HistogramVec,
    streams: HistogramVec,
    attempt_timeouts: GaugeVec,
    received: IntCounterVec,
    sent: IntCounterVec,
}

/// The metrics of one route. Series are created on first use, so that a thousand routes do not create ten thousand empty
/// ones.
#[derive(Debug)]
pub struct RouteMetrics {
    name: String,
    priority: Priority,
    families: RouteFamilies,
    counted: [OnceLock<IntCounter>; Outcome::ALL.len()],
    timed: [OnceLock<Histogram>; Outcome::ALL.len()],
    streamed: [OnceLock<Histogram>; StreamKind::ALL.len()],
    responses: [[OnceLock<IntCounter>; StatusClass::ALL.len()]; MethodLabel::ALL.len()],
    exemplars: [OnceLock<Exemplars>; Outcome::ALL.len()],
    first_byte: OnceLock<Histogram>,
    received: OnceLock<IntCounter>,
    sent: OnceLock<IntCounter>,
}

impl RouteMetrics {
    /// Records the time from a request's head to the head of the app's response.
    pub fn first_byte(&self, took: Duration) {
        let histogram = self.first_byte.get_or_init(|| {
            // Both begin with the first response, so that no series appears later.
            let _ = self.families.attempt_timeouts.with_label_values(&[&self.name]);
            self.families.first_bytes.with_label_values(&[&self.name])
        });
        histogram.observe(took.as_secs_f64());
    }

    /// Shows how long an attempt may take; zero: as long as the request.
    pub fn show_attempt_timeout(&self, time: Duration) {
        self.families.attempt_timeouts.with_label_values(&[&self.name]).set(time.as_secs_f64());
    }

    /// How many responses came within each of the bounds, and how many there were in all, once there was one.
    pub fn first_bytes<const N: usize>(&self) -> Option<([u64; N], u64)> {
        self.first_byte.get().map(cumulative)
    }

    /// Counts the response of a request that ended, and the bytes of both bodies.
    pub fn responded(&self, method: MethodLabel, class: StatusClass, request_bytes: u64, response_bytes: u64) {
        let name = self.name.as_str();
        let count = self.responses[method as usize][class as usize]
            .get_or_init(|| self.families.responses.with_label_values(&[name, method.name(), class.name()]));
        count.inc();
        for (counter, family, bytes) in [
            (&self.received, &self.families.received, request_bytes),
            (&self.sent, &self.families.sent, response_bytes),
        ] {
            let counter = counter.get_or_init(|| family.with_label_values(&[name]));
            if bytes > 0 {
                counter.inc_by(bytes);
            }
        }
    }

    /// Names a recorded request as an example of its duration.
    pub fn exemplify(&self, outcome: Outcome, duration: Duration, span: (TraceId, SpanId)) {
        self.exemplars[outcome as usize].get_or_init(Exemplars::default).add(duration, span);
    }

    /// Calls `each` with every exemplar, and the sample to which it belongs, as written in the text format.
    pub fn each_exemplar(&self, mut each: impl FnMut(String, String)) {
        for outcome in Outcome::ALL {
            let Some(exemplars) = self.exemplars[outcome as usize].get() else { continue };
            exemplars.each(|bound, exemplar| {
                let (name, outcome) = (&self.name, outcome.name());
                each(format!("{DURATIONS}_bucket{{outcome=\"{outcome}\",route=\"{name}\",le=\"{bound}\"}}"), exemplar);
            });
        }
    }

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
            .get_or_init(|| self.families.requests.with_label_values(&[name, self.priority.name(), outcome.name()]));
        count.inc();
        let histogram = match stream {
            Some(kind) => self.streamed[kind as usize]
                .get_or_init(|| self.families.streams.with_label_values(&[name, kind.name()])),
            None => self.timed[outcome as usize]
                .get_or_init(|| self.families.durations.with_label_values(&[name, outcome.name()])),
        };
        histogram.observe(duration.as_secs_f64());
    }
}

/// Metrics of requests.
#[derive(Debug)]
pub struct RequestMetrics {
    by_route: RouteFamilies,
    /// Requests between their head and the end of their response.
    pub in_flight: IntGauge,
}

impl RequestMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Requests");
        let by_route = RouteFamilies {
            requests: area
                .when("Is it us or the app? `rejected` is ours, the other errors are the app's.")
                .named("route", "a route's name")
                .of("priority", Priority::ALL.map(Priority::name))
                .of("outcome", Outcome::ALL.map(Outcome::name))
                .counters("outrigger_requests_total", "Requests that ended, by route, priority and outcome.")?,
            durations: area
                .when("Is it slow? Compare with the time to first byte: the rest is the transfer.")
                .named("route", "a route's name")
                .of("outcome", Outcome::ALL.map(Outcome::name))
                .histograms(
                    DURATIONS,
                    "From the end of a request's header section to the end of its response, by route and outcome; \
                     without event streams and upgraded connections.",
                )?,
            streams: area
                .when("Clients reconnect often: how long do streams last?")
                .named("route", "a route's name")
                .of("kind", StreamKind::ALL.map(StreamKind::name))
                .histograms_in(
                    &STREAM_BUCKETS,
                    "outrigger_stream_duration_seconds",
                    "How long event streams and upgraded connections (WebSocket) lasted, by route and kind.",
                )?,
            responses: area
                .when("Which requests fail: reads or writes?")
                .named("route", "a route's name")
                .of("method", MethodLabel::ALL.map(MethodLabel::name))
                .of("status", StatusClass::ALL.map(StatusClass::name))
                .counters(
                    "outrigger_responses_total",
                    "Responses, the app's and Outrigger's own, by route, method and class of the \
                     status; none if the client disconnected before.",
                )?,
            first_bytes: area
                .when(
                    "Is it slow? Without the transfer at the client's pace; event streams and \
                     WebSockets count as well.",
                )
                .named("route", "a route's name")
                .histograms(
                    "outrigger_time_to_first_byte_seconds",
                    "From the end of a request's header section until the head of the app's response \
                     is passed on, by route.",
                )?,
            attempt_timeouts: area
                .when("Attempts are given up: after what time?")
                .named("route", "a route's name")
                .reals(
                    "outrigger_attempt_timeout_seconds",
                    "How long an attempt may take before another one is made, by route: see \
                     `retry.attempt_timeout`. 0: as long as the request.",
                )?,
            received: area
                .when("What changed? Uploads are larger, or there are more of them.")
                .named("route", "a route's name")
                .counters(
                    "outrigger_request_body_bytes_total",
                    "Bytes of request bodies that clients sent, and through upgraded connections, by \
                     route; counted when a request ends.",
                )?,
            sent: area
                .when("What changed? Responses are larger: which route fills the network?")
                .named("route", "a route's name")
                .counters(
                    "outrigger_response_body_bytes_total",
                    "Bytes of response bodies that were sent to clients, and through upgraded \
                     connections, by route; counted when a request ends.",
                )?,
        };
        Ok(Self {
            by_route,
            in_flight: area
                .when("Is there room? It grows while the rate does not: requests take longer.")
                .gauge("outrigger_requests_in_flight", "Requests whose response is not complete yet.")?,
        })
    }

    /// The metrics of a route.
    pub fn for_route(&self, name: &str, priority: Priority) -> RouteMetrics {
        RouteMetrics {
            name: name.to_owned(),
            priority,
            families: self.by_route.clone(),
            counted: std::array::from_fn(|_| OnceLock::new()),
            timed: std::array::from_fn(|_| OnceLock::new()),
            streamed: std::array::from_fn(|_| OnceLock::new()),
            exemplars: std::array::from_fn(|_| OnceLock::new()),
            responses: std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new())),
            first_byte: OnceLock::new(),
            received: OnceLock::new(),
            sent: OnceLock::new(),
        }
    }

    /// Removes the series of a route that the configuration no longer has. With `keeps_name`, another one has its name: only the series
    /// with its priority go.
    pub fn forget_route(&self, name: &str, priority: Priority, keeps_name: bool) {
        let families = &self.by_route;
        for outcome in Outcome::ALL {
            // Removing a series that was never created is an error, and harmless.
            let _ = families.requests.remove_label_values(&[name, priority.name(), outcome.name()]);
        }
        if keeps_name {
            return;
        }
        for outcome in Outcome::ALL {
            let _ = families.durations.remove_label_values(&[name, outcome.name()]);
        }
        for method in MethodLabel::ALL {
            for class in StatusClass::ALL {
                let _ = families.responses.remove_label_values(&[name, method.name(), class.name()]);
            }
        }
        let _ = families.first_bytes.remove_label_values(&[name]);
        let _ = families.attempt_timeouts.remove_label_values(&[name]);
        let _ = families.received.remove_label_values(&[name]);
        let _ = families.sent.remove_label_values(&[name]);
        for kind in StreamKind::ALL {
            let _ = families.streams.remove_label_values(&[name, kind.name()]);
        }
    }
}
