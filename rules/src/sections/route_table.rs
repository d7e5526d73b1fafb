//! Finds the route of a request: the first in the file's order whose conditions all hold.
//!
//! Routes are compiled into a tree of path segments when the configuration is loaded. A lookup walks the request's segments
//! once and checks conditions only of routes whose path fits, so the cost hardly grows with the number of routes.
//!
//! Outrigger forwards paths unchanged, so the route must be right for every way in which an app may read the path: a path
//! with several readings ([`outrigger_wire::path`]) is rejected unless all of them lead to the same route. Routes ignore
//! case and a trailing slash, as some frameworks do.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{HeaderName, Method};
use outrigger_policy::audit::Declared;
use outrigger_policy::priority::Priority;
use outrigger_wire::path::{self, Unreadable};
use outrigger_wire::request::{Fields, Request};

use crate::complaints::Builder;
use crate::error::did_you_mean;
use crate::sections::fallback::FallbackAnswer;
use crate::sections::routes;
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
    /// The app's health endpoints: never limited; Outrigger responds if the app cannot.
    pub is_health: bool,
}

/// Names that the file may not use.
pub const RESERVED_NAMES: [&str; 3] = ["health", "default", "none"];

/// The app's health endpoints.
const HEALTH_PATHS: [&str; 4] = ["/health", "/health/detailed", "/health/ready", "/health/live"];

/// The health endpoints, before every route of the file.
pub static BUILT_IN: LazyLock<[Route; 4]> = LazyLock::new(|| {
    HEALTH_PATHS.map(|path| Route {
        name: "health".into(),
        conditions: Conditions { path: PathPattern::literal(path), ..Conditions::default() },
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
        resource: Box::default(),
        is_health: true,
    })
});

/// The conditions of a route.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    path: PathPattern,
    methods: Vec<Method>,
    hosts: Vec<HostPattern>,
    headers: Vec<(HeaderName, Option<String>)>,
}

/// A condition that does not compile.
#[derive(Clone, Debug)]
pub struct BadCondition {
    /// The route's key.
    pub key: &'static str,
    /// The error.
    pub message: String,
    /// The remedy.
    pub hint: String,
}

impl Conditions {
    /// Compiles the conditions of the file.
    ///
    /// # Errors
    /// Names the invalid key.
    pub fn compile(route: &routes::Route) -> Result<Self, BadCondition> {
        let bad = |key, message: String, hint: &str| BadCondition { key, message, hint: hint.to_owned() };
        let path = PathPattern::parse(&route.path).map_err(|(message, hint)| bad("path", message, hint))?;
        let mut methods = Vec::new();
        for name in &route.methods {
            let known =
                Method::from_bytes(name.as_bytes()).ok().filter(|_| name.bytes().all(|b| !b.is_ascii_lowercase()));
            methods.push(known.ok_or_else(|| {
                bad("methods", format!("{name:?} is not a method"), "write them in capitals: [\"GET\", \"POST\"]")
            })?);
        }
        let mut hosts = Vec::new();
        for host in &route.hosts {
            hosts.push(HostPattern::parse(host).ok_or_else(|| {
                bad(
                    "hosts",
                    format!("{host:?} is not a host"),
                    "write \"api.example.com\" or \"*.example.com\", without port",
                )
            })?);
        }
        let mut headers = Vec::new();
        for (name, value) in &route.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                bad("headers", format!("{name:?} is not a header name"), "write { \"X-Beta\" = \"1\" }")
            })?;
            headers.push((name, (value != "*").then(|| value.clone())));
        }
        Ok(Self { path, methods, hosts, headers })
    }

    /// Whether every request that fits `other` also fits `self`. May return `false` where a simple comparison cannot tell.
    pub fn covers(&self, other: &Self) -> bool {
        let methods = self.methods.is_empty()
            || (!other.methods.is_empty() && other.methods.iter().all(|m| self.methods.contains(m)));
        let hosts = self.hosts.is_empty()
            || (!other.hosts.is_empty() && other.hosts.iter().all(|h| self.hosts.iter().any(|own| own.covers(h))));
        let headers = self
            .headers
            .iter()
            .all(|(name, value)| other.headers.iter().any(|(n, v)| n == name && (value.is_none() || value == v)));
        methods && hosts && headers && self.path.covers(&other.path)
    }

    /// The headers that it checks.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.iter().map(|(name, _)| name)
    }

    fn hold(&self, request: &Request<'_>) -> bool {
        let method = request.method.as_str();
        // Some frameworks convert methods to upper case first.
        (self.methods.is_empty() || self.methods.iter().any(|own| own.as_str().eq_ignore_ascii_case(method)))
            && (self.hosts.is_empty() || self.hosts.iter().any(|host| host.fits(request.host)))
            && self.headers.iter().all(|(name, wanted)| has(request.fields, name, wanted.as_deref()))
    }
}

