//! `[rate_limits.redis]`: the Redis in which Machines share rate limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::Client;
use ring::hmac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::environment::{KEY_SECRET, REDIS_URL};
use crate::error::{Place, Problem};
use crate::tree::Step;
use crate::units::{Span, Text};

/// The Redis in which Machines share rate limits.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// `redis://HOST:PORT`, `rediss://…` with TLS, `redis+unix:///PATH`; optionally with `USER:PASSWORD@` and `/DATABASE`.
    /// Environment, which wins and is the place for a password: OUTRIGGER_REDIS_URL.
    #[schemars(extend("x-secret" = "value"))]
    pub url: Option<String>,
    /// Prefix of the keys: the same on Machines that share limits.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.:-]{1,64}$"))]
    pub prefix: String,
    /// Timeout for a response from Redis. Later, each Machine enforces its share until Redis is available again. At most
    /// 400ms, so that a failure is detected within a second.
    pub timeout: Text<Span>,
    /// A file with the CA certificate (PEM) for `rediss://`. Unset: the system's.
    pub ca_file: Option<PathBuf>,
    /// Minimum number of Machines to assume. Discovering more raises it.
    #[schemars(range(min = 1, max = 10_000))]
    pub machines: u32,
}

impl Default for Redis {
    fn default() -> Self {
        let timeout = Text(Span(Duration::from_millis(250)));
        Self { url: None, prefix: "outrigger".to_owned(), timeout, ca_file: None, machines: 1 }
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may contain a password.
        f.debug_struct("Redis").field("prefix", &self.prefix).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// The longest `timeout` for Redis.
const LONGEST_TIMEOUT: Duration = Duration::from_millis(400);

/// How Machines share limits, checked.
pub struct RedisSettings {
    /// Redis client. Contains the password: never display it.
    pub client: Client,
    /// The URL and CA that it was created from, for detecting changes: never display them either.
    pub source: (String, Option<Vec<u8>>),
    /// The URL without user and password.
    pub shown: String,
    /// Prefix of the keys.
    pub prefix: String,
    /// Timeout for a response from Redis.
    pub timeout: Duration,
    /// Minimum number of Machines to assume.
    pub machines: u32,
    /// HMAC key for the names of keys.
    pub naming: hmac::Key,
    /// The file with the CA certificate.
    pub ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSettings")
            .field("redis", &self.shown)
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("machines", &self.machines)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

impl RedisSettings {
    /// Whether a connection made for `other` can be reused.
    pub fn reaches_the_same(&self, other: &Self) -> bool {
        self.source == other.source && self.timeout == other.timeout
    }
}

impl Builder<'_> {
    /// Checks the section; `None` after an error.
    pub fn redis(&mut self, written: &Redis) -> Option<Arc<RedisSettings>> {
        let at = |key| [Step::Key("rate_limits"), Step::Key("redis"), Step::Key(key)];
        let timeout = written.timeout.0.0;
        if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
            let message = format!(
                "`timeout` needs more than zero and at most {}, got {}",
                Span(LONGEST_TIMEOUT),
                written.timeout.0
            );
            self.complain(
                &at("timeout"),
                message,
                "write \"250ms\", for example: it bounds how long a failure of Redis goes unnoticed",
            );
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
        if !(1..=64).contains(&written.prefix.len()) || !written.prefix.chars().all(is_plain) {
            let message = format!("`prefix` needs 1 to 64 letters, digits, _ . : or -, got {:?}", written.prefix);
            self.complain(&at("prefix"), message, "Machines that share limits have the same; other apps another one");
        }
        let ca = match &written.ca_file {
            Some(file) => match std::fs::read(file) {
                Ok(pem) => Some(pem),
                Err(e) => {
                    let message = format!("`ca_file` cannot be read: {}: {e}", file.display());
                    self.complain(&at("ca_file"), message, "name a file with a certificate in PEM");
                    return None;
                }
            },
            None => None,
        };
        let variable = (self.environment)(REDIS_URL).filter(|url| !url.trim().is_empty());
        // The URL is never shown: it may contain a password.
        let place = match &variable {
            Some(_) => Place::Variable(REDIS_URL.to_owned()),
            None => self.root.nearest(&at("url")).1.place.clone().hidden(),
        };
        let Some(url) = variable.or_else(|| written.url.clone()) else {
            let message = "limits are shared, but the address of Redis is not set";
            let hint = format!("set `url` in [rate_limits.redis], or {REDIS_URL} in the environment");
            self.complain(&[Step::Key("rate_limits"), Step::Key("shared")], message, &hint);
            return None;
        };
        let url = url.trim().to_owned();
        if ca.is_some() && !(url.starts_with("rediss:") || url.starts_with("valkeys:")) {
            self.complain(&at("ca_file"), "`ca_file` has no effect without TLS", "write the address with rediss://");
        }
        match redis_client(&url, ca.clone()) {
            Ok(client) => {
                let secret = (self.environment)(KEY_SECRET).filter(|secret| !secret.trim().is_empty());
                let naming = secret.as_deref().map_or(&b"outrigger"[..], str::as_bytes);
                Some(Arc::new(RedisSettings {
                    shown: client.get_connection_info().addr().to_string(),
                    client,
                    source: (url, ca),
                    prefix: written.prefix.clone(),
                    timeout,
                    machines: written.machines,
                    naming: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, naming),
                    ca_file: written.ca_file.clone(),
                }))
            }
            Err(problem) => {
                let hint =
                    "write \"redis://HOST:6379\", \"rediss://USER:PASSWORD@HOST:6380/0\" or \"redis+unix:///PATH\"";
                self.problems.push(Problem::new(place, problem, hint));
                None
            }
        }
    }
}

/// Creates a client for the Redis at `url`.
fn redis_client(url: &str, ca: Option<Vec<u8>>) -> Result<redis::Client, String> {
    let known = ["redis://", "rediss://", "valkey://", "valkeys://", "redis+unix://", "unix://"];
    if !known.iter().any(|scheme| url.starts_with(scheme)) {
        return Err("this is not an address of Redis".to_owned());
    }
    // Its errors never contain the address.
    let wrong = |e: redis::RedisError| format!("this address of Redis cannot be used: {e}");
    match ca {
        Some(pem) => {
            let certificates = redis::TlsCertificates { client_tls: None, root_cert: Some(pem) };
            redis::Client::build_with_tls(url, certificates).map_err(wrong)
        }
        None => redis::Client::open(url).map_err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn settings(environment: &[(&str, &str)], source: &str) -> Result<Arc<RedisSettings>, String> {
        let lookup = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let source = format!("[rate_limits]\nshared = \"redis\"\n[rate_limits.redis]\n{source}");
        let config = Config::parse(Path::new("proxy.toml"), &source, &lookup).map_err(|e| e.to_string())?;
        Ok(config.limits.sharing.unwrap())
    }

    #[test]
    fn the_address_of_redis_is_never_shown_with_its_password() {
        let url = "rediss://ann:correct-horse@redis.internal:6380/2";
        let settings = settings(&[("OUTRIGGER_REDIS_URL", url)], "url = \"redis://localhost\"\n").unwrap();
        assert_eq!(settings.shown, "redis.internal:6380");
        assert!(!format!("{settings:?}").contains("horse"));
    }

    #[test]
    fn reports_mistakes_about_redis_without_the_password() {
        let wrong = [
            settings(&[], ""),
            settings(&[], "url = \"http://:correct-horse@localhost\""),
            settings(&[], "url = \"redis://:correct-horse@local host:x\""),
            settings(&[("OUTRIGGER_REDIS_URL", "localhost:6379/correct-horse")], ""),
            settings(&[], "url = \"redis://localhost\"\ntimeout = \"2s\"\nca_file = \"/nowhere.pem\"\nmachines = 0\n"),
            settings(&[], "url = \"redis://localhost\"\ntimeout = \"2s\"\nca_file = \"/nowhere.pem\"\n"),
            settings(&[], "url = \"redis://localhost\"\nprefix = \"a b\"\n"),
            settings(&[], "url = 7\n"),
        ];
        let said: Vec<String> = wrong.into_iter().map(Result::unwrap_err).collect();
        assert!(!said.concat().contains("horse"), "{said:?}");
        insta::assert_snapshot!(said.join("\n"));
    }
}
