//! The conditions of a route: path, methods, hosts and headers.

use http::{HeaderName, Method};
use outrigger_wire::request::{Fields, Request};

use super::pattern::{PathPattern, Segment};
use crate::sections::routes;

/// The conditions of a route.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    pub(super) path: PathPattern,
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
    /// Requests for this path, whatever else they have.
    pub(super) fn of(path: PathPattern) -> Self {
        Self { path, ..Self::default() }
    }

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

    /// The first segment of each path that fits; `None`: there may be several, or none. A route covers only routes with the same
    /// one, or any if it has none.
    pub fn first_segment(&self) -> Option<&[u8]> {
        match self.path.segments.first()? {
            Segment::Literal { decoded, .. } => Some(decoded),
            Segment::Any => None,
        }
    }

    /// The headers that it checks.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.iter().map(|(name, _)| name)
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
