//! Makes the summary: at most four times a second, for all who ask.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use outrigger_identity::clock;
use outrigger_policy::breaker::{Control, Reason as Cause, State as Position};
use outrigger_policy::flags::{Feature, Mode};
use outrigger_policy::priority::Priority;
use outrigger_rules::target::Target;

use crate::control::status::configuration::configuration;
use crate::control::status::headline::headline;
use crate::control::status::sampler::{Sampler, Sums, Total};
use crate::control::status::saved::SavedState;
use crate::control::status::windows::{Buckets, Counts};
use crate::control::status::{
    App, Audit, Bans, Breaker, Breakers, Concurrency, Limit, Limits, Machines, Maintenance, OtherRoutes, Pause, Peer,
    Point, PriorityTraffic, Process, Reason, RouteTraffic, Status, TopClient, Traffic, Windows,
};
use crate::engine::condition::condition;
use crate::engine::pause;
use crate::engine::state::{Phase, Snapshot, State};
use crate::mechanism::gate::Standing;
use crate::mechanism::peers::Standing as PeerStanding;
use crate::run::Handle;

/// A summary that is not older than this is used again.
const FRESH: Duration = Duration::from_millis(250);
/// Routes, limits and circuit breakers that are shown.
const MOST_SHOWN: usize = 50;
/// Clients that are shown for each limit.
const MOST_CLIENTS: usize = 5;
/// Peers that are shown.
const MOST_PEERS: usize = 100;
/// Samples in a point of the traffic's history.
const POINT: usize = 5;

const SHORT: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);

/// The sampler, and the latest summary.
#[derive(Debug)]
pub struct Board {
    state: Arc<State>,
    app: Option<Handle>,
    sampler: Mutex<Sampler>,
    latest: Mutex<Option<(Instant, Arc<Status>)>>,
    /// The latest summaries of all Machines, as JSON.
    pub of_all: tokio::sync::Mutex<Option<(Instant, serde_json::Value)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // After a panic with the lock held, a second may be missing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// Begins to count from here on; [`Self::keep_sampling`] has to run.
    pub fn new(state: &Arc<State>, app: Option<Handle>) -> Self {
        let sampler = Mutex::new(Sampler::new(state));
        Self { state: Arc::clone(state), app, sampler, latest: Mutex::default(), of_all: Default::default() }
    }

