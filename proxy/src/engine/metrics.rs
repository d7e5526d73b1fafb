//! The metrics of the proxy: those of requests, and those that each mechanism declares beside itself.
//!
//! Labels come from enums or the configuration, never from a request. Metrics of the hot path are looked up when the
//! configuration is loaded, so that counting is one addition.

pub mod config;
pub mod exemplars;
pub mod identity;
pub mod pause;
pub mod process;
pub mod rejections;
pub mod requests;

use std::time::Instant;

use outrigger_metrics::{Catalogue, Declare, Gauge, IntCounter, IntGauge, Result};

use crate::engine::exchange::Exchange;
use crate::engine::metrics::config::ConfigMetrics;
use crate::engine::metrics::identity::IdentityMetrics;
use crate::engine::metrics::pause::PauseMetrics;
use crate::engine::metrics::process::ProcessMetrics;
use crate::engine::metrics::rejections::RejectionMetrics;
use crate::engine::metrics::requests::RequestMetrics;
pub use crate::engine::metrics::requests::{MethodLabel, RouteMetrics, StatusClass, StreamKind};
use crate::mechanism::abuse::metrics::BanMetrics;
use crate::mechanism::affinity::metrics::AffinityMetrics;
use crate::mechanism::audit::metrics::AuditMetrics;
use crate::mechanism::breakers::metrics::BreakerMetrics;
use crate::mechanism::claims::ClaimsMetrics;
use crate::mechanism::connections::metrics::ConnectionMetrics;
use crate::mechanism::exposition::metrics::ExpositionMetrics;
use crate::mechanism::gate::metrics::GateMetrics;
use crate::mechanism::limits::metrics::LimitsMetrics;
use crate::mechanism::log::LogMetrics;
use crate::mechanism::peers::metrics::PeerMetrics;
use crate::mechanism::saved::metrics::SavedMetrics;
use crate::mechanism::traces::metrics::TraceMetrics;
use crate::mechanism::traffic::metrics::TrafficMetrics;
use crate::transport::body_memory::BodyMemoryMetrics;
use crate::transport::upstream::metrics::UpstreamMetrics;

/// Upper bounds in seconds, from half a millisecond to two minutes: enough to see a route's default timeout (60 s) and
/// requests that wait for an upstream that restarts.
pub const BUCKETS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Metrics of attempts at the app.
#[derive(Debug)]
pub struct AttemptMetrics {
    /// Attempts on a new connection.
    pub new: IntCounter,
    /// Attempts on a reused connection.
    pub reused: IntCounter,
    /// Requests sent again, charged to the retry budget.
    pub retries: IntCounter,
    /// Requests sent again because an idle connection turned out to be closed.
    pub reconnects: IntCounter,
    /// Retries that the retry budget did not allow.
    pub retries_denied: IntCounter,
    /// Attempts that took longer than the time for one.
    pub overdue: IntCounter,
    /// Hedged requests: a peer was asked as well.
    pub hedges: IntCounter,
    /// Hedged requests whose peer responded first.
    pub hedges_won: IntCounter,
    /// Hedged requests that their budget did not allow.
    pub hedges_denied: IntCounter,
    /// Retries that the retry budget allows now.
    pub retry_budget: Gauge,
}

impl AttemptMetrics {
    fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Attempts at the app");
        let [new, reused] =
            area.when("`new` is a large share: the app closes its connections too early.").counter_for_each(
                "outrigger_app_attempts_total",
                "Attempts to get a response from the app, by kind of connection.",
                "connection",
                ["new", "reused"],
            )?;
        Ok(Self {
            new,
            reused,
            retries: area
                .when("It rises while clients see no errors: retries hide failures of the app.")
                .counter("outrigger_app_retries_total", "Requests sent to the app again, within the retry budget.")?,
            reconnects: area.when("It rises: the app closes idle connections earlier than Outrigger does.").counter(
                "outrigger_app_reconnects_total",
                "Requests sent again on a new connection because an idle one turned out to be closed.",
            )?,
            retries_denied: area
                .when("It rises: the app fails on too many requests for retries to help.")
                .counter("outrigger_app_retries_denied_total", "Retries that the retry budget did not allow.")?,
            overdue: area.when("It rises while the app is ready: some of its workers hang.").counter(
                "outrigger_app_attempts_overdue_total",
                "Attempts without a response within `retry.attempt_timeout`.",
            )?,
            hedges: area
                .when("How many requests does hedging add? At most the share `retry.hedge_budget`.")
                .counter("outrigger_hedges_total", "Requests for which a peer was asked as well: see `retry.hedge`.")?,
            hedges_won: area.when("How often does hedging help?").counter(
                "outrigger_hedges_won_total",
                "Requests for which a peer was asked as well and responded before the app here.",
            )?,
            hedges_denied: area
                .when("It rises: the app is slow for more requests than hedging is meant for.")
                .counter("outrigger_hedges_denied_total", "Hedged requests that their budget did not allow.")?,
            retry_budget: area
                .when("At 0, failed requests are not sent again.")
                .real("outrigger_app_retry_budget", "Retries that the retry budget allows now.")?,
        })
    }
}

