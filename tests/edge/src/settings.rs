//! Every setting of the edge, with Fly's value as its default where it is known.
//!
//! Undocumented behaviour of Fly is a setting too, so that a test can try our proxy with each value: these are marked *not
//! established*. All durations are Fly's own; [`Settings::scaled`] turns them into those of the test.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::HeaderName;

/// Settings of one edge. `Settings::default()` is an app with Fly's defaults on a free port of this machine, without checks.
#[derive(Debug, Clone)]
pub struct Settings {
    pub app: String,
    /// The edge's own region. Machines of other regions get requests only if no Machine here can take them.
    pub region: String,
    pub listen: SocketAddr,
    /// Address of the DNS stand-in, over UDP and TCP; `None` disables DNS.
    pub dns: Option<SocketAddr>,
    /// Seed of tie-breaking between Machines and of request ids: the same seed gives the same choices.
    pub seed: u64,
    /// Every duration is multiplied by this: 0.01 turns an interval of 10 s into 100 ms.
    pub time_scale: f64,
    pub concurrency: Concurrency,
    /// The service check; without one, a started Machine counts as healthy.
    pub check: Option<Check>,
    pub routing: Routing,
    pub replay: Replay,
    pub headers: Headers,
    pub limits: Limits,
    pub autostop: Autostop,
    pub deploy: Deploy,
}

/// `[http_service.concurrency]`. Source: docs:apps/concurrency.html.markerb (facts: 1.2).
#[derive(Debug, Clone, Copy)]
pub struct Concurrency {
    pub kind: ConcurrencyKind,
    /// At this load a Machine gets requests only if all others of its region have reached it as well.
    pub soft_limit: usize,
    /// At this load a Machine gets no requests; `None` means unlimited.
    pub hard_limit: Option<usize>,
}

/// The unit of load. Source: docs:reference/load-balancing.html.md (facts: 1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConcurrencyKind {
    /// Connections to Machines are kept for about 4 s and reused.
    Requests,
    /// Each request has its own connection.
    Connections,
}

/// `[[http_service.checks]]`. It only takes Machines out of routing. Source: docs:reference/health-checks.html.markerb (facts: 5).
#[derive(Debug, Clone)]
pub struct Check {
    pub path: String,
    pub interval: Duration,
    pub timeout: Duration,
    /// Time from a Machine's start to its first check.
    pub grace_period: Duration,
    /// Headers of each check's request, such as `X-Forwarded-Proto: https` for an app that redirects.
    pub fields: Vec<(String, String)>,
    /// *Not established*: consecutive failures that take a Machine out of routing.
    pub failures_to_remove: u32,
    /// *Not established*: consecutive successes that return it.
    pub successes_to_return: u32,
    /// Each consecutive failure makes the pause longer by this (docs:getting-started/troubleshooting.html.md; by how much is
    /// *not established*).
    pub back_off: Duration,
    /// *Not established*: the `User-Agent` of checks.
    pub user_agent: Option<String>,
    /// *Not established*: the source address of checks; `None` leaves it to the kernel.
    pub source: Option<IpAddr>,
}

impl Check {
    /// Every 15 s, each at most 2 s, the first at once, with commonly assumed thresholds.
    pub fn of(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(2),
            grace_period: Duration::ZERO,
            fields: Vec::new(),
            failures_to_remove: 1,
            successes_to_return: 1,
            back_off: Duration::ZERO,
            user_agent: None,
            source: None,
        }
    }

    /// As Fly clamps them: at least 1 s, at most 60 s, the grace period too. Source: flyctl:internal/appconfig/service.go
    /// (facts: 1.2).
    pub fn clamped(mut self) -> Self {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(60));
        self.interval = self.interval.clamp(least, most);
        self.timeout = self.timeout.clamp(least, most);
        if !self.grace_period.is_zero() {
            self.grace_period = self.grace_period.clamp(least, most);
        }
        self
    }
}