pub fn has(fields: Fields<'_>, name: &HeaderName, wanted: Option<&str>) -> bool {
    match wanted {
        None => fields.has(name),
        Some(wanted) => fields.all(name).contains(&wanted.as_bytes()),
    }
}

/// One segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// In lower case: percent-encoded as clients send it, and decoded.
    Literal { sent: Box<[u8]>, decoded: Box<[u8]> },
    /// `{name}`: any one non-empty segment.
    Any,
}

/// `/exact`, `/items/{id}`, `/files/**`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
    /// Ends in `/**`: also matches everything below.
    and_below: bool,
}

impl Default for PathPattern {
    fn default() -> Self {
        Self { segments: Vec::new(), and_below: true }
    }
}

impl PathPattern {
    /// A path without wildcards; a trailing slash is ignored.
    fn literal(path: &str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments = path.strip_suffix('/').unwrap_or(path).split('/').filter(|_| !path.is_empty());
        Self { segments: segments.map(literal_segment).collect(), and_below: false }
    }

    fn parse(text: &str) -> Result<Self, (String, &'static str)> {
        const EXAMPLES: &str = "write \"/exact\", \"/items/{id}\" or \"/files/**\"";
        let fail = |why: &str| Err((format!("`path` {text:?} {why}"), EXAMPLES));
        if !text.starts_with('/') {
            return fail("does not begin with a slash");
        }
        if text.contains(['?', '#', ' ']) {
            return fail("has a character that no path of a request has");
        }
        let (exact, and_below) = match text.strip_suffix("**") {
            Some(before) if before.ends_with('/') => (before, true),
            Some(_) => return fail("has \"**\" beside other text; it stands alone, at the end"),
            None => (text, false),
        };
        let mut example = String::new();
        for segment in exact[1..].split('/') {
            let name = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            let is_name = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            match name {
                Some(name) if is_name(name) => example.push_str("/x"),
                Some(_) => return fail("has a parameter whose name is not made of letters, digits and _"),
                None if segment.contains(['*', '{', '}']) => return fail("has a wildcard that is not a whole segment"),
                None => example.extend(["/", segment]),
            }
        }
        let pattern = Self { and_below, ..Self::literal(exact) };
        if !pattern.is_unambiguous(&example) {
            return fail(
                "is not in normal form (no \"//\", \"/.\", \"/..\", \";\", \"\\\", no encoded slash, no needless %-encoding), so nothing can match it",
            );
        }
        Ok(pattern)
    }

    /// Whether all readings of `example`, a request for this pattern, match it.
    fn is_unambiguous(&self, example: &str) -> bool {
        if path::scan(example.as_bytes()).is_plain {
            return true;
        }
        let spelt = [|sent: &Segment| sent.sent().to_vec(), |sent: &Segment| sent.decoded().to_vec()];
        let spelt = spelt.map(|spelling| {
            let segments: Vec<Vec<u8>> = self.segments.iter().map(spelling).collect();
            [b"/", &*segments.join(&b'/')].concat()
        });
        let has_slashes = self.segments.iter().any(|segment| segment.decoded().contains(&b'/'));
        let mut is_unambiguous = !needlessly_encoded(example) && !has_slashes;
        let read = path::each_reading(example.as_bytes(), |reading| {
            let reading = if reading.len() > 1 { reading.strip_suffix(b"/").unwrap_or(reading) } else { reading };
            is_unambiguous &= spelt.iter().any(|spelt| spelt == reading);
            ControlFlow::Continue(())
        });
        read.is_ok() && is_unambiguous
    }

