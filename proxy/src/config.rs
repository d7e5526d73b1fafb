//! The rules in force, as types that cannot be wrong.
//!
//! [`Config::load`] reads the file, lays the environment over it, checks everything, and either gives a `Config` or
//! *all* problems with their places. Nothing behind this module asks again whether a value makes sense.

pub mod admission;
pub mod audit;
pub mod check;
pub mod edge;
pub mod error;
pub mod identity;
pub mod machines;
pub mod raw;
pub mod reload;
pub mod resilience;
pub mod units;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use outrigger_identity::credentials::Credentials;
use outrigger_identity::this::This;
use outrigger_policy::audit::Declared;
use outrigger_policy::flags::{Feature, Flag, Mode};
use outrigger_policy::priority::Priority;
use outrigger_wire::client_address::Edge;
use serde::Deserialize;

use self::audit::AuditRules;
use self::check::{Node, Step, Value};
pub use self::error::ConfigError;
use self::error::{Place, Problem, did_you_mean};
use self::machines::{AffinityRules, FoundBy, PeerRules};
pub use self::raw::{LogFormat, LogLevel};
use self::raw::{Raw, RoutePriority};
use self::resilience::{BreakerRules, FaultRule, RetryRules};
use self::units::{AppAddress, MetricsUrl, OptionalSize, Text};
use crate::abuse::Rules;
use crate::limits::Limits;
use crate::route::{Conditions, Route, RouteTable};
use crate::upstream::own::{self, OwnListeners};

/// Everything the proxy was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens and how it leaves.
    pub server: Server,
    /// What a client may send, and how slowly.
    pub client: ClientLimits,
    /// The app.
    pub app: App,
    /// The operators' listener.
    pub admin: AdminRules,
    /// Whose word about the client is believed.
    pub edge: Edge,
    /// Keys and tokens that count.
    pub credentials: Arc<Credentials>,
    /// Which fields are added.
    pub headers: raw::Headers,
    /// Headers that the rules look at, whose other spellings (`X_Api_Key`) the app does not get.
    pub read_headers: Box<[HeaderName]>,
    /// Logs.
    pub log: raw::Log,
    /// Feature flags, the environment included, in the order of [`Feature::ALL`].
    pub flags: [Flag; 5],
    /// Compiled routes.
    pub routes: RouteTable,
    /// How often a client may ask.
    pub limits: Limits,
    /// Limits are in `monitor` only because nothing in the file or the environment speaks of rate limits.
    pub limits_unset: bool,
    /// How many keys of limits are counted at the same time.
    pub max_limit_keys: usize,
    /// How many requests the app gets at a time.
    pub gate: admission::Gate,
    /// Who is shut out.
    pub abuse: Rules,
    /// Breakers; routes name them by number.
    pub breakers: Vec<BreakerRules>,
    /// When a request is sent again.
    pub retry: RetryRules,
    /// Faults on purpose.
    pub faults: Vec<FaultRule>,
    /// This Machine, if it has a name and keys.
    pub this: Option<This>,
    /// Sessions that keep their Machine; `None` when nothing can be done for them.
    pub affinity: Option<AffinityRules>,
    /// The other Machines; `None` when this one is alone.
    pub peers: Option<PeerRules>,
    /// The audit trail; `None` when there is none.
    pub audit: Option<AuditRules>,
    /// Sessions keep no Machine on Fly only because there are no keys.
    pub lacks_affinity_keys: bool,
    /// What works, and is probably not what was meant: each with its place and what to do.
    pub warnings: Vec<String>,
}

/// Where an app shows its metrics unless the file says otherwise.
const DEFAULT_METRICS: &str = "/metrics";

/// Where the proxy listens and how it leaves; fixed for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The public HTTP/1.1 port.
    pub listen: SocketAddr,
    /// The h2c port.
    pub h2c_listen: Option<SocketAddr>,
    /// Worker threads, at least one.
    pub threads: usize,
    /// Client connections at the same time.
    pub max_connections: usize,
    /// Those of one address.
    pub max_address_connections: usize,
    /// How long health fails before listeners close.
    pub lame_duck: Duration,
    /// How long requests in flight may take after that.
    pub drain_timeout: Duration,
}

/// What a client may send, and how slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// First byte to the end of the head.
    pub head_timeout: Duration,
    /// The largest head in bytes.
    pub max_head_bytes: usize,
    /// The most fields.
    pub max_fields: usize,
    /// What unfinished heads may hold together, in bytes.
    pub max_unfinished_head_bytes: usize,
    /// The largest body in bytes.
    pub max_body_bytes: u64,
    /// Rest between requests.
    pub idle_timeout: Duration,
    /// Pause within a body.
    pub body_timeout: Duration,
    /// Memory for bodies that are kept, in bytes.
    pub body_memory: usize,
    /// How long a client may take no byte.
    pub write_timeout: Duration,
}

/// The app.
#[derive(Clone, Debug)]
pub struct App {
    /// Where it listens.
    pub address: AppAddress,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a request may take until the head of its answer is there, and how long an answer may pause.
    pub timeout: Duration,
    /// How long requests wait for an app that refuses connections; zero: not at all.
    pub hold: Duration,
    /// How long a stream may be silent.
    pub stream_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Unused connections kept for each worker.
    pub max_idle: usize,
    /// Where its metrics are, if not at `address`.
    pub metrics_address: Option<AppAddress>,
    /// Their path.
    pub metrics_path: String,
}

