//! Every metric of the proxy, declared once.
//!
//! Labels come from enums or the configuration, never from a request. Metrics of the hot path are looked up when the
//! configuration is loaded, so that counting is one addition.

pub mod audit;

use std::cell::RefCell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use outrigger_policy::abuse::Offence;
use outrigger_policy::breaker::State as Position;
use outrigger_policy::flags::{Feature, Mode};
use outrigger_policy::priority::Priority;
use outrigger_policy::tier::Tier;
use outrigger_rules::config::Config;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::engine::exchange::Exchange;
pub use crate::engine::metrics::audit::AuditMetrics;
use crate::engine::rejection::{Failure, Rejection};
use crate::mechanism::exposition;
use crate::mechanism::gate::Standing;
use crate::mechanism::limits::shared::Mode as Sharing;
use crate::mechanism::peers::{self, Peers, hop};
use crate::transport::upstream::Resource;

/// Upper bounds in seconds, from half a millisecond to two minutes: enough to see a route's default timeout (60 s) and
/// requests that wait for an upstream that restarts.
const BUCKETS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Upper bounds in seconds for connections that stay open: event streams and upgraded connections, from a second to a day.
const STREAM_BUCKETS: [f64; 9] = [1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The app responded with 1xx or 2xx.
    Success,
    /// The app responded with 3xx.
    Redirect,
    /// The app responded with 4xx.
    ClientError,
    /// The app responded with 5xx.
    ServerError,
    /// Outrigger rejected it.
    Rejected,
    /// 502: the app could not be reached or did not speak HTTP.
    BadGateway,
    /// 503: the app could not be reached, and Outrigger responded in its place.
    Unavailable,
    /// 504: the app was too slow.
    GatewayTimeout,
    /// 499: the client disconnected early.
    ClientClosed,
    /// The response was cut off.
    Truncated,
    /// 500: an error of Outrigger itself.
    Internal,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 11] = [
        Self::Success,
        Self::Redirect,
        Self::ClientError,
        Self::ServerError,
        Self::Rejected,
        Self::BadGateway,
        Self::Unavailable,
        Self::GatewayTimeout,
        Self::ClientClosed,
        Self::Truncated,
        Self::Internal,
    ];

    /// The label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Redirect => "redirect",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::Rejected => "rejected",
            Self::BadGateway => "bad_gateway",
            Self::Unavailable => "unavailable",
            Self::GatewayTimeout => "gateway_timeout",
            Self::ClientClosed => "client_closed",
            Self::Truncated => "truncated",
            Self::Internal => "internal",
        }
    }
}

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

/// The counters of one rate limit.
#[derive(Debug)]
pub struct LimitMetrics {
    /// Requests that it rejected.
    pub enforced: IntCounter,
    /// Requests that it would have rejected.
    pub monitored: IntCounter,
}