    fn covers(&self, other: &Self) -> bool {
        let longer = self.segments.len() > other.segments.len();
        if longer || (!self.and_below && (other.and_below || self.segments.len() != other.segments.len())) {
            return false;
        }
        self.segments.iter().zip(&other.segments).all(|(own, theirs)| *own == Segment::Any || own == theirs)
    }

    /// Whether the pattern is exactly `path`, without wildcards.
    fn names(&self, path: &Self) -> bool {
        self.segments == path.segments
    }
}

impl Segment {
    fn sent(&self) -> &[u8] {
        match self {
            Self::Literal { sent, .. } => sent,
            Self::Any => b"x",
        }
    }

    fn decoded(&self) -> &[u8] {
        match self {
            Self::Literal { decoded, .. } => decoded,
            Self::Any => b"x",
        }
    }
}

fn literal_segment(text: &str) -> Segment {
    if text.starts_with('{') && text.ends_with('}') {
        return Segment::Any;
    }
    let mut sent = String::new();
    for byte in text.bytes() {
        if byte.is_ascii() {
            sent.push(char::from(byte.to_ascii_lowercase()));
        } else {
            sent.push_str(&format!("%{byte:02x}"));
        }
    }
    let decoded = path::decode(text.as_bytes(), path::Slashes::Decoded).to_ascii_lowercase();
    Segment::Literal { sent: sent.into_bytes().into(), decoded: decoded.into() }
}

/// Whether it percent-encodes a character that needs no encoding.
fn needlessly_encoded(text: &str) -> bool {
    let is_unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    (0..text.len()).any(|at| path::encoded(&text.as_bytes()[at..]).is_some_and(is_unreserved))
}

/// The parameters of a pattern that are among `wanted`.
pub fn parameters(pattern: &str, wanted: &[String]) -> Box<[(usize, Box<str>)]> {
    let segments = pattern.split('/').skip(1).enumerate();
    let name = |segment: &str| segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')).map(Box::from);
    let named = segments.filter_map(|(at, segment)| Some((at, name(segment)?)));
    named.filter(|(_, name): &(usize, Box<str>)| wanted.iter().any(|wanted| **wanted == **name)).collect()
}

/// `api.example.com` or `*.example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Exact(Box<str>),
    /// With its leading dot.
    Below(Box<str>),
}

impl HostPattern {
    fn parse(text: &str) -> Option<Self> {
        let (domain, below) = match text.strip_prefix('*') {
            Some(rest) => (rest.strip_prefix('.')?, true),
            None => (text, false),
        };
        let plain =
            !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        let lower = domain.to_ascii_lowercase();
        plain.then(|| if below { Self::Below(format!(".{lower}").into()) } else { Self::Exact(lower.into()) })
    }

