//! The sections that decide who gets in, as written: limits, tiers, bans, and how many at a time.

use std::collections::HashSet;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_policy::flags::{Mode, Network};
use outrigger_policy::limiter::{Quota, Rate};
use outrigger_policy::priority::Priority;
use outrigger_policy::tier::{Multiplier, Tier};
use outrigger_policy::{abuse as bans, admission, concurrency};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Step;
use super::error::{Place, Problem, did_you_mean};
use super::raw::Raw;
use super::units::{OptionalRate, Span, Text};
use super::{Builder, is_name};
use crate::abuse::Rules;
use crate::limits::settling::Settings;
use crate::limits::{Limit, Limits, MOST_LIMITS};
use crate::route::RouteTable;

/// Whether decisions count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Acting {
    /// They do.
    #[default]
    Enforce,
    /// They are counted and logged, and change nothing.
    Monitor,
    /// None are made.
    Off,
}

impl From<Acting> for Mode {
    fn from(acting: Acting) -> Self {
        match acting {
            Acting::Enforce => Self::Enforce,
            Acting::Monitor => Self::Monitor,
            Acting::Off => Self::Off,
        }
    }
}

const fn non_zero(n: u32) -> NonZeroU32 {
    match NonZeroU32::new(n) {
        Some(n) => n,
        None => NonZeroU32::MIN,
    }
}

fn per_minute(count: u32) -> Text<OptionalRate> {
    Text(OptionalRate(Rate::new(count, Duration::from_secs(60))))
}

const fn span(seconds: u64) -> Text<Span> {
    Text(Span(Duration::from_secs(seconds)))
}

/// How often a client may ask.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    /// For all limits at once: "monitor" and "off" win over what a single one says. Default: "enforce", and "monitor" in a
    /// file without this section.
    pub mode: Acting,
    /// `RateLimit-Policy` and `RateLimit` in answers.
    pub headers: bool,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` in answers, of the limit that has the least left.
    pub legacy_headers: bool,
    /// Keys (a client under a limit) that are counted at the same time; beyond, newcomers share what one may have. 20
    /// bytes each. A change needs a restart.
    #[schemars(range(max = 100_000_000))]
    pub max_keys: NonZeroU32,
    /// Whether all Machines count limits together.
    pub shared: Sharing,
    /// Where they do.
    pub redis: Redis,
    /// What each client may ask of critical routes together.
    pub critical: Text<OptionalRate>,
    /// The same for high priority.
    pub high: Text<OptionalRate>,
    /// The same for medium priority, which routes have that name none.
    pub medium: Text<OptionalRate>,
    /// The same for low priority.
    pub low: Text<OptionalRate>,
    /// The same for the lowest.
    pub strict: Text<OptionalRate>,
    /// More limits. A request needs the leave of all that apply to it; a refusal by one takes nothing from the others.
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

/// Where limits are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// On each Machine by itself.
    #[default]
    Off,
    /// In Redis, by all Machines together.
    Redis,
}

/// Where Machines count limits together.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// `redis://HOST:PORT`, `rediss://…` with TLS, `redis+unix:///PATH`; with `USER:PASSWORD@` and `/DATABASE` if need be.
    /// Environment, which wins and is the place for a password: OUTRIGGER_REDIS_URL.
    #[schemars(extend("x-secret" = "value"))]
    pub url: Option<String>,
    /// What the keys begin with: Machines that share have the same.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.:-]{1,64}$"))]
    pub prefix: String,
    /// How long Redis may take. Later: each Machine keeps to its share until it is back. At most 400ms, so that it is
    /// noticed within a second.
    pub timeout: Text<Span>,
    /// A file with the certificate (PEM) of who signed Redis's, for `rediss://`. Unset: the system's.
    pub ca_file: Option<PathBuf>,
    /// There are at least so many Machines. More count when more are found.
    #[schemars(range(min = 1, max = 10_000))]
    pub machines: u32,
}