/// The metrics of shared rate limits.
#[derive(Debug)]
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
    fn new(declare: &Declare<'_>) -> Result<Self, prometheus::Error> {
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
            exchanges: declare
                .histograms(
                    "outrigger_shared_limits_exchange_seconds",
                    "How long Redis takes for a batch of usage reports.",
                    &[],
                )?
                .with_label_values::<&str>(&[]),
            errors: declare.counters(
                "outrigger_shared_limits_errors_total",
                "Failed exchanges with Redis, by kind of error.",
                &["kind"],
            )?,
        })
    }

    /// Shows the mode in force.
    pub fn show(&self, mode: Sharing) {
        for state in Sharing::ALL {
            self.states.with_label_values(&[state.name()]).set((state == mode).into());
        }
    }

    /// Counts a failed exchange with Redis.
    pub fn failed(&self, kind: &str) {
        self.errors.with_label_values(&[kind]).inc();
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
const REASONS: [Rejection; 5] = [
    Rejection::BANNED,
    Rejection::QUOTA_EXCEEDED,
    Rejection::Overloaded,
    Rejection::BREAKER_OPEN,
    Rejection::AppRestarting,
];

impl Refusals {
    /// Counts a request that was rejected.
    pub fn enforced(&self, rejection: Rejection, priority: Priority, tier: Tier) {
        self.count(rejection, priority, tier, Mode::Enforce);
    }

    /// Counts a request that `enforce` would have rejected.
    pub fn monitored(&self, rejection: Rejection, priority: Priority, tier: Tier) {
        self.count(rejection, priority, tier, Mode::Monitor);
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

/// How Outrigger handled a request's sticky session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// The request gets a new session.
    New,
    /// This Machine is its home.
    Pinned,
    /// The edge replays the request to its home.
    Replayed,
    /// The request is forwarded to its home over the private network.
    Forwarded,
    /// Its home is gone, so it gets a new one.
    Rehomed,
    /// The request is served here, because its home on another Machine cannot be reached.
    Visiting,
    /// It has expired.
    Expired,
    /// Its cookie, or the state of a replay, has no valid signature.
    Forged,
}

impl Affinity {
    const ALL: [Self; 8] = [
        Self::New,
        Self::Pinned,
        Self::Replayed,
        Self::Forwarded,
        Self::Rehomed,
        Self::Visiting,
        Self::Expired,
        Self::Forged,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pinned => "pinned",
            Self::Replayed => "replayed",
            Self::Forwarded => "forwarded",
            Self::Rehomed => "rehomed",
            Self::Visiting => "visiting",
            Self::Expired => "expired",
            Self::Forged => "forged",
        }
    }
}

/// The result of sending a request to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentOn {
    /// The peer responded.
    Answered,
    /// The peer declined it.
    Refused,
    /// The peer cannot be reached.
    Unreachable,
    /// The connection broke, or the response was invalid.
    Broken,
    /// The response was late.
    Late,
}

impl SentOn {
    const ALL: [Self; 5] = [Self::Answered, Self::Refused, Self::Unreachable, Self::Broken, Self::Late];

    const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Late => "late",
        }
    }
}

/// All metrics of the proxy.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// One line for each metric: name, type, labels and help, separated by tabs.
    reference: Vec<String>,
    requests: IntCounterVec,
    durations: HistogramVec,
    streams: HistogramVec,
    rejections: Vec<(&'static str, IntCounter)>,
    failures: Vec<(Failure, IntCounter)>,
    exhausted: [IntCounter; Resource::ALL.len()],
    /// Lookups of a name of the configuration that found no address.
    pub names_failed: IntCounter,
    /// Requests between their head and the end of their response.
    pub in_flight: IntGauge,
    /// Open client connections.
    pub connections: IntGauge,
    /// Memory for buffered request bodies, in bytes.
    pub body_memory: IntGauge,
    /// Accepted client connections.
    pub connections_total: IntCounter,
    /// Client connections closed to make room for others.
    pub connections_closed_for_others: IntCounter,
    /// Attempts on a new connection to the app.
    pub attempts_new: IntCounter,
    /// Attempts on a reused connection to the app.
    pub attempts_reused: IntCounter,
    /// Requests sent again, charged to the retry budget.
    pub retries: IntCounter,
    /// Requests sent again because an idle connection turned out to be closed.
    pub reconnects: IntCounter,
    /// Retries that the retry budget did not allow.
    pub retries_denied: IntCounter,
    retry_budget: Gauge,
    /// Responses from a route's fallback.
    pub fallbacks: IntCounter,
    /// 0 while the app refuses connections, else 1.
    pub app_reachable: IntGauge,
    /// Requests that waited for an app that was down, and then reached it.
    pub held: IntCounter,
    /// Injected faults.
    pub faults: IntCounter,
    affinity: [IntCounter; Affinity::ALL.len()],
    peer_requests: IntCounterVec,
    peer_received: IntCounterVec,
    hops_refused: IntCounterVec,
    app_lines_dropped: IntCounterVec,
    peer_states: IntGaugeVec,
    machines: IntGauge,
    machines_ready: IntGauge,
    scaling: IntCounterVec,
    breaker_states: IntGaugeVec,
    breaker_transitions: IntCounterVec,
    breaker_clients: IntCounterVec,
    reloads_applied: IntCounter,
    reloads_refused: IntCounter,
    config_is_good: IntGauge,
    /// The configuration's version.
    pub config_version: IntGauge,
    /// When the configuration came into force, in seconds since 1970.
    pub config_loaded: IntGauge,
    /// 0 serving, 1 lame duck, 2 closing.
    pub drain_phase: IntGauge,
    /// Log lines that did not fit into their queue.
    pub log_dropped: IntCounter,
    /// The audit log.
    pub audit: AuditMetrics,
    /// Forwarding headers that were removed because their sender is not trusted.
    pub forged_fields: IntCounter,
    /// Client addresses that one untrusted sender has claimed.
    pub unbelieved: IntGauge,
    /// Rejections by rate limits, bans, circuit breakers and the concurrency limit.
    pub refusals: Refusals,
    /// Requests whose keys did not fit into the table of rate limits.
    pub limit_overflow: IntCounter,
    limit_refusals: IntCounterVec,
    limit_keys: IntGaugeVec,
    /// Shared rate limits.
    pub shared_limits: SharedLimits,
    bans: IntCounterVec,
    banned: IntGauge,
    slots: IntGauge,
    slots_used: IntGauge,
    queue: IntGaugeVec,
    queue_room: IntGauge,
    latency: Gauge,
    /// How long requests waited for the permit that they got.
    pub queue_wait: Histogram,
    credentials: IntCounterVec,
    key_fetches: IntCounterVec,
    tokens: IntGauge,
    flags: GaugeVec,
}

