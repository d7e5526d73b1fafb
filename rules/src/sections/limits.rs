//! `[rate_limits]`: rate limits, as written and compiled.

use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use outrigger_identity::client::Client;
use outrigger_identity::hash::{client_hash, mix};
use outrigger_policy::flags::Mode;
use outrigger_policy::limiter::{Quota, Rate};
use outrigger_policy::priority::Priority;
use outrigger_policy::tier::{Multiplier, Tier};
use outrigger_wire::ratelimit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::acting::Acting;
use crate::complaints::{Builder, is_name, name_hint};
use crate::sections::redis::{Redis, RedisSettings};
use crate::sections::route_table::{BUILT_IN, RouteTable};
use crate::sections::tiers::Tiers;
use crate::tree::Step;
use crate::units::{OptionalRate, Text, non_zero, per_minute};

/// Rate limits: how many requests each client may send.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    /// For all limits: "monitor" and "off" override a single limit's `mode`. Default: "enforce", but "monitor" in a file
    /// without this section.
    pub mode: Acting,
    /// Adds `RateLimit-Policy` and `RateLimit` to responses.
    pub headers: bool,
    /// Adds `X-RateLimit-Limit`, `-Remaining` and `-Reset` to responses, for the limit with the least left.
    pub legacy_headers: bool,
    /// Maximum number of keys (one client under one limit), 20 bytes each. Beyond, new keys share the quota of one. A change
    /// needs a restart.
    #[schemars(range(max = 100_000_000))]
    pub max_keys: NonZeroU32,
    /// Whether all Machines enforce the limits together.
    pub shared: Sharing,
    /// The Redis that they share.
    pub redis: Redis,
    /// Quota of each client for all critical routes together.
    pub critical: Text<OptionalRate>,
    /// Likewise for high priority.
    pub high: Text<OptionalRate>,
    /// Likewise for medium priority, the default of routes.
    pub medium: Text<OptionalRate>,
    /// Likewise for low priority.
    pub low: Text<OptionalRate>,
    /// Likewise for strict priority.
    pub strict: Text<OptionalRate>,
    /// More limits. A request must pass all that apply to it; if one rejects it, it takes no tokens from the others.
    pub rules: Vec<Rule>,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            mode: Acting::Enforce,
            headers: true,
            legacy_headers: false,
            max_keys: non_zero(100_000),
            shared: Sharing::Off,
            redis: Redis::default(),
            critical: per_minute(1000),
            high: per_minute(200),
            medium: per_minute(100),
            low: per_minute(30),
            strict: per_minute(10),
            rules: Vec::new(),
        }
    }
}

/// Where usage is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// On each Machine separately.
    #[default]
    Off,
    /// In Redis, by all Machines together.
    Redis,
}

/// Which requests share a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Those of one client: the verified user, else the API key, else the address.
    #[default]
    Client,
    /// Those of one client on one route.
    ClientAndRoute,
    /// Those of one address (IPv6: one /64), for all its users.
    Address,
    /// Those on one route, of all clients.
    Route,
    /// All on this Machine.
    Machine,
}

/// Events that use up a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Count {
    /// Requests, by their cost.
    #[default]
    Requests,
    /// Responses 401, 403 and 404, when they are sent; requests are rejected when the quota is used up.
    Failures,
}

/// One rate limit.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name in metrics, logs and responses: lower-case letters, digits, `-` and `_`; at most 64.
    #[schemars(regex(pattern = r"^[a-z0-9_-]{1,64}$"))]
    pub name: String,
    /// Number of requests per time.
    pub rate: Text<Rate>,
    /// How many requests are admitted at once. Unset: as many as in `rate`.
    #[serde(default)]
    pub burst: Option<NonZeroU32>,
    /// Which requests share a quota.
    #[serde(default)]
    pub by: By,
    /// Events that use up the limit.
    #[serde(default)]
    pub count: Count,
    /// Names of the routes it applies to; "default" is all paths without a route. Empty: all but health.
    #[serde(default)]
    pub routes: Vec<String>,
    /// Whether the client's tier multiplies it. Ignored for `by` "route" and "machine".
    #[serde(default = "yes")]
    pub tiers: bool,
    /// Whether it rejects requests ("enforce") or only counts them ("monitor").
    #[serde(default)]
    pub mode: Acting,
    /// Whether all Machines enforce it together, by `rate_limits.shared`. Unset: yes, except for `by = "machine"`.
    #[serde(default)]
    pub shared: Option<bool>,
}