/// The operators' listener, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRules {
    /// Its address.
    pub listen: SocketAddr,
    /// More names that `Host` may have.
    pub hosts: Vec<Box<str>>,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Names under `.internal` are this Machine's or another one's of the same organisation.
    pub is_on_fly: bool,
}

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Unix(Arc<Path>),
    /// TCP.
    Tcp(SocketAddr),
}

/// Variables that replace one key of the file.
const VARIABLES: &[(&str, &str, &str)] = &[
    ("OUTRIGGER_MACHINE", "server", "machine"),
    ("OUTRIGGER_PEERS_LISTEN", "peers", "listen"),
    ("OUTRIGGER_PEERS_DNS", "peers", "dns"),
    ("OUTRIGGER_PEERS_LIST", "peers", "list"),
    ("OUTRIGGER_PEERS_RESOLVER", "peers", "resolver"),
    ("OUTRIGGER_PEERS_ADDRESS", "peers", "address"),
    ("OUTRIGGER_LISTEN", "server", "listen"),
    ("OUTRIGGER_H2C_LISTEN", "server", "h2c_listen"),
    ("OUTRIGGER_THREADS", "server", "threads"),
    ("OUTRIGGER_APP_ADDRESS", "app", "address"),
    ("OUTRIGGER_APP_METRICS", "app", "metrics"),
    ("OUTRIGGER_AUDIT_DIRECTORY", "audit", "directory"),
    ("OUTRIGGER_ADMIN_LISTEN", "admin", "listen"),
    ("OUTRIGGER_EDGE", "identity", "edge"),
    ("OUTRIGGER_TRUSTED", "identity", "trusted"),
    ("OUTRIGGER_LOG_FORMAT", "log", "format"),
    ("OUTRIGGER_LOG_LEVEL", "log", "level"),
];

/// Variables that mean something else: the file itself, and secrets, which no file should hold.
const OTHER_VARIABLES: [&str; 9] = [
    "OUTRIGGER_CONFIG",
    outrigger_identity::signing::KEYS,
    identity::JWT_SECRET,
    identity::KEY_SECRET,
    crate::admin::access::TOKEN,
    admission::REDIS_URL,
    resilience::ALLOW_FAULTS,
    outrigger_trail::keys::KEYS,
    audit::SECRET,
];

/// Variables that set the default of a key: the file, where it has the key, wins. As they are deployed today.
const DEFAULTS: [(&str, &str, &str); 2] =
    [("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "breaker", "failures"), ("CIRCUIT_BREAKER_TIMEOUT", "breaker", "open")];

/// Keys of earlier versions, and why they are gone: they are accepted with a warning, and do nothing.
const REMOVED: [(&str, &str, &str); 1] = [(
    "headers",
    "traceparent",
    "remove it: a traceparent that a client sends is always forwarded unchanged, and none is ever made up",
)];

/// Reads a variable of the environment; a parameter, so that tests bring their own.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Config {
    /// Reads and checks `file`.
    ///
    /// # Errors
    /// Every problem of the file and of the environment, with its place.
    pub fn load(file: &Path, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let source = read(file)?;
        Self::parse(file, &source, environment)
    }

    /// Checks `source`; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &Path, source: &str, environment: Environment<'_>) -> Result<Self, ConfigError> {
        Self::parse_with_places(file, source, environment).map(|(config, _)| config)
    }

    /// The same, with the places of what is looked up later: where a connection leads shows only then.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse_with_places(
        file: &Path,
        source: &str,
        environment: Environment<'_>,
    ) -> Result<(Self, UpstreamPlaces), ConfigError> {
        let (mut root, mut problems) = check::parse(source);
        overlay_environment(&mut root, environment);
        let warnings = take_removed(&mut root);
        let limits_unset = monitor_unset_limits(&mut root, environment);
        problems.extend(check::against_schema(&root, &schema()));
        if problems.is_empty() {
            match Raw::deserialize(root.to_json()) {
                Ok(raw) => {
                    let mut builder = Builder { root: &root, environment, problems: Vec::new(), warnings };
                    let config = builder.build(&raw);
                    if builder.problems.is_empty() {
                        let shown = |warning| ConfigError::new(file, source, vec![warning]).to_string();
                        let warnings = builder.warnings.into_iter().map(shown).collect();
                        return Ok((Self { warnings, limits_unset, ..config }, UpstreamPlaces::of(&root)));
                    }
                    problems = builder.problems;
                }
                Err(e) => problems.push(Problem::new(Place::Whole, e.to_string())),
            }
        }
        Err(ConfigError::new(file, source, problems))
    }

    /// What a feature does for everybody, as text for `explain` and health.
    pub fn flag(&self, feature: Feature) -> &Flag {
        &self.flags[feature as usize]
    }

    fn machine(&self) -> Option<&str> {
        self.this.as_ref().map(|this| &*this.name)
    }

    fn peers_at_start(&self) -> Option<PeerRules> {
        self.peers.clone().map(|rules| PeerRules { failover: Mode::Off, ..rules })
    }

    fn audit_at_start(&self) -> Option<audit::AtStart<'_>> {
        self.audit.as_ref().map(AuditRules::at_start)
    }

    /// Keys that differ from `next` and cannot change while the process runs.
    pub fn needs_restart(&self, next: &Self) -> Vec<&'static str> {
        let (a, b) = (&self.server, &next.server);
        let changes = [
            (a.listen != b.listen, "server.listen"),
            (a.h2c_listen != b.h2c_listen, "server.h2c_listen"),
            (a.threads != b.threads, "server.threads"),
            (self.admin.listen != next.admin.listen, "admin.listen"),
            (self.app.max_idle != next.app.max_idle, "app.max_idle"),
            (self.log.format != next.log.format, "log.format"),
            (self.max_limit_keys != next.max_limit_keys, "rate_limits.max_keys"),
            (self.machine() != next.machine(), "server.machine"),
            (self.peers_at_start() != next.peers_at_start(), "peers"),
            (self.audit_at_start() != next.audit_at_start(), "audit"),
        ];
        changes.into_iter().filter(|(changed, _)| *changed).map(|(_, key)| key).collect()
    }
}