    /// Samples once a second.
    pub async fn keep_sampling(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            lock(&self.sampler).sample(&self.state, clock::now());
            if self.state.peers.is_some() {
                // Its fields are numbers, text and lists: serializing them cannot fail.
                let json = serde_json::to_vec(&*self.status()).unwrap_or_default();
                self.state.summary.store(Arc::new(json));
            }
        }
    }

    /// The summary.
    pub fn status(&self) -> Arc<Status> {
        let mut latest = lock(&self.latest);
        if let Some((made, status)) = latest.as_ref()
            && clock::since(*made) < FRESH
        {
            return Arc::clone(status);
        }
        let status = Arc::new(self.gather());
        *latest = Some((clock::now(), Arc::clone(&status)));
        status
    }

    /// Forgets the summary: something has changed that the next one has to show.
    pub fn refresh(&self) {
        *lock(&self.latest) = None;
    }

    fn gather(&self) -> Status {
        let state = &self.state;
        let rules = state.rules.load_full();
        let gate = state.gate.standing();
        let sampler = lock(&self.sampler);
        let (short, long) = (sampler.last(SHORT), sampler.last(LONG));
        let mut status = Status {
            at: Timestamp::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: rules.config.this.as_ref().map(|this| this.name.to_string()),
            uptime_s: clock::since(state.started).as_secs(),
            phase: match state.drain.phase() {
                Phase::Serving => "serving",
                Phase::LameDuck => "lame_duck",
                Phase::Closing => "closing",
            }
            .to_owned(),
            headline: Default::default(),
            traffic: traffic(state, &sampler, &gate, (&short, &long)),
            concurrency: Concurrency {
                mode: rules.config.gate.mode.name().to_owned(),
                limit: gate.limit,
                in_flight: gate.in_flight,
                queued: gate.waiting.iter().sum(),
                queue_limit: gate.room,
                latency_ms: gate.latency.map(|latency| latency.as_secs_f64() * 1000.0),
            },
            limits: limits(state, sampler.snapshot(), &long),
            breakers: breakers(state),
            machines: machines(state, &rules),
            bans: Bans {
                mode: rules.config.abuse.mode.name().to_owned(),
                count: state.bans.held(state.nanoseconds(clock::now())),
            },
            app: app(state, &rules, &gate, &long),
            pause: state.pause.shown().map(|pause| Pause {
                since: pause.since,
                ends: pause.ends,
                waiting: gate.waiting.iter().sum(),
            }),
            maintenance: pause::is_maintenance(state).then(|| Maintenance {
                since: state.pause.maintenance_since(),
                is_in_file: rules.config.maintenance.is_on,
            }),
            saved: rules.config.state.as_ref().map(|_| SavedState::of(&state.snapshots)),
            audit: audit(state, &rules),
            config: configuration(state, &rules),
            events: state.history.events(),
        };
        drop(sampler);
        status.app.process = self.app.as_ref().map(|app| {
            let shown = app.shown();
            Process {
                state: shown.phase.map(|phase| phase.name().to_owned()),
                pid: shown.pid,
                starts: shown.starts,
                last_exit_code: shown.last_exit.map(|code| code.0),
                last_restart: shown.last_reason.map(str::to_owned),
            }
        });
        status.headline = headline(&status);
        status
    }
}

fn traffic(state: &State, sampler: &Sampler, gate: &Standing, (short, long): (&Sums, &Sums)) -> Traffic {
    let totals = (sampler.last_totals(SHORT), sampler.last_totals(LONG));
    let rates = |total: &Total| total.counts.rates(total.seconds, Some(&total.buckets));
    let shed_since = sampler.shed_since();
    let priorities = Priority::ALL.into_iter().enumerate().map(|(number, priority)| {
        let of = |total: &Total| total.priorities[number].rates(total.seconds, None);
        let requests = totals.0.priorities[number].requests;
        PriorityTraffic {
            priority: priority.name().to_owned(),
            windows: Windows { last_10_s: of(&totals.0), last_60_s: of(&totals.1) },
            queued: gate.waiting[number],
            shed_share: if requests == 0 { 0.0 } else { totals.0.shed[number] as f64 / requests as f64 },
            shed_since: shed_since[number],
        }
    });
    let (routes, other_routes) = routes(sampler.snapshot(), short, long);
    let points = sampler.points(POINT).into_iter().map(|total| {
        let rates = rates(&total);
        Point {
            requests_per_s: rates.requests_per_s,
            errors_per_s: rates.errors_per_s,
            rejected_per_s: rates.rejected_per_s,
            p99_ms: rates.p99_ms,
        }
    });
    let rejections = &state.metrics.rejections;
    Traffic {
        all: Windows { last_10_s: rates(&totals.0), last_60_s: rates(&totals.1) },
        in_flight: state.in_flight() as u64,
        connections: state.connections() as u64,
        priorities: priorities.collect(),
        routes,
        other_routes,
        rejections: reasons(rejections.by_reason(), |reason| long.rejections.get(reason).copied(), long.seconds),
        failures: reasons(rejections.failures_by_reason(), |reason| long.failures.get(reason).copied(), long.seconds),
        history: points.collect(),
    }
}

