//! `[[faults]]`: fault injection, for game days.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::environment::ALLOW_FAULTS;
use crate::sections::route_table::{Route, RouteTable};
use crate::tree::Step;
use crate::units::{Share, Span, Text};

/// Fault injection, for game days. In force only with OUTRIGGER_ALLOW_FAULTS=1 in the environment.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Names of the routes it applies to. Empty: all but health.
    #[serde(default)]
    pub routes: Vec<String>,
    /// Headers that a request must have, with their value; `"*"` is any value.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The share of these requests that is affected.
    #[serde(default = "all")]
    pub share: Text<Share>,
    /// Delays the attempt by this time.
    pub delay: Option<Text<Span>>,
    /// Responds with this status instead of making the attempt.
    #[schemars(range(min = 400, max = 599))]
    pub abort: Option<u16>,
    /// Ends the attempt as if the app had closed its connection.
    #[serde(default)]
    pub reset: bool,
}

const fn all() -> Text<Share> {
    Text(Share(1.0))
}

/// Fault injection, compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultRule {
    /// For each route, whether it applies.
    pub routes: Vec<bool>,
    /// Headers that a request must have.
    pub headers: Vec<(HeaderName, Option<String>)>,
    /// The share of requests, 0 to 1.
    pub share: f64,
    /// Delay of the attempt.
    pub delay: Duration,
    /// The effect after the delay.
    pub effect: Effect,
}

/// The effect of a fault on an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The attempt is made.
    Pass,
    /// A response with this status replaces it.
    Abort(StatusCode),
    /// It fails as if the app had closed its connection.
    Reset,
}

impl Builder<'_> {
    /// Checks the faults of the file; none unless the environment allows them.
    pub fn faults(&mut self, faults: &[Fault], routes: &RouteTable) -> Vec<FaultRule> {
        if faults.is_empty() {
            return Vec::new();
        }
        if (self.environment)(ALLOW_FAULTS).as_deref() != Some("1") {
            self.complain(
                &[Step::Key("faults"), Step::Index(0)],
                "this would inject faults",
                "set OUTRIGGER_ALLOW_FAULTS=1 in the environment if that is intended; else remove [[faults]]",
            );
        }
        let mut rules = Vec::new();
        for (index, written) in faults.iter().enumerate() {
            let at = |key| [Step::Key("faults"), Step::Index(index), Step::Key(key)];
            for (number, name) in written.routes.iter().enumerate() {
                let [table, fault, key] = at("routes");
                self.check_route_name(name, routes, &[table, fault, key, Step::Index(number)]);
            }
            let mut headers = Vec::new();
            for (name, value) in &written.headers {
                match HeaderName::from_bytes(name.as_bytes()) {
                    Ok(name) => headers.push((name, (value != "*").then(|| value.clone()))),
                    Err(_) => {
                        let message = format!("{name:?} is not a header name");
                        self.complain(&at("headers"), message, "write { \"X-Chaos\" = \"1\" }");
                    }
                }
            }
            let delay = written.delay.as_ref().map_or(Duration::ZERO, |delay| delay.0.0);
            let effect = match (written.abort, written.reset) {
                (Some(_), true) => {
                    self.complain(&at("reset"), "a fault either aborts or resets", "write two faults, with shares");
                    Effect::Reset
                }
                (Some(status), false) => {
                    Effect::Abort(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
                }
                (None, true) => Effect::Reset,
                (None, false) => Effect::Pass,
            };
            if delay.is_zero() && effect == Effect::Pass {
                self.complain(&at("routes")[..2], "this fault has no effect", "give it `delay`, `abort` or `reset`");
            }
            let befalls = |route: &Arc<Route>| {
                !route.is_health
                    && (written.routes.is_empty() || written.routes.iter().any(|name| **name == *route.name))
            };
            rules.push(FaultRule {
                routes: routes.all().iter().map(befalls).collect(),
                headers,
                share: written.share.0.0,
                delay,
                effect,
            });
        }
        rules
    }
}
