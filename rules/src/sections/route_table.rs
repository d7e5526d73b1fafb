//! Finds the route of a request: the first in the file's order whose conditions all hold.
//!
//! Routes are compiled into a tree of path segments when the configuration is loaded. A lookup walks the request's segments
//! once and checks conditions only of routes whose path fits, so the cost hardly grows with the number of routes.
//!
//! Outrigger forwards paths unchanged, so the route must be right for every way in which an app may read the path: a path
//! with several readings ([`outrigger_wire::path`]) is rejected unless all of them lead to the same route. Routes ignore
//! case and a trailing slash, as some frameworks do.

mod conditions;
mod covering;
mod pattern;
mod spelling;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use outrigger_policy::audit::Declared;
use outrigger_policy::flags::Mode;
use outrigger_policy::networks::AddressList;
use outrigger_policy::priority::Priority;
use outrigger_wire::path::{self, Unreadable};
use outrigger_wire::request::Request;

pub use self::conditions::{BadCondition, Conditions, has, unusual_method};
pub use self::covering::Covering;
pub use self::pattern::parameters;
use self::pattern::{PathPattern, Segment};
pub use self::spelling::unusual as unusual_path;
use crate::complaints::Builder;
use crate::error::did_you_mean;
use crate::sections::fallback::FallbackAnswer;
use crate::tree::Step;

/// Why a path has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathRefused {
    /// It is rejected under any configuration.
    Unreadable(Unreadable),
    /// Its readings lead to these two routes.
    Ambiguous(usize, usize),
    /// One reading is the path of the app's metrics, and no route of the file names that path.
    NotPublic,
}

/// One kind of request, and how it is treated.
#[derive(Clone, Debug)]
pub struct Route {
    /// The label in metrics and logs.
    pub name: Arc<str>,
    /// The requests it applies to.
    pub conditions: Conditions,
    /// How important these requests are.
    pub priority: Priority,
    /// How long a request may take until the response's head arrives, and the longest pause within a response.
    pub timeout: Duration,
    /// The largest body in bytes.
    pub max_body_bytes: u64,
    /// The tokens that a request takes from its rate limits.
    pub cost: u32,
    /// Whether the client may shorten the timeout.
    pub heeds_client_timeout: bool,
    /// The number of its circuit breaker; none for health.
    pub breaker: Option<u16>,
    /// Maximum attempts per request, the first included.
    pub attempts: u32,
    /// Response statuses that are retried.
    pub retry_statuses: Box<[u16]>,
    /// The response while the breaker is open or the app is unreachable.
    pub fallback: Option<FallbackAnswer>,
    /// The audit class of its requests.
    pub audit: Declared,
    /// Path parameters that the audit log records: the number of the segment, and the name.
    pub resource: Box<[(usize, Box<str>)]>,
    /// The addresses of clients that may use it, and whether others are rejected or only counted; `None`: all.
    pub addresses: Option<(AddressList, Mode)>,
    /// The app's health endpoints: never limited; Outrigger responds if the app cannot.
    pub is_health: bool,
}

