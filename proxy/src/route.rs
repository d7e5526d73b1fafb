//! Which route a request takes: the first in the file's order whose conditions all hold.
//!
//! Routes are compiled into a tree of path segments when the configuration is loaded. A lookup walks the request's
//! segments once and tries conditions only of routes whose path fits, so a thousand routes cost what a few do.
//!
//! For matching (never for forwarding) the path is normalised as RFC 3986 section 6.2.2 says: percent-encoded unreserved
//! characters are decoded and dot segments removed; repeated slashes count as one. Otherwise `/api/%6cogin` or
//! `/api//login` would pass by the rules for `/api/login`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{HeaderName, Method};
use outrigger_policy::audit::Declared;
use outrigger_policy::priority::Priority;

use crate::config::raw;
use crate::config::resilience::FallbackAnswer;
use crate::exchange::{Exchange, Fields, Request};
use crate::rejection::Rejection;
use crate::state::State;

/// Gives the exchange its route. The stage of the same name.
///
/// # Errors
/// None: the default route takes what no other does.
pub fn choose(_: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    exchange.route = exchange.rules.config.routes.find(request);
    Ok(())
}

/// One kind of request, and how it is treated.
#[derive(Clone, Debug)]
pub struct Route {
    /// The label in metrics and logs.
    pub name: Arc<str>,
    /// When it applies.
    pub conditions: Conditions,
    /// How important these requests are.
    pub priority: Priority,
    /// How long a request may take until the head of its answer is there, and how long an answer may pause.
    pub timeout: Duration,
    /// The largest body in bytes.
    pub max_body_bytes: u64,
    /// What a request takes from its limits.
    pub cost: u32,
    /// Whether the client's own limit of time makes it shorter.
    pub heeds_client_timeout: bool,
    /// The number of its breaker; none for health.
    pub breaker: Option<u16>,
    /// Attempts for one request, the first included.
    pub attempts: u32,
    /// Answers that are tried again.
    pub retry_statuses: Box<[u16]>,
    /// What is said when the app cannot answer.
    pub fallback: Option<FallbackAnswer>,
    /// What its requests are to the audit trail.
    pub audit: Declared,
    /// Parameters of its path that are entered there: the number of the segment, and the name.
    pub resource: Box<[(usize, Box<str>)]>,
    /// The app's health endpoints: never limited, answered by the proxy when the app cannot.
    pub is_health: bool,
}

/// Names that the file cannot give.
pub const RESERVED_NAMES: [&str; 3] = ["health", "default", "none"];

/// The health endpoints, before every route of the file.
pub static BUILT_IN: LazyLock<[Route; 4]> = LazyLock::new(|| {
    ["/health", "/health/detailed", "/health/ready", "/health/live"].map(|path| Route {
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

/// When a route applies.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    path: PathPattern,
    methods: Vec<Method>,
    hosts: Vec<HostPattern>,
    headers: Vec<(HeaderName, Option<String>)>,
}

/// A condition that cannot be compiled.
#[derive(Clone, Debug)]
pub struct BadCondition {
    /// The key of the route.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Conditions {
    /// Compiles what the file says.
    ///
    /// # Errors
    /// Names the key that cannot be used.
    pub fn compile(route: &raw::Route) -> Result<Self, BadCondition> {
        let bad = |key, message: String, hint: &str| BadCondition { key, message, hint: hint.to_owned() };
        let path = PathPattern::parse(&route.path).map_err(|(message, hint)| bad("path", message, hint))?;
        let mut methods = Vec::new();
        for name in &route.methods {
            let known =
                Method::from_bytes(name.as_bytes()).ok().filter(|_| name.bytes().all(|b| !b.is_ascii_lowercase()));
            methods.push(known.ok_or_else(|| {
                bad("methods", format!("{name:?} is no method"), "write them in capitals: [\"GET\", \"POST\"]")
            })?);
        }
        let mut hosts = Vec::new();
        for host in &route.hosts {
            hosts.push(HostPattern::parse(host).ok_or_else(|| {
                bad(
                    "hosts",
                    format!("{host:?} is no host"),
                    "write \"api.example.com\" or \"*.example.com\", without port",
                )
            })?);
        }
        let mut headers = Vec::new();
        for (name, value) in &route.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| bad("headers", format!("{name:?} is no field name"), "write { \"X-Beta\" = \"1\" }"))?;
            headers.push((name, (value != "*").then(|| value.clone())));
        }
        Ok(Self { path, methods, hosts, headers })
    }

    /// Whether every request that fits `other` fits `self` too. May say no where a yes is beyond a simple comparison.
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

    fn hold(&self, request: &Request<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(request.method))
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
    Literal(Box<str>),
    /// `{name}`: any one segment that is not empty.
    Any,
}

/// `/exact`, `/items/{id}`, `/files/**`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
    /// Ends in `/**`: takes everything below as well.
    and_below: bool,
}

