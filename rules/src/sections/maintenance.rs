//! `[maintenance]`: requests are refused with 503, except those that are listed here.

use std::net::IpAddr;
use std::time::Duration;

use outrigger_policy::flags::Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::tree::Step;
use crate::units::{Span, Text};

/// The most networks, and the most paths.
const MOST: usize = 100;

/// Maintenance mode: all requests get 503, except health checks and those that are listed here. `outrigger maintenance on` begins it
/// without a change of the file.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Maintenance {
    /// Whether requests are refused.
    pub enabled: bool,
    /// Clients that are served all the same: addresses or networks, at most 100.
    pub allow: Vec<Text<Network>>,
    /// Paths that are served all the same, with everything below: "/status" is also "/status/db". At most 100.
    pub paths: Vec<String>,
    /// The `Retry-After` of these responses.
    pub retry_after: Text<Span>,
}

impl Default for Maintenance {
    fn default() -> Self {
        let retry_after = Text(Span(Duration::from_mins(1)));
        Self { enabled: false, allow: Vec::new(), paths: Vec::new(), retry_after }
    }
}

/// Maintenance mode, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaintenanceRules {
    /// The file switches it on.
    pub is_on: bool,
    /// The `Retry-After` of these responses.
    pub retry_after: Duration,
    allow: Box<[Network]>,
    paths: Box<[Box<str>]>,
}

impl MaintenanceRules {
    /// Whether a request of this client for this path, without a query, is served all the same. Paths with dot segments were rejected
    /// before.
    pub fn lets_pass(&self, client: IpAddr, path: &str) -> bool {
        let is_below =
            |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.allow.iter().any(|network| network.contains(client)) || self.paths.iter().any(|prefix| is_below(prefix))
    }
}

impl Builder<'_> {
    /// Checks `[maintenance]`.
    pub fn maintenance(&mut self, written: &Maintenance) -> MaintenanceRules {
        for (key, length) in [("allow", written.allow.len()), ("paths", written.paths.len())] {
            if length > MOST {
                let path = [Step::Key("maintenance"), Step::Key(key)];
                self.complain(
                    &path,
                    format!("`{key}` has {length} entries, more than {MOST}"),
                    "name larger networks or shorter paths",
                );
            }
        }
        for (index, prefix) in written.paths.iter().enumerate() {
            let is_plain = prefix.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%*:{<[".contains(&byte));
            if !prefix.starts_with('/') || !is_plain {
                let path = [Step::Key("maintenance"), Step::Key("paths"), Step::Index(index)];
                self.complain(&path, format!("{prefix:?} is no path"), "write \"/status\": it is also \"/status/db\"");
            }
        }
        MaintenanceRules {
            is_on: written.enabled,
            retry_after: written.retry_after.0.0,
            allow: written.allow.iter().map(|network| network.0).collect(),
            paths: written.paths.iter().map(|prefix| prefix.trim_end_matches('/').into()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let paths = ["/status", "/a/b"].map(Into::into).into();
        let allow = ["10.0.0.0/8".parse().unwrap()].into();
        let rules = MaintenanceRules { is_on: true, retry_after: Duration::ZERO, allow, paths };
        let passes = |client: &str, path: &str| rules.lets_pass(client.parse().unwrap(), path);
        assert!(["/status", "/status/", "/status/db", "/a/b/c"].iter().all(|path| passes("192.0.2.1", path)));
        assert!(["/", "/statuses", "/a", "/x/status", ""].iter().all(|path| !passes("192.0.2.1", path)));
        assert!(passes("10.1.2.3", "/") && !passes("11.1.2.3", "/"));
    }
}
