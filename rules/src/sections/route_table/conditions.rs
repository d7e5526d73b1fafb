//! The conditions of a route: path, methods, hosts and headers.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderName, Method};
use outrigger_wire::request::{Fields, Request};

use super::pattern::PathPattern;
use crate::error::did_you_mean;
use crate::sections::routes;

/// The conditions of a route.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    pub(super) path: PathPattern,
    /// The path as written; `None` for all paths.
    template: Option<Arc<str>>,
    methods: Vec<Method>,
    hosts: Vec<HostPattern>,
    headers: Vec<(HeaderName, Option<String>)>,
}

/// A condition that does not compile.
#[derive(Clone, Debug)]
pub struct BadCondition {
    /// The route's key.
    pub key: &'static str,
    /// The element of the key's list.
    pub index: Option<usize>,
    /// The error.
    pub message: String,
    /// The remedy.
    pub hint: String,
}

impl Conditions {
    /// Requests for this path, whatever else they have.
    pub(super) fn of(path: PathPattern) -> Self {
        Self { path, ..Self::default() }
    }

    /// For a route whose conditions are invalid: it hides no other route.
    pub fn unmatched(route: usize) -> Self {
        Self::of(PathPattern::literal(&format!("/~invalid-{route}")))
    }

    /// Compiles the conditions of the file.
    ///
    /// # Errors
    /// Every invalid condition.
    pub fn compile(route: &routes::Route) -> Result<Self, Vec<BadCondition>> {
        let mut bad = Vec::new();
        let path = PathPattern::parse(&route.path).unwrap_or_else(|(message, hint)| {
            bad.push(BadCondition { key: "path", index: None, message, hint });
            PathPattern::default()
        });
        let mut methods = Vec::new();
        for (index, name) in route.methods.iter().enumerate() {
            match method(name) {
                Ok(method) => methods.push(method),
                Err(hint) => {
                    let message = format!("{name:?} is not a method");
                    bad.push(BadCondition { key: "methods", index: Some(index), message, hint });
                }
            }
        }
        let mut hosts = Vec::new();
        for (index, host) in route.hosts.iter().enumerate() {
            match HostPattern::parse(host) {
                Some(pattern) => hosts.push(pattern),
                None => {
                    let message = format!("{host:?} is not a host");
                    bad.push(BadCondition { key: "hosts", index: Some(index), message, hint: host_hint(host) });
                }
            }
        }
        let mut headers = Vec::new();
        for (name, value) in &route.headers {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => headers.push((name, (value != "*").then(|| value.clone()))),
                Err(_) => {
                    let (message, hint) = (format!("{name:?} is not a header name"), "write { \"X-Beta\" = \"1\" }");
                    bad.push(BadCondition { key: "headers", index: None, message, hint: hint.to_owned() });
                }
            }
        }
        let template = (path != PathPattern::default()).then(|| route.path.as_str().into());
        if bad.is_empty() { Ok(Self { path, template, methods, hosts, headers }) } else { Err(bad) }
    }

    /// The pattern of the path, as written; `None` for all paths.
    pub const fn template(&self) -> Option<&Arc<str>> {
        self.template.as_ref()
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

    /// The host, if it has exactly one, without a wildcard: it covers only routes with the same host.
    pub(super) fn only_host(&self) -> Option<&str> {
        match &self.hosts[..] {
            [HostPattern::Exact(host)] => Some(host),
            _ => None,
        }
    }

    /// One of its hosts without a wildcard.
    pub(super) fn any_host(&self) -> Option<&str> {
        self.hosts.iter().find_map(|host| match host {
            HostPattern::Exact(host) => Some(&**host),
            HostPattern::Below(_) => None,
        })
    }

    /// The headers that it checks.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.iter().map(|(name, _)| name)
    }

    /// The headers that it checks, with the values that they must have; `None`: any.
    pub fn header_conditions(&self) -> impl Iterator<Item = (&HeaderName, Option<&str>)> {
        self.headers.iter().map(|(name, value)| (name, value.as_deref()))
    }

    /// The hosts that it checks, as written: `api.example.com`, `*.example.com`.
    pub fn hosts(&self) -> impl Iterator<Item = String> {
        self.hosts.iter().map(|host| match host {
            HostPattern::Exact(own) => own.to_string(),
            HostPattern::Below(dotted) => format!("*{dotted}"),
        })
    }

    /// The number of the first of [`Self::hosts`] that fits the host of a request.
    pub fn host_of(&self, host: &str) -> Option<usize> {
        self.hosts.iter().position(|own| own.fits(host))
    }

    pub(super) fn hold(&self, request: &Request<'_>) -> bool {
        let method = request.method.as_str();
        // Some frameworks convert methods to upper case first.
        (self.methods.is_empty() || self.methods.iter().any(|own| own.as_str().eq_ignore_ascii_case(method)))
            && (self.hosts.is_empty() || self.hosts.iter().any(|host| host.fits(request.host)))
            && self.headers.iter().all(|(name, wanted)| has(request.fields, name, wanted.as_deref()))
    }
}

