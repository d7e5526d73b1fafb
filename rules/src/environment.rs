//! Environment variables: they replace keys, hold secrets and set defaults.

use outrigger_identity::signing;
use outrigger_policy::flags::Feature;

use crate::error::{Place, Problem, did_you_mean};
use crate::tree::{Node, Step, Value};

/// The operators' secret.
pub const ADMIN_TOKEN: &str = "OUTRIGGER_ADMIN_TOKEN";
/// The secret that verifies HS256 tokens.
pub const JWT_SECRET: &str = "OUTRIGGER_JWT_SECRET";
/// The HMAC key of `hmac_sha256` digests.
pub const KEY_SECRET: &str = "OUTRIGGER_KEY_SECRET";
/// The address of Redis, including its password.
pub const REDIS_URL: &str = "OUTRIGGER_REDIS_URL";
/// `[[faults]]` is in force only if this is "1".
pub const ALLOW_FAULTS: &str = "OUTRIGGER_ALLOW_FAULTS";
/// The address of the audit log's PostgreSQL, including its password.
pub const AUDIT_DATABASE_URL: &str = "OUTRIGGER_AUDIT_DATABASE_URL";
/// The name of this Machine on Fly.
pub const FLY_MACHINE_ID: &str = "FLY_MACHINE_ID";
/// The name of the app on Fly.
pub const FLY_APP_NAME: &str = "FLY_APP_NAME";

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
    ("OUTRIGGER_STATE_DIRECTORY", "state", "directory"),
    ("OUTRIGGER_ADMIN_LISTEN", "admin", "listen"),
    ("OUTRIGGER_EDGE", "identity", "edge"),
    ("OUTRIGGER_TRUSTED", "identity", "trusted"),
    ("OUTRIGGER_LOG_FORMAT", "log", "format"),
    ("OUTRIGGER_LOG_LEVEL", "log", "level"),
    ("OUTRIGGER_TRACES_ENDPOINT", "traces", "endpoint"),
];

/// Variables with another meaning: the path of the file, and secrets, which no file should contain.
const OTHER_VARIABLES: [&str; 9] = [
    "OUTRIGGER_CONFIG",
    signing::KEYS,
    JWT_SECRET,
    KEY_SECRET,
    ADMIN_TOKEN,
    REDIS_URL,
    ALLOW_FAULTS,
    outrigger_trail::keys::KEYS,
    AUDIT_DATABASE_URL,
];

/// Variables that set the default of a key: a key in the file wins. The first two are kept for existing deployments, the others are
/// [`Given`].
const DEFAULTS: [(&str, &str, &str); 5] = [
    ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "breaker", "failures"),
    ("CIRCUIT_BREAKER_TIMEOUT", "breaker", "open"),
    (GIVEN_LISTEN, "server", "listen"),
    (GIVEN_ADDRESS, "app", "address"),
    (GIVEN_HOLD, "app", "hold"),
];

/// How the names of [`Given`] begin.
pub const GIVEN_PREFIX: &str = "outrigger run: ";
/// `server.listen`, unless it is configured. No variable of the environment has such a name.
pub const GIVEN_LISTEN: &str = "outrigger run: listen";
/// The same for `app.address`.
pub const GIVEN_ADDRESS: &str = "outrigger run: address";
/// The same for `app.hold`.
pub const GIVEN_HOLD: &str = "outrigger run: hold";

/// Defaults that `outrigger run -- COMMAND` gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given(pub Vec<(&'static str, String)>);

impl Given {
    /// These, and the environment of this process.
    pub fn and_environment(&self, name: &str) -> Option<String> {
        let given = self.0.iter().find(|(given, _)| *given == name);
        given.map_or_else(|| process_environment(name), |(_, value)| Some(value.clone()))
    }
}

/// Secrets of the proxy that no other program may have.
pub const PROXY_SECRETS: [&str; 6] =
    [outrigger_trail::keys::KEYS, ADMIN_TOKEN, signing::KEYS, KEY_SECRET, REDIS_URL, AUDIT_DATABASE_URL];

/// Variables of earlier versions, and what to do: they have no effect, and a warning.
const REMOVED_VARIABLES: [(&str, &str); 1] = [(
    "OUTRIGGER_AUDIT_SECRET",
    "the proxy ships the audit log to PostgreSQL by itself now: remove it, and set OUTRIGGER_AUDIT_DATABASE_URL",
)];

/// Keys of earlier versions and why they were removed: they are accepted with a warning and have no effect.
const REMOVED: [(&str, &str, &str); 1] = [(
    "headers",
    "traceparent",
    "remove it: a client's traceparent is always forwarded, unless [traces] records the request",
)];

/// Reads an environment variable; a parameter, so that tests can replace it.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Replaces keys of the file with the variables' values.
pub fn overlay_environment(root: &mut Node, environment: Environment<'_>) {
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

/// Removes keys that have no effect any more, with a warning for each; and for each such variable.
pub fn take_removed(root: &mut Node, environment: Environment<'_>) -> Vec<Problem> {
    let is_set = |name: &str| environment(name).is_some_and(|text| !text.trim().is_empty());
    let variables = REMOVED_VARIABLES.iter().filter(|(name, _)| is_set(name));
    let warning = |(name, hint): &(&str, &str)| {
        Problem::new(Place::Variable((*name).to_owned()), "it has no effect any more", *hint)
    };
    let mut warnings: Vec<_> = variables.map(warning).collect();
    for (section, key, hint) in REMOVED {
        if let Some(place) = root.take(section, key) {
            warnings.push(Problem::new(place, format!("`{key}` has no effect any more"), hint));
        }
    }
    warnings
}

/// Sets rate limits to `monitor` if neither the section `rate_limits` nor the feature flag is configured.
pub fn monitor_unset_limits(root: &mut Node, environment: Environment<'_>) -> bool {
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

/// Unknown variables with our prefix, each with the known name that was probably meant; without those to which the file refers.
pub fn unknown_variables(referred: &[&str]) -> Vec<(String, Option<&'static str>)> {
    let removed = REMOVED_VARIABLES.iter().map(|(name, _)| *name);
    let known = || VARIABLES.iter().map(|(name, ..)| *name).chain(OTHER_VARIABLES).chain(removed.clone());
    let ours = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    ours.filter(|name| {
        name.starts_with("OUTRIGGER_") && !known().any(|k| k == name) && !referred.contains(&name.as_str())
    })
    .map(|name| {
        let meant = did_you_mean(&name, known());
        (name, meant)
    })
    .collect()
}
