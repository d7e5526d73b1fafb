//! A proxy with one file of rules, on a virtual clock: it decides about requests of the past as the real one does about those of today.
//!
//! Rate limits and bans are those of the mechanism crate, the queue and circuit breakers those of the policy crate. A request is decided in
//! the order of `STAGES` and `TURN` of the engine: ban, limits, circuit breaker, permit. The app is replaced by the recorded times and
//! statuses.
//!
//! ```text
//! side/route.rs    the route of each kind of request
//! side/flight.rs   from the permit to the response
//! ```

mod flight;
mod route;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use outrigger_identity::client::Client;
use outrigger_identity::hash::client_hash;
use outrigger_identity::verified::{Verified, VerifiedKind};
use outrigger_mechanism::abuse::Bans;
use outrigger_mechanism::limits::shared::Shared;
use outrigger_mechanism::limits::table::Table;
use outrigger_mechanism::limits::{Books, LimitedRequest};
use outrigger_metrics::IntCounter;
use outrigger_policy::abuse::Offence;
use outrigger_policy::admission::Admission;
use outrigger_policy::breaker::{Breaker, Caller, State};
use outrigger_policy::flags::{Feature, Mode};
use outrigger_policy::tier::Tier;
use outrigger_rules::config::Config;
use outrigger_rules::sections::breaker::BreakerRules;
use outrigger_rules::sections::route_table::Route;
use outrigger_traffic::request::{ClientKind, Facts};

use self::flight::{Event, Flights};
use self::route::PastRoute;
use crate::past::{Catalogue, Past};
use crate::tally::{Names, Place, Tally};

/// Why a replayed request is rejected: the labels of the engine's table.
#[derive(Clone, Debug)]
pub struct Reasons {
    quota: Arc<str>,
    banned: Arc<str>,
    overloaded: Arc<str>,
    breaker: Arc<str>,
    expired: Arc<str>,
}

impl Default for Reasons {
    fn default() -> Self {
        Self {
            quota: "quota_exceeded".into(),
            banned: "abnormal_usage_detected".into(),
            overloaded: "temporary_reduced_capacity".into(),
            breaker: "breaker_open".into(),
            expired: "deadline_exceeded".into(),
        }
    }
}

impl Reasons {
    /// Whether rejections with this label are replayed. Those with any other one are taken as recorded.
    pub fn has(&self, label: &str) -> bool {
        [&self.quota, &self.banned, &self.overloaded, &self.breaker, &self.expired]
            .into_iter()
            .any(|own| **own == *label)
    }
}

/// Times of the app for requests that it was not asked for.
pub type Guess<'a> = &'a dyn Fn(u16, u64) -> u64;

/// A circuit breaker and the state that was last seen.
#[derive(Debug)]
struct WatchedBreaker {
    breaker: Breaker,
    state: State,
}

/// A proxy with one file of rules.
pub struct Side<'c> {
    config: &'c Config,
    catalogue: &'c Catalogue,
    guess: Guess<'c>,
    reasons: Reasons,
    routes: Vec<PastRoute>,
    route_tags: Vec<u64>,
    /// The number of each route's name in the report.
    route_rows: Vec<usize>,
    /// The same for each limit.
    limit_rows: Vec<usize>,
    table: Table,
    shared: Shared,
    overflow: IntCounter,
    bans: Bans,
    breakers: Vec<WatchedBreaker>,
    admission: Admission<u32>,
    flights: Flights,
    events: BinaryHeap<Reverse<Event>>,
    identities: [Arc<Verified>; 2],
    dice: u64,
    now: u64,
    /// Its counts.
    pub tally: Tally,
    /// Requests whose route was taken from the record by its name: the recorded path leads to another one.
    pub by_name: u64,
}

impl std::fmt::Debug for Side<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Side").field("now", &self.now).field("flights", &self.flights).finish_non_exhaustive()
    }
}