/// All metrics of the proxy.
#[derive(Debug)]
pub struct Metrics {
    catalogue: Catalogue,
    /// Requests, by route.
    pub requests: RequestMetrics,
    /// Rejections, and failures of the app.
    pub rejections: RejectionMetrics,
    /// Attempts at the app.
    pub attempts: AttemptMetrics,
    /// Connecting.
    pub upstream: UpstreamMetrics,
    /// Client connections.
    pub connections: ConnectionMetrics,
    /// Request bodies' memory.
    pub body_memory: BodyMemoryMetrics,
    /// The concurrency limit.
    pub gate: GateMetrics,
    /// Rate limits.
    pub limits: LimitsMetrics,
    /// Bans.
    pub bans: BanMetrics,
    /// Circuit breakers.
    pub breakers: BreakerMetrics,
    /// Sticky sessions.
    pub affinity: AffinityMetrics,
    /// Peers.
    pub peers: PeerMetrics,
    /// Credentials.
    pub identity: IdentityMetrics,
    /// Headers of untrusted senders.
    pub claims: ClaimsMetrics,
    /// Snapshots of the state.
    pub saved: SavedMetrics,
    /// The audit log.
    pub audit: AuditMetrics,
    /// Traces.
    pub traces: TraceMetrics,
    /// The traffic record.
    pub traffic: TrafficMetrics,
    /// Logs.
    pub log: LogMetrics,
    /// The app's metrics.
    pub exposition: ExpositionMetrics,
    /// The configuration.
    pub config: ConfigMetrics,
    /// Pauses and maintenance.
    pub pause: PauseMetrics,
    /// The app's process, if Outrigger starts it.
    pub process: ProcessMetrics,
    /// Responses from a route's fallback.
    pub fallbacks: IntCounter,
    /// 0 while the app refuses connections, else 1.
    pub app_reachable: IntGauge,
    /// Requests that waited for an app that was down or for the end of a pause, and then reached it.
    pub held: IntCounter,
    /// Injected faults.
    pub faults: IntCounter,
    /// 0 serving, 1 lame duck, 2 closing.
    pub drain_phase: IntGauge,
}

impl Metrics {
    /// Declares all metrics.
    ///
    /// # Errors
    /// Prometheus rejects a declaration: a bug.
    pub fn new() -> Result<Self> {
        let declare = Declare::new(&BUCKETS);
        let area = declare.area("The app");
        declare.program("outrigger_build_info", env!("CARGO_PKG_VERSION"))?;
        Ok(Self {
            requests: RequestMetrics::new(&declare)?,
            rejections: RejectionMetrics::new(&declare)?,
            attempts: AttemptMetrics::new(&declare)?,
            upstream: UpstreamMetrics::new(&declare)?,
            connections: ConnectionMetrics::new(&declare)?,
            body_memory: BodyMemoryMetrics::new(&declare)?,
            gate: GateMetrics::new(&declare)?,
            limits: LimitsMetrics::new(&declare)?,
            bans: BanMetrics::new(&declare)?,
            breakers: BreakerMetrics::new(&declare)?,
            affinity: AffinityMetrics::new(&declare)?,
            peers: PeerMetrics::new(&declare)?,
            identity: IdentityMetrics::new(&declare)?,
            claims: ClaimsMetrics::new(&declare)?,
            saved: SavedMetrics::new(&declare)?,
            audit: AuditMetrics::new(&declare)?,
            traces: TraceMetrics::new(&declare)?,
            traffic: TrafficMetrics::new(&declare)?,
            log: LogMetrics::new(&declare)?,
            exposition: ExpositionMetrics::new(&declare)?,
            config: ConfigMetrics::new(&declare)?,
            pause: PauseMetrics::new(&declare)?,
            process: ProcessMetrics::new(&declare)?,
            fallbacks: area.when("Clients get a substitute: how often?").counter(
                "outrigger_fallbacks_total",
                "Fallback responses, sent while a route's circuit breaker is open or the app is unreachable.",
            )?,
            app_reachable: area
                .when("Is it us or the app? At 0 the app refuses connections.")
                .gauge_at_one("outrigger_app_reachable", "0 while the app refuses connections, else 1.")?,
            held: area.when("After a restart of the app: how many clients noticed nothing but a delay?").counter(
                "outrigger_held_requests_total",
                "Requests that were held while the app refused connections or requests were paused, and then reached it.",
            )?,
            faults: declare
                .area("Configuration")
                .when("Errors that nobody can explain: is a test still configured?")
                .counter("outrigger_faults_injected_total", "Injected faults: see [[faults]].")?,
            drain_phase: declare
                .area("Process")
                .when("During a deploy: which Machine is leaving?")
                .gauge("outrigger_drain_phase", "0 serving, 1 lame duck, 2 closing.")?,
            catalogue: declare.finish(),
        })
    }

