//! The rule behind each rejection and failure, and the numbers that it compared.

use std::time::Instant;

use outrigger_identity::clock;
use outrigger_policy::audit::Class;
use outrigger_policy::breaker::Control;
use outrigger_policy::priority::Priority;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::state::{Snapshot, State};
use crate::mechanism::evidence::Evidence;

/// The circumstances of a rejection.
#[derive(Clone, Copy, Debug)]
pub struct Case<'c> {
    /// The state that all requests share.
    pub state: &'c State,
    /// The configuration that decided.
    pub rules: &'c Snapshot,
    /// The request; `None` if there was none yet.
    pub exchange: Option<&'c Exchange>,
    /// The time of the decision.
    pub now: Instant,
}

impl<'c> Case<'c> {
    /// Of a request.
    pub fn of(state: &'c State, exchange: &'c Exchange) -> Self {
        Self { state, rules: &exchange.rules, exchange: Some(exchange), now: clock::now() }
    }

    fn section(&self, section: &'static str) -> Evidence {
        Evidence::of(section, self.rules.version)
    }

    /// A key of the request's route.
    fn route(&self, key: &'static str) -> Evidence {
        match self.exchange {
            Some(exchange) => self.section("routes").named(&exchange.route().name).key(key),
            None => self.section("routes").key(key),
        }
    }

    /// Returns the rule that rejects a request, and its numbers.
    pub fn rejection(&self, rejection: Rejection) -> Evidence {
        let client = &self.rules.config.client;
        let section = |name| self.section(name);
        match rejection {
            Rejection::Malformed(_) => section("http").key(rejection.problem().label),
            Rejection::HeadTooLarge => section("client")
                .key("max_head")
                .count("max_head_bytes", client.max_head_bytes)
                .count("max_fields", client.max_fields),
            Rejection::HeadTooSlow => {
                section("client").key("head_timeout").time("head_timeout_ms", client.head_timeout)
            }
            Rejection::BodyTooLarge => {
                let limit = self.exchange.map_or(client.max_body_bytes, |exchange| exchange.route().max_body_bytes);
                self.route("max_body").with("max_body_bytes", limit as f64)
            }
            Rejection::BodyTooSlow => {
                section("client").key("body_timeout").time("body_timeout_ms", client.body_timeout)
            }
            Rejection::TooManyUploads => section("client")
                .key("body_memory")
                .count("held_bytes", self.state.body_memory.held())
                .count("body_memory_bytes", client.body_memory),
            Rejection::TooManyConnections => {
                let server = &self.rules.config.server;
                section("server")
                    .key("max_connections")
                    .count("open", self.state.connections())
                    .count("max_connections", server.max_connections)
                    .count("max_of_one_address", server.max_address_connections)
            }
            Rejection::TooManyHeads => section("client")
                .key("max_unfinished_heads")
                .count("max_unfinished_heads_bytes", client.max_unfinished_head_bytes),
            Rejection::Draining => {
                section("server").key("lame_duck").time("lame_duck_ms", self.rules.config.server.lame_duck)
            }
            Rejection::Unhealthy => section("health").key("path"),
            Rejection::DotSegment | Rejection::ControlCharacter => section("http").key(rejection.problem().label),
            Rejection::AmbiguousPath => section("routes").key("path"),
            Rejection::NotPublic => section("app").key("metrics"),
            Rejection::RepeatedCredential => section("identity"),
            Rejection::Banned { retry_after } => self.ban().time("left_ms", retry_after),
            Rejection::QuotaExceeded { limit, retry_after } => self.limit(limit).time("retry_after_ms", retry_after),
            Rejection::Overloaded => self.concurrency(),
            Rejection::AppRestarting => self.held().count("max_held", self.state.gate.standing().room as usize),
            Rejection::Paused { retry_after } => self
                .held()
                .key("pause")
                .count("max_held", self.state.gate.standing().room as usize)
                .time("retry_after_ms", retry_after),
            Rejection::Maintenance { retry_after } => {
                let is_in_file = self.rules.config.maintenance.is_on;
                let key = if is_in_file { "enabled" } else { "operator" };
                section("maintenance").key(key).time("retry_after_ms", retry_after)
            }
            Rejection::BreakerOpen { retry_after } => self.breaker().time("retry_after_ms", retry_after),
            Rejection::Expired => self.deadline(),
            Rejection::FaultInjected { status } => section("faults").with("status", status.as_u16().into()),
            Rejection::AuditUnavailable => self.audit(),
            Rejection::Reserved => section("audit"),
            Rejection::AddressNotAllowed => self.address(),
            Rejection::NotAPeer => section("peers").key("listen"),
            Rejection::Loop => section("app").key("address"),
            Rejection::OutOfResources => {
                section("host").key("open_files").count("open_connections", self.state.connections())
            }
        }
    }

    /// Returns the rule by which the app has failed a request, and its numbers.
    pub fn failure(&self, failure: Failure) -> Evidence {
        let app = &self.rules.config.app;
        match failure {
            Failure::Unreachable => match self.exchange.and_then(|exchange| exchange.held_since) {
                Some(since) => self.held().time("held_ms", self.now.saturating_duration_since(since)),
                None => self.section("app").key("address").time("hold_ms", app.hold),
            },
            Failure::ConnectTimeout => {
                self.section("app").key("connect_timeout").time("connect_timeout_ms", app.connect_timeout)
            }
            Failure::Timeout => self.deadline(),
            Failure::Closed | Failure::Invalid | Failure::Internal => self.attempts(),
        }
    }

