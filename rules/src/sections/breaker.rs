//! `[breaker]`: circuit breakers.

use std::collections::{HashMap, HashSet};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use outrigger_policy::breaker as policy;
use outrigger_policy::flags::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::acting::Acting;
use crate::complaints::{Builder, is_name, name_hint};
use crate::error::did_you_mean;
use crate::sections::routes::Route;
use crate::tree::Step;
use crate::units::{CallWindow, OptionalShare, OptionalSpan, OrOff, Share, Span, Text, span};

const fn share(share: f64) -> Text<OptionalShare> {
    Text(OrOff(Some(Share(share))))
}

const fn small(n: u16) -> NonZeroU16 {
    match NonZeroU16::new(n) {
        Some(n) => n,
        None => NonZeroU16::MIN,
    }
}

/// Circuit breakers: stop requests to an app that fails. Each route has its own breaker, unless it names another one. Paths
/// without a route share one, which opens only if the app is down or hangs; failures below one first path segment are
/// rejected only there.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Whether an open breaker rejects requests.
    pub mode: Acting,
    /// Opens after this many failures in a row; 0: never for that reason. Environment: CIRCUIT_BREAKER_FAILURE_THRESHOLD
    /// sets the default.
    pub failures: u32,
    /// Opens when this share of calls failed.
    pub failure_rate: Text<OptionalShare>,
    /// A response whose head takes this long is slow.
    pub slow_after: Text<OptionalSpan>,
    /// Opens when this share of calls was slow.
    pub slow_rate: Text<OptionalShare>,
    /// Failures that one client could cause must be seen by this many clients before the breaker opens for all. 1: one is
    /// enough.
    pub min_clients: NonZeroU16,
    /// The calls over which both shares are calculated: "10s" or "100 calls".
    pub window: Text<CallWindow>,
    /// With fewer calls in the window, the shares do not open it.
    pub min_calls: NonZeroU32,
    /// How long it stays open. Environment: CIRCUIT_BREAKER_TIMEOUT, in milliseconds, sets the default.
    pub open: Text<Span>,
    /// Each time it opens again, that time doubles, up to this.
    pub max_open: Text<Span>,
    /// The time is longer by a random share, up to this.
    pub jitter: Text<OptionalShare>,
    /// Concurrent probes while half-open.
    pub probes: NonZeroU16,
    /// Probes that must succeed before traffic returns.
    pub successes: NonZeroU16,
    /// After the probes: how long traffic takes to increase from a tenth to all.
    pub ramp: Text<Span>,
    /// Whether a 429 response is a failure.
    pub count_429: bool,
    /// Breakers with other settings, or shared by several routes.
    pub groups: Vec<Group>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            mode: Acting::Enforce,
            failures: 5,
            min_clients: small(2),
            failure_rate: share(0.5),
            slow_after: Text(OrOff(None)),
            slow_rate: share(0.8),
            window: Text(CallWindow(policy::Span::Time(Duration::from_secs(10)))),
            min_calls: NonZeroU32::MIN.saturating_add(19),
            open: span(60),
            max_open: span(600),
            jitter: share(0.2),
            probes: small(3),
            successes: small(3),
            ramp: span(10),
            count_429: false,
            groups: Vec::new(),
        }
    }
}

/// A breaker that overrides keys of `[breaker]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name in metrics and logs, and in `routes.breaker`; a route's name means that route's own breaker.
    #[schemars(regex(pattern = r"^[a-z0-9_-]{1,64}$"))]
    pub name: String,
    /// See `[breaker]`, also for the other keys.
    pub mode: Option<Acting>,
    /// Failures in a row.
    pub failures: Option<u32>,
    /// Clients that must have seen failures.
    pub min_clients: Option<NonZeroU16>,
    /// Share of failures.
    pub failure_rate: Option<Text<OptionalShare>>,
    /// Latency of a slow response.
    pub slow_after: Option<Text<OptionalSpan>>,
    /// Share of slow responses.
    pub slow_rate: Option<Text<OptionalShare>>,
    /// The calls over which shares are calculated.
    pub window: Option<Text<CallWindow>>,
    /// Minimum calls in the window.
    pub min_calls: Option<NonZeroU32>,
    /// How long it stays open.
    pub open: Option<Text<Span>>,
    /// Maximum time open.
    pub max_open: Option<Text<Span>>,
    /// Random share added to the time open.
    pub jitter: Option<Text<OptionalShare>>,
    /// Concurrent probes.
    pub probes: Option<NonZeroU16>,
    /// Probes that must succeed.
    pub successes: Option<NonZeroU16>,
    /// How long traffic takes to increase.
    pub ramp: Option<Text<Span>>,
    /// Whether 429 is a failure.
    pub count_429: Option<bool>,
}

/// One breaker's settings, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerRules {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it rejects requests.
    pub mode: Mode,
    /// When it trips, and how it recovers.
    pub settings: policy::Settings,
    /// Whether 429 is a failure.
    pub counts_429: bool,
}