/// How a request is routed to a Machine.
#[derive(Debug, Clone)]
pub struct Routing {
    /// How long a change (cordon, stop, health) takes until routing knows it: states reach edges by gossip. A few seconds at
    /// Fly.
    /// Source: docs:reference/fly-proxy.html.markerb, docs:monitoring/error-codes.html.md PM11 (facts: 7).
    pub propagation: Duration,
    /// Source: docs:monitoring/error-codes.html.md PR03 (facts: 7).
    pub retries: u32,
    /// Between two rounds over the same Machines. *Not established.*
    pub retry_pause: Duration,
    pub connect_timeout: Duration,
    /// How long a request waits for a Machine that is healthy and below its hard limit, or for one that starts. *Not
    /// established.*
    pub queue_timeout: Duration,
    /// Most waiting requests; excess ones are rejected immediately. *Not established.*
    pub queue_length: usize,
    /// A Machine that was stopped less than this ago passes requests on to another. Source: docs:monitoring/error-codes.html.md
    /// PM11 (facts: 7).
    pub recently_stopped: Duration,
    /// How long an idle connection is kept with [`ConcurrencyKind::Requests`]. Source: docs:reference/load-balancing.html.md
    /// (facts: 1.2).
    pub pool_idle: Duration,
    /// *Not established*: requests that are retried after they were begun.
    pub retry_begun: RetryBegun,
}

/// Which requests that broke off at a Machine are retried at another (facts: 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryBegun {
    None,
    Idempotent,
    All,
}

/// `fly-replay`. Source: docs:networking/dynamic-request-routing.html.markerb (facts: 2).
#[derive(Debug, Clone)]
pub struct Replay {
    /// Larger requests cannot be replayed: PA01. Fly's pages say 1 MB and 10 MB (facts: 2.3).
    pub max_body: usize,
    /// More than this is PA02. Source: docs:monitoring/error-codes.html.md (facts: 2.3).
    pub max_replays: u32,
    /// *Not established*: whether a replay can name a cordoned Machine.
    pub reaches_cordoned: bool,
    /// *Not established*: whether a request that returns by `fallback` still has `fly-replay-src`.
    pub src_on_fallback: bool,
    /// Apps that exist but may not be replayed to: PA05. All others but ours do not exist: PA04.
    pub forbidden_apps: Vec<String>,
}

/// Headers that the edge adds about the client. Source: docs:networking/request-headers.html.md (facts: 3).
#[derive(Debug, Clone)]
pub struct Headers {
    /// True sets `https` and port 443, false `http` and 80, although clients speak plain HTTP to the stand-in.
    pub is_https: bool,
    /// *Not established*: whether `fly-replay-src`, `fly-replay-failed` and `fly-preferred-instance-unavailable` of a client
    /// are removed.
    pub strips_replay_fields: bool,
    /// A header in which a test may set the client's address, since all its clients are on one machine. Fly has no such header.
    pub client_address_field: Option<HeaderName>,
    /// The app's own address, the last of `X-Forwarded-For`.
    pub app_address: IpAddr,
}

/// Limits that Fly does not document (facts: 11).
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request's header section; more get 431. At least 8192. *Not established.*
    pub max_head: usize,
    /// Bytes of a request's body; more get 413. *Not established.*
    pub max_body: Option<u64>,
    /// Closes a client's connection, or a tunnel, that was idle in both directions for this long. *Not established.*
    pub idle_timeout: Option<Duration>,
    /// Concurrent client connections, without tunnels; more wait. Source: c/15160 (facts: 9).
    pub max_connections: usize,
}