/// The circumstances of a replay, the same for both files.
#[derive(Clone, Copy)]
pub struct Circumstances<'c> {
    /// All kinds of requests.
    pub catalogue: &'c Catalogue,
    /// The rules that were in force: where they lead a recorded path to another route than the recorded one, the path is not used.
    pub in_force: &'c Config,
    /// Times of the app for requests that it was not asked for.
    pub guess: Guess<'c>,
    /// The number of Machines: each enforces its share of a shared rate limit.
    pub machines: u32,
    /// Spans of time that are counted separately.
    pub spans: usize,
}

impl std::fmt::Debug for Circumstances<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Circumstances").field("machines", &self.machines).finish_non_exhaustive()
    }
}

impl<'c> Side<'c> {
    /// A proxy that has just started with these rules. `routes` and `limits` number the names of the report.
    pub fn new(config: &'c Config, with: Circumstances<'c>, routes: &mut Names, limits: &mut Names) -> Self {
        let shared = Shared::new(config.max_limit_keys);
        shared.set_machines(with.machines);
        let identity = |kind| Arc::new(Verified::new(kind, "-", Tier::Anonymous));
        Self {
            config,
            catalogue: with.catalogue,
            guess: with.guess,
            reasons: Reasons::default(),
            routes: with.catalogue.shapes().iter().map(|shape| PastRoute::of(shape, config, &with)).collect(),
            route_tags: config.routes.all().iter().map(|route| client_hash(b'r', route.name.as_bytes())).collect(),
            route_rows: config.routes.all().iter().map(|route| routes.number(&route.name)).collect(),
            limit_rows: config.limits.all.iter().map(|limit| limits.number(&limit.name)).collect(),
            table: Table::new(config.max_limit_keys),
            shared,
            // The names are valid.
            overflow: IntCounter::new("overflow", "keys without a cell").unwrap_or_else(|_| unreachable!()),
            bans: Bans::default(),
            breakers: config.breakers.iter().map(WatchedBreaker::new).collect(),
            admission: Admission::new(config.gate.settings),
            flights: Flights::default(),
            events: BinaryHeap::new(),
            identities: [identity(VerifiedKind::User), identity(VerifiedKind::Key)],
            dice: 0,
            now: 0,
            tally: Tally::new(with.spans),
            by_name: 0,
        }
    }

    /// Decides about a request that arrives at `now`, on the virtual clock in nanoseconds. Times do not go back.
    pub fn arrive(&mut self, past: &Past, now: u64, place: Place) {
        self.advance(now);
        let Some(found) = self.routes.get(past.shape as usize) else { return };
        self.by_name += u64::from(found.is_by_name && !place.is_before);
        let number = found.route;
        let place = Place { route: self.route_rows.get(number).copied().unwrap_or_default(), ..place };
        self.tally.asked(place);
        let recorded = self.catalogue.name(past.reason);
        if past.facts.has(Facts::REJECTED) && !self.reasons.has(recorded) {
            return self.tally.refused(place, recorded, true);
        }
        let Some(route) = self.config.routes.all().get(number) else { return };
        if route.is_health {
            return;
        }
        let admission = self.mode_for(Feature::PrioritizedRateLimit, past.admission);
        let client = self.client(past);
        let is_counted = past.facts.has(Facts::COUNTED_HERE) && admission != Mode::Off;
        if is_counted && self.is_banned(&client, admission) {
            return self.tally.refused(place, &self.reasons.banned, false);
        }
        let mut is_beyond_monitored = false;
        if is_counted {
            let verdict = self.books().take_all(self.limited(number, route, &client, admission), |_| None);
            is_beyond_monitored = verdict.monitored.is_some();
            self.tally.monitored += u64::from(is_beyond_monitored && !place.is_before);
            if let Some((limit, _)) = verdict.refused {
                let row = self.limit_rows.get(usize::from(limit)).copied().unwrap_or_default();
                self.tally.limited(place, row);
                self.tally.refused(place, &self.reasons.quota, false);
                return self.offend(&client, Offence::Refusals, admission);
            }
        }
        if past.facts.has(Facts::FOR_APP) {
            self.take_turn(past, number, place, (admission, is_counted, is_beyond_monitored));
        }
    }

