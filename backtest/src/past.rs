//! A request of the past, and what many of them have in common.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use outrigger_policy::flags::Mode;
use outrigger_policy::tier::Tier;
use outrigger_rules::config::Config;
use outrigger_rules::sections::route_table::header_mark;
use outrigger_traffic::request::{Applied, ClientKind, Facts};

/// The app was not asked.
const NEVER: u32 = u32::MAX;
/// Maximum number of shapes of all files together.
pub const MOST_SHAPES: usize = 262_144;
/// Maximum number of names of all files together.
const MOST_NAMES: usize = 60_000;

/// A request of the past.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// When its head was complete: nanoseconds since 1970.
    pub at_ns: u64,
    /// The client's pseudonym.
    pub client: u64,
    /// The pseudonym of its address.
    pub address: u64,
    /// The number of its shape.
    pub shape: u32,
    /// Until its end, in microseconds; at most an hour.
    pub total_us: u32,
    /// Its wait in the queue, in microseconds.
    pub queued_us: u32,
    /// How long the app took for the head of its response, in microseconds: see [`Self::service_ns`] and [`Self::served_in`].
    pub service_us: u32,
    /// The status of its response.
    pub status: u16,
    /// Why it was rejected or failed, by its number in [`Catalogue::names`]; 0: it was not.
    pub reason: u16,
    /// The rate limit that rejected it, by its number there; 0: no limit did.
    pub limit: u16,
    /// Facts.
    pub facts: Facts,
    /// The client's tier.
    pub tier: Tier,
    /// How it was identified.
    pub kind: ClientKind,
    /// The mode of rate limits, bans and the concurrency limit for it.
    pub admission: Mode,
    /// The mode of circuit breakers for it.
    pub resilience: Mode,
}

/// Microseconds, at most an hour and a bit.
pub fn bounded_us(us: u64) -> u32 {
    u32::try_from(us).unwrap_or(NEVER).min(NEVER - 1)
}

/// The mode that a record names.
pub const fn mode(applied: Applied) -> Mode {
    match applied {
        Applied::Off => Mode::Off,
        Applied::Monitor => Mode::Monitor,
        Applied::Enforce => Mode::Enforce,
    }
}

impl Past {
    /// A successful request, to be filled in.
    pub const BLANK: Self = Self {
        at_ns: 0,
        client: 0,
        address: 0,
        shape: 0,
        total_us: 0,
        queued_us: 0,
        service_us: NEVER,
        status: 200,
        reason: 0,
        limit: 0,
        facts: Facts(0),
        tier: Tier::Anonymous,
        kind: ClientKind::Address,
        admission: Mode::Enforce,
        resilience: Mode::Enforce,
    };

    /// How long the app took for the head of its response, in nanoseconds; `None` if it was not asked.
    pub fn service_ns(&self) -> Option<u64> {
        (self.service_us != NEVER).then(|| u64::from(self.service_us) * 1000)
    }

    /// The same with this time of the app, in microseconds.
    #[must_use]
    pub fn served_in(self, service_us: Option<u64>) -> Self {
        Self { service_us: service_us.map_or(NEVER, bounded_us), ..self }
    }

    /// When it ended: nanoseconds since 1970.
    pub fn ended_ns(&self) -> u64 {
        self.at_ns.saturating_add(u64::from(self.total_us) * 1000)
    }
}

/// A kind of request: everything that the choice of its route depends on.
#[derive(Clone, Debug)]
pub struct PastShape {
    /// The method.
    pub method: Method,
    /// The host, as far as routes named it.
    pub host: Box<str>,
    /// The path; empty if only the route is known.
    pub path: Box<str>,
    /// The route that it took, by its number in [`Catalogue::names`].
    pub route: u16,
    /// The headers that routes named and that it had.
    pub headers: HeaderMap,
}

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// The shapes and names of all files.
#[derive(Clone, Debug)]
pub struct Catalogue {
    shapes: Vec<PastShape>,
    by_text: Map<Box<str>, u32>,
    names: Vec<Arc<str>>,
    by_name: Map<Arc<str>, u16>,
    /// The conditions on values of headers that the configurations have, by their text in the record.
    conditions: Map<Box<str>, HeaderValue>,
}

impl Default for Catalogue {
    fn default() -> Self {
        let none = Arc::<str>::from("");
        let by_name = [(Arc::clone(&none), 0)].into_iter().collect();
        Self { shapes: Vec::new(), by_text: Map::default(), names: vec![none], by_name, conditions: Map::default() }
    }
}

impl Catalogue {
    /// An empty one for these configurations.
    pub fn of(configs: &[&Config]) -> Self {
        let routes = configs.iter().flat_map(|config| config.routes.all());
        let conditions = routes.flat_map(|route| route.conditions.header_conditions());
        let marked = conditions.filter_map(|(name, value)| {
            let value = value?;
            Some((format!("{name} #{}", header_mark(value)).into(), value.parse().ok()?))
        });
        Self { conditions: marked.collect(), ..Self::default() }
    }

    /// All shapes.
    pub fn shapes(&self) -> &[PastShape] {
        &self.shapes
    }

    /// A name; the one of number 0 is empty.
    pub fn name(&self, number: u16) -> &Arc<str> {
        self.names.get(usize::from(number)).unwrap_or(&self.names[0])
    }

    /// The number of a name. Beyond the maximum, it is that of no name.
    pub fn name_number(&mut self, name: &str) -> u16 {
        if let Some(number) = self.by_name.get(name) {
            return *number;
        }
        if self.names.len() >= MOST_NAMES {
            return 0;
        }
        let (number, name) = (self.names.len() as u16, Arc::<str>::from(name));
        self.names.push(Arc::clone(&name));
        self.by_name.insert(name, number);
        number
    }

    /// The number of a shape; `headers` has conditions that held, one a line. Beyond the maximum, the path is left out.
    pub fn shape(&mut self, method: &str, host: &str, path: &str, route: &str, headers: &str) -> Option<u32> {
        let key = format!("{method}\n{host}\n{path}\n{route}\n{headers}");
        if let Some(number) = self.by_text.get(key.as_str()) {
            return Some(*number);
        }
        if self.shapes.len() >= MOST_SHAPES {
            return if path.is_empty() { None } else { self.shape(method, host, "", route, headers) };
        }
        let shape = PastShape {
            method: Method::from_bytes(method.as_bytes()).unwrap_or(Method::GET),
            host: host.into(),
            path: path.into(),
            route: self.name_number(route),
            headers: headers.lines().filter_map(|condition| self.header(condition)).collect(),
        };
        let number = self.shapes.len() as u32;
        self.shapes.push(shape);
        self.by_text.insert(key.into(), number);
        Some(number)
    }

    /// A header for which a condition holds. Any value fits a condition without one; a value that no configuration asks for is left out.
    fn header(&self, condition: &str) -> Option<(HeaderName, HeaderValue)> {
        let (name, value) = match condition.split_once(" #") {
            Some((name, _)) => (name, self.conditions.get(condition)?.clone()),
            None => (condition, HeaderValue::from_static("any")),
        };
        Some((name.parse().ok()?, value))
    }
}
