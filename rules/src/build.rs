//! Converts a file that fits the schema into a checked [`Config`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use http::HeaderName;
use outrigger_policy::audit::Declared;
use outrigger_policy::flags::{Feature, Flag};
use outrigger_policy::priority::Priority;
use outrigger_wire::authority::is_host;

use crate::complaints::{Builder, is_name, name_hint};
use crate::config::{AdminRules, App, ClientLimits, Config, Server};
use crate::environment::FLY_APP_NAME;
use crate::error::{Place, Problem};
use crate::inputs::Inputs;
use crate::own::{self, OwnListeners};
use crate::sections::peers::FoundBy;
use crate::sections::route_table::{self, BadCondition, Conditions, Covering, Route, RouteTable};
use crate::sections::{identity, server};
use crate::target::Target;
use crate::tree::Step;
use crate::units::{AppAddress, MetricsUrl, OptionalSize, Text};
use crate::written::Raw;

/// Default path of the app's metrics.
const DEFAULT_METRICS: &str = "/metrics";

impl Builder<'_> {
    /// Builds the configuration that the file describes.
    pub fn build(&mut self, raw: &Raw) -> Config {
        self.check_spans(raw);
        let server = self.server(&raw.server);
        self.check_listeners(&server, raw.admin.listen.0);
        let client = self.client(raw);
        let (app, health) = (Self::app(raw), self.health(&raw.health));
        let run = self.run(&raw.run);
        let credentials = identity::build(&raw.identity, self.root, self.environment, &mut self.problems);
        let flags = self.flags(raw);
        let (breakers, numbers) = self.breakers(&raw.breaker, &raw.routes);
        let retry = self.retry(&raw.retry);
        let routes = {
            let audited = self.declared(&[Step::Key("audit"), Step::Key("default")], &raw.audit.default);
            let metrics = raw.app.metrics.as_ref().map_or(DEFAULT_METRICS, |url| &url.0.path);
            RouteTable::compile(
                self.routes(raw, &numbers, audited, health.route()),
                default_route(raw, &numbers, audited),
                metrics,
            )
        };
        let read =
            credentials.key_field().into_iter().chain(routes.all().iter().flat_map(|route| route.conditions.headers()));
        let read_headers: BTreeSet<&str> =
            read.map(HeaderName::as_str).filter(|name| name.contains(|c: char| !c.is_ascii_alphanumeric())).collect();
        let read_headers = read_headers.into_iter().filter_map(|name| name.parse().ok()).collect();
        let (limits, gate, abuse) = (
            self.limits(&raw.rate_limits, &raw.tiers, &routes),
            self.gate(&raw.admission, raw.app.max_held),
            self.abuse(&raw.abuse),
        );
        let faults = self.faults(&raw.faults, &routes);
        let machine = raw.server.machine.as_deref();
        let audit = self.audit(&raw.audit, machine, &raw.identity.key_field.0.0);
        let this = self.this_machine(machine);
        let (affinity, peers) = (self.affinity(&raw.affinity, this.as_ref()), self.peers(&raw.peers, this.as_ref()));
        let config = Config {
            server,
            client,
            app,
            health,
            run,
            admin: self.admin(raw),
            edge: self.edge(&raw.identity.edge.0, &raw.identity.trusted),
            credentials,
            headers: raw.headers.clone(),
            read_headers,
            log: raw.log.clone(),
            flags,
            routes,
            limits,
            limits_unset: false,
            warnings: Vec::new(),
            inputs: Inputs::default(),
            effective: None,
            max_limit_keys: raw.rate_limits.max_keys.get() as usize,
            gate,
            abuse,
            breakers,
            retry,
            receipts: self.receipts(&raw.receipts),
            traces: self.traces(&raw.traces),
            traffic: self.traffic(&raw.traffic),
            pages: self.pages(&raw.pages),
            maintenance: self.maintenance(&raw.maintenance),
            reload: self.reload(&raw.reload),
            faults,
            lacks_affinity_keys: self.lacks_keys(&raw.affinity, this.as_ref()),
            this,
            affinity,
            peers,
            state: self.state(&raw.state, machine),
            audit,
        };
        self.check_not_own(&config);
        config
    }

    /// Listeners and shutdown.
    fn server(&mut self, written: &server::Server) -> Server {
        Server {
            listen: written.listen.0,
            h2c_listen: written.h2c_listen.as_ref().map(|listen| listen.0),
            threads: match written.threads {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                threads => threads.into(),
            },
            max_connections: written.max_connections.get() as usize,
            max_address_connections: address_connections(written),
            addresses: self.address_list(&[Step::Key("server")], &written.allow, &written.deny),
            lame_duck: written.lame_duck.0.0,
            drain_timeout: written.drain_timeout.0.0,
        }
    }

    /// The limits of clients.
    fn client(&mut self, raw: &Raw) -> ClientLimits {
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
        // An error of `max_head` is not repeated.
        let head = client.max_head_bytes.min(1 << 20);
        if client.max_unfinished_head_bytes < (8 * head).max(1 << 20) {
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
        client
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
            ("health", "timeout", &raw.health.timeout),
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
            if !is_host(host) {
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
            is_on_fly: (self.environment)(FLY_APP_NAME).is_some_and(|name| !name.is_empty()),
        }
    }

    fn check_listeners(&mut self, server: &Server, admin: SocketAddr) {
        let overlap = |a: SocketAddr, b: SocketAddr| {
            a.port() == b.port()
                && a.port() != 0
                && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
        };
        // One of the two may be a default, without a place in the file: the error points at the other one.
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

    /// Rejects connections to Outrigger's own listeners: requests would loop. Names are checked once the proxy resolves them.
    fn check_not_own(&mut self, config: &Config) {
        let own = OwnListeners::of(config);
        let App { address, metrics_address, .. } = &config.app;
        for (key, address) in [("address", Some(address)), ("metrics", metrics_address.as_ref())] {
            // Other names are looked up later: see `Checked` in `transport`.
            let local = |address: &AppAddress| address.target().or_else(|| address.localhost().map(Target::Tcp));
            if let Some(address) = address
                && let Some(Target::Tcp(target)) = local(address)
                && let Some(reached) = own.reached_by(target)
            {
                let message = format!("`app.{key}` is {address}, which is {reached}: this proxy itself");
                let mut path = [Step::Key("app"), Step::Key(key)];
                if self.root.nearest(&path).0 < path.len()
                    && let Some((table, listener)) = reached.key.split_once('.')
                {
                    // The address is the default: the file sets the listener.
                    path = [Step::Key(table), Step::Key(listener)];
                }
                self.complain(&path, message, own::HINT);
            }
        }
        // A list may contain this Machine too, at the listener for peers.
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
                let hint = "correct the variable, or remove it: then [flags] of the file applies";
                self.problems.push(Problem::new(Place::Variable(e.variable), e.problem, hint));
                flag
            })
        })
    }

    fn routes(
        &mut self,
        raw: &Raw,
        breakers: &HashMap<String, u16>,
        audited: Declared,
        health: Option<Route>,
    ) -> Vec<Route> {
        let mut names = HashSet::new();
        let mut routes: Vec<Route> = health.into_iter().collect();
        let mut covering = Covering::default();
        for (number, route) in routes.iter().enumerate() {
            covering.add(&route.conditions, number);
        }
        for (index, written) in raw.routes.iter().enumerate() {
            let at = |key| [Step::Key("routes"), Step::Index(index), Step::Key(key)];
            if !is_name(&written.name) {
                let message = format!("`name` needs 1 to 64 of a-z, 0-9, - and _, got {:?}", written.name);
                self.complain(&at("name"), message, &name_hint(&written.name, "it becomes a label in metrics"));
            } else if route_table::RESERVED_NAMES.contains(&written.name.as_str()) {
                let message = format!("the name {:?} is reserved for the proxy", written.name);
                let hint = format!("write \"my-{}\", for example", written.name);
                self.complain(&at("name"), message, &hint);
            } else if !names.insert(written.name.as_str()) {
                let message = format!("a route above is called {:?} already", written.name);
                self.complain(&at("name"), message, "give each its own name: it is the label in metrics");
            }
            let (attempts, retry_statuses) = self.route_retry(&raw.retry, written, index);
            let fallback = written.fallback.as_ref().map(|fallback| self.fallback(fallback, index));
            let conditions = Conditions::compile(written).unwrap_or_else(|mistakes| {
                for BadCondition { key, index: element, message, hint } in mistakes {
                    let place = at(key).into_iter().chain(element.map(Step::Index)).collect::<Vec<_>>();
                    self.complain(&place, message, &hint);
                }
                Conditions::unmatched(index)
            });
            if let Some(earlier) = covering_route(&conditions, &routes, &covering) {
                let message =
                    format!("route {:?} can never match: {earlier:?} comes first and takes all of it", written.name);
                let hint = match earlier {
                    "health" => "remove it: Outrigger has a route for the health check, whose path is in [health]",
                    _ => "move it up, or narrow the other one",
                };
                self.complain(&at("path"), message, hint);
            }
            covering.add(&conditions, routes.len());
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
                addresses: self.route_addresses(written, index),
                resource: route_table::parameters(&written.path, &raw.audit.parameters),
                is_health: false,
            });
        }
        routes
    }
}

/// The name of the first route that takes all requests of `conditions`.
fn covering_route<'r>(conditions: &Conditions, routes: &'r [Route], covering: &Covering) -> Option<&'r str> {
    let covers = |route: &&Route| route.conditions.covers(conditions);
    if let Some(built_in) = route_table::BUILT_IN.iter().find(covers) {
        return Some(&built_in.name);
    }
    covering.first(conditions, |number| covers(&&routes[number])).map(|first| &*routes[first].name)
}

/// Maximum bytes of a body; `u64::MAX` without a limit.
fn most_bytes(size: &Text<OptionalSize>) -> u64 {
    size.0.0.map_or(u64::MAX, |size| size.0)
}

/// Connections that one address may have: its share of all, but at least as many as a browser opens.
fn address_connections(server: &server::Server) -> usize {
    const AT_LEAST: f64 = 8.0;
    let most = f64::from(server.max_connections.get());
    (most * server.max_address_share.0.0).ceil().max(AT_LEAST).min(most) as usize
}

/// Takes every request that matches no route of the file.
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
        addresses: None,
        resource: Box::default(),
        is_health: false,
    }
}