const fn yes() -> bool {
    true
}

/// Maximum number of limits that apply to one request.
pub const MOST_LIMITS: usize = 8;

/// One rate limit, checked.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Its name in metrics, logs and responses.
    pub name: Arc<str>,
    /// The window of its rate.
    pub window: Duration,
    /// Which requests share a quota.
    pub by: By,
    /// Events that use it up.
    pub count: Count,
    /// Whether it rejects requests or only counts them.
    pub mode: Mode,
    /// All Machines enforce it together.
    pub is_shared: bool,
    /// For each tier; `None` means no limit.
    pub quotas: [Option<Quota>; Tier::ALL.len()],
    /// `RateLimit-Policy` for each tier.
    pub policies: [Box<str>; Tier::ALL.len()],
    /// Separates its keys from those of other limits. A hash of its name and of what it counts, so its state survives a reload and a
    /// restart.
    salt: u64,
}

impl Limit {
    /// Compiles a limit.
    pub fn new(name: &str, by: By, count: Count, mode: Mode, quotas: [Option<Quota>; 5], window_s: u64) -> Self {
        let policy = |quota: Option<Quota>| {
            quota.map_or_else(String::new, |quota| ratelimit::policy(name, quota.burst(), window_s))
        };
        Self {
            name: name.into(),
            window: Duration::from_secs(window_s),
            by,
            count,
            mode,
            is_shared: false,
            quotas,
            policies: quotas.map(|quota| policy(quota).into()),
            salt: client_hash(SALT, format!("{name} {by:?} {count:?}").as_bytes()),
        }
    }

    /// Sets whether all Machines enforce it together.
    #[must_use]
    pub fn shared(self, is_shared: bool) -> Self {
        Self { is_shared, ..self }
    }

    /// Whether responses show it to the client: the usage of other clients is confidential.
    pub fn is_shown(&self) -> bool {
        !matches!(self.by, By::Route | By::Machine)
    }

    /// Whether it only counts, given `admission`, the mode of all limits for the client.
    pub fn is_monitored(&self, admission: Mode) -> bool {
        self.mode == Mode::Monitor || admission == Mode::Monitor
    }

    /// The client's key under this limit. `route_tag`: a hash of the route's name.
    pub fn tag(&self, client: &Client, route_tag: u64) -> u64 {
        let key = match self.by {
            By::Client => client.id,
            By::ClientAndRoute => client.id ^ mix(route_tag),
            By::Address => client.address_id,
            By::Route => mix(route_tag),
            By::Machine => 0,
        };
        marked(mix(self.salt ^ key), self.mark())
    }

    /// The part of its keys' tags that is the same for all of them, and differs from that of most other limits.
    pub const fn mark(&self) -> u64 {
        FIRST_MARK + self.salt % (MARKS - FIRST_MARK)
    }

    /// How far ahead of now the arrival time of its keys may be, in any tier.
    pub fn most_ahead_ns(&self) -> u64 {
        self.quotas.iter().flatten().map(|quota| quota.burst_ns()).max().unwrap_or(0)
    }

    /// The shared cell of the client's key if the table is full.
    pub fn origin(&self, client: &Client, route_tag: u64) -> u64 {
        match self.by {
            By::Client | By::ClientAndRoute | By::Address => mix(self.salt ^ client.origin()),
            By::Route => mix(self.salt ^ mix(route_tag)),
            By::Machine => self.salt,
        }
    }
}

