//! `[health]`: the app's health check, and what the platform gets.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::sections::route_table::{self, Route};
use crate::tree::Step;
use crate::units::{Span, Text, WrongText, text_schema};

/// How Outrigger finds out whether the app is healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It asks for this path.
    Path(String),
    /// It only connects: the app has no health check.
    Connect,
}

impl FromStr for Check {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '#' | '*' | ':' | '{' | '<' | '[');
        match text {
            "none" => Ok(Self::Connect),
            path if path.starts_with('/') && path.chars().all(is_plain) => Ok(Self::Path(path.to_owned())),
            _ => Err(WrongText),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Path(path) => path,
            Self::Connect => "none",
        })
    }
}

text_schema! {
    Check => "health-check",
}

/// The app's health check.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// The path of the app's health check, such as "/up" or "/healthz"; "none" if it has none. Then Outrigger responds to `/health`,
    /// `/health/ready`, `/health/live` and `/health/detailed` itself. Unset: the app has these.
    pub path: Option<Text<Check>>,
    /// The statuses of a healthy app. Empty: 200 to 399.
    pub expect: Vec<u16>,
    /// How long the app may take to respond to the check. Longer twice in a row: it is not healthy.
    pub timeout: Text<Span>,
}

impl Default for Health {
    fn default() -> Self {
        Self { path: None, expect: Vec::new(), timeout: Text(Span(Duration::from_secs(2))) }
    }
}

/// The checked section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthRules {
    /// How the app is checked; `None`: not at all, since it responds to the platform itself.
    pub check: Option<Check>,
    /// How long the app may take to respond.
    pub timeout: Duration,
    expect: Box<[u16]>,
}

impl HealthRules {
    /// Whether a response with this status is one of a healthy app.
    pub fn is_healthy(&self, status: StatusCode) -> bool {
        if self.expect.is_empty() {
            return status.is_success() || status.is_redirection();
        }
        self.expect.contains(&status.as_u16())
    }

    /// The check's path on the app, without a query.
    pub fn path(&self) -> Option<&str> {
        match self.check.as_ref()? {
            Check::Path(path) => path.split('?').next(),
            Check::Connect => None,
        }
    }

    /// The route of the check's path, which is a health endpoint, too.
    pub fn route(&self) -> Option<Route> {
        let path = self.path().filter(|path| !route_table::is_built_in(path))?;
        Some(route_table::health_route(path))
    }
}

impl Builder<'_> {
    /// Checks `[health]`.
    pub fn health(&mut self, health: &Health) -> HealthRules {
        for (index, status) in health.expect.iter().enumerate() {
            if !(200..600).contains(status) {
                let path = [Step::Key("health"), Step::Key("expect"), Step::Index(index)];
                self.complain(&path, format!("{status} is no status of a response"), "use 200 to 599, such as 204");
            }
        }
        if health.path.is_none() && !health.expect.is_empty() {
            let path = [Step::Key("health"), Step::Key("expect")];
            self.complain(&path, "`expect` does nothing without `path`", "add `path`, such as \"/up\"");
        }
        HealthRules {
            check: health.path.as_ref().map(|path| path.0.clone()),
            timeout: health.timeout.0.0,
            expect: health.expect.clone().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_or_none_is_a_check() {
        for text in ["/up", "/healthz", "/readyz?verbose", "/", "none"] {
            assert_eq!(text.parse::<Check>().unwrap().to_string(), text);
        }
        for text in ["", "up", "None", "/a b", "/up#x", "/users/:id", "/**", "http://127.0.0.1/up", "/\u{e9}"] {
            assert_eq!(text.parse::<Check>(), Err(WrongText), "{text}");
        }
    }

    #[test]
    fn success_and_redirection_are_healthy_unless_statuses_are_given() {
        let rules = |expect: &[u16]| HealthRules { check: None, timeout: Duration::ZERO, expect: expect.into() };
        let is_healthy = |expect, status| rules(expect).is_healthy(StatusCode::from_u16(status).unwrap());
        assert!(is_healthy(&[], 200) && is_healthy(&[], 204) && is_healthy(&[], 302));
        assert!(!is_healthy(&[], 404) && !is_healthy(&[], 503));
        assert!(is_healthy(&[401], 401) && !is_healthy(&[401], 200));
    }
}