    fn fits(&self, host: &str) -> bool {
        let host = without_port(host);
        // A trailing dot, the DNS root, is optional.
        let host = host.strip_suffix('.').unwrap_or(host);
        match self {
            Self::Exact(own) => own.eq_ignore_ascii_case(host),
            Self::Below(dotted) => {
                host.len() > dotted.len()
                    && host.get(host.len() - dotted.len()..).is_some_and(|end| end.eq_ignore_ascii_case(dotted))
            }
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(own), Self::Exact(theirs)) => own == theirs,
            (Self::Exact(_), Self::Below(_)) => false,
            (own @ Self::Below(_), Self::Exact(theirs)) => own.fits(theirs),
            (Self::Below(own), Self::Below(theirs)) => theirs.ends_with(&**own),
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
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
    /// Routes whose path ends here, in order.
    here: Vec<usize>,
    /// Routes that match this node and everything below, in order.
    below: Vec<usize>,
    /// This exact path is closed.
    is_closed: bool,
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
                let list = if pattern.and_below { &mut node.below } else { &mut node.here };
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

    fn offer(&self, candidates: &[usize], request: &Request<'_>, found: &mut Found) {
        for &index in candidates {
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
    for list in [&mut node.here, &mut node.below] {
        list.sort_unstable();
        list.dedup();
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
mod tests {
    use super::*;
    use http::HeaderMap;
    use proptest::prelude::*;

    fn route(name: &str, path: &str) -> routes::Route {
        toml::from_str(&format!("name = {name:?}\npath = {path:?}")).unwrap()
    }

    fn compiled(written: &routes::Route) -> Route {
        Route {
            name: written.name.as_str().into(),
            conditions: Conditions::compile(written).unwrap(),
            priority: Priority::Medium,
            timeout: Duration::from_secs(1),
            max_body_bytes: 1,
            cost: 1,
            heeds_client_timeout: true,
            breaker: None,
            attempts: 1,
            retry_statuses: Box::default(),
            fallback: None,
            audit: outrigger_policy::audit::Declared::Off,
            resource: Box::default(),
            is_health: false,
        }
    }

    fn table(routes: &[routes::Route]) -> RouteTable {
        RouteTable::compile(routes.iter().map(compiled).collect(), compiled(&route("default", "/**")), "/metrics")
    }

    fn try_found(
        table: &RouteTable,
        method: &str,
        host: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<String, PathRefused> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = Request {
            method: &method,
            path,
            host,
            fields: Fields::Map(headers),
            is_http10: false,
            target: path,
            has_endless_body: false,
        };
        table.find(&request).map(|number| table.all()[number].name.to_string())
    }

    /// The label as in responses.
    fn label(refused: PathRefused) -> &'static str {
        match refused {
            PathRefused::Unreadable(Unreadable::DotSegment) => "path_dot_segment",
            PathRefused::Unreadable(Unreadable::ControlCharacter) => "path_control_character",
            PathRefused::Unreadable(Unreadable::TooManyReadings) | PathRefused::Ambiguous(..) => "path_ambiguous",
            PathRefused::NotPublic => "not_public",
        }
    }

    fn found(table: &RouteTable, method: &str, host: &str, path: &str, headers: &HeaderMap) -> String {
        try_found(table, method, host, path, headers).unwrap_or_else(|refused| label(refused).to_owned())
    }

    /// The name of the route, or why none was found.
    fn get(table: &RouteTable, path: &str) -> String {
        found(table, "GET", "example.com", path, &HeaderMap::new())
    }

    #[test]
    fn the_first_match_in_file_order_wins() {
        let table = table(&[route("one", "/items/{id}"), route("all", "/items/**"), route("late", "/items/7/x")]);
        assert_eq!(get(&table, "/items/7"), "one");
        assert_eq!(get(&table, "/items/7/x"), "all");
        assert_eq!(get(&table, "/items"), "all");
        assert_eq!(get(&table, "/items/"), "all");
        assert_eq!(get(&table, "/other"), "default");
        assert_eq!(get(&table, "/health"), "health");
        assert_eq!(get(&table, "/"), "default");
    }

    #[test]
    fn no_spelling_of_a_path_bypasses_a_route() {
        let table = table(&[route("login", "/api/login"), route("item", "/items/{id}"), route("files", "/files/**")]);
        for path in ["/api/login", "/api/login/", "/API/Login"] {
            assert_eq!(get(&table, path), "login", "{path}");
        }
        for path in
            ["/api", "/api/login/x", "*", "", "/other%2Fname", "//other", "/other;v=1", "/caf%C3%A9", "/o%7Ether"]
        {
            assert_eq!(get(&table, path), "default", "{path}");
        }
        for path in ["/files", "/files/a%2Fb", "/files//a", "/files/a;b", "/files/%61", "/FILES/x%20y"] {
            assert_eq!(get(&table, path), "files", "{path}");
        }
        for path in ["/items/7", "/items/a%20b", "/items/%C3%A9", "/items/a;v=1", "/items/a."] {
            assert_eq!(get(&table, path), "item", "{path}");
        }
        for path in [
            "/api%2Flogin",
            "/api%2flogin",
            "/api/%6Cogin",
            "/api/%256cogin",
            "//api/login",
            "/api//login",
            "/api/login//",
            "/api/login;x",
            "/api;x/login",
            "/api\\login",
            "/api%5Clogin",
            "/api/login%3Fx",
            "/api/login.",
            "/api/login%20",
            "/items/a%2Fb",
            "/items/;x",
            "/%66iles/a",
        ] {
            assert_eq!(get(&table, path), "path_ambiguous", "{path}");
        }
        for path in ["/files/../api/login", "/api/./login", "/files/%2e%2e/x", "/files/a%2f.."] {
            assert_eq!(get(&table, path), "path_dot_segment", "{path}");
        }
        assert_eq!(get(&table, "/files/a%00"), "path_control_character");
    }

    #[test]
    fn health_is_exempt_by_its_literal_path_alone() {
        let table = table(&[]);
        assert_eq!(get(&table, "/health/ready"), "health");
        for path in [
            "/health/",
            "/Health",
            "//health",
            "/health;x",
            "/%68ealth",
            "/health%2Fready",
            "/healthy",
            "/health/other",
        ] {
            assert_eq!(get(&table, path), "default", "{path}");
        }
    }

    #[test]
    fn the_apps_metrics_path_is_public_only_if_a_route_names_it() {
        let closed = table(&[route("all", "/**"), route("one", "/{x}")]);
        for path in ["/metrics", "/metrics/", "/METRICS", "//metrics", "/%6detrics", "/metrics;x", "/metrics%2f"] {
            assert_eq!(get(&closed, path), "not_public", "{path}");
        }
        for path in ["/metrics/x", "/metricsx", "/x/metrics"] {
            assert_eq!(get(&closed, path), "all", "{path}");
        }
        let mut post = route("post", "/metrics");
        post.methods = vec!["POST".into()];
        let open = table(&[post, route("all", "/**")]);
        assert_eq!(found(&open, "POST", "a", "/metrics", &HeaderMap::new()), "post");
        assert_eq!(get(&open, "/metrics"), "not_public");
        assert_eq!(get(&table(&[route("below", "/metrics/**")]), "/metrics"), "below");
        assert_eq!(get(&table(&[route("named", "/metrics")]), "//metrics"), "path_ambiguous");
    }

    #[test]
    fn a_pattern_is_taken_encoded_and_decoded() {
        let table = table(&[route("cafe", "/café/{x}"), route("same", "/a%20b")]);
        for path in ["/caf%C3%A9/1", "/caf%c3%a9/1", "/CAF%C3%A9/a%2520"] {
            assert_eq!(get(&table, path), "cafe", "{path}");
        }
        assert_eq!(get(&table, "/a%20b"), "same");
    }

    #[test]
    fn every_condition_must_hold() {
        let mut beta = route("beta", "/**");
        beta.methods = vec!["POST".into()];
        beta.hosts = vec!["*.example.com".into()];
        beta.headers = [("X-Beta".to_owned(), "1".to_owned())].into();
        let table = table(&[beta]);
        let with = HeaderMap::from_iter([(HeaderName::from_static("x-beta"), "1".parse().unwrap())]);
        assert_eq!(found(&table, "POST", "api.Example.com:8080", "/", &with), "beta");
        assert_eq!(found(&table, "post", "api.example.com.:8080", "/", &with), "beta");
        assert_eq!(found(&table, "GET", "api.example.com", "/", &with), "default");
        assert_eq!(found(&table, "POST", "example.com", "/", &with), "default");
        assert_eq!(found(&table, "POST", "api.example.com", "/", &HeaderMap::new()), "default");
    }

    #[test]
    fn knows_when_a_route_can_never_match() {
        let covers = |a: &str, b: &str| {
            let compile = |path| Conditions::compile(&route("r", path)).unwrap();
            compile(a).covers(&compile(b))
        };
        assert!(covers("/**", "/a/b"));
        assert!(covers("/a/{x}", "/a/b"));
        assert!(covers("/a/**", "/a"));
        assert!(covers("/a/**", "/a/{x}/**"));
        assert!(!covers("/a/b", "/a/{x}"));
        assert!(!covers("/a/{x}", "/a/**"));
        assert!(covers("/a", "/a/") && covers("/A", "/a"));
    }

    #[test]
    fn a_pattern_that_cannot_match_is_rejected() {
        for path in [
            "items", "/a?b", "/a*", "/a/**/b", "/{}", "/a//b", "/a/../b", "/%41", "/a/**x", "/a%2Fb", "/a;b", "/a\\b",
            "/a//**", "/./**", "/a.",
        ] {
            assert!(Conditions::compile(&route("r", path)).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_trying_one_by_one_finds(
            patterns in prop::collection::vec("(/(a|b|c|\\{x\\})){1,3}(/\\*\\*)?", 0..12),
            path in "(/(a|b|c|d|A)){1,4}/?",
        ) {
            let routes: Vec<_> = patterns.iter().enumerate().map(|(i, p)| route(&format!("r{i}"), p)).collect();
            let table = table(&routes);
            let lower = path.to_ascii_lowercase();
            let segments: Vec<&str> = lower.trim_end_matches('/').split('/').skip(1).collect();
            let fits = |pattern: &PathPattern| {
                let (own, theirs) = (pattern.segments.len(), segments.len());
                (own == theirs || own < theirs && pattern.and_below)
                    && pattern.segments.iter().zip(&segments).all(|(own, text)| *own == Segment::Any || own.sent() == text.as_bytes())
            };
            let expected = table.all().iter().position(|r| fits(&r.conditions.path)).unwrap();
            prop_assert_eq!(get(&table, &path), &*table.all()[expected].name);
        }

        /// No reading of a path by an app reaches another route.
        #[test]
        fn no_reading_of_a_path_belongs_to_another_route(
            patterns in prop::collection::vec("(/(a|b|ab|\\{x\\})){1,3}(/\\*\\*)?", 0..6),
            path in "/(a|b|/|;|%2f|%61|%2561|%5c|\\.|A|%3f){1,8}",
        ) {
            let routes: Vec<_> = patterns.iter().enumerate().map(|(i, p)| route(&format!("r{i}"), p)).collect();
            let table = table(&routes);
            if let Ok(name) = try_found(&table, "GET", "a", &path, &HeaderMap::new()) {
                for reading in some_readings(&path) {
                    // The reading itself may be rejected, but never has another route.
                    if let Ok(other) = try_found(&table, "GET", "a", &reading, &HeaderMap::new()) {
                        prop_assert_eq!(&other, &name, "{} read as {}", path, reading);
                    }
                }
            }
        }
    }

    /// How frameworks may read a path, written independently of [`path`].
    fn some_readings(path: &str) -> Vec<String> {
        let decode = |text: &str| {
            text.replace("%2f", "/").replace("%61", "a").replace("%5c", "\\").replace("%3f", "?").replace("%25", "%")
        };
        let once = decode(path);
        let mut readings = vec![path.to_owned(), once.clone(), decode(&once), path.replace("%61", "a")];
        for reading in readings.clone() {
            readings.push(reading.replace('\\', "/"));
            readings.push(reading.split('/').map(|s| s.split(';').next().unwrap()).collect::<Vec<_>>().join("/"));
            readings.push(reading.split('?').next().unwrap().to_owned());
            readings.push(reading.replace("//", "/"));
            readings.push(reading.to_lowercase());
        }
        readings
    }
}
