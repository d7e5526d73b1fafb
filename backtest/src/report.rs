//! The result of a replay: as recorded, under the rules in force, and under the proposed ones, side by side.

use std::sync::Arc;

use outrigger_policy::tier::Tier;
use serde::Serialize;

use crate::tally::{Count, Names, Tally};

/// Clients that are shown.
const MOST_CLIENTS: usize = 10;

/// A number for each of the three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Three<T> {
    /// As recorded.
    pub recorded: T,
    /// Under the rules in force.
    pub in_force: T,
    /// Under the proposed rules.
    pub proposed: T,
}

impl<T> Three<T> {
    fn of(recorded: T, in_force: T, proposed: T) -> Self {
        Self { recorded, in_force, proposed }
    }
}

/// Rejections under a name.
#[derive(Clone, Debug, Serialize)]
pub struct NamedRow {
    /// A reason, a rate limit, or a circuit breaker.
    pub name: String,
    /// How many.
    #[serde(flatten)]
    pub count: Three<u64>,
}

/// Requests of a route and a tier.
#[derive(Clone, Debug, Serialize)]
pub struct RouteRow {
    /// The route.
    pub route: String,
    /// The tier; `None`: all of them.
    pub tier: Option<&'static str>,
    /// Requests: other rules may give them other routes.
    pub requests: Three<u64>,
    /// Rejections.
    pub rejected: Three<u64>,
}

/// Rejections of a client.
#[derive(Clone, Debug, Serialize)]
pub struct ClientRow {
    /// The pseudonym, in hexadecimal.
    pub client: String,
    /// How it was identified.
    pub by: &'static str,
    /// Rejections.
    pub rejected: Three<u64>,
}

/// Waits for a permit.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct WaitRow {
    /// Requests that waited.
    pub requests: u64,
    /// Their median, in milliseconds.
    pub p50_ms: f64,
    /// Their 99th percentile.
    pub p99_ms: f64,
    /// The longest one.
    pub longest_ms: f64,
}

impl WaitRow {
    fn of(tally: &Tally) -> Self {
        let ms = |ns: u64| (ns as f64 / 10_000.0).round() / 100.0;
        let waits = &tally.waits;
        Self {
            requests: waits.count,
            p50_ms: ms(waits.quantile(0.5)),
            p99_ms: ms(waits.quantile(0.99)),
            longest_ms: ms(waits.longest_ns),
        }
    }
}

/// How near the replay of the rules in force comes to the record. Only rejections by rules that are replayed are compared.
#[derive(Clone, Debug, Serialize)]
pub struct Fidelity {
    /// Recorded rejections.
    pub recorded: u64,
    /// Those of the replay.
    pub replayed: u64,
    /// The sum of the differences of all routes and tiers, as a share of the recorded rejections, 0 to 1; `None` without rejections.
    pub apart: Option<f64>,
    /// The route and tier with the largest difference.
    pub furthest: Option<Furthest>,
}

/// The largest difference.
#[derive(Clone, Debug, Serialize)]
pub struct Furthest {
    /// The route.
    pub route: String,
    /// The tier.
    pub tier: &'static str,
    /// Recorded rejections.
    pub recorded: u64,
    /// Those of the replay.
    pub replayed: u64,
}

/// Rejections over time.
#[derive(Clone, Debug, Serialize)]
pub struct OverTime {
    /// When the first span begins: nanoseconds since 1970.
    pub from_ns: u64,
    /// The length of a span in seconds.
    pub span_s: u64,
    /// Requests.
    pub requests: Vec<u64>,
    /// Rejections.
    pub rejected: Three<Vec<u64>>,
}

/// The result of a backtest.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The source of the requests.
    pub source: String,
    /// When the first request began.
    pub from: String,
    /// When the last one began.
    pub until: String,
    /// Replayed requests, with those before `since` that only bring limits into their states.
    pub replayed: u64,
    /// How long both readings took, in seconds.
    pub seconds: f64,
    /// Replayed requests a second.
    pub requests_per_second: f64,
    /// Requests.
    pub requests: u64,
    /// Rejections.
    pub rejected: Three<u64>,
    /// Requests that rules in `monitor` would have rejected.
    pub monitored: Three<Option<u64>>,
    /// Bans.
    pub bans: Three<Option<u64>>,
    /// How often circuit breakers opened.
    pub breakers: Vec<NamedRow>,
    /// By reason.
    pub reasons: Vec<NamedRow>,
    /// By rate limit.
    pub limits: Vec<NamedRow>,
    /// By route and tier, those with requests; first each route as a whole.
    pub routes: Vec<RouteRow>,
    /// The clients with most rejections under the proposed rules.
    pub clients: Vec<ClientRow>,
    /// Waits for a permit.
    pub waits: Three<WaitRow>,
    /// How near the replay of the rules in force comes to the record.
    pub fidelity: Fidelity,
    /// Over time.
    pub over_time: OverTime,
    /// Remarks about these numbers.
    pub notes: Vec<String>,
}