impl Default for PathPattern {
    fn default() -> Self {
        Self { segments: Vec::new(), and_below: true }
    }
}

impl PathPattern {
    fn literal(path: &str) -> Self {
        let segments = path.split('/').skip(1).map(|segment| Segment::Literal(segment.into())).collect();
        Self { segments, and_below: false }
    }

    fn parse(text: &str) -> Result<Self, (String, &'static str)> {
        const EXAMPLES: &str = "write \"/exact\", \"/items/{id}\" or \"/files/**\"";
        let fail = |why: &str| Err((format!("`path` {text:?} {why}"), EXAMPLES));
        let Some(rest) = text.strip_prefix('/') else { return fail("does not begin with a slash") };
        if text.contains(['?', '#', ' ']) {
            return fail("has a character that no path of a request has");
        }
        let (rest, and_below) = match rest.strip_suffix("**") {
            Some("") => ("", true),
            Some(before) => match before.strip_suffix('/') {
                Some(before) => (before, true),
                None => return fail("has \"**\" beside other text; it stands alone, at the end"),
            },
            None => (rest, false),
        };
        if rest.is_empty() && and_below {
            return Ok(Self::default());
        }
        let mut segments = Vec::new();
        for segment in rest.split('/') {
            let name = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            let is_name = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            match name {
                Some(name) if is_name(name) => segments.push(Segment::Any),
                Some(_) => return fail("has a parameter whose name is not made of letters, digits and _"),
                None if segment.contains(['*', '{', '}']) => return fail("has a wildcard that is not a whole segment"),
                None => segments.push(Segment::Literal(segment.into())),
            }
        }
        let normal = normalise(text);
        if !and_below && normal != text
            || and_below
                && segments
                    .iter()
                    .any(|s| matches!(s, Segment::Literal(t) if t.is_empty() || &**t == "." || &**t == ".."))
        {
            return fail(
                "is not in normal form (no \"//\", \"/.\", \"/..\", no needless %-encoding), so nothing can match it",
            );
        }
        Ok(Self { segments, and_below })
    }

    fn covers(&self, other: &Self) -> bool {
        let longer = self.segments.len() > other.segments.len();
        if longer || (!self.and_below && (other.and_below || self.segments.len() != other.segments.len())) {
            return false;
        }
        self.segments.iter().zip(&other.segments).all(|(own, theirs)| match (own, theirs) {
            (Segment::Any, Segment::Any) => true,
            (Segment::Any, Segment::Literal(text)) => !text.is_empty(),
            (own, theirs) => own == theirs,
        })
    }
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
}

#[derive(Clone, Debug, Default)]
struct Node {
    literal: HashMap<Box<str>, Node, foldhash::fast::RandomState>,
    any: Option<Box<Node>>,
    /// Routes whose path ends here, in order.
    here: Vec<usize>,
    /// Routes that take this node and everything below, in order.
    below: Vec<usize>,
}

impl RouteTable {
    /// Compiles `routes`, in the file's order, between the built-in ones and a default that takes the rest.
    pub fn compile(routes: Vec<Route>, default: Route) -> Self {
        let routes: Vec<Arc<Route>> = BUILT_IN.iter().cloned().chain(routes).chain([default]).map(Arc::new).collect();
        let mut tree = Node::default();
        for (index, route) in routes.iter().enumerate() {
            let mut node = &mut tree;
            for segment in &route.conditions.path.segments {
                node = match segment {
                    Segment::Literal(text) => node.literal.entry(text.clone()).or_default(),
                    Segment::Any => node.any.get_or_insert_default(),
                };
            }
            if route.conditions.path.and_below { node.below.push(index) } else { node.here.push(index) }
        }
        Self { routes, tree }
    }