    fn limit(&self, number: u16) -> Evidence {
        let section = self.section("rate_limits");
        let Some(exchange) = self.exchange else { return section };
        let Some(limit) = self.rules.config.limits.all.get(usize::from(number)) else { return section };
        let section = section.named(&limit.name);
        let Some(quota) = limit.quotas[exchange.client.tier as usize] else { return section };
        // As they were when the request was refused: the response shows them, too.
        let left = exchange.shown_limits.iter().find(|left| left.limit == number).map_or(0, |left| left.remaining);
        section
            .with("used", quota.burst().saturating_sub(left).into())
            .with("limit", quota.burst().into())
            .with("window_s", limit.window.as_secs_f64())
            .with("cost", exchange.route().cost.into())
    }

    fn address(&self) -> Evidence {
        let Some(exchange) = self.exchange else { return self.section("server").key("allow") };
        let (address, route) = (exchange.client.address, exchange.route());
        let of_server = self.rules.config.server.addresses.as_ref();
        match of_server.and_then(|list| list.refused_by(address)) {
            Some(key) if !route.is_health => self.section("server").key(key),
            _ => self.route(route.addresses.as_ref().and_then(|(list, _)| list.refused_by(address)).unwrap_or("allow")),
        }
    }

    fn ban(&self) -> Evidence {
        let section = self.section("abuse");
        let Some(exchange) = self.exchange else { return section };
        let Some(ban) = self.state.bans.in_force(&exchange.client, self.state.nanoseconds(exchange.started)) else {
            return section;
        };
        section.key(ban.offence.name()).with("times", ban.times.into())
    }

    fn concurrency(&self) -> Evidence {
        let gate = self.state.gate.standing();
        let waiting: u32 = gate.waiting.iter().sum();
        let priority = self.exchange.map_or(Priority::default(), |exchange| exchange.route().priority);
        let before: u32 = gate.waiting[..=priority as usize].iter().sum();
        let settings = &self.rules.config.gate.settings;
        let waited = self.exchange.map(|exchange| self.now.saturating_duration_since(exchange.turn_began));
        let waited = waited.unwrap_or_default();
        let key = if waited >= settings.max_wait { "max_wait" } else { "max_queue" };
        self.section("admission")
            .key(key)
            .time("waited_ms", waited)
            .with("limit", gate.limit.into())
            .with("in_flight", gate.in_flight.into())
            .with("queue", waiting.into())
            .with("queue_limit", gate.room.into())
            .with("queue_of_this_priority_or_higher", before.into())
            .time("max_wait_ms", settings.max_wait)
    }

    fn held(&self) -> Evidence {
        let held: u32 = self.state.gate.standing().waiting.iter().sum();
        self.section("app").key("hold").with("held", held.into()).time("hold_ms", self.rules.config.app.hold)
    }

    fn breaker(&self) -> Evidence {
        let section = self.section("breaker");
        let breaker =
            self.exchange.and_then(|exchange| self.rules.breakers.get(usize::from(exchange.route().breaker?)));
        let Some(cell) = breaker else { return section };
        let section = section.named(&cell.name);
        let Some(standing) = cell.standing(self.state.nanoseconds(self.now)) else { return section };
        let (calls, failed, slow) = standing.seen;
        section
            .with("calls", calls.into())
            .with("failed", failed.into())
            .with("slow", slow.into())
            .with("failures_in_a_row", standing.failures.into())
            .count("clients_refused", standing.clients_refused)
            .with("forced", u8::from(standing.control != Control::Automatic).into())
    }

    fn deadline(&self) -> Evidence {
        let route = self.route("timeout");
        let Some(exchange) = self.exchange else { return route };
        let key = if exchange.is_impatient { self.route("client_timeout") } else { route };
        key.time("timeout_ms", exchange.deadline.saturating_duration_since(exchange.started))
            .time("elapsed_ms", self.now.saturating_duration_since(exchange.started))
            .with("attempts", exchange.attempts.made().into())
    }

    fn attempts(&self) -> Evidence {
        let route = self.route("attempts");
        let Some(exchange) = self.exchange else { return route };
        route
            .with("attempts", exchange.attempts.made().into())
            .with("max_attempts", exchange.route().attempts.into())
            .with("retry_budget_left", self.state.budgets().retries.left(self.rules.config.retry.budget))
    }

    fn audit(&self) -> Evidence {
        let class = self.exchange.and_then(|exchange| {
            let event = exchange.route().audit.event(exchange.audit.method.as_str(), 200)?;
            Some(event.class())
        });
        self.section("audit").key(match class {
            Some(Class::Security) => "durability.security",
            Some(Class::Authentication) => "durability.authentication",
            Some(Class::Data) => "durability.data",
            Some(Class::Administration) => "durability.administration",
            Some(Class::Deletion) => "durability.deletion",
            None => "durability",
        })
    }
}