impl fmt::Display for Limit {
    /// For `explain`: the limit of a client without a tier.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            By::Client => "each client",
            By::ClientAndRoute => "each client on this route",
            By::Address => "each address",
            By::Route => "all clients on this route",
            By::Machine if self.is_shared => "all Machines",
            By::Machine => "this Machine",
        };
        let where_ = if self.is_shared { ", shared by all Machines" } else { "" };
        let what = match self.count {
            Count::Requests => "",
            Count::Failures => " failures",
        };
        match self.quotas[Tier::Anonymous as usize] {
            Some(quota) => {
                let every = Duration::from_nanos(quota.charge_ns(1));
                let burst = quota.burst();
                write!(
                    f,
                    "{}: {burst}{what} at once, then one every {every:?}, for {by} ({}{where_})",
                    self.name,
                    self.mode.name()
                )
            }
            None => write!(f, "{}: none for the anonymous", self.name),
        }
    }
}

/// The number of marks: the lowest 12 bits of a tag.
pub const MARKS: u64 = 1 << 12;
/// Lower marks are those of offences, see `mechanism`.
pub const FIRST_MARK: u64 = 16;

/// A tag with this mark.
pub const fn marked(tag: u64, mark: u64) -> u64 {
    (tag & !(MARKS - 1)) | (mark & (MARKS - 1))
}

/// Separates the hashes of [`client_hash`] from those with other purposes.
const SALT: u8 = b'l';

/// All limits, and those of each route.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Each limit once.
    pub all: Vec<Limit>,
    /// The limits of each route, in the order of the routes.
    pub by_route: Vec<Box<[u16]>>,
    /// Adds the standard headers to responses.
    pub headers: bool,
    /// Adds the older headers to responses.
    pub legacy_headers: bool,
    /// How Machines share limits; `None` if no limit is shared.
    pub sharing: Option<Arc<RedisSettings>>,
}

impl Limits {
    /// The limits of a route.
    pub fn of(&self, route: usize) -> impl Iterator<Item = (u16, &Limit)> {
        let numbers = self.by_route.get(route).map_or(&[][..], |numbers| numbers);
        numbers.iter().filter_map(|number| Some((*number, self.all.get(usize::from(*number))?)))
    }
}