    /// Every route, in the order in which they are tried.
    pub fn all(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The number of the first route that fits; the last one, the default, fits everything.
    pub fn find(&self, request: &Request<'_>) -> usize {
        let path = normalise(request.path);
        let mut best = self.routes.len() - 1;
        self.walk(&self.tree, Some(path.strip_prefix('/').unwrap_or(&path)), request, &mut best);
        best
    }

    fn walk(&self, node: &Node, rest: Option<&str>, request: &Request<'_>, best: &mut usize) {
        self.offer(&node.below, request, best);
        let Some(rest) = rest else { return self.offer(&node.here, request, best) };
        let (segment, rest) = match memchr::memchr(b'/', rest.as_bytes()) {
            Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
            None => (rest, None),
        };
        if let Some(next) = node.literal.get(segment) {
            self.walk(next, rest, request, best);
        }
        if let (Some(next), false) = (&node.any, segment.is_empty()) {
            self.walk(next, rest, request, best);
        }
    }

    fn offer(&self, candidates: &[usize], request: &Request<'_>, best: &mut usize) {
        for &index in candidates {
            if index >= *best {
                return;
            }
            if self.routes[index].conditions.hold(request) {
                *best = index;
                return;
            }
        }
    }
}

/// The path in normal form; borrowed, unless something has to change.
pub fn normalise(path: &str) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    let is_plain = memchr::memchr(b'%', bytes).is_none()
        && memchr::memmem::find(bytes, b"//").is_none()
        && memchr::memmem::find(bytes, b"/.").is_none();
    if is_plain {
        return Cow::Borrowed(path);
    }
    let decoded = decode_unreserved(bytes);
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut segments = decoded.split(|b| *b == b'/').skip(1).peekable();
    let mut ends_open = false;
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"." => ends_open = is_last,
            b".." => {
                kept.pop();
                ends_open = is_last;
            }
            b"" => ends_open = is_last,
            other => kept.push(other),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in kept {
        normal.push('/');
        normal.push_str(&String::from_utf8_lossy(segment));
    }
    if ends_open || normal.is_empty() {
        normal.push('/');
    }
    Cow::Owned(normal)
}

fn decode_unreserved(path: &[u8]) -> Vec<u8> {
    let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).map(|digit| digit as u8);
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let decoded = match (byte, hex(path.get(at + 1)), hex(path.get(at + 2))) {
            (b'%', Some(high), Some(low)) => Some(high << 4 | low),
            _ => None,
        };
        match decoded {
            Some(b) if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') => {
                out.push(b);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use proptest::prelude::*;

    fn route(name: &str, path: &str) -> raw::Route {
        toml::from_str(&format!("name = {name:?}\npath = {path:?}")).unwrap()
    }

    fn compiled(written: &raw::Route) -> Route {
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

    fn table(routes: &[raw::Route]) -> RouteTable {
        RouteTable::compile(routes.iter().map(compiled).collect(), compiled(&route("default", "/**")))
    }

    fn found<'t>(table: &'t RouteTable, method: &str, host: &str, path: &str, headers: &HeaderMap) -> &'t str {
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
        &table.all()[table.find(&request)].name
    }

    fn get<'t>(table: &'t RouteTable, path: &str) -> &'t str {
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
    fn a_spelling_does_not_pass_by_a_rule() {
        let table = table(&[route("login", "/api/login")]);
        for path in
            ["/api/login", "/api/%6Cogin", "/api//login", "/api/./login", "/api/x/../login", "/x/../../api/login"]
        {
            assert_eq!(get(&table, path), "login", "{path}");
        }
        for path in ["/api/login/", "/api/Login", "/api/%2flogin", "/api", "*", ""] {
            assert_eq!(get(&table, path), "default", "{path}");
        }
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
        assert!(!covers("/a", "/a/"));
    }

    #[test]
    fn a_pattern_that_cannot_match_is_refused() {
        for path in ["items", "/a?b", "/a*", "/a/**/b", "/{}", "/a//b", "/a/../b", "/%41", "/a/**x"] {
            assert!(Conditions::compile(&route("r", path)).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_trying_one_by_one_finds(
            patterns in prop::collection::vec("(/(a|b|c|\\{x\\})){1,3}(/\\*\\*)?", 0..12),
            path in "(/(a|b|c|d)?){1,4}",
        ) {
            let routes: Vec<_> = patterns.iter().enumerate().map(|(i, p)| route(&format!("r{i}"), p)).collect();
            let table = table(&routes);
            let normal = normalise(&path);
            let segments: Vec<&str> = normal.split('/').skip(1).collect();
            let fits = |pattern: &PathPattern| {
                let (own, theirs) = (pattern.segments.len(), segments.len());
                (own == theirs || own < theirs && pattern.and_below)
                    && pattern.segments.iter().zip(&segments).all(|(s, text)| match s {
                        Segment::Literal(literal) => &**literal == *text,
                        Segment::Any => !text.is_empty(),
                    })
            };
            let expected = table.all().iter().position(|r| fits(&r.conditions.path)).unwrap();
            prop_assert_eq!(get(&table, &path), &*table.all()[expected].name);
        }

        #[test]
        fn normalising_twice_changes_nothing(path in "/(/|\\.|[a-z0-9]|%[0-9a-fA-F]{2}){0,30}") {
            let once = normalise(&path).into_owned();
            prop_assert_eq!(normalise(&once).into_owned(), once);
        }
    }
}