/// Where the file, or the environment, names what connections are made to.
#[derive(Clone, Debug)]
pub struct UpstreamPlaces {
    /// `app.address`
    pub address: Place,
    /// `app.metrics`
    pub metrics: Place,
}

impl UpstreamPlaces {
    fn of(root: &Node) -> Self {
        let place = |key| root.nearest(&[Step::Key("app"), Step::Key(key)]).1.place.clone();
        Self { address: place("address"), metrics: place("metrics") }
    }
}

/// Reads `file`.
///
/// # Errors
/// That it cannot be read, and what to do.
pub fn read(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|e| {
        let problem = Problem::new(Place::Whole, format!("cannot be read: {e}"))
            .hint("name the file with --config or OUTRIGGER_CONFIG; config/proxy.toml of the repository is a start");
        ConfigError::new(file, "", vec![problem])
    })
}

/// The JSON Schema of the file, draft 7, which editors understand best.
pub fn schema() -> serde_json::Value {
    let generator = schemars::generate::SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<Raw>().to_value()
}

fn overlay_environment(root: &mut Node, environment: Environment<'_>) {
    for (variable, section, key) in VARIABLES {
        let Some(text) = environment(variable).filter(|text| !text.trim().is_empty()) else { continue };
        let place = Place::Variable((*variable).to_owned());
        let value = match *key {
            "threads" => text.trim().parse().map_or(Value::Text(text), Value::Integer),
            "trusted" | "list" => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::List(
                    items.map(|item| Node { place: place.clone(), value: Value::Text(item.to_owned()) }).collect(),
                )
            }
            _ => Value::Text(text),
        };
        root.overlay(section, key, Node { place, value });
    }
    for (variable, section, key) in DEFAULTS {
        let Some(text) = environment(variable).filter(|text| !text.trim().is_empty()) else { continue };
        if root.nearest(&[Step::Key(section), Step::Key(key)]).0 == 2 {
            continue;
        }
        let place = Place::Variable(variable.to_owned());
        let value = match (key, text.trim().parse()) {
            ("open", Ok(milliseconds)) => Value::Text(format!("{}ms", i64::max(milliseconds, 0))),
            (_, Ok(number)) => Value::Integer(number),
            (_, Err(_)) => Value::Text(text),
        };
        root.overlay(section, key, Node { place, value });
    }
}

/// Takes the keys out that mean nothing any more.
fn take_removed(root: &mut Node) -> Vec<Problem> {
    let mut warnings = Vec::new();
    for (section, key, hint) in REMOVED {
        if let Some(place) = root.take(section, key) {
            warnings.push(Problem::new(place, format!("`{key}` has no effect any more")).hint(hint));
        }
    }
    warnings
}

/// Puts rate limits into `monitor` where nobody has asked for any: neither the file's section `rate_limits` nor the feature flag.
fn monitor_unset_limits(root: &mut Node, environment: Environment<'_>) -> bool {
    let flag = Feature::PrioritizedRateLimit;
    let is_asked_for = root.nearest(&[Step::Key("rate_limits")]).0 == 1
        || root.nearest(&[Step::Key("flags"), Step::Key(flag.key())]).0 == 2
        || ["", "_PERCENTAGE", "_USERS", "_IPS"].iter().any(|suffix| {
            let variable = format!("{}{suffix}", flag.variable());
            environment(&variable).is_some_and(|text| !text.trim().is_empty())
        });
    if !is_asked_for {
        let monitor = Node { place: Place::Whole, value: Value::Text("monitor".to_owned()) };
        root.overlay("rate_limits", "mode", monitor);
    }
    !is_asked_for
}