/// Source: docs:reference/fly-proxy-autostop-autostart.html.markerb (facts: 6.1).
#[derive(Debug, Clone)]
pub struct Autostop {
    pub stops: AutostopKind,
    pub starts: bool,
    /// Machines of the primary region that keep running.
    pub min_running: usize,
    pub primary_region: String,
    /// "Every few minutes".
    pub interval: Duration,
    /// From the soft cordon to the stop: "waits briefly" (c/27544).
    pub cordon_wait: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutostopKind {
    Off,
    Stop,
    Suspend,
}

/// Source: docs:reference/configuration.html.markerb, flyctl:internal/command/deploy (facts: 1.1, 7).
#[derive(Debug, Clone)]
pub struct Deploy {
    /// From 1 on a count, below a share, rounded up.
    pub max_unavailable: f64,
    /// For each Machine to start, and again to become healthy.
    pub wait_timeout: Duration,
    /// *Not established*: whether routing stops using a Machine before its signal, or only when its check fails.
    pub removal: Removal,
    pub stop: Stop,
    /// Blue-green: from uncordoning green to cordoning blue. Source: flyctl:internal/command/deploy/strategy_bluegreen.go
    /// (facts: 7).
    pub before_cordon: Duration,
    /// Blue-green: from cordoning blue to stopping it.
    pub before_stop: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    BeforeSignal,
    ByCheck,
}

/// How a Machine is stopped. Source: docs:reference/configuration.html.markerb (facts: 1.1, 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// *Not established*: one page gives SIGINT as the default, another SIGTERM.
    pub signal: Signal,
    /// Already scaled when a [`Fleet`](crate::Fleet) gets it.
    pub timeout: Duration,
    /// *Not established*: whether SIGKILL or SIGTERM ends the remaining processes after that.
    pub last_signal: Signal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    Terminate,
    Quit,
    User1,
    User2,
    Kill,
    Stop,
}

impl Default for Settings {
    fn default() -> Self {
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        let seconds = Duration::from_secs;
        Self {
            app: "app".to_owned(),
            region: "ams".to_owned(),
            listen: SocketAddr::new(local, 0),
            dns: None,
            seed: 1,
            time_scale: 1.0,
            concurrency: Concurrency { kind: ConcurrencyKind::Connections, soft_limit: 20, hard_limit: None },
            check: None,
            routing: Routing {
                propagation: Duration::ZERO,
                retries: 90,
                retry_pause: Duration::from_millis(100),
                connect_timeout: seconds(2),
                queue_timeout: seconds(10),
                queue_length: 1024,
                recently_stopped: seconds(300),
                pool_idle: seconds(4),
                retry_begun: RetryBegun::None,
            },
            replay: Replay {
                max_body: 1 << 20,
                max_replays: 10,
                reaches_cordoned: false,
                src_on_fallback: false,
                forbidden_apps: Vec::new(),
            },
            headers: Headers {
                is_https: true,
                strips_replay_fields: true,
                client_address_field: None,
                app_address: IpAddr::from([66, 241, 124, 1]),
            },
            limits: Limits { max_head: 64 << 10, max_body: None, idle_timeout: None, max_connections: 2048 },
            autostop: Autostop {
                stops: AutostopKind::Off,
                starts: false,
                min_running: 0,
                primary_region: "ams".to_owned(),
                interval: seconds(300),
                cordon_wait: seconds(2),
            },
            deploy: Deploy {
                max_unavailable: 0.33,
                wait_timeout: seconds(300),
                removal: Removal::BeforeSignal,
                stop: Stop { signal: Signal::Interrupt, timeout: seconds(5), last_signal: Signal::Kill },
                before_cordon: seconds(10),
                before_stop: seconds(10),
            },
        }
    }
}

impl Settings {
    /// Scales one of Fly's durations to the test's.
    pub fn scaled(&self, duration: Duration) -> Duration {
        duration.mul_f64(self.time_scale.clamp(0.0, 1000.0))
    }

    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        self.limits.idle_timeout.map(|limit| self.scaled(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_taken_as_fly_takes_it() {
        let mut check = Check::of("/health");
        (check.interval, check.timeout, check.grace_period) =
            (Duration::from_millis(10), Duration::from_secs(90), Duration::from_secs(300));
        let check = check.clamped();
        assert_eq!(check.interval, Duration::from_secs(1));
        assert_eq!(check.timeout, Duration::from_secs(60));
        assert_eq!(check.grace_period, Duration::from_secs(60), "the grace period is lowered too");
    }
}