impl Default for Redis {
    fn default() -> Self {
        let timeout = Text(Span(Duration::from_millis(250)));
        Self { url: None, prefix: "outrigger".to_owned(), timeout, ca_file: None, machines: 1 }
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address may hold a password.
        f.debug_struct("Redis").field("prefix", &self.prefix).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// The address of Redis; it holds the password.
pub const REDIS_URL: &str = "OUTRIGGER_REDIS_URL";

/// The longest `timeout` for Redis.
const LONGEST_TIMEOUT: Duration = Duration::from_millis(400);

/// Whose requests a limit counts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Each client's: the verified user, else the API key, else the address.
    #[default]
    Client,
    /// Each client's on each route.
    ClientAndRoute,
    /// Each address's (IPv6: each /64's), whoever signs in from there.
    Address,
    /// Each route's, of all clients together.
    Route,
    /// All of this Machine.
    Machine,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Count {
    /// Requests, by their cost.
    #[default]
    Requests,
    /// Answers 401, 403 and 404, as they leave; once there were too many, requests are refused.
    Failures,
}

/// One limit.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name in metrics, logs and answers: lower-case letters, digits, `-` and `_`; at most 64.
    #[schemars(regex(pattern = r"^[a-z0-9_-]{1,64}$"))]
    pub name: String,
    /// How many in how long.
    pub rate: Text<Rate>,
    /// How many may come at once. Unset: as many as the rate names.
    #[serde(default)]
    pub burst: Option<NonZeroU32>,
    /// Whose requests are counted together.
    #[serde(default)]
    pub by: By,
    /// What is counted.
    #[serde(default)]
    pub count: Count,
    /// The routes it applies to, by name; "default" is what no route takes. Empty: all but health.
    #[serde(default)]
    pub routes: Vec<String>,
    /// Whether the client's tier multiplies it. Has no meaning for `by` "route" and "machine".
    #[serde(default = "yes")]
    pub tiers: bool,
    /// Whether its refusals count.
    #[serde(default)]
    pub mode: Acting,
    /// Whether all Machines count together, where `rate_limits.shared` says how. Unset: yes, but for `by = "machine"`.
    #[serde(default)]
    pub shared: Option<bool>,
}

const fn yes() -> bool {
    true
}

/// By how much a tier multiplies its clients' limits.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tiers {
    /// Whoever showed nothing that could be verified.
    pub anonymous: Text<Multiplier>,
    /// Known, and pays nothing.
    pub free: Text<Multiplier>,
    /// Pays.
    pub pro: Text<Multiplier>,
    /// Has a contract.
    pub enterprise: Text<Multiplier>,
    /// Our own services.
    pub internal: Text<Multiplier>,
}

impl Default for Tiers {
    fn default() -> Self {
        let times = |n: u32| Text(Multiplier::Hundredths(n * 100));
        Self {
            anonymous: times(1),
            free: times(1),
            pro: times(5),
            enterprise: times(20),
            internal: Text(Multiplier::Unlimited),
        }
    }
}

/// How many requests the app gets at a time. No capacity is configured: the limit follows the app's own latency.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// Whether requests beyond the limit wait or are refused.
    pub mode: Acting,
    /// The limit never goes below this.
    pub min: NonZeroU16,
    /// Nor above this.
    pub max: NonZeroU16,
    /// Where it begins.
    pub initial: NonZeroU16,
    /// How long a request may wait for its turn. Later: 503.
    pub max_wait: Text<Span>,
    /// How many may wait in a burst. A queue that stands is shorter: what the app answers in half of `max_wait`.
    pub max_queue: NonZeroU16,
}

impl Default for Admission {
    fn default() -> Self {
        let n = |n| NonZeroU16::new(n).unwrap_or(NonZeroU16::MIN);
        Self { mode: Acting::Enforce, min: n(1), max: n(1000), initial: n(20), max_wait: span(1), max_queue: n(1000) }
    }
}