    /// The mode of a feature for the client of a request. A flag that depends on the client has the recorded one.
    fn mode_for(&self, feature: Feature, recorded: Mode) -> Mode {
        self.config.flag(feature).mode_for_everybody().unwrap_or(recorded)
    }

    /// The client, as limits and bans see it.
    fn client(&self, past: &Past) -> Client {
        let verified = match past.kind {
            ClientKind::User => Some(Arc::clone(&self.identities[0])),
            ClientKind::Key => Some(Arc::clone(&self.identities[1])),
            ClientKind::Address | ClientKind::UnknownKey => None,
        };
        Client { id: past.client, address_id: past.address, tier: past.tier, verified, ..Client::UNKNOWN }
    }

    fn books(&self) -> Books<'_> {
        Books::open(&self.table, &self.shared, &self.overflow, &self.config.limits, self.now)
    }

    fn limited<'r>(&'r self, number: usize, route: &Route, client: &'r Client, admission: Mode) -> LimitedRequest<'r> {
        LimitedRequest {
            limits: &self.config.limits,
            route: number,
            route_tag: self.route_tags.get(number).copied().unwrap_or_default(),
            cost: route.cost,
            client,
            admission,
        }
    }

    fn is_banned(&self, client: &Client, admission: Mode) -> bool {
        let is_enforced = self.config.abuse.mode == Mode::Enforce && admission == Mode::Enforce;
        is_enforced && self.bans.any() && self.bans.in_force(client, self.now).is_some()
    }

    fn offend(&mut self, client: &Client, offence: Offence, admission: Mode) {
        let rules = &self.config.abuse;
        if rules.mode == Mode::Off || admission == Mode::Off {
            return;
        }
        if self.bans.offend(client, offence, self.now, rules, &self.table).is_some() && rules.mode == Mode::Enforce {
            self.tally.bans += 1;
        }
    }

    /// A number from 0 to 1, the same in each run.
    fn dice(&mut self) -> f64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.dice ^ (self.dice >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The circuit breaker of a route, its rules and its mode for this client.
    fn breaker_of(&self, route: &Route, past: &Past) -> Option<(usize, &'c BreakerRules, Mode)> {
        let resilience = self.mode_for(Feature::CircuitBreaker, past.resilience);
        let number = usize::from(route.breaker?);
        let rules = self.config.breakers.get(number)?;
        match (resilience, rules.mode) {
            (Mode::Off, _) | (_, Mode::Off) => None,
            (Mode::Monitor, _) | (_, Mode::Monitor) => Some((number, rules, Mode::Monitor)),
            (Mode::Enforce, Mode::Enforce) => Some((number, rules, Mode::Enforce)),
        }
    }

    fn caller(&self, past: &Past, rules: &BreakerRules) -> Caller {
        let is_verified = matches!(past.kind, ClientKind::User | ClientKind::Key);
        let client = if is_verified { past.client } else { past.address };
        let place = self.routes.get(past.shape as usize).map_or(0, |found| found.place);
        Caller { client, place: if rules.settings.is_shared { place } else { 0 } }
    }

    /// Counts a circuit breaker that has opened.
    fn look_at(&mut self, number: usize, is_before: bool) {
        let (Some(watched), Some(rules)) = (self.breakers.get_mut(number), self.config.breakers.get(number)) else {
            return;
        };
        let state = watched.breaker.state();
        let has_opened = state == State::Open && watched.state != State::Open;
        watched.state = state;
        if has_opened && !is_before {
            self.tally.opened(&rules.name);
        }
    }
}

impl WatchedBreaker {
    fn new(rules: &BreakerRules) -> Self {
        Self { breaker: Breaker::new(rules.settings), state: State::Closed }
    }
}

#[cfg(test)]
mod tests;