impl Metrics {
    /// Declares all metrics.
    ///
    /// # Errors
    /// Prometheus rejects a declaration: a bug in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let declare = Declare { registry: &registry, reference: RefCell::default() };
        let rejected = declare.counters(
            "outrigger_rejections_total",
            "Requests that Outrigger rejected, by reason.",
            &["reason"],
        )?;
        let failed = declare.counters(
            "outrigger_app_failures_total",
            "Requests that failed at the app, by reason.",
            &["reason"],
        )?;
        let attempts = declare.counters(
            "outrigger_app_attempts_total",
            "Attempts to get a response from the app, by kind of connection.",
            &["connection"],
        )?;
        let reloads = declare.counters(
            "outrigger_config_reloads_total",
            "Reloads of the configuration, by result.",
            &["result"],
        )?;
        let build = declare.gauges("outrigger_build_info", "Always 1; the label has the version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let flags = declare.add(GaugeVec::new(
            Opts::new("outrigger_feature_flag", "Share of clients for which a feature is in a mode, 0 to 1."),
            &["feature", "mode"],
        )?)?;
        let process = prometheus::process_collector::ProcessCollector::for_self();
        declare.describe(&process);
        registry.register(Box::new(process))?;
        Ok(Self {
            requests: declare.counters(
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
            streams: {
                let options = HistogramOpts::new(
                    "outrigger_stream_duration_seconds",
                    "How long event streams and upgraded connections (WebSocket) lasted, by route and kind.",
                );
                declare.add(HistogramVec::new(options.buckets(STREAM_BUCKETS.to_vec()), &["route", "kind"])?)?
            },
            rejections: Rejection::all()
                .map(|r| r.problem().label)
                .map(|label| (label, rejected.with_label_values(&[label])))
                .collect(),
            failures: Failure::ALL.map(|f| (f, failed.with_label_values(&[f.problem().label]))).into(),
            exhausted: {
                let exhausted = declare.counters(
                    "outrigger_own_resources_exhausted_total",
                    "Connections that could not be opened or accepted because this host lacks a resource.",
                    &["resource"],
                )?;
                Resource::ALL.map(|resource| exhausted.with_label_values(&[resource.name()]))
            },
            names_failed: declare.counter(
                "outrigger_name_lookups_failed_total",
                "Lookups of the names in app.address and app.metrics that found no address.",
            )?,
            in_flight: declare.gauge("outrigger_requests_in_flight", "Requests whose response is not complete yet.")?,
            connections: declare.gauge("outrigger_open_connections", "Open client connections.")?,
            body_memory: declare.gauge(
                "outrigger_body_memory_bytes",
                "Memory for buffered request bodies, at most client.body_memory.",
            )?,
            connections_total: declare.counter("outrigger_connections_total", "Client connections accepted.")?,
            connections_closed_for_others: declare.counter(
                "outrigger_connections_evicted_total",
                "Idle client connections closed to make room for new ones, at max_connections or an address's share.",
            )?,
            attempts_new: attempts.with_label_values(&["new"]),
            attempts_reused: attempts.with_label_values(&["reused"]),
            retries: declare
                .counter("outrigger_app_retries_total", "Requests sent to the app again, within the retry budget.")?,
            reconnects: declare.counter(
                "outrigger_app_reconnects_total",
                "Requests sent again on a new connection because an idle one turned out to be closed.",
            )?,
            retries_denied: declare
                .counter("outrigger_app_retries_denied_total", "Retries that the retry budget did not allow.")?,
            retry_budget: declare.real("outrigger_app_retry_budget", "Retries that the retry budget allows now.")?,
            fallbacks: declare.counter(
                "outrigger_fallbacks_total",
                "Fallback responses, sent while a route's circuit breaker is open or the app is unreachable.",
            )?,
            app_reachable: {
                let reachable =
                    declare.gauge("outrigger_app_reachable", "0 while the app refuses connections, else 1.")?;
                reachable.set(1);
                reachable
            },
            held: declare.counter(
                "outrigger_held_requests_total",
                "Requests that were held while the app refused connections, and then reached it.",
            )?,
            faults: declare.counter("outrigger_faults_injected_total", "Injected faults: see [[faults]].")?,
            affinity: {
                let text = "Requests by how their sticky session was handled: see docs/machines.md.";
                let events = declare.counters("outrigger_affinity_total", text, &["event"])?;
                Affinity::ALL.map(|event| events.with_label_values(&[event.name()]))
            },
            peer_requests: {
                let sent = declare.counters(
                    "outrigger_peer_requests_total",
                    "Requests sent to a peer, for their session or because the local app cannot serve them.",
                    &["kind", "outcome"],
                )?;
                for kind in hop::Kind::CARRYING {
                    // Create all series at the start: the first increment of a new one would not be seen as an increase.
                    SentOn::ALL.iter().for_each(|outcome| drop(sent.with_label_values(&[kind.name(), outcome.name()])));
                }
                sent
            },
            peer_received: declare.counters(
                "outrigger_peer_requests_received_total",
                "Requests received from peers.",
                &["kind"],
            )?,
            app_lines_dropped: {
                let dropped = declare.counters(
                    "outrigger_app_metrics_lines_dropped_total",
                    "Lines of the app's metrics that /metrics/all drops because they are invalid or contradict others.",
                    &["reason"],
                )?;
                exposition::Dropped::ALL.iter().for_each(|why| drop(dropped.with_label_values(&[why.name()])));
                dropped
            },
            hops_refused: {
                let refused = declare.counters(
                    "outrigger_peer_requests_refused_total",
                    "Requests that the peer listener rejected: not signed for this Machine, altered, stale or used.",
                    &["why"],
                )?;
                hop::HopRefused::ALL.iter().for_each(|why| drop(refused.with_label_values(&[why.name()])));
                refused
            },
            peer_states: declare.gauges("outrigger_peers", "Peers, by state.", &["state"])?,
            machines: {
                let machines =
                    declare.gauge("outrigger_machines", "Known Machines that are started, this one included.")?;
                machines.set(1);
                machines
            },
            machines_ready: {
                let ready = declare
                    .gauge("outrigger_machines_ready", "Machines that are ready for requests, this one included.")?;
                ready.set(1);
                ready
            },
            scaling: {
                let events = declare.counters(
                    "outrigger_scaling_events_total",
                    "Machines that this one saw appear (up) or disappear (down).",
                    &["direction"],
                )?;
                ["up", "down"].iter().for_each(|direction| drop(events.with_label_values(&[*direction])));
                events
            },
            breaker_states: declare.gauges(
                "outrigger_breaker_state",
                "1 for the current state of a circuit breaker, 0 for the others.",
                &["breaker", "state"],
            )?,
            breaker_transitions: declare.counters(
                "outrigger_breaker_transitions_total",
                "State changes of a circuit breaker, by new state.",
                &["breaker", "state"],
            )?,
            breaker_clients: declare.counters(
                "outrigger_breaker_clients_refused_total",
                "Times that a circuit breaker began to reject a single client, for failures that only that client saw.",
                &["breaker"],
            )?,
            reloads_applied: reloads.with_label_values(&["applied"]),
            reloads_refused: reloads.with_label_values(&["refused"]),
            config_is_good: {
                let text = "1 if the last change of the configuration file was applied, 0 if it was rejected.";
                let is_good = declare.gauge("outrigger_config_last_reload_successful", text)?;
                is_good.set(1);
                is_good
            },
            config_version: declare
                .gauge("outrigger_config_version", "Version of the configuration; increases with each change.")?,
            config_loaded: declare
                .gauge("outrigger_config_loaded_timestamp_seconds", "When the current configuration was loaded.")?,
            drain_phase: declare.gauge("outrigger_drain_phase", "0 serving, 1 lame duck, 2 closing.")?,
            log_dropped: declare
                .counter("outrigger_log_lines_dropped_total", "Log lines dropped because their queue was full.")?,
            forged_fields: declare.counter(
                "outrigger_forged_fields_total",
                "Forwarding or edge headers removed because their sender is not trusted.",
            )?,
            unbelieved: declare.gauge(
                "outrigger_unbelieved_client_addresses",
                "Approximate number of client addresses that one untrusted sender named within the last minute. \
                 From 10 on, it may be a proxy whose clients all count as one: see identity.trusted.",
            )?,
            refusals: Refusals {
                counters: declare.counters(
                    "outrigger_refusals_total",
                    "Requests rejected (enforce), or that would be (monitor), by limits, bans, breakers or overload.",
                    &["reason", "priority", "tier", "mode"],
                )?,
                made: std::array::from_fn(|_| OnceLock::new()),
            },
            limit_overflow: declare.counter(
                "outrigger_limit_overflow_total",
                "Requests whose key did not fit into the table of rate limits; they share one quota.",
            )?,
            limit_refusals: declare.counters(
                "outrigger_limit_refusals_total",
                "Requests over a rate limit, rejected (enforce) or only counted (monitor).",
                &["limit", "mode"],
            )?,
            limit_keys: declare.gauges(
                "outrigger_limit_keys",
                "Keys of rate limits that are not idle (used), and how many fit into the table (room).",
                &["state"],
            )?,
            shared_limits: SharedLimits::new(&declare)?,
            bans: declare.counters("outrigger_bans_total", "Bans, by reason.", &["reason", "mode"])?,
            banned: declare.gauge("outrigger_banned_clients", "Banned clients.")?,
            slots: declare
                .gauge("outrigger_admission_limit", "Concurrency limit: requests that the app may handle at a time.")?,
            slots_used: declare
                .gauge("outrigger_admission_in_flight", "Requests that hold a permit of the concurrency limit.")?,
            queue: declare.gauges("outrigger_admission_queue", "Requests that wait for a permit.", &["priority"])?,
            queue_room: declare.gauge("outrigger_admission_queue_limit", "Requests that may wait for a permit now.")?,
            latency: declare
                .real("outrigger_admission_latency_seconds", "The app's latency, up to the head of its response.")?,
            queue_wait: declare
                .histograms(
                    "outrigger_admission_wait_seconds",
                    "How long requests waited for the permit they got.",
                    &[],
                )?
                .with_label_values::<&str>(&[]),
            credentials: declare.counters(
                "outrigger_credentials_refused_total",
                "API keys and tokens that did not verify; their requests are handled as if without a credential.",
                &["reason"],
            )?,
            key_fetches: declare.counters(
                "outrigger_jwks_fetches_total",
                "Fetches of the keys that verify tokens, by result; after a failure the previous keys stay in use.",
                &["result"],
            )?,
            tokens: declare.gauge("outrigger_cached_tokens", "Tokens in the cache, verified or not.")?,
            audit: AuditMetrics::new(&declare)?,
            flags,
            reference: declare.reference.into_inner(),
            registry,
        })
    }

    /// The name, type, labels and help of each metric, one line each, separated by tabs: the source of docs/metrics.md.
    pub fn reference(&self) -> String {
        self.reference.concat()
    }

    /// Records a change of the configuration file that was applied or rejected.
    pub fn reloaded(&self, is_taken: bool) {
        self.config_is_good.set(is_taken.into());
        if is_taken { &self.reloads_applied } else { &self.reloads_refused }.inc();
    }

    /// Records how long a request waited for its permit.
    pub fn waited(&self, exchange: &Exchange, now: Instant) {
        self.queue_wait.observe(now.saturating_duration_since(exchange.started).as_secs_f64());
        if exchange.held_since.is_some() {
            self.held.inc();
        }
    }

    /// Counts how a request's session was handled.
    pub fn affinity(&self, event: Affinity) {
        self.affinity[event as usize].inc();
    }

    /// Counts a request sent to a peer.
    pub fn sent_to_peer(&self, kind: hop::Kind, outcome: SentOn) {
        self.peer_requests.with_label_values(&[kind.name(), outcome.name()]).inc();
    }

    /// Counts a request from a peer.
    pub fn came_from_peer(&self, kind: hop::Kind) {
        self.peer_received.with_label_values(&[kind.name()]).inc();
    }

    /// Counts lines of the app's metrics that were left out.
    pub fn app_metrics_dropped(&self, dropped: &exposition::DroppedLines) {
        for (why, lines) in dropped.each().filter(|(_, lines)| *lines > 0) {
            self.app_lines_dropped.with_label_values(&[why.name()]).inc_by(lines);
        }
    }

    /// Counts a request that the listener for peers rejected.
    pub fn hop_refused(&self, why: hop::HopRefused) {
        self.hops_refused.with_label_values(&[why.name()]).inc();
    }

    /// Shows the number of Machines. A change is a scaling event, except on the first look.
    pub fn show_machines(&self, peers: &Peers, is_first_look: bool) {
        let (known, ready) = peers.machines();
        for standing in peers::Standing::ALL {
            let count = peers.seen().peers.iter().filter(|peer| peer.standing() == standing).count();
            self.peer_states.with_label_values(&[standing.name()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let (before, known) = (self.machines.get(), i64::from(known));
        self.machines.set(known);
        self.machines_ready.set(ready.into());
        if is_first_look {
            return;
        }
        for (direction, change) in [("up", known - before), ("down", before - known)] {
            self.scaling.with_label_values(&[direction]).inc_by(u64::try_from(change).unwrap_or(0));
        }
        if known != before {
            let direction = if known > before { "up" } else { "down" };
            tracing::info!(event = "scaling", direction, before, machines = known, "there are {known} Machines now");
        }
    }

    /// Counts a change of a circuit breaker's state.
    pub fn breaker_changed(&self, breaker: &str, to: Position) {
        self.breaker_transitions.with_label_values(&[breaker, to.name()]).inc();
    }

    /// Counts that a circuit breaker starts to reject a single client.
    pub fn breaker_refuses_one(&self, breaker: &str) {
        self.breaker_clients.with_label_values(&[breaker]).inc();
    }

    /// Shows the state of a circuit breaker.
    pub fn show_breaker(&self, breaker: &str, position: Position) {
        for state in Position::ALL {
            self.breaker_states.with_label_values(&[breaker, state.name()]).set((state == position).into());
        }
    }

    /// Removes the series of a circuit breaker that the configuration no longer has.
    pub fn forget_breaker(&self, breaker: &str) {
        for state in Position::ALL {
            // Removing a series that was never created is an error, and harmless.
            let _ = self.breaker_states.remove_label_values(&[breaker, state.name()]);
            let _ = self.breaker_transitions.remove_label_values(&[breaker, state.name()]);
        }
        let _ = self.breaker_clients.remove_label_values(&[breaker]);
    }

    /// Shows the retry budget.
    pub fn show_retry_budget(&self, left: f64) {
        self.retry_budget.set(left);
    }

    /// Counts a fetch of the keys that verify tokens.
    pub fn keys_fetched(&self, is_ok: bool) {
        self.key_fetches.with_label_values(&[if is_ok { "fetched" } else { "failed" }]).inc();
    }

    /// The counters of a rate limit.
    pub fn for_limit(&self, name: &str) -> LimitMetrics {
        LimitMetrics {
            enforced: self.limit_refusals.with_label_values(&[name, Mode::Enforce.name()]),
            monitored: self.limit_refusals.with_label_values(&[name, Mode::Monitor.name()]),
        }
    }

    /// Removes the series of a rate limit that the configuration no longer has.
    pub fn forget_limit(&self, name: &str) {
        for mode in [Mode::Enforce, Mode::Monitor] {
            // Exists: it was created with the limit.
            let _ = self.limit_refusals.remove_label_values(&[name, mode.name()]);
        }
    }

    /// Counts a ban, or one that `enforce` would have imposed.
    pub fn banned(&self, offence: Offence, mode: Mode) {
        self.bans.with_label_values(&[offence.name(), mode.name()]).inc();
    }

    /// Counts a key or token that did not verify.
    pub fn credential_refused(&self, reason: &str) {
        self.credentials.with_label_values(&[reason]).inc();
    }

    /// Shows values that are only read for a scrape.
    pub fn show_admission(&self, gate: &Standing, (keys, room): (usize, usize), banned: usize, tokens: usize) {
        let shown = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.tokens.set(shown(tokens));
        self.slots.set(gate.limit.into());
        self.slots_used.set(gate.in_flight.into());
        self.queue_room.set(gate.room.into());
        self.latency.set(gate.latency.unwrap_or_default().as_secs_f64());
        for (priority, waiting) in Priority::ALL.into_iter().zip(gate.waiting) {
            self.queue.with_label_values(&[priority.name()]).set(waiting.into());
        }
        self.limit_keys.with_label_values(&["used"]).set(shown(keys));
        self.limit_keys.with_label_values(&["room"]).set(shown(room));
        self.banned.set(shown(banned));
    }

    /// The metrics of a route.
    pub fn for_route(&self, name: &str, priority: Priority) -> RouteMetrics {
        RouteMetrics {
            name: name.to_owned(),
            priority,
            requests: self.requests.clone(),
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
            let _ = self.requests.remove_label_values(&[name, priority.name(), outcome.name()]);
            let _ = self.durations.remove_label_values(&[name, outcome.name()]);
        }
        for kind in StreamKind::ALL {
            let _ = self.streams.remove_label_values(&[name, kind.name()]);
        }
    }

    /// Counts a rejection.
    pub fn rejected(&self, rejection: Rejection) {
        let label = rejection.problem().label;
        if let Some((_, counter)) = self.rejections.iter().find(|(known, _)| *known == label) {
            counter.inc();
        }
    }

    /// Counts that this host lacks a resource.
    pub fn exhausted(&self, resource: Resource) {
        self.exhausted[resource as usize].inc();
    }

    /// Counts a failure of the app.
    pub fn failed(&self, failure: Failure) {
        self.failures[failure as usize].1.inc();
    }

    /// Shows a configuration that came into force at `now`, in seconds since 1970.
    pub fn show_config(&self, config: &Config, version: u64, now: u64) {
        self.config_version.set(i64::try_from(version).unwrap_or(i64::MAX));
        self.config_loaded.set(i64::try_from(now).unwrap_or(i64::MAX));
        for feature in Feature::ALL {
            use outrigger_policy::flags::Switch;
            let (enforce, monitor) = match config.flag(feature).switch {
                Switch::On(share) => (f64::from(share.get()) / 100.0, 0.0),
                Switch::Monitor => (0.0, 1.0),
                Switch::Off => (0.0, 0.0),
            };
            for (mode, share) in
                [(Mode::Enforce, enforce), (Mode::Monitor, monitor), (Mode::Off, 1.0 - enforce - monitor)]
            {
                self.flags.with_label_values(&[feature.key(), mode.name()]).set(share);
            }
        }
    }

    /// The exposition, in Prometheus's text format.
    ///
    /// # Errors
    /// The encoder's error.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::with_capacity(16 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|e| prometheus::Error::Msg(e.to_string()))
    }
}

/// Registers metrics and records their descriptions.
struct Declare<'r> {
    registry: &'r Registry,
    reference: RefCell<Vec<String>>,
}