impl Builder<'_> {
    /// Checks the section, and assigns limits to routes.
    pub fn limits(&mut self, written: &RateLimits, tiers: &Tiers, routes: &RouteTable) -> Limits {
        let mut all = Vec::new();
        let tiers = tiers.multipliers();
        let of_priority = [&written.critical, &written.high, &written.medium, &written.low, &written.strict];
        let mut by_route: Vec<Vec<u16>> = vec![Vec::new(); routes.all().len()];
        let mode = Mode::from(written.mode);
        let sharing = match written.shared {
            Sharing::Off => None,
            Sharing::Redis => self.redis(&written.redis),
        };
        let is_shared = written.shared == Sharing::Redis;
        for (priority, rate) in Priority::ALL.into_iter().zip(of_priority) {
            let Some(rate) = rate.0.0 else { continue };
            let applies = |index: usize| !routes.all()[index].is_health && routes.all()[index].priority == priority;
            apply(&mut by_route, all.len(), applies);
            let quotas = tiers.map(|tier| Quota::new(rate, rate.count(), tier));
            let window = rate.window().as_secs();
            let limit = Limit::new(priority.name(), By::Client, Count::Requests, mode, quotas, window);
            all.push(limit.shared(is_shared));
        }
        let mut names: HashSet<&str> = Priority::ALL.map(Priority::name).into();
        for (index, rule) in written.rules.iter().enumerate() {
            let at = |key| [Step::Key("rate_limits"), Step::Key("rules"), Step::Index(index), Step::Key(key)];
            if !is_name(&rule.name) {
                let message = format!("`name` needs 1 to 64 of a-z, 0-9, - and _, got {:?}", rule.name);
                self.complain(
                    &at("name"),
                    message,
                    &name_hint(&rule.name, "it becomes a label in metrics, and clients see it"),
                );
            } else if !names.insert(&rule.name) {
                let message = format!("a limit is called {:?} already", rule.name);
                self.complain(&at("name"), message, "give each its own name; those of the priorities are taken");
            }
            for (number, route) in rule.routes.iter().enumerate() {
                let [table, rules, rule, key] = at("routes");
                self.check_route_name(route, routes, &[table, rules, rule, key, Step::Index(number)]);
            }
            let mode = match (mode, Mode::from(rule.mode)) {
                (Mode::Off, _) | (_, Mode::Off) => Mode::Off,
                (Mode::Monitor, _) | (_, Mode::Monitor) => Mode::Monitor,
                (Mode::Enforce, Mode::Enforce) => Mode::Enforce,
            };
            if mode == Mode::Off {
                continue;
            }
            let rate = rule.rate.0;
            let burst = rule.burst.map_or(rate.count(), NonZeroU32::get);
            let is_own = rule.tiers && !matches!(rule.by, By::Route | By::Machine);
            let quotas = tiers.map(|tier| Quota::new(rate, burst, if is_own { tier } else { Multiplier::ONE }));
            let applies = |index: usize| {
                let route = &routes.all()[index];
                !route.is_health && (rule.routes.is_empty() || rule.routes.iter().any(|name| **name == *route.name))
            };
            apply(&mut by_route, all.len(), applies);
            let limit = Limit::new(&rule.name, rule.by, rule.count, mode, quotas, rate.window().as_secs());
            all.push(limit.shared(is_shared && rule.shared.unwrap_or(rule.by != By::Machine)));
        }
        if mode == Mode::Off {
            return Limits::default();
        }
        self.check_costs(&all, &by_route, routes);
        Limits {
            all,
            by_route: by_route.into_iter().map(Into::into).collect(),
            headers: written.headers,
            legacy_headers: written.legacy_headers,
            sharing,
        }
    }

    /// Rejects a route whose cost exceeds a limit's burst: its requests could never pass.
    fn check_costs(&mut self, all: &[Limit], by_route: &[Vec<u16>], routes: &RouteTable) {
        let before = BUILT_IN.len();
        for (index, route) in routes.all().iter().enumerate() {
            let at = [Step::Key("routes"), Step::Index(index.saturating_sub(before)), Step::Key("cost")];
            if by_route[index].len() > MOST_LIMITS {
                let message = format!(
                    "{} limits apply to route {:?}; at most {MOST_LIMITS} may",
                    by_route[index].len(),
                    route.name
                );
                self.complain(&at[..2], message, "name routes in the limits that do not concern all of them");
            }
            for limit in by_route[index].iter().map(|number| &all[usize::from(*number)]) {
                let counts = limit.count == Count::Requests;
                let least = limit.quotas.iter().flatten().map(|quota| quota.burst()).min();
                if counts && least.is_some_and(|burst| route.cost > burst) {
                    let message = format!(
                        "route {:?} costs {}, but limit {:?} has a burst of {}, so no request would ever pass",
                        route.name,
                        route.cost,
                        limit.name,
                        least.unwrap_or_default()
                    );
                    self.complain(&at, message, "raise the limit's rate or burst (for every tier), or lower the cost");
                }
            }
        }
    }
}

fn apply(by_route: &mut [Vec<u16>], limit: usize, applies: impl Fn(usize) -> bool) {
    // `check_costs` has rejected a file with that many limits.
    let Ok(number) = u16::try_from(limit) else { return };
    for (index, limits) in by_route.iter_mut().enumerate() {
        if applies(index) {
            limits.push(number);
        }
    }
}
