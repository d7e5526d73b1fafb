//! The part of a configuration that the audit log needs: the section `[audit]`, and the names that events contain.

use std::sync::Arc;

use outrigger_rules::config::Config;
use outrigger_rules::sections::audit::AuditRules;

/// One version of the configuration, as the audit log sees it.
#[derive(Debug)]
pub struct AuditBasis {
    /// The section `[audit]`.
    pub audit: AuditRules,
    /// The routes, in order.
    routes: Box<[AuditedRoute]>,
    /// The names of the rate limits, in order.
    limits: Box<[Arc<str>]>,
}

/// The names of a route in events.
#[derive(Debug)]
pub struct AuditedRoute {
    /// Its name.
    pub name: Arc<str>,
    /// The names of its path parameters that are recorded.
    pub parameters: Box<[Box<str>]>,
}

impl AuditBasis {
    /// That of a configuration; `None` if it has no audit log.
    pub fn of(config: &Config) -> Option<Self> {
        let audit = config.audit.clone()?;
        let routes = config.routes.all().iter().map(|route| AuditedRoute {
            name: Arc::clone(&route.name),
            parameters: route.resource.iter().map(|(_, name)| name.clone()).collect(),
        });
        let limits = config.limits.all.iter().map(|limit| Arc::clone(&limit.name));
        Some(Self { routes: routes.collect(), limits: limits.collect(), audit })
    }

    /// The names of a route, by its index.
    pub fn route(&self, number: usize) -> Option<&AuditedRoute> {
        self.routes.get(number)
    }

    /// The name of a rate limit, by its index.
    pub fn limit(&self, number: u16) -> Option<&str> {
        self.limits.get(usize::from(number)).map(|name| &**name)
    }
}