/// Who is shut out.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Abuse {
    /// Whether bans count. Look at the counters in "monitor" first.
    pub mode: Acting,
    /// More refusals by limits (429) than this lead to a ban.
    pub refusals: Text<OptionalRate>,
    /// More answers 401 and 403 than this lead to a ban.
    pub login_failures: Text<OptionalRate>,
    /// More answers 404 than this lead to a ban.
    pub not_found: Text<OptionalRate>,
    /// How long the first ban is; each further one is twice as long.
    pub ban: Text<Span>,
    /// How long the longest is, and after how long without another one a client begins anew.
    pub max_ban: Text<Span>,
    /// Addresses and networks that are never banned.
    pub allow: Vec<Text<Network>>,
    /// Bans that are remembered. Beyond, those that end first make room.
    pub max_bans: NonZeroU32,
}

impl Default for Abuse {
    fn default() -> Self {
        Self {
            mode: Acting::Monitor,
            refusals: per_minute(300),
            login_failures: per_minute(20),
            not_found: per_minute(60),
            ban: span(60),
            max_ban: span(86_400),
            allow: Vec::new(),
            max_bans: non_zero(10_000),
        }
    }
}

/// How many requests the app gets at a time, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Whether requests beyond the limit wait or are refused.
    pub mode: Mode,
    /// The bounds.
    pub settings: admission::Settings,
}