/// The counts of the three, and the names to which their numbers refer.
#[derive(Debug)]
pub struct Counts<'t> {
    /// As recorded.
    pub recorded: &'t Tally,
    /// Under the rules in force.
    pub in_force: &'t Tally,
    /// Under the proposed rules.
    pub proposed: &'t Tally,
    /// Names of routes.
    pub routes: &'t Names,
    /// Names of limits.
    pub limits: &'t Names,
}

impl Counts<'_> {
    fn each<T>(&self, of: impl Fn(&Tally) -> T) -> Three<T> {
        Three::of(of(self.recorded), of(self.in_force), of(self.proposed))
    }

    /// All rejections.
    pub fn rejected(&self) -> Three<u64> {
        self.each(|tally| tally.total().rejected())
    }

    /// By a name that each of the three counts by itself.
    pub fn named(&self, of: impl Fn(&Tally) -> &[(Arc<str>, u64)]) -> Vec<NamedRow> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for tally in [self.recorded, self.in_force, self.proposed] {
            for (name, _) in of(tally) {
                if !names.contains(name) {
                    names.push(Arc::clone(name));
                }
            }
        }
        names.sort();
        let count = |tally: &Tally, name: &Arc<str>| {
            of(tally).iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count)
        };
        names
            .into_iter()
            .map(|name| NamedRow { count: self.each(|tally| count(tally, &name)), name: name.to_string() })
            .collect()
    }

    /// By rate limit, those that rejected a request.
    pub fn by_limit(&self) -> Vec<NamedRow> {
        let row = |(number, name): (usize, &Arc<str>)| {
            let count = self.each(|tally| tally.by_limit.get(number).copied().unwrap_or_default());
            (count != Three::default()).then(|| NamedRow { name: name.to_string(), count })
        };
        self.limits.all().iter().enumerate().filter_map(row).collect()
    }

    /// By route and tier.
    pub fn by_route(&self) -> Vec<RouteRow> {
        let mut rows = Vec::new();
        for (number, name) in self.routes.all().iter().enumerate() {
            let row = |tier: Option<Tier>| {
                let tiers = tier.map_or(&Tier::ALL[..], |tier| std::slice::from_ref(&Tier::ALL[tier as usize]));
                let sum = |of: fn(Count) -> u64| {
                    self.each(|tally| tiers.iter().map(|tier| of(tally.of(number, *tier))).sum::<u64>())
                };
                let requests = sum(|count| count.requests);
                let (route, tier) = (name.to_string(), tier.map(Tier::name));
                let rejected = sum(Count::rejected);
                (requests != Three::default()).then_some(RouteRow { route, tier, requests, rejected })
            };
            rows.extend([None].into_iter().chain(Tier::ALL.map(Some)).filter_map(row));
        }
        rows
    }

    /// The clients with most rejections under the proposed rules, then in the record.
    pub fn by_client(&self) -> Vec<ClientRow> {
        let mut top = self.proposed.by_client.top(MOST_CLIENTS);
        for other in self.recorded.by_client.top(MOST_CLIENTS) {
            let is_there = top.iter().any(|known| (known.0, known.1) == (other.0, other.1));
            if top.len() < MOST_CLIENTS && !is_there {
                top.push(other);
            }
        }
        let row = |(client, kind, _): (u64, outrigger_traffic::request::ClientKind, u64)| ClientRow {
            client: format!("{client:016x}"),
            by: kind.name(),
            rejected: self.each(|tally| tally.by_client.of(client, kind)),
        };
        top.into_iter().map(row).collect()
    }

    /// Waits for a permit.
    pub fn waits(&self) -> Three<WaitRow> {
        self.each(WaitRow::of)
    }

    /// Rejections over time.
    pub fn over_time(&self, from_ns: u64, span_s: u64) -> OverTime {
        OverTime {
            from_ns,
            span_s,
            requests: self.recorded.over_time.iter().map(|count| count.requests).collect(),
            rejected: self.each(|tally| tally.over_time.iter().map(|count| count.rejected()).collect()),
        }
    }

    /// How near the replay comes to the record.
    pub fn fidelity(&self) -> Fidelity {
        let (mut apart, mut furthest): (u64, Option<(u64, Furthest)>) = (0, None);
        for (number, route) in self.routes.all().iter().enumerate() {
            for tier in Tier::ALL {
                let (recorded, replayed) =
                    (self.recorded.of(number, tier).refused, self.in_force.of(number, tier).refused);
                let difference = recorded.abs_diff(replayed);
                apart += difference;
                if difference > furthest.as_ref().map_or(0, |(most, _)| *most) {
                    let (route, tier) = (route.to_string(), tier.name());
                    furthest = Some((difference, Furthest { route, tier, recorded, replayed }));
                }
            }
        }
        let (recorded, replayed) = (self.recorded.total().refused, self.in_force.total().refused);
        Fidelity {
            recorded,
            replayed,
            apart: (recorded > 0).then(|| apart as f64 / recorded as f64),
            furthest: furthest.map(|(_, furthest)| furthest),
        }
    }
}