    /// All metrics, as docs/metrics.md describes them: see [`Catalogue::reference`].
    pub fn reference(&self) -> &str {
        self.catalogue.reference()
    }

    /// Records how long a request waited for its permit.
    pub fn waited(&self, exchange: &Exchange, now: Instant) {
        self.gate.wait.observe(now.saturating_duration_since(exchange.started).as_secs_f64());
        if exchange.held_since.is_some() {
            self.held.inc();
        }
    }

    /// The exposition, in Prometheus's text format.
    ///
    /// # Errors
    /// The encoder's error.
    pub fn render(&self) -> Result<String> {
        self.catalogue.render()
    }
}

#[cfg(test)]
mod tests {
    use outrigger_policy::abuse::Offence;
    use outrigger_policy::breaker::State as Position;
    use outrigger_policy::flags::Mode;
    use outrigger_policy::priority::Priority;
    use outrigger_policy::tier::Tier;

    use super::*;
    use crate::engine::rejection::Rejection;
    use crate::mechanism::gate::Standing;
    use crate::mechanism::limits::shared::Mode as Sharing;
    use crate::mechanism::outcome::Outcome;
    use std::time::Duration;

    #[test]
    fn the_catalogue_is_what_dashboards_rely_on() {
        let metrics = Metrics::new().unwrap();
        let route = metrics.requests.for_route("a", Priority::High);
        route.record(Outcome::Success, Duration::from_millis(3), None);
        route.record(Outcome::Success, Duration::from_secs(3), Some(StreamKind::Upgrade));
        metrics.audit.lost(outrigger_policy::audit::Class::Data, "disk_full", 1);
        metrics.audit.dropped(outrigger_policy::audit::Class::Data, "spool", 1);
        metrics.claims.forged_fields.inc();
        metrics.identity.keys_fetched(true);
        metrics.identity.credential_refused("bad_token");
        metrics.bans.count(Offence::NotFound, Mode::Monitor);
        metrics.limits.for_limit("medium").enforced.inc();
        metrics.limits.shared.show(Sharing::Degraded);
        metrics.limits.shared.failed("timeout");
        metrics.rejections.refusals.enforced(Rejection::Overloaded, Priority::Low, Tier::Free);
        metrics.gate.show(&Standing::default());
        metrics.limits.show((0, 0));
        metrics.breakers.show("search", Position::Closed);
        metrics.breakers.changed("search", Position::Open);
        metrics.breakers.refuses_one("search");
        route.responded(MethodLabel::Get, StatusClass::Successful, 0, 2);
        route.first_byte(Duration::from_millis(2));
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
        let metrics = Metrics::new().unwrap();
        let reference = metrics.reference();
        let names: Vec<_> = reference.lines().filter_map(|line| line.split('\t').nth(1)).collect();
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
        let route = metrics.requests.for_route("chat", Priority::High);
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
    fn a_removed_route_leaves_no_series() {
        let metrics = Metrics::new().unwrap();
        metrics.requests.for_route("old", Priority::Low).record(Outcome::Rejected, Duration::ZERO, None);
        metrics.requests.for_route("old", Priority::Low).record(
            Outcome::Success,
            Duration::ZERO,
            Some(StreamKind::EventStream),
        );
        metrics.requests.for_route("old", Priority::Low).responded(MethodLabel::Patch, StatusClass::None, 1, 1);
        metrics.requests.for_route("old", Priority::Low).first_byte(Duration::ZERO);
        assert!(metrics.render().unwrap().contains("route=\"old\""));
        metrics.requests.for_route("old", Priority::High).record(Outcome::Success, Duration::ZERO, None);
        metrics.requests.forget_route("old", Priority::High, true);
        let page = metrics.render().unwrap();
        let by_name = |line: &str| line.starts_with("outrigger_time_to_first_byte_seconds_count{route=\"old\"");
        assert!(page.lines().any(by_name), "another route has its name");
        assert!(!page.contains("priority=\"high\",route=\"old\""), "{page}");
        metrics.requests.forget_route("old", Priority::Low, false);
        assert!(!metrics.render().unwrap().contains("route=\"old\""));
    }

    #[test]
    fn the_reference_has_every_metric() {
        let metrics = Metrics::new().unwrap();
        xtask::reference::metrics("docs/metrics.md", "proxy metrics", metrics.reference()).unwrap();
    }
}