impl Builder<'_> {
    /// The limits of the file, and which apply to which route.
    pub(super) fn limits(&mut self, raw: &Raw, routes: &RouteTable) -> Limits {
        let mut all = Vec::new();
        let tiers = multipliers(&raw.tiers);
        let of_priority = [
            &raw.rate_limits.critical,
            &raw.rate_limits.high,
            &raw.rate_limits.medium,
            &raw.rate_limits.low,
            &raw.rate_limits.strict,
        ];
        let mut by_route: Vec<Vec<u16>> = vec![Vec::new(); routes.all().len()];
        let mode = Mode::from(raw.rate_limits.mode);
        let sharing = self.sharing(&raw.rate_limits);
        let is_shared = raw.rate_limits.shared == Sharing::Redis;
        for (priority, written) in Priority::ALL.into_iter().zip(of_priority) {
            let Some(rate) = written.0.0 else { continue };
            let applies = |index: usize| !routes.all()[index].is_health && routes.all()[index].priority == priority;
            apply(&mut by_route, all.len(), applies);
            let quotas = tiers.map(|tier| Quota::new(rate, rate.count(), tier));
            let window = rate.window().as_secs();
            let limit = Limit::new(priority.name(), By::Client, Count::Requests, mode, quotas, window);
            all.push(limit.shared(is_shared));
        }
        let mut names: HashSet<&str> = Priority::ALL.map(Priority::name).into();
        for (index, rule) in raw.rate_limits.rules.iter().enumerate() {
            let at = |key| [Step::Key("rate_limits"), Step::Key("rules"), Step::Index(index), Step::Key(key)];
            if !is_name(&rule.name) {
                let message = format!("`name` needs 1 to 64 of a-z, 0-9, - and _, got {:?}", rule.name);
                self.complain(&at("name"), message, "it becomes a label in metrics, and clients see it");
            } else if !names.insert(&rule.name) {
                let message = format!("a limit is called {:?} already", rule.name);
                self.complain(&at("name"), message, "give each its own name; those of the priorities are taken");
            }
            for route in &rule.routes {
                self.check_route_name(route, routes, &at("routes"));
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
            headers: raw.rate_limits.headers,
            legacy_headers: raw.rate_limits.legacy_headers,
            sharing,
        }
    }

    /// How Machines share limits; `None` when they do not.
    fn sharing(&mut self, raw: &RateLimits) -> Option<Arc<Settings>> {
        if raw.shared == Sharing::Off {
            return None;
        }
        let at = |key| [Step::Key("rate_limits"), Step::Key("redis"), Step::Key(key)];
        let written = &raw.redis;
        let timeout = written.timeout.0.0;
        if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
            let message = format!(
                "`timeout` needs more than zero and at most {}, got {}",
                Span(LONGEST_TIMEOUT),
                written.timeout.0
            );
            self.complain(&at("timeout"), message, "it bounds how long a failure of Redis goes unnoticed");
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
        if !(1..=64).contains(&written.prefix.len()) || !written.prefix.chars().all(is_plain) {
            let message = format!("`prefix` needs 1 to 64 letters, digits, _ . : or -, got {:?}", written.prefix);
            self.complain(&at("prefix"), message, "Machines that share limits have the same; other apps another one");
        }
        let ca = match &written.ca_file {
            Some(file) => match std::fs::read(file) {
                Ok(pem) => Some(pem),
                Err(e) => {
                    let message = format!("`ca_file` cannot be read: {}: {e}", file.display());
                    self.complain(&at("ca_file"), message, "name a file with a certificate in PEM");
                    return None;
                }
            },
            None => None,
        };
        let variable = (self.environment)(REDIS_URL).filter(|url| !url.trim().is_empty());
        // The address is never shown: it may hold a password.
        let place = match &variable {
            Some(_) => Place::Variable(REDIS_URL.to_owned()),
            None => self.root.nearest(&at("url")).1.place.clone().hidden(),
        };
        let Some(url) = variable.or_else(|| written.url.clone()) else {
            let message = "limits are to be shared, and nothing says where Redis is";
            let hint = format!("set `url` in [rate_limits.redis], or {REDIS_URL} in the environment");
            self.complain(&[Step::Key("rate_limits"), Step::Key("shared")], message, &hint);
            return None;
        };
        let url = url.trim().to_owned();
        if ca.is_some() && !(url.starts_with("rediss:") || url.starts_with("valkeys:")) {
            self.complain(&at("ca_file"), "`ca_file` has no meaning without TLS", "write the address with rediss://");
        }
        match redis_client(&url, ca.clone()) {
            Ok(client) => {
                let secret = (self.environment)(super::identity::KEY_SECRET).filter(|secret| !secret.trim().is_empty());
                let naming = secret.as_deref().map_or(&b"outrigger"[..], str::as_bytes);
                Some(Arc::new(Settings {
                    shown: client.get_connection_info().addr().to_string(),
                    client,
                    source: (url, ca),
                    prefix: written.prefix.clone(),
                    timeout,
                    machines: written.machines,
                    naming: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, naming),
                    ca_file: written.ca_file.clone(),
                }))
            }
            Err(problem) => {
                let hint =
                    "write \"redis://HOST:6379\", \"rediss://USER:PASSWORD@HOST:6380/0\" or \"redis+unix:///PATH\"";
                self.problems.push(Problem::new(place, problem).hint(hint));
                None
            }
        }
    }

    pub(super) fn check_route_name(&mut self, name: &str, routes: &RouteTable, path: &[Step<'_>]) {
        let known = || routes.all().iter().filter(|route| !route.is_health).map(|route| &*route.name);
        if name == "health" {
            self.complain(path, "the route \"health\" is never limited", "leave it out");
        } else if !known().any(|route| route == name) {
            let hint = did_you_mean(name, known()).map_or_else(
                || "name a route of this file, or \"default\"".to_owned(),
                |meant| format!("did you mean {meant:?}?"),
            );
            self.complain(path, format!("there is no route {name:?}"), &hint);
        }
    }

    /// A request that costs more than what may come at once could never pass.
    fn check_costs(&mut self, all: &[Limit], by_route: &[Vec<u16>], routes: &RouteTable) {
        let before = crate::route::BUILT_IN.len();
        for (index, route) in routes.all().iter().enumerate() {
            let at = [Step::Key("routes"), Step::Index(index.saturating_sub(before)), Step::Key("cost")];
            if by_route[index].len() > MOST_LIMITS {
                let message =
                    format!("{} limits apply to route {:?}; {MOST_LIMITS} can", by_route[index].len(), route.name);
                self.complain(&at[..2], message, "name routes in the limits that do not concern all of them");
            }
            for limit in by_route[index].iter().map(|number| &all[usize::from(*number)]) {
                let counts = limit.count == Count::Requests;
                let least = limit.quotas.iter().flatten().map(|quota| quota.burst()).min();
                if counts && least.is_some_and(|burst| route.cost > burst) {
                    let message = format!(
                        "route {:?} costs {}, but of limit {:?} only {} may come at once, so no request would ever pass",
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

    /// How many requests the app gets at a time.
    pub(super) fn gate(&mut self, raw: &Raw) -> Gate {
        let written = &raw.admission;
        let (min, max, initial) = (written.min.get(), written.max.get(), written.initial.get());
        if min > max {
            let path = [Step::Key("admission"), Step::Key("min")];
            self.complain(
                &path,
                format!("`min` is {min} and `max` {max}"),
                "the limit moves between the two: min <= max",
            );
        }
        let concurrency = concurrency::Settings {
            min: min.into(),
            max: max.into(),
            initial: initial.clamp(min.min(max), max).into(),
        };
        let settings = admission::Settings {
            concurrency,
            max_wait: written.max_wait.0.0,
            max_queue: written.max_queue.get().into(),
            max_held: raw.app.max_held.get(),
        };
        Gate { mode: written.mode.into(), settings }
    }

    /// Who is shut out.
    pub(super) fn abuse(&mut self, raw: &Raw) -> Rules {
        let written = &raw.abuse;
        let (first, longest) = (written.ban.0.0, written.max_ban.0.0);
        let at = |key| [Step::Key("abuse"), Step::Key(key)];
        if first.is_zero() {
            self.complain(&at("ban"), "`ban` must be longer than zero", "write \"1m\", for example");
        }
        if longest < first {
            self.complain(&at("max_ban"), "`max_ban` is shorter than `ban`", "bans double from `ban` up to `max_ban`");
        }
        let quota =
            |rate: &Text<OptionalRate>| rate.0.0.and_then(|rate| Quota::new(rate, rate.count(), Multiplier::ONE));
        Rules {
            mode: written.mode.into(),
            // In the order of `Offence::ALL`; what an operator does has no quota.
            quotas: [quota(&written.refusals), quota(&written.login_failures), quota(&written.not_found), None],
            bans: bans::Settings { first, longest },
            allow: written.allow.iter().map(|network| network.0).collect(),
            max_bans: usize::try_from(written.max_bans.get()).unwrap_or(usize::MAX),
        }
    }
}

/// A client for the Redis at `url`.
fn redis_client(url: &str, ca: Option<Vec<u8>>) -> Result<redis::Client, String> {
    let known = ["redis://", "rediss://", "valkey://", "valkeys://", "redis+unix://", "unix://"];
    if !known.iter().any(|scheme| url.starts_with(scheme)) {
        return Err("this is no address of Redis".to_owned());
    }
    // Its errors name what is wrong and never the address.
    let wrong = |e: redis::RedisError| format!("this is no address of Redis that can be used: {e}");
    match ca {
        Some(pem) => {
            let certificates = redis::TlsCertificates { client_tls: None, root_cert: Some(pem) };
            redis::Client::build_with_tls(url, certificates).map_err(wrong)
        }
        None => redis::Client::open(url).map_err(wrong),
    }
}

fn apply(by_route: &mut [Vec<u16>], limit: usize, applies: impl Fn(usize) -> bool) {
    // A file with more limits than this is refused by `check_costs` long before.
    let Ok(number) = u16::try_from(limit) else { return };
    for (index, limits) in by_route.iter_mut().enumerate() {
        if applies(index) {
            limits.push(number);
        }
    }
}

fn multipliers(tiers: &Tiers) -> [Multiplier; Tier::ALL.len()] {
    // In the order of `Tier::ALL`.
    [&tiers.anonymous, &tiers.free, &tiers.pro, &tiers.enterprise, &tiers.internal].map(|tier| tier.0)
}