impl Declare<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.describe(&collector);
        self.registry.register(Box::new(collector.clone())).map(|()| collector)
    }

    fn describe(&self, collector: &dyn Collector) {
        let families = collector.collect();
        let kind =
            |name: &str| families.iter().find(|family| family.name() == name).map(|family| family.get_field_type());
        let lines = collector.desc().into_iter().map(|metric| {
            let kind = kind(&metric.fq_name).map_or_else(String::new, |kind| format!("{kind:?}").to_lowercase());
            format!("{}\t{kind}\t{}\t{}\n", metric.fq_name, metric.variable_labels.join(", "), metric.help)
        });
        self.reference.borrow_mut().extend(lines);
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::new(name, help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::new(name, help)?)
    }

    fn real(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.add(Gauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()))?)
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, prometheus::Error> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_what_dashboards_rely_on() {
        let metrics = Metrics::new().unwrap();
        let route = metrics.for_route("a", Priority::High);
        route.record(Outcome::Success, Duration::from_millis(3), None);
        route.record(Outcome::Success, Duration::from_secs(3), Some(StreamKind::Upgrade));
        metrics.audit.lost(outrigger_policy::audit::Class::Data, "disk_full", 1);
        metrics.audit.dropped(outrigger_policy::audit::Class::Data, "spool", 1);
        metrics.forged_fields.inc();
        metrics.keys_fetched(true);
        metrics.credential_refused("bad_token");
        metrics.banned(Offence::NotFound, Mode::Monitor);
        metrics.for_limit("medium").enforced.inc();
        metrics.shared_limits.show(Sharing::Degraded);
        metrics.shared_limits.failed("timeout");
        metrics.refusals.enforced(Rejection::Overloaded, Priority::Low, Tier::Free);
        metrics.show_admission(&Standing::default(), (0, 0), 0, 0);
        metrics.show_breaker("search", Position::Closed);
        metrics.breaker_changed("search", Position::Open);
        metrics.breaker_refuses_one("search");
        let text = metrics.render().unwrap();
        let mut types: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with("# TYPE outrigger"))
            .map(|l| l.trim_start_matches("# TYPE "))
            .collect();
        types.sort_unstable();
        insta::assert_snapshot!(types.join("\n"));
    }

    /// OpenMetrics treats `x` and `x_total` as one family.
    #[test]
    fn no_two_families_have_one_name_in_open_metrics() {
        let reference = Metrics::new().unwrap().reference();
        let names: Vec<_> = reference.lines().filter_map(|line| line.split('\t').next()).collect();
        assert!(names.len() > 60, "{names:?}");
        for name in &names {
            let base = |other: &str| {
                ["_total", "_info", "_created"].into_iter().any(|end| other.strip_suffix(end) == Some(name))
            };
            assert!(!names.iter().any(|other| base(other)), "{name} is two families");
        }
    }

    #[test]
    fn a_stream_is_counted_and_not_timed_as_a_request() {
        let metrics = Metrics::new().unwrap();
        let route = metrics.for_route("chat", Priority::High);
        route.record(Outcome::Success, Duration::from_secs(3600), Some(StreamKind::Upgrade));
        let text = metrics.render().unwrap();
        assert!(
            text.contains("outrigger_requests_total{outcome=\"success\",priority=\"high\",route=\"chat\"} 1"),
            "{text}"
        );
        assert!(text.contains("outrigger_stream_duration_seconds_count{kind=\"upgrade\",route=\"chat\"} 1"), "{text}");
        assert!(!text.contains("outrigger_request_duration_seconds_count"), "{text}");
    }

    #[test]
    fn a_route_that_is_gone_leaves_no_series() {
        let metrics = Metrics::new().unwrap();
        metrics.for_route("old", Priority::Low).record(Outcome::Rejected, Duration::ZERO, None);
        metrics.for_route("old", Priority::Low).record(Outcome::Success, Duration::ZERO, Some(StreamKind::EventStream));
        assert!(metrics.render().unwrap().contains("route=\"old\""));
        metrics.forget_route("old", Priority::Low);
        assert!(!metrics.render().unwrap().contains("route=\"old\""));
    }

    #[test]
    fn the_reference_has_every_metric() {
        let reference = Metrics::new().unwrap().reference();
        xtask::reference::metrics("docs/metrics.md", "proxy metrics", &reference).unwrap();
    }
}