/// Whether a header has the wanted value, or any value.
pub fn has(fields: Fields<'_>, name: &HeaderName, wanted: Option<&str>) -> bool {
    match wanted {
        None => fields.has(name),
        Some(wanted) => fields.all(name).contains(&wanted.as_bytes()),
    }
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
        let is_empty = |label: &str| label.is_empty();
        let plain = domain != "_"
            && !domain.split('.').any(is_empty)
            && domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        let lower = domain.to_ascii_lowercase();
        plain.then(|| if below { Self::Below(format!(".{lower}").into()) } else { Self::Exact(lower.into()) })
    }

    fn fits(&self, host: &str) -> bool {
        let host = name_of(host);
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

/// Methods in use: those of RFC 9110 and 5789, of WebDAV and its extensions, and of caches.
const METHODS: [&str; 30] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "QUERY",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "ACL",
    "SEARCH",
    "REPORT",
    "MKCALENDAR",
    "MKACTIVITY",
    "CHECKOUT",
    "CHECKIN",
    "MERGE",
    "BIND",
    "UNBIND",
    "LINK",
    "UNLINK",
    "PURGE",
];

/// A method as written, or how to write it.
fn method(name: &str) -> Result<Method, String> {
    let all = || "leave `methods` out: then the route is for all of them".to_owned();
    if matches!(name, "*" | "any" | "all" | "Any" | "All") {
        return Err(all());
    }
    let upper = name.trim().to_ascii_uppercase();
    let method = Method::from_bytes(name.as_bytes()).ok();
    if let Some(method) = method.filter(|_| name.bytes().all(|b| !b.is_ascii_lowercase())) {
        return Ok(method);
    }
    let parts: Vec<&str> = upper.split([',', '|', ' ']).filter(|part| !part.is_empty()).collect();
    Err(match parts.as_slice() {
        [] => all(),
        [one] if one.bytes().all(|b| b.is_ascii_alphabetic()) => {
            format!("write them in capitals: {one:?}")
        }
        [_] => "write them in capitals: [\"GET\", \"POST\"]".to_owned(),
        several => format!("write each by itself: {several:?}"),
    })
}

/// For a method that probably no client sends: what was probably meant.
pub fn unusual_method(name: &str) -> Option<String> {
    if METHODS.contains(&name) || method(name).is_err() {
        return None;
    }
    Some(match did_you_mean(name, METHODS) {
        _ if matches!(name, "ANY" | "ALL") => "leave `methods` out: then the route is for all of them".to_owned(),
        Some(meant) => format!("did you mean {meant:?}?"),
        None => "the route matches only requests with exactly this method; \"GET\" and \"POST\" are usual".to_owned(),
    })
}

/// How to write a host.
fn host_hint(host: &str) -> String {
    let host = host.trim();
    if matches!(host, "*" | "_" | "" | "*.*") {
        return "leave `hosts` out: then the route is for all hosts".to_owned();
    }
    if host.starts_with(['~', '^']) || host.contains(['(', '\\', '{', '|']) {
        return "a host is no regular expression: write \"api.example.com\" or \"*.example.com\"".to_owned();
    }
    let plain = host.split_once("://").map_or(host, |(_, rest)| rest).split(['/', ':', ' ']).next().unwrap_or(host);
    let plain = plain.trim_end_matches('.');
    let plain = if plain.starts_with('.') { format!("*{plain}") } else { plain.to_owned() };
    match HostPattern::parse(&plain) {
        Some(_) => format!("write {plain:?}, without scheme, port and path"),
        None => "write \"api.example.com\" or \"*.example.com\", without port".to_owned(),
    }
}

/// A host as routes compare it: without port, without a trailing dot, in lower case.
pub(super) fn plain_host(host: &str) -> Cow<'_, str> {
    let name = name_of(host);
    if name.bytes().any(|b| b.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
}

fn name_of(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    // A trailing dot, the DNS root, is optional.
    name.strip_suffix('.').unwrap_or(name)
}