fn routes(snapshot: &Snapshot, short: &Sums, long: &Sums) -> (Vec<RouteTraffic>, OtherRoutes) {
    let mut busiest: Vec<(&usize, &(Counts, Buckets))> = long.routes.iter().collect();
    busiest.sort_unstable_by_key(|(number, (counts, _))| (std::cmp::Reverse(counts.requests), **number));
    let shown = busiest.iter().take(MOST_SHOWN).filter_map(|(number, (counts, buckets))| {
        let route = snapshot.config.routes.all().get(**number)?;
        let last_10_s = short.routes.get(*number).map(|(counts, buckets)| counts.rates(short.seconds, Some(buckets)));
        Some(RouteTraffic {
            route: route.name.to_string(),
            priority: route.priority.name().to_owned(),
            windows: Windows {
                last_10_s: last_10_s.unwrap_or_default(),
                last_60_s: counts.rates(long.seconds, Some(buckets)),
            },
        })
    });
    let rest = busiest.get(MOST_SHOWN..).unwrap_or_default();
    let (mut recent, mut all) = (short.others, long.others);
    for (number, (counts, _)) in rest {
        all += *counts;
        recent += short.routes.get(*number).map(|(counts, _)| *counts).unwrap_or_default();
    }
    let windows = Windows { last_10_s: recent.rates(short.seconds, None), last_60_s: all.rates(long.seconds, None) };
    let routes = snapshot.config.routes.all().len().saturating_sub(busiest.len().min(MOST_SHOWN));
    (shown.collect(), OtherRoutes { routes, windows })
}