/// A number for the value that a condition on a header asks for, in hexadecimal: the start of its SHA-256. The value may be a secret.
pub fn header_mark(value: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, value.as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Names that the file may not use.
pub const RESERVED_NAMES: [&str; 3] = ["health", "default", "none"];

/// The app's health endpoints.
const HEALTH_PATHS: [&str; 4] = ["/health", "/health/detailed", "/health/ready", "/health/live"];

/// The health endpoints, before every route of the file.
pub static BUILT_IN: LazyLock<[Route; 4]> = LazyLock::new(|| HEALTH_PATHS.map(health_route));

/// The route of a health endpoint.
pub fn health_route(path: &str) -> Route {
    Route {
        name: "health".into(),
        conditions: Conditions::of(PathPattern::literal(path)),
        priority: Priority::Critical,
        timeout: Duration::from_secs(5),
        max_body_bytes: 1 << 20,
        cost: 1,
        heeds_client_timeout: true,
        breaker: None,
        attempts: 1,
        retry_statuses: Box::default(),
        fallback: None,
        audit: Declared::Off,
        addresses: None,
        resource: Box::default(),
        is_health: true,
    }
}

/// Whether this is the path of a built-in health endpoint.
pub fn is_built_in(path: &str) -> bool {
    HEALTH_PATHS.contains(&path)
}

/// All routes, ready for lookups.
#[derive(Clone, Debug)]
pub struct RouteTable {
    /// The health endpoints, then the file's routes, then the default.
    routes: Vec<Arc<Route>>,
    tree: Node,
    /// The path of the app's metrics: public only if a route names it.
    closed: PathPattern,
}

#[derive(Clone, Debug, Default)]
struct Node {
    literal: HashMap<Box<[u8]>, Node, foldhash::fast::RandomState>,
    any: Option<Box<Node>>,
    /// Routes whose path ends here.
    here: Candidates,
    /// Routes that match this node and everything below.
    below: Candidates,
    /// This exact path is closed.
    is_closed: bool,
}

/// Routes with the same path, in order. Those for exactly one host are found by it: there may be one for each of thousands.
#[derive(Clone, Debug, Default)]
struct Candidates {
    by_host: HashMap<Box<str>, Vec<usize>, foldhash::fast::RandomState>,
    others: Vec<usize>,
}

impl Node {
    /// Returns the node of a pattern, creating it if needed.
    fn at(&mut self, pattern: &PathPattern, spelling: fn(&Segment) -> &[u8]) -> &mut Self {
        pattern.segments.iter().fold(self, |node, segment| match segment {
            Segment::Literal { .. } => node.literal.entry(spelling(segment).into()).or_default(),
            Segment::Any => node.any.get_or_insert_default(),
        })
    }
}

/// Intermediate result of a lookup.
struct Found {
    /// The number of the first matching route.
    route: usize,
    /// The path is closed.
    is_closed: bool,
}

impl RouteTable {
    /// Compiles `routes`, in the file's order, between the built-in ones and a default for all other requests. `closed` is
    /// public only if a route names it.
    pub fn compile(routes: Vec<Route>, default: Route, closed: &str) -> Self {
        let closed = PathPattern::literal(closed.split(['?', '#']).next().unwrap_or_default());
        let routes: Vec<Arc<Route>> = BUILT_IN.iter().cloned().chain(routes).chain([default]).map(Arc::new).collect();
        let mut tree = Node::default();
        for spelling in [Segment::sent, Segment::decoded] {
            tree.at(&closed, spelling).is_closed = true;
            // Health endpoints match literally: see `find`.
            for (index, route) in routes.iter().enumerate().skip(BUILT_IN.len()) {
                let pattern = &route.conditions.path;
                let node = tree.at(pattern, spelling);
                let candidates = if pattern.and_below { &mut node.below } else { &mut node.here };
                let list = match route.conditions.only_host() {
                    Some(host) => candidates.by_host.entry(host.into()).or_default(),
                    None => &mut candidates.others,
                };
                if list.last() != Some(&index) {
                    list.push(index);
                }
            }
        }
        let mut table = Self { routes, tree, closed };
        sort(&mut table.tree);
        table
    }

    /// Every route, in the order in which they are tried.
    pub fn all(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Returns the number of the first matching route; the last one, the default, matches everything. Health endpoints,
    /// which have no limits, match their literal path only.
    ///
    /// # Errors
    /// The app may read the path differently.
    pub fn find(&self, request: &Request<'_>) -> Result<usize, PathRefused> {
        if let Some(health) = health(request.path) {
            return Ok(health);
        }
        let path = request.path.as_bytes();
        let scan = path::scan(path);
        match (scan.is_plain, scan.has_capitals) {
            (true, false) => self.lookup(path, request),
            (true, true) => self.lookup(&path.to_ascii_lowercase(), request),
            (false, _) => self.find_in_every_reading(path, request),
        }
    }

    #[cold]
    fn find_in_every_reading(&self, path: &[u8], request: &Request<'_>) -> Result<usize, PathRefused> {
        let mut found: Result<Option<usize>, PathRefused> = Ok(None);
        let read = path::each_reading(path, |reading| {
            found = match (found, self.lookup(reading, request)) {
                // One unroutable reading decides: the path is rejected.
                (_, Err(refused)) => Err(refused),
                (Ok(Some(before)), Ok(route)) if before != route => Err(PathRefused::Ambiguous(before, route)),
                (Err(refused), Ok(_)) => Err(refused),
                (Ok(_), Ok(route)) => Ok(Some(route)),
            };
            if found == Err(PathRefused::NotPublic) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match (found, read) {
            (Err(PathRefused::NotPublic), _) => Err(PathRefused::NotPublic),
            (_, Err(unreadable)) => Err(PathRefused::Unreadable(unreadable)),
            (found, Ok(())) => found.map(|route| route.unwrap_or(self.routes.len() - 1)),
        }
    }

    /// The route of one reading, in lower case.
    fn lookup(&self, path: &[u8], request: &Request<'_>) -> Result<usize, PathRefused> {
        let mut found = Found { route: self.routes.len() - 1, is_closed: false };
        self.walk(&self.tree, Some(path.strip_prefix(b"/").unwrap_or(path)), request, &mut found);
        let Found { route, is_closed } = found;
        if is_closed && !self.routes[route].conditions.path.names(&self.closed) {
            return Err(PathRefused::NotPublic);
        }
        Ok(route)
    }

    fn walk(&self, node: &Node, rest: Option<&[u8]>, request: &Request<'_>, found: &mut Found) {
        self.offer(&node.below, request, found);
        // A trailing slash is ignored.
        let Some(rest) = rest.filter(|rest| !rest.is_empty()) else {
            found.is_closed |= node.is_closed;
            return self.offer(&node.here, request, found);
        };
        let (segment, rest) = match memchr::memchr(b'/', rest) {
            Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
            None => (rest, None),
        };
        if let Some(next) = node.literal.get(segment) {
            self.walk(next, rest, request, found);
        }
        if let (Some(next), false) = (&node.any, segment.is_empty()) {
            self.walk(next, rest, request, found);
        }
    }

    fn offer(&self, candidates: &Candidates, request: &Request<'_>, found: &mut Found) {
        self.offer_in_order(&candidates.others, request, found);
        if !candidates.by_host.is_empty()
            && let Some(of_host) = candidates.by_host.get(&*conditions::plain_host(request.host))
        {
            self.offer_in_order(of_host, request, found);
        }
    }

    fn offer_in_order(&self, routes: &[usize], request: &Request<'_>, found: &mut Found) {
        for &index in routes {
            if index >= found.route {
                return;
            }
            if self.routes[index].conditions.hold(request) {
                found.route = index;
                return;
            }
        }
    }
}

/// Sorts each node's routes.
fn sort(node: &mut Node) {
    for candidates in [&mut node.here, &mut node.below] {
        for list in candidates.by_host.values_mut().chain([&mut candidates.others]) {
            list.sort_unstable();
            list.dedup();
        }
    }
    node.literal.values_mut().chain(node.any.as_deref_mut()).for_each(sort);
}

/// The number of the health endpoint at exactly this path.
fn health(path: &str) -> Option<usize> {
    // Fast path: few paths have this prefix.
    if !path.starts_with("/health") {
        return None;
    }
    HEALTH_PATHS.iter().position(|health| *health == path)
}

impl Builder<'_> {
    /// Checks that a route of this name exists and can be limited.
    pub fn check_route_name(&mut self, name: &str, routes: &RouteTable, path: &[Step<'_>]) {
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
}

#[cfg(test)]
mod tests;