/// Turns what fits the schema into what makes sense.
struct Builder<'a> {
    root: &'a Node,
    environment: Environment<'a>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Builder<'_> {
    fn complain(&mut self, path: &[Step<'_>], message: impl Into<String>, hint: &str) {
        let place = self.root.nearest(path).1.place.clone();
        self.problems.push(Problem::new(place, message).hint(hint));
    }

    fn build(&mut self, raw: &Raw) -> Config {
        self.check_spans(raw);
        let server = Server {
            listen: raw.server.listen.0,
            h2c_listen: raw.server.h2c_listen.as_ref().map(|listen| listen.0),
            threads: match raw.server.threads {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                threads => threads.into(),
            },
            max_connections: raw.server.max_connections.get() as usize,
            max_address_connections: address_connections(&raw.server),
            lame_duck: raw.server.lame_duck.0.0,
            drain_timeout: raw.server.drain_timeout.0.0,
        };
        self.check_listeners(&server, raw.admin.listen.0);
        let client = ClientLimits {
            head_timeout: raw.client.head_timeout.0.0,
            max_head_bytes: usize::try_from(raw.client.max_head.0.0).unwrap_or(usize::MAX),
            max_fields: raw.client.max_fields.into(),
            max_unfinished_head_bytes: usize::try_from(raw.client.max_unfinished_heads.0.0).unwrap_or(usize::MAX),
            max_body_bytes: most_bytes(&raw.client.max_body),
            idle_timeout: raw.client.idle_timeout.0.0,
            body_timeout: raw.client.body_timeout.0.0,
            body_memory: usize::try_from(raw.client.body_memory.0.0).unwrap_or(usize::MAX),
            write_timeout: raw.client.write_timeout.0.0,
        };
        if !(1024..=1 << 20).contains(&client.max_head_bytes) {
            let shown = raw.client.max_head.0;
            self.complain(
                &[Step::Key("client"), Step::Key("max_head")],
                format!("`max_head` needs 1KiB to 1MiB, got {shown}"),
                "most clients stay below 8KiB; cookies may need 32KiB",
            );
        }
        if client.max_unfinished_head_bytes < (8 * client.max_head_bytes).max(1 << 20) {
            let shown = raw.client.max_unfinished_heads.0;
            self.complain(
                &[Step::Key("client"), Step::Key("max_unfinished_heads")],
                format!("`max_unfinished_heads` needs at least 1MiB and 8 times `max_head`, got {shown}"),
                "write \"64MiB\", for example",
            );
        }
        if client.body_memory < 1 << 20 {
            let shown = raw.client.body_memory.0;
            self.complain(
                &[Step::Key("client"), Step::Key("body_memory")],
                format!("`body_memory` needs at least 1MiB, got {shown}"),
                "a body takes up to 128KiB while it is kept",
            );
        }
        let app = Self::app(raw);
        let credentials = identity::build(&raw.identity, self.root, self.environment, &mut self.problems);
        let flags = self.flags(raw);
        let (breakers, numbers) = self.breakers(raw);
        let retry = self.retry(raw);
        let routes = {
            let audited = self.declared(&[Step::Key("audit"), Step::Key("default")], &raw.audit.default);
            let metrics = raw.app.metrics.as_ref().map_or(DEFAULT_METRICS, |url| &url.0.path);
            RouteTable::compile(self.routes(raw, &numbers, audited), default_route(raw, &numbers, audited), metrics)
        };
        let read =
            credentials.key_field().into_iter().chain(routes.all().iter().flat_map(|route| route.conditions.headers()));
        let read_headers: BTreeSet<&str> =
            read.map(HeaderName::as_str).filter(|name| name.contains(|c: char| !c.is_ascii_alphanumeric())).collect();
        let read_headers = read_headers.into_iter().filter_map(|name| name.parse().ok()).collect();
        let (limits, gate, abuse) = (self.limits(raw, &routes), self.gate(raw), self.abuse(raw));
        let faults = self.faults(raw, &routes);
        let audit = self.audit(raw);
        let this = self.this_machine(raw);
        let (affinity, peers) = (self.affinity(raw, this.as_ref()), self.peers(raw, this.as_ref()));
        let config = Config {
            server,
            client,
            app,
            admin: self.admin(raw),
            edge: self.edge(raw),
            credentials,
            headers: raw.headers.clone(),
            read_headers,
            log: raw.log.clone(),
            flags,
            routes,
            limits,
            limits_unset: false,
            warnings: Vec::new(),
            max_limit_keys: raw.rate_limits.max_keys.get() as usize,
            gate,
            abuse,
            breakers,
            retry,
            faults,
            lacks_affinity_keys: self.lacks_keys(raw, this.as_ref()),
            this,
            affinity,
            peers,
            audit,
        };
        self.check_not_own(&config);
        config
    }

    fn check_spans(&mut self, raw: &Raw) {
        let must_be_positive = [
            ("client", "head_timeout", &raw.client.head_timeout),
            ("client", "idle_timeout", &raw.client.idle_timeout),
            ("client", "body_timeout", &raw.client.body_timeout),
            ("client", "write_timeout", &raw.client.write_timeout),
            ("app", "connect_timeout", &raw.app.connect_timeout),
            ("app", "timeout", &raw.app.timeout),
            ("app", "stream_timeout", &raw.app.stream_timeout),
            ("app", "idle_timeout", &raw.app.idle_timeout),
        ];
        for (section, key, span) in must_be_positive {
            if span.0.0.is_zero() {
                let path = [Step::Key(section), Step::Key(key)];
                self.complain(&path, format!("`{key}` must be longer than zero"), "write \"30s\", for example");
            }
        }
        for (index, route) in raw.routes.iter().enumerate() {
            if route.timeout.as_ref().is_some_and(|timeout| timeout.0.0.is_zero()) {
                let path = [Step::Key("routes"), Step::Index(index), Step::Key("timeout")];
                self.complain(&path, "`timeout` must be longer than zero", "write \"30s\", for example");
            }
        }
    }

    fn admin(&mut self, raw: &Raw) -> AdminRules {
        for (index, host) in raw.admin.hosts.iter().enumerate() {
            if !outrigger_wire::authority::is_host(host) {
                let path = [Step::Key("admin"), Step::Key("hosts"), Step::Index(index)];
                self.complain(
                    &path,
                    format!("{host:?} is neither a name nor an address"),
                    "without scheme and port: \"admin.example\", \"203.0.113.9\" or \"2001:db8::1\"",
                );
            }
        }
        AdminRules {
            listen: raw.admin.listen.0,
            hosts: raw.admin.hosts.iter().map(|host| host.trim_end_matches('.').into()).collect(),
            max_connections: raw.admin.max_connections.get() as usize,
            is_on_fly: (self.environment)(machines::FLY_APP_NAME).is_some_and(|name| !name.is_empty()),
        }
    }

    fn check_listeners(&mut self, server: &Server, admin: SocketAddr) {
        let overlap = |a: SocketAddr, b: SocketAddr| {
            a.port() == b.port()
                && a.port() != 0
                && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
        };
        // One of the two may be a default, which stands nowhere: the other one is pointed at.
        let clash = |section: &'static str, key: &'static str, other: [&'static str; 2]| {
            let path = [Step::Key(section), Step::Key(key)];
            if self.root.nearest(&path).0 == path.len() { path } else { other.map(Step::Key) }
        };
        let mut clashes = Vec::new();
        if overlap(server.listen, admin) {
            clashes.push((
                clash("admin", "listen", ["server", "listen"]),
                format!("`admin.listen` is {admin} and `server.listen` {}", server.listen),
            ));
        }
        if let Some(h2c) = server.h2c_listen
            && (overlap(h2c, admin) || overlap(h2c, server.listen))
        {
            clashes.push((
                clash("server", "h2c_listen", ["server", "h2c_listen"]),
                format!("another listener is on {h2c} already"),
            ));
        }
        for (path, message) in clashes {
            self.complain(&path, message, "give each its own port");
        }
    }

    fn app(raw: &Raw) -> App {
        let (metrics_address, metrics_path) = match &raw.app.metrics {
            Some(url) => {
                let MetricsUrl { authority, path } = &url.0;
                (Some(AppAddress::Tcp(authority.clone())), path.clone())
            }
            None => (None, DEFAULT_METRICS.to_owned()),
        };
        App {
            address: raw.app.address.0.clone(),
            connect_timeout: raw.app.connect_timeout.0.0,
            timeout: raw.app.timeout.0.0,
            hold: raw.app.hold.0.0,
            stream_timeout: raw.app.stream_timeout.0.0,
            idle_timeout: raw.app.idle_timeout.0.0,
            max_idle: raw.app.max_idle.get().into(),
            metrics_address,
            metrics_path,
        }
    }

    /// Connections to one of our own listeners would be a loop. Names are looked up later: see [`crate::upstream::checked`].
    fn check_not_own(&mut self, config: &Config) {
        let own = OwnListeners::of(config);
        let App { address, metrics_address, .. } = &config.app;
        for (key, address) in [("address", Some(address)), ("metrics", metrics_address.as_ref())] {
            if let Some(Target::Tcp(address)) = address.and_then(AppAddress::target)
                && let Some(reached) = own.reached_by(address)
            {
                let message = format!("`app.{key}` is {address}, which is {reached}: this proxy itself");
                self.complain(&[Step::Key("app"), Step::Key(key)], message, own::HINT);
            }
        }
        // A list may name this Machine as well, at the listener for peers.
        let own = own.without_peers();
        if let Some(FoundBy::List(list)) = config.peers.as_ref().map(|peers| &peers.found_by) {
            for (index, address) in list.iter().enumerate() {
                if let Some(reached) = own.reached_by(*address) {
                    let message = format!("the peer {address} is {reached}: not a listener for peers");
                    let path = [Step::Key("peers"), Step::Key("list"), Step::Index(index)];
                    self.complain(&path, message, "name the addresses of `peers.listen` of the other Machines");
                }
            }
        }
    }

    fn flags(&mut self, raw: &Raw) -> [Flag; 5] {
        Feature::ALL.map(|feature| {
            let written = match feature {
                Feature::CircuitBreaker => &raw.flags.circuit_breaker,
                Feature::EnhancedPooling => &raw.flags.enhanced_pooling,
                Feature::PrioritizedRateLimit => &raw.flags.prioritized_rate_limit,
                Feature::AuditTrail => &raw.flags.audit_trail,
                Feature::SessionAffinity => &raw.flags.session_affinity,
            };
            let flag = written.to_flag();
            flag.clone().overridden_by(feature, self.environment).unwrap_or_else(|e| {
                self.problems.push(Problem::new(Place::Variable(e.variable), e.problem));
                flag
            })
        })
    }

    fn routes(&mut self, raw: &Raw, breakers: &HashMap<String, u16>, audited: Declared) -> Vec<Route> {
        let mut names = HashSet::new();
        let mut routes: Vec<Route> = Vec::with_capacity(raw.routes.len());
        for (index, written) in raw.routes.iter().enumerate() {
            let at = |key| [Step::Key("routes"), Step::Index(index), Step::Key(key)];
            if !is_name(&written.name) {
                let message = format!("`name` needs 1 to 64 of a-z, 0-9, - and _, got {:?}", written.name);
                self.complain(&at("name"), message, "it becomes a label in metrics");
            } else if crate::route::RESERVED_NAMES.contains(&written.name.as_str()) {
                let message = format!("the name {:?} is the proxy's own", written.name);
                self.complain(&at("name"), message, "take another one");
            } else if !names.insert(written.name.as_str()) {
                let message = format!("a route above is called {:?} already", written.name);
                self.complain(&at("name"), message, "give each its own name: it is the label in metrics");
            }
            let (attempts, retry_statuses) = self.route_retry(raw, written, index);
            let fallback = self.fallback(written, index);
            match Conditions::compile(written) {
                Ok(conditions) => {
                    let covered_by = crate::route::BUILT_IN
                        .iter()
                        .map(|route| (route.name.as_ref(), &route.conditions))
                        .chain(routes.iter().map(|route| (route.name.as_ref(), &route.conditions)))
                        .find(|(_, earlier)| earlier.covers(&conditions));
                    if let Some((earlier, _)) = covered_by {
                        let message = format!(
                            "route {:?} can never match: {earlier:?} comes first and takes all of it",
                            written.name
                        );
                        self.complain(&at("path"), message, "move it up, or narrow the other one");
                    }
                    routes.push(Route {
                        name: written.name.as_str().into(),
                        conditions,
                        priority: written.priority.into(),
                        timeout: written.timeout.as_ref().map_or(raw.app.timeout.0.0, |timeout| timeout.0.0),
                        max_body_bytes: most_bytes(written.max_body.as_ref().unwrap_or(&raw.client.max_body)),
                        cost: written.cost,
                        heeds_client_timeout: written.client_timeout,
                        breaker: breakers.get(&written.name).copied(),
                        attempts,
                        retry_statuses,
                        fallback,
                        audit: written.audit.as_ref().map_or(audited, |text| self.declared(&at("audit"), text)),
                        resource: crate::route::parameters(&written.path, &raw.audit.parameters),
                        is_health: false,
                    });
                }
                Err(e) => self.complain(&at(e.key), e.message, &e.hint),
            }
        }
        routes
    }
}

/// A bound of a body that is not there is one that none can reach.
fn most_bytes(size: &Text<OptionalSize>) -> u64 {
    size.0.0.map_or(u64::MAX, |size| size.0)
}

/// What may be a label in metrics and a name in answers.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

/// What takes every request that no route of the file takes.
/// The share of the connections that an address may have, and at least what a browser opens.
fn address_connections(server: &raw::Server) -> usize {
    const AT_LEAST: f64 = 8.0;
    let most = f64::from(server.max_connections.get());
    (most * server.max_address_share.0.0).ceil().max(AT_LEAST).min(most) as usize
}

fn default_route(raw: &Raw, breakers: &HashMap<String, u16>, audit: Declared) -> Route {
    Route {
        name: "default".into(),
        conditions: Conditions::default(),
        priority: Priority::Medium,
        timeout: raw.app.timeout.0.0,
        max_body_bytes: most_bytes(&raw.client.max_body),
        cost: 1,
        heeds_client_timeout: true,
        breaker: breakers.get("default").copied(),
        attempts: raw.retry.attempts.into(),
        retry_statuses: raw.retry.statuses.clone().into(),
        fallback: None,
        audit,
        resource: Box::default(),
        is_health: false,
    }
}

impl From<RoutePriority> for Priority {
    fn from(priority: RoutePriority) -> Self {
        match priority {
            RoutePriority::Critical => Self::Critical,
            RoutePriority::High => Self::High,
            RoutePriority::Medium => Self::Medium,
            RoutePriority::Low => Self::Low,
            RoutePriority::Strict => Self::Strict,
        }
    }
}

/// Variables that look like ours and are not, with what was probably meant.
pub fn unknown_variables() -> Vec<(String, Option<&'static str>)> {
    let known = || VARIABLES.iter().map(|(name, ..)| *name).chain(OTHER_VARIABLES);
    let ours = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    ours.filter(|name| name.starts_with("OUTRIGGER_") && !known().any(|k| k == name))
        .map(|name| {
            let meant = did_you_mean(&name, known());
            (name, meant)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(source: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let lookup = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Config::parse(Path::new("proxy.toml"), source, &lookup).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        let config = load("", &[]).unwrap();
        assert_eq!(config.server.listen.port(), 8080);
        assert_eq!(config.client.max_head_bytes, 32 << 10);
        assert_eq!(config.routes.all().len(), route_count(0));
    }

    #[test]
    fn rate_limits_refuse_nobody_until_the_file_or_the_environment_speaks_of_them() {
        let mode = |source: &str, environment: &[(&str, &str)]| {
            let config = load(source, environment).unwrap();
            let limit = config.limits.all.first().map_or(Mode::Off, |limit| limit.mode);
            (limit, config.flag(Feature::PrioritizedRateLimit).switch.to_string(), config.limits_unset)
        };
        let all = "true".to_owned();
        for silent in ["", "# nothing\n", "[client]\nmax_fields = 50\n", "[flags]\naudit_trail = false\n"] {
            assert_eq!(mode(silent, &[]), (Mode::Monitor, all.clone(), true), "{silent}");
        }
        for speaks in [
            "[rate_limits]\n",
            "rate_limits.high = \"5/1m\"\n",
            "[rate_limits.redis]\n",
            "[[rate_limits.rules]]\nname = \"a\"\nrate = \"1/1m\"\n",
            "[flags]\nprioritized_rate_limit = true\n",
        ] {
            assert_eq!(mode(speaks, &[]), (Mode::Enforce, all.clone(), false), "{speaks}");
        }
        let flag = |value| [("FF_ENABLE_PRIORITIZED_RATE_LIMIT", value)];
        assert_eq!(mode("", &flag("true")), (Mode::Enforce, all.clone(), false));
        assert_eq!(mode("", &flag("10%")), (Mode::Enforce, "10%".to_owned(), false));
        assert_eq!(mode("", &flag("monitor")).1, "monitor");
        assert_eq!(mode("[rate_limits]\nmode = \"monitor\"\n", &[]), (Mode::Monitor, all, false));
        assert_eq!(mode(include_str!("../../config/proxy.toml"), &[]).0, Mode::Enforce, "the shipped file enforces");
    }

    #[test]
    fn a_key_that_is_gone_is_accepted_with_a_warning() {
        let config = load("[headers]\nrequest_id = false\ntraceparent = true\n", &[]).unwrap();
        assert!(!config.headers.request_id);
        insta::assert_snapshot!(config.warnings.join("\n"), @r"
        proxy.toml:3:1: `traceparent` has no effect any more
        3 | traceparent = true
          | ^^^^^^^^^^^
        hint: remove it: a traceparent that a client sends is always forwarded unchanged, and none is ever made up
        ");
        assert!(load("", &[]).unwrap().warnings.is_empty());
    }

    fn route_count(in_file: usize) -> usize {
        crate::route::BUILT_IN.len() + in_file + 1
    }

    #[test]
    fn the_shipped_file_says_what_the_code_does() {
        let shipped = include_str!("../../config/proxy.toml");
        // Every commented key becomes a real one: it must be known, readable, and equal to the default.
        let uncommented: String = shipped
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| is_key(key)) => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .filter(|line| {
                !["h2c_listen", "metrics", "keys_file", "list =", "resolver", "directory", "address = \"203"]
                    .iter()
                    .any(|unset| line.starts_with(unset))
            })
            .collect();
        let machine = [
            (outrigger_identity::signing::KEYS, "0123456789abcdef0123456789abcdef"),
            ("OUTRIGGER_MACHINE", "a"),
            ("FLY_APP_NAME", "myapp"),
            ("OUTRIGGER_AUDIT_DIRECTORY", "/trail"),
        ];
        let spelled_out = load(&uncommented, &machine).unwrap_or_else(|e| panic!("{e}"));
        let silent = load(shipped, &machine).unwrap_or_else(|e| panic!("{e}"));
        let without_routes = |config: &Config| {
            let Config { server, client, app, admin, log, breakers, retry, affinity, audit, .. } = config;
            format!(
                "{server:?}{client:?}{app:?}{admin:?}{log:?}{:?}{retry:?}{affinity:?}{audit:?}",
                breakers.last().map(|b| (b.mode, b.settings, b.counts_429))
            )
        };
        assert_eq!(without_routes(&spelled_out), without_routes(&silent));
        assert_eq!(without_routes(&silent), without_routes(&load("", &machine).unwrap()));
        let peers = load("[peers]\nlisten = \"[::]:8083\"\n", &machine).unwrap().peers;
        assert_eq!(spelled_out.peers, peers);
    }

    fn is_key(text: &str) -> bool {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    }

    /// The lines that describe a table which is not there by default, from the one that names it to the next empty one.
    fn described<'a>(shipped: &'a str, table: &str) -> Vec<&'a str> {
        let start = shipped.lines().position(|line| line.starts_with('#') && line.contains(table));
        shipped.lines().skip(start.unwrap()).take_while(|line| !line.is_empty()).collect()
    }

    #[test]
    fn the_shipped_file_gives_the_defaults_of_tables_that_are_not_there() {
        let shipped = include_str!("../../config/proxy.toml");
        let mut source = String::from("[identity.jwt]\n");
        let mut key = "";
        for line in described(shipped, "[identity.jwt]") {
            let named = line.strip_prefix("#   ").and_then(|rest| rest.split_once(' ')).map(|(named, _)| named);
            key = named.filter(|named| is_key(named)).unwrap_or(key);
            if let Some((_, default)) = line.split_once("Default: ") {
                source.push_str(&format!("{key} = {default}\n"));
            }
        }
        assert_eq!(source.lines().count(), 7, "{source}");
        let root = check::parse(&source).0.to_json();
        let spelled_out = identity::Jwt::deserialize(&root["identity"]["jwt"]).unwrap();
        assert_eq!(format!("{spelled_out:?}"), format!("{:?}", identity::Jwt::default()));
    }

    #[test]
    fn the_shipped_file_names_every_key() {
        let shipped = include_str!("../../config/proxy.toml");
        let schema = schema();
        let definitions = schema["definitions"].as_object().unwrap();
        for section in
            ["Server", "Client", "App", "Admin", "Identity", "Headers", "Log", "Flags", "RateLimits", "Tiers"]
                .into_iter()
                .chain(["Redis", "Admission", "Abuse", "Breaker", "Retry"])
        {
            for key in definitions[section]["properties"].as_object().unwrap().keys() {
                let is_table = matches!(
                    (section, key.as_str()),
                    ("Identity", "keys" | "jwt") | ("RateLimits", "rules" | "redis") | ("Breaker", "groups")
                );
                let has_key = shipped.contains(&format!("\n# {key} = "));
                assert!(has_key || is_table, "{section}.{key} is not in config/proxy.toml");
            }
        }
        let tables = [
            ("ApiKey", "[[identity.keys]]"),
            ("Jwt", "[identity.jwt]"),
            ("Rule", "[[rate_limits.rules]]"),
            ("Group", "[[breaker.groups]]"),
            ("Fault", "[[faults]]"),
        ];
        for (section, intro) in tables {
            let described = described(shipped, intro);
            for key in definitions[section]["properties"].as_object().unwrap().keys() {
                let has_key = described.iter().any(|line| line.starts_with(&format!("#   {key} ")));
                assert!(has_key, "{section}.{key} is not in config/proxy.toml");
            }
        }
        for key in definitions["Route"]["properties"].as_object().unwrap().keys() {
            assert!(shipped.contains(&format!("\n#   {key} ")), "routes.{key} is not in config/proxy.toml");
        }
    }

    #[test]
    fn says_everything_that_is_wrong_at_once() {
        let source = r#"
[server]
lisen = "0.0.0.0:8080"
lame_duck = "30"
max_connections = 0

[limits]
per_minute = 3

[rate_limits]
low = "0/1m"
strict = "10 a minute"

[[rate_limits.rules]]
name = "x"
rate = "5/1m"
burst = 0
by = "cleint"

[log]
level = "inof"
access = "yes"

[[routes]]
name = "Login"
path = "/api/**"
priority = "criticl"
timeout = 5
cost = 0

[[routes]]
path = "/api/login"
"#;
        insta::assert_snapshot!(load(source, &[]).unwrap_err());
    }

    #[test]
    fn says_what_makes_no_sense() {
        let source = r#"
[server]
listen = "0.0.0.0:9091"

[client]
max_head = "16B"
idle_timeout = "0s"

[app]
address = "127.0.0.1:8081"
metrics = "http://127.0.0.1:9091/metrics"

[[routes]]
name = "all"
path = "/api/**"

[[routes]]
name = "login"
path = "/api/login"

[admission]
min = 10
max = 5

[abuse]
ban = "1h"
max_ban = "1m"

[[rate_limits.rules]]
name = "high"
rate = "5/1m"
routes = ["lgin", "health"]

[[routes]]
name = "dear"
path = "/dear"
priority = "strict"
cost = 11

[[routes]]
name = "all"
path = "/other//x"

[[routes]]
name = "health"
methods = ["get"]
"#;
        insta::assert_snapshot!(load(source, &[]).unwrap_err());
    }

    #[test]
    fn the_environment_wins_and_its_mistakes_name_it() {
        let config = load(
            "[server]\nlisten = \"127.0.0.1:1\"\n[flags]\naudit_trail = false\n",
            &[
                ("OUTRIGGER_LISTEN", "127.0.0.1:2"),
                ("OUTRIGGER_TRUSTED", "10.0.0.0/8, ::1"),
                ("FF_ENABLE_AUDIT_TRAIL", "10%"),
            ],
        )
        .unwrap();
        assert_eq!(config.server.listen.port(), 2);
        assert_eq!(config.edge.networks.len(), 2);
        assert_eq!(config.flag(Feature::AuditTrail).switch.to_string(), "10%");
        let wrong = [("OUTRIGGER_LISTEN", "8080"), ("OUTRIGGER_THREADS", "many"), ("FF_ENABLE_AUDIT_TRAIL_IPS", "x")];
        insta::assert_snapshot!(load("", &wrong).unwrap_err());
        insta::assert_snapshot!(load("", &wrong[2..]).unwrap_err());
    }

    #[test]
    fn says_what_is_wrong_about_failures() {
        let source = r#"
[breaker]
failure_rate = "150%"
window = "0 calls"
slow_after = "2"

[retry]
attempts = 0
budget = "off"
"#;
        insta::assert_snapshot!(load(source, &[]).unwrap_err());
        let source = r#"
[breaker]
max_open = "1s"

[[breaker.groups]]
name = "payments"
window = "5 calls"

[retry]
statuses = [404]

[[routes]]
name = "pay"
path = "/pay"
breaker = "paymens"
fallback = { body = "x", status = 204 }

[[faults]]
routes = ["pai"]
abort = 500
reset = true

[[faults]]
headers = { "a b" = "1" }
"#;
        insta::assert_snapshot!(load(source, &[]).unwrap_err());
        let allowed = [("OUTRIGGER_ALLOW_FAULTS", "1")];
        assert_eq!(load("[[faults]]\nabort = 503\nshare = \"5%\"\n", &allowed).unwrap().faults.len(), 1);
    }

    #[test]
    fn the_breakers_defaults_may_come_from_the_environment() {
        let environment = [("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "7"), ("CIRCUIT_BREAKER_TIMEOUT", "1500")];
        let settings = |source| load(source, &environment).unwrap().breakers[0].settings;
        assert_eq!((settings("").consecutive, settings("").open_for), (7, Duration::from_millis(1500)));
        assert_eq!(settings("[breaker]\nfailures = 3\n").consecutive, 3, "the file wins");
        let wrong = [("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "many"), ("CIRCUIT_BREAKER_TIMEOUT", "0")];
        insta::assert_snapshot!(load("", &wrong[..1]).unwrap_err());
        insta::assert_snapshot!(load("", &wrong[1..]).unwrap_err());
    }

    #[test]
    fn broken_toml_is_shown_where_it_breaks() {
        insta::assert_snapshot!(load("[server\nlisten = \n[log]\nlevel = \"inof\"\n", &[]).unwrap_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(\\[|\\]|=|\"|\n| |server|listen|routes|name|1|true|#|é){0,40}") {
            let _ = load(&text, &[]);
        }
    }
}