fn reasons(
    totals: impl Iterator<Item = (&'static str, u64)>,
    recent: impl Fn(&str) -> Option<u64>,
    seconds: f64,
) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = Vec::new();
    for (reason, total) in totals {
        // Several rejections share a label.
        if reasons.iter().any(|known| known.reason == reason) {
            continue;
        }
        if let Some(count) = recent(reason) {
            reasons.push(Reason { reason: reason.to_owned(), per_s: per_second(count, seconds), total });
        }
    }
    reasons.sort_by(|a, b| b.per_s.total_cmp(&a.per_s));
    reasons
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

fn limits(state: &State, snapshot: &Snapshot, long: &Sums) -> Limits {
    let mut shown: Vec<(usize, Limit)> = snapshot
        .config
        .limits
        .all
        .iter()
        .zip(&snapshot.limit_metrics)
        .enumerate()
        .map(|(number, (limit, counted))| {
            (
                number,
                Limit {
                    name: limit.name.to_string(),
                    mode: limit.mode.name().to_owned(),
                    is_shared: limit.is_shared,
                    refused_per_s: per_second(long.limits.get(&number).copied().unwrap_or_default(), long.seconds),
                    refused_total: counted.enforced.get(),
                    monitored_total: counted.monitored.get(),
                    top_clients: Vec::new(),
                },
            )
        })
        .collect();
    // Stable: the others are in the order of the configuration.
    shown.sort_by(|(_, a), (_, b)| {
        b.refused_per_s.total_cmp(&a.refused_per_s).then(b.refused_total.cmp(&a.refused_total))
    });
    let other_limits = shown.len().saturating_sub(MOST_SHOWN);
    shown.truncate(MOST_SHOWN);
    let now = state.nanoseconds(clock::now());
    let with_clients = |(number, limit): (usize, Limit)| {
        let hitters = snapshot.limited.get(number).map(|hitters| lock(hitters).top(now)).unwrap_or_default();
        let top = hitters.into_iter().take(MOST_CLIENTS).map(|hitter| TopClient {
            client: format!("{:016x}", hitter.key),
            refused: hitter.count,
            error: hitter.error,
        });
        Limit { top_clients: top.collect(), ..limit }
    };
    let (keys_used, keys_room) = state.limits.size(state.nanoseconds(clock::now()));
    let sharing = state.shared.standpoint();
    Limits {
        limits: shown.into_iter().map(with_clients).collect(),
        other_limits,
        keys_used,
        keys_room,
        sharing: sharing.mode.name().to_owned(),
        sharing_reason: sharing.reason,
        sharing_since_s: clock::since(sharing.since).as_secs(),
        sharing_machines: state.shared.machines(),
    }
}

fn breakers(state: &State) -> Breakers {
    let now = state.nanoseconds(clock::now());
    let shown = state.breakers.all().into_iter().filter_map(|cell| {
        let standing = cell.standing(now)?;
        let (calls, failed, slow) = standing.seen;
        let is_calm = standing.position == Position::Closed && standing.control == Control::Automatic;
        let breaker = Breaker {
            name: cell.name.to_string(),
            state: standing.position.name().to_owned(),
            is_forced: standing.control != Control::Automatic,
            since: standing.age.and_then(|age| Timestamp::try_from(SystemTime::now() - age).ok()),
            reason: standing.reason.map(|cause: Cause| cause.name().to_owned()),
            open_for_s: standing.left.map(|left| left.as_secs_f64()),
            calls,
            failed,
            slow,
            clients_refused: standing.clients_refused,
        };
        Some((is_calm, breaker))
    });
    let mut shown: Vec<(bool, Breaker)> = shown.collect();
    shown.sort_by_key(|(is_calm, breaker)| (*is_calm, std::cmp::Reverse(breaker.failed)));
    let other_breakers = shown.len().saturating_sub(MOST_SHOWN);
    shown.truncate(MOST_SHOWN);
    let breakers = shown.into_iter().map(|(_, breaker)| breaker).collect();
    Breakers { breakers, other_breakers, changes: state.history.breaker_changes() }
}

fn machines(state: &State, rules: &Snapshot) -> Machines {
    let affinity = rules.config.affinity.as_ref().filter(|rules| rules.mode != Mode::Off);
    let peers = state.peers.as_ref();
    let seen = peers.map_or_else(Vec::new, |peers| {
        let seen = peers.seen();
        let shown = seen.peers.iter().take(MOST_PEERS).map(|peer| Peer {
            name: peer.name.to_string(),
            address: match &peer.target {
                Target::Tcp(address) => address.to_string(),
                Target::Unix(path) => path.display().to_string(),
            },
            state: peer.standing().name().to_owned(),
        });
        shown.collect()
    });
    let (known, ready) = peers.map_or((1, 1), |peers| peers.machines());
    let (scaled_up, scaled_down) = state.metrics.peers.scaled();
    Machines {
        state: peers.map(|peers| PeerStanding::from(condition(state, &peers.local)).name().to_owned()),
        sessions: affinity.map(|rules| rules.mode.name().to_owned()),
        sessions_via: affinity.map(|rules| rules.via.name().to_owned()),
        peers: seen,
        known,
        ready,
        scaled_up,
        scaled_down,
    }
}

fn app(state: &State, rules: &Snapshot, gate: &Standing, long: &Sums) -> App {
    let is_reachable = !state.reach.is_away();
    App {
        address: rules.config.app.address.to_string(),
        is_reachable,
        away_since: if is_reachable { None } else { state.history.away_since() },
        held: if is_reachable { 0 } else { gate.waiting.iter().sum() },
        hold_s: rules.config.app.hold.as_secs_f64(),
        held_total: state.metrics.held.get(),
        retries_per_s: per_second(long.retries, long.seconds),
        retries_denied_per_s: per_second(long.retries_denied, long.seconds),
        retry_budget: state.budgets().retries.left(rules.config.retry.budget),
        process: None,
    }
}

fn audit(state: &State, rules: &Snapshot) -> Option<Audit> {
    let trail = state.trail.as_ref()?;
    let (lost, alarms) = trail.metrics.lost_and_alarms();
    let mode = rules.config.flag(Feature::AuditTrail).mode_for_everybody();
    Some(Audit {
        // A percentage of clients counts as on.
        mode: mode.unwrap_or(Mode::Enforce).name().to_owned(),
        is_writable: outrigger_policy::audit::Class::ALL.into_iter().all(|class| trail.is_writable(class)),
        queued: trail.queued(),
        unshipped: trail.metrics.unshipped.get(),
        lag_s: trail.metrics.lag.get(),
        bytes: trail.metrics.spool_bytes.get(),
        lost,
        alarms,
    })
}
