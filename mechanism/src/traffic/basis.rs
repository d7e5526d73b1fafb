//! The configuration's part of the record: which paths, hosts and headers it has.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use http::HeaderName;
use outrigger_rules::config::Config;
use outrigger_rules::sections::route_table::{Route, has, header_mark};
use outrigger_rules::sections::traffic::TrafficRules;
use outrigger_traffic::template::{self, Literals};
use outrigger_wire::request::Request;

use crate::traffic::Seen;

/// Conditions on headers of a configuration that are recorded; those beyond are left out.
const MOST_CONDITIONS: usize = 32;

/// Facts about a request, other than path and method, that its route may depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// The pattern that its host fits, by its number from 1; 0: no pattern.
    host: u16,
    /// The conditions on headers that hold, by their numbers.
    headers: u32,
}

/// The part of a configuration that the record uses.
#[derive(Debug)]
pub struct TrafficBasis {
    pub(super) rules: TrafficRules,
    pub(super) literals: Literals,
    routes: Vec<RouteBasis>,
    limits: Vec<Arc<str>>,
    /// The hosts that routes name; the most specific ones first.
    hosts: Vec<String>,
    /// Routes with hosts, and the numbers of these.
    by_host: Vec<(Arc<Route>, Vec<u16>)>,
    headers: Vec<HeaderCondition>,
}

/// A condition on a header: its name, the value that it must have, and the text in the record, which has a mark instead of the value.
type HeaderCondition = (HeaderName, Option<Box<str>>, Box<str>);

#[derive(Debug)]
struct RouteBasis {
    name: Arc<str>,
    /// The template of every path of the route; `None` if it has several.
    path: Option<String>,
    /// The numbers of the segments that are parameters.
    parameters: Vec<usize>,
}

impl TrafficBasis {
    /// That of a configuration; `None` if nothing is recorded.
    pub fn of(config: &Config) -> Option<Self> {
        let rules = config.traffic.clone();
        if !rules.is_recorded {
            return None;
        }
        let routes = config.routes.all();
        let mut literals = Literals::default();
        let mut conditions = BTreeSet::new();
        let mut hosts = BTreeSet::new();
        // Those of the built-in route "health", which has no pattern.
        ["/health/detailed", "/health/ready", "/health/live"].into_iter().for_each(|path| literals.add(path));
        for route in routes {
            if let Some(pattern) = route.conditions.template() {
                literals.add(pattern);
            }
            for (name, value) in route.conditions.header_conditions() {
                conditions.insert((name.as_str(), value));
            }
            // Exact hosts first, then the longest.
            let rank = |host: String| (host.starts_with('*'), usize::MAX - host.len(), host);
            hosts.extend(route.conditions.hosts().map(rank));
        }
        let hosts: Vec<String> = hosts.into_iter().map(|(_, _, host)| host).collect();
        let numbered = hosts.iter().enumerate();
        let numbers: HashMap<&String, u16> =
            numbered.map(|(at, host)| (host, u16::try_from(at + 1).unwrap_or(0))).collect();
        let number = |host: &String| numbers.get(host).copied().unwrap_or(0);
        let by_host = routes.iter().map(|route| {
            let numbers: Vec<u16> = route.conditions.hosts().map(|host| number(&host)).collect();
            (Arc::clone(route), numbers)
        });
        let by_host = by_host.filter(|(_, numbers)| !numbers.is_empty()).collect();
        let headers = conditions.into_iter().take(MOST_CONDITIONS).filter_map(|(name, value)| {
            let text = value.map_or_else(|| name.to_owned(), |value| format!("{name} #{}", header_mark(value)));
            Some((name.parse().ok()?, value.map(Box::from), text.into()))
        });
        Some(Self {
            literals,
            routes: routes.iter().map(|route| RouteBasis::of(route)).collect(),
            limits: config.limits.all.iter().map(|limit| Arc::clone(&limit.name)).collect(),
            headers: headers.collect(),
            hosts,
            by_host,
            rules,
        })
    }

    /// The facts about a request, other than path and method, that its route may depend on.
    pub fn hints(&self, request: &Request<'_>) -> Hints {
        let fitting = self.by_host.iter().filter_map(|(route, numbers)| {
            let fitting = route.conditions.host_of(request.host)?;
            numbers.get(fitting).copied()
        });
        let host = fitting.min().unwrap_or_default();
        let holds = |(name, value, _): &HeaderCondition| has(request.fields, name, value.as_deref());
        let bit = |(at, condition): (usize, _)| u32::from(holds(condition)) << at;
        Hints { host, headers: self.headers.iter().enumerate().map(bit).sum() }
    }

    /// Whether the template of a request's path depends on the path. Paths that the app does not have are not recorded: they are
    /// mostly those of scanners.
    pub(super) fn needs_path(&self, seen: &Seen) -> bool {
        seen.is_routed && seen.status != 404 && self.routes.get(seen.route).is_some_and(|route| route.path.is_none())
    }

    /// The name of a route, the template that all its paths have, and its parameters.
    pub(super) fn route(&self, number: usize) -> (&str, Option<&str>, &[usize]) {
        match self.routes.get(number) {
            Some(route) => (&route.name, route.path.as_deref(), &route.parameters),
            None => ("default", None, &[]),
        }
    }

    /// The name of a rate limit.
    pub(super) fn limit(&self, number: u16) -> Option<&str> {
        self.limits.get(usize::from(number)).map(|name| &**name)
    }

    /// The host of a request, without the part that a pattern leaves open; empty if no route names it.
    pub(super) fn host(&self, hints: Hints, out: &mut String) {
        out.clear();
        if let Some(host) = usize::from(hints.host).checked_sub(1).and_then(|number| self.hosts.get(number)) {
            match host.strip_prefix('*') {
                Some(below) => out.extend([template::PLACEHOLDER, below]),
                None => out.push_str(host),
            }
        }
    }

    /// The conditions that hold, one a line.
    pub(super) fn headers(&self, hints: Hints, out: &mut String) {
        out.clear();
        for (_, (_, _, text)) in self.headers.iter().enumerate().filter(|(at, _)| hints.headers >> at & 1 == 1) {
            if !out.is_empty() {
                out.push('\n');
            }
            out.push_str(text);
        }
    }
}

impl RouteBasis {
    fn of(route: &Route) -> Self {
        let pattern = route.conditions.template().map(|pattern| &**pattern);
        // A health route has no pattern, and one path for each.
        let exact = pattern.filter(|pattern| !pattern.ends_with("/**"));
        Self {
            name: Arc::clone(&route.name),
            path: exact.map(template::of_pattern),
            parameters: pattern.map(template::parameters).unwrap_or_default(),
        }
    }
}