impl Breaker {
    /// These settings with the group's overrides.
    fn with(&self, group: Option<&Group>) -> (Mode, policy::Settings, bool) {
        macro_rules! key {
            ($key:ident) => {
                group.and_then(|group| group.$key.clone()).unwrap_or_else(|| self.$key.clone())
            };
        }
        let rate = |share: Text<OptionalShare>| share.0.0.map(|share| share.0);
        let settings = policy::Settings {
            consecutive: key!(failures),
            window: key!(window).0.0,
            minimum: key!(min_calls).get(),
            failure_rate: rate(key!(failure_rate)),
            slow_after: key!(slow_after).0.0.map(|span| span.0),
            slow_rate: rate(key!(slow_rate)),
            open_for: key!(open).0.0,
            max_open_for: key!(max_open).0.0,
            jitter: rate(key!(jitter)).unwrap_or(0.0),
            probes: key!(probes).get().into(),
            successes: key!(successes).get().into(),
            ramp: key!(ramp).0.0,
            min_clients: key!(min_clients).get().into(),
            is_shared: false,
        };
        (key!(mode).into(), settings, key!(count_429))
    }
}

impl Builder<'_> {
    /// Returns the breakers of the file and each route's breaker number; health routes have none.
    pub fn breakers(&mut self, written: &Breaker, routes: &[Route]) -> (Vec<BreakerRules>, HashMap<String, u16>) {
        let mut groups: HashMap<&str, &Group> = HashMap::new();
        for (index, group) in written.groups.iter().enumerate() {
            let at = |key| [Step::Key("breaker"), Step::Key("groups"), Step::Index(index), Step::Key(key)];
            if !is_name(&group.name) {
                let message = format!("`name` needs 1 to 64 of a-z, 0-9, - and _, got {:?}", group.name);
                self.complain(&at("name"), message, &name_hint(&group.name, "it becomes a label in metrics"));
            } else if groups.insert(&group.name, group).is_some() {
                let message = format!("a breaker above is called {:?} already", group.name);
                self.complain(&at("name"), message, "give each its own name");
            }
        }
        let own = || routes.iter().map(|route| route.name.as_str()).chain(["default"]);
        // A search in a list for each route would be quadratic: there may be thousands.
        let known: HashSet<&str> = own().chain(groups.keys().copied()).collect();
        let mut numbers: HashMap<String, u16> = HashMap::new();
        let (mut names, mut places): (Vec<&str>, HashMap<&str, usize>) = Default::default();
        let mut number_of = |name| {
            let found = *places.entry(name).or_insert_with(|| {
                names.push(name);
                names.len() - 1
            });
            // No file has more routes than this; beyond, they would share the last breaker.
            u16::try_from(found).unwrap_or(u16::MAX)
        };
        let mut unknown = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let name = route.breaker.as_deref().unwrap_or(&route.name);
            if !known.contains(name) {
                unknown.push((index, name));
            }
            numbers.insert(route.name.clone(), number_of(name));
        }
        numbers.insert("default".to_owned(), number_of("default"));
        let mut meant = Vec::new();
        for (index, name) in unknown {
            let near = did_you_mean(name, groups.keys().copied().chain(own()));
            meant.extend(near);
            let hint = near.map_or_else(
                || "name a [[breaker.groups]] of this file, or a route".to_owned(),
                |meant| format!("did you mean {meant:?}?"),
            );
            let path = [Step::Key("routes"), Step::Index(index), Step::Key("breaker")];
            self.complain(&path, format!("there is no breaker {name:?}"), &hint);
        }
        for (index, group) in written.groups.iter().enumerate() {
            if !places.contains_key(group.name.as_str()) && !meant.contains(&group.name.as_str()) {
                let path = [Step::Key("breaker"), Step::Key("groups"), Step::Index(index), Step::Key("name")];
                let message = format!("no route uses the breaker {:?}", group.name);
                self.complain(&path, message, "say `breaker = …` in a route, or give it the name of one");
            }
        }
        let rules = names.into_iter().map(|name| {
            let (mode, mut settings, counts_429) = written.with(groups.get(name).copied());
            if name == "default" && !groups.contains_key(name) {
                // It is shared by all paths without a route, which are unrelated.
                settings.is_shared = true;
            }
            BreakerRules { name: name.into(), mode, settings, counts_429 }
        });
        let rules = rules.collect();
        self.check_breakers(written);
        (rules, numbers)
    }

    fn check_breakers(&mut self, written: &Breaker) {
        let own = vec![Step::Key("breaker")];
        let groups =
            written.groups.iter().enumerate().map(|(index, group)| {
                (vec![Step::Key("breaker"), Step::Key("groups"), Step::Index(index)], Some(group))
            });
        for (path, group) in std::iter::once((own, None)).chain(groups) {
            let (_, settings, _) = written.with(group);
            let before = self.problems.len();
            let mut complain = |key, message: String, hint: &str| {
                let path: Vec<Step<'_>> = path.iter().copied().chain([Step::Key(key)]).collect();
                self.complain(&path, message, hint);
            };
            if settings.open_for.is_zero() {
                complain("open", "`open` must be longer than zero".to_owned(), "write \"60s\", for example");
            }
            if settings.max_open_for < settings.open_for {
                let hint = "`open` doubles from trip to trip, up to `max_open`";
                complain("max_open", "`max_open` is shorter than `open`".to_owned(), hint);
            }
            if let policy::Span::Calls(calls) = settings.window
                && calls < settings.minimum
            {
                let message = format!("`window` has {calls} calls, fewer than `min_calls` ({})", settings.minimum);
                complain("window", message, "make it longer, or lower `min_calls`");
            }
            // An error in the defaults is not repeated for each group.
            if group.is_none() && self.problems.len() > before {
                return;
            }
        }
    }
}
