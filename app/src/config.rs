//! Settings from the environment or the command line, parsed once into checked values.
//!
//! `outrigger-app --help` prints each one with its default. Durations are text with a unit (`250ms`, `30s`, `5m`).
//! Secrets (keys, tokens, the database's password) never appear in `Debug` output or messages.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use outrigger_policy::flags::{Feature, Flag};
use outrigger_trail::keys::{KEYS, PSEUDONYM_KEY};

use crate::units::{Millis, Secret, Span};

/// The settings as given on the command line or in the environment.
#[derive(Clone, Debug, Parser)]
#[command(name = "outrigger-app", version, about = "Documents in PostgreSQL with embeddings in ChromaDB", long_about = None)]
#[command(after_help = "Exit codes: 0 stopped as asked, 1 failed, 78 the configuration cannot work.")]
pub struct Settings {
    /// Address to listen on, in addition to the Unix socket, if any.
    #[arg(long, env = "APP_LISTEN", default_value = "127.0.0.1:8081", value_name = "HOST:PORT")]
    pub listen: SocketAddr,

    /// Path of an additional Unix socket to listen on; replaces a stale one, mode 0660.
    #[arg(long, env = "APP_SOCKET", value_name = "PATH", value_parser = any_path)]
    pub socket: Option<PathBuf>,

    /// Dimension of every embedding.
    #[arg(long, env = "APP_VECTOR_DIMENSION", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    pub vector_dimension: u32,

    /// Maximum size of a document's `content`, in bytes of UTF-8.
    #[arg(long, env = "APP_MAX_DOCUMENT_BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=33_554_432))]
    pub max_document_bytes: u32,

    /// Deadline of requests without `X-Request-Timeout-Ms`; the header can only lower it.
    #[arg(long, env = "APP_REQUEST_TIMEOUT", default_value = "30s", value_name = "DURATION")]
    pub request_timeout: Span,

    /// Maximum number of rows that wait for ChromaDB; beyond it, writes are rejected with 503.
    #[arg(long, env = "APP_OUTBOX_MAX", default_value_t = 100_000, value_name = "ROWS")]
    pub outbox_max: u64,

    /// How long to keep accepting connections after SIGTERM while readiness fails. 0s by default, since the proxy
    /// drains first.
    #[arg(long, env = "APP_LAME_DUCK", default_value = "0s", value_name = "DURATION")]
    pub lame_duck: Span,

    /// How long to wait for requests in flight after SIGTERM before exiting.
    #[arg(long, env = "APP_DRAIN_TIMEOUT", default_value = "25s", value_name = "DURATION")]
    pub drain_timeout: Span,

    /// Log format: JSON lines, or text for people.
    #[arg(long, env = "APP_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,

    /// Log filter, such as `info` or `outrigger_app=debug,info`. The access log is at debug.
    #[arg(long, env = "APP_LOG", default_value = "info,tokio_postgres=warn,refinery_core=warn", value_name = "FILTER")]
    pub log: String,

    #[command(flatten)]
    pub database: DatabaseSettings,

    #[command(flatten)]
    pub chroma: ChromaSettings,

    #[command(flatten)]
    pub breaker: BreakerSettings,

    #[command(flatten)]
    pub auth: AuthSettings,

    #[command(flatten)]
    pub audit: AuditSettings,
}

/// Settings of PostgreSQL and of both databases' pools.
#[derive(Clone, Debug, Args)]
pub struct DatabaseSettings {
    /// URL of PostgreSQL. TLS is used for remote hosts unless `sslmode=disable`, and the certificate is always
    /// verified.
    #[arg(long, env = "DATABASE_URL", default_value = "postgres://app@127.0.0.1:5432/app", hide_env_values = true)]
    pub database_url: Secret,

    /// Minimum number of open connections per pool.
    #[arg(long, env = "DB_POOL_MIN", default_value_t = 5)]
    pub db_pool_min: u32,

    /// Maximum number of connections per pool.
    #[arg(long, env = "DB_POOL_MAX", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub db_pool_max: u32,

    /// Maximum wait for a connection; a request's own deadline lowers it.
    #[arg(long, env = "DB_POOL_ACQUIRE_TIMEOUT", default_value = "2s", value_name = "DURATION")]
    pub db_pool_acquire_timeout: Span,

    /// Maximum age of a connection before it is replaced; each lives 80 to 100 % of it, so they are not replaced all
    /// at once.
    #[arg(long, env = "DB_POOL_MAX_LIFETIME", default_value = "30m", value_name = "DURATION")]
    pub db_pool_max_lifetime: Span,

    /// Idle time after which a connection is replaced, or closed if above the minimum.
    #[arg(long, env = "DB_POOL_IDLE_TIMEOUT", default_value = "10m", value_name = "DURATION")]
    pub db_pool_idle_timeout: Span,

    /// How long a connection may be held before the log names its holder.
    #[arg(long, env = "DB_POOL_LEAK_AFTER", default_value = "20s", value_name = "DURATION")]
    pub db_pool_leak_after: Span,

    /// Maximum time to open a connection, including the handshake.
    #[arg(long, env = "DB_CONNECT_TIMEOUT", default_value = "2s", value_name = "DURATION")]
    pub db_connect_timeout: Span,

    /// PostgreSQL's `statement_timeout`, in case the app cannot cancel a statement itself. `0s` does not set it, for
    /// poolers such as PgBouncer that reject startup options.
    #[arg(long, env = "DB_STATEMENT_TIMEOUT", default_value = "30s", value_name = "DURATION")]
    pub db_statement_timeout: Span,
}

/// Settings of ChromaDB.
#[derive(Clone, Debug, Args)]
pub struct ChromaSettings {
    /// Base URL of ChromaDB's v2 API.
    #[arg(long, env = "CHROMA_URL", default_value = "http://127.0.0.1:8000", hide_env_values = true)]
    pub chroma_url: String,

    /// Collection of the embeddings; created when missing, with cosine distance.
    #[arg(long, env = "CHROMA_COLLECTION", default_value = "documents")]
    pub chroma_collection: String,

    /// Tenant of the collection.
    #[arg(long, env = "CHROMA_TENANT", default_value = "default_tenant")]
    pub chroma_tenant: String,

    /// Database of the collection.
    #[arg(long, env = "CHROMA_DATABASE", default_value = "default_database")]
    pub chroma_database: String,

    /// Maximum time for one call; a request's own deadline lowers it.
    #[arg(long, env = "CHROMA_TIMEOUT", default_value = "5s", value_name = "DURATION")]
    pub chroma_timeout: Span,
}

/// The circuit breakers in front of the two databases. The proxy reads the same variables for its own breakers, so
/// the app accepts every value that the proxy accepts. `FF_ENABLE_CIRCUIT_BREAKER` enables them; a percentage selects
/// Machines.
#[derive(Clone, Debug, Args)]
pub struct BreakerSettings {
    /// Consecutive failures that open a database's circuit breaker; 0: never.
    #[arg(long, env = "CIRCUIT_BREAKER_FAILURE_THRESHOLD", default_value = FAILURES, value_name = "FAILURES", value_parser = failures)]
    pub circuit_breaker_failure_threshold: u32,

    /// How long an open circuit breaker rejects calls, in milliseconds, unless the database responds sooner.
    #[arg(long, env = "CIRCUIT_BREAKER_TIMEOUT", default_value = OPEN_MS, value_name = "MILLISECONDS", value_parser = open_ms)]
    pub circuit_breaker_timeout: Millis,
}

const FAILURES: &str = "5";
const OPEN_MS: &str = "60000";

fn failures(text: &str) -> Result<u32, ConfigError> {
    filled(text, FAILURES).parse().map_err(|_| ConfigError::Count(text.to_owned()))
}

fn open_ms(text: &str) -> Result<Millis, ConfigError> {
    filled(text, OPEN_MS).parse()
}

/// Treats an empty variable as unset.
fn filled<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.trim().is_empty() { default } else { text.trim() }
}

/// Access to the documents API. Health and metrics need no credentials.
#[derive(Clone, Debug, Args)]
pub struct AuthSettings {
    /// `off` disables authentication; otherwise API keys or a JWT key must be configured.
    #[arg(long, env = "APP_AUTH", default_value = "on")]
    pub auth: AuthMode,

    /// API keys accepted in `X-Api-Key`: comma-separated `name:SHA-256 in hex`.
    #[arg(long, env = "APP_API_KEYS", hide_env_values = true)]
    pub api_keys: Option<Secret>,

    /// Secret of HS256 JWTs, at least 32 bytes.
    #[arg(long, env = "APP_JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: Option<Secret>,

    /// PEM file with the public key that verifies JWTs.
    #[arg(long, env = "APP_JWT_KEY_FILE", value_name = "FILE", value_parser = any_path)]
    pub jwt_key_file: Option<PathBuf>,

    /// Algorithm of the key file: RS256, ES256 or EdDSA. Tokens with another one are rejected.
    #[arg(long, env = "APP_JWT_ALGORITHM", default_value = "RS256", ignore_case = true)]
    pub jwt_algorithm: KeyAlgorithm,

    /// `aud` that a JWT must have; if unset, any audience or none is accepted.
    #[arg(long, env = "APP_JWT_AUDIENCE")]
    pub jwt_audience: Option<String>,

    /// `iss` that a JWT must have.
    #[arg(long, env = "APP_JWT_ISSUER")]
    pub jwt_issuer: Option<String>,
}

/// Settings of the audit log. `FF_ENABLE_AUDIT_TRAIL` enables the app's own entries.
#[derive(Clone, Debug, Args)]
pub struct AuditSettings {
    /// Key for pseudonyms, as `outrigger audit keys derive` prints it. With it, the app records in the audit log who
    /// reads and writes which document.
    #[arg(long, env = PSEUDONYM_KEY, hide_env_values = true)]
    pub audit_pseudonym_key: Option<Secret>,

    /// The audit log's master keys. They can also sign the proxy's entries, so the app should not have them. Used,
    /// with a warning, if there is no pseudonym key.
    #[arg(long, env = KEYS, hide_env_values = true)]
    pub audit_keys: Option<Secret>,
}

/// Whether the documents API authenticates clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    On,
    Off,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Json,
    Text,
}

/// Signature algorithm of JWTs that a public key verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyAlgorithm {
    #[value(name = "RS256")]
    Rs256,
    #[value(name = "ES256")]
    Es256,
    #[value(name = "EdDSA")]
    EdDsa,
}

/// Invalid settings. The text names the setting, its value and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("needs a duration with a unit such as \"250ms\", \"30s\" or \"5m\", got {0:?}")]
    Duration(String),
    #[error(
        "needs milliseconds such as \"60000\", or a duration with a unit such as \"60s\", more than zero; got {0:?}"
    )]
    Millis(String),
    #[error("needs a whole number such as \"5\", or \"0\" for never, got {0:?}")]
    Count(String),
    #[error("{variable}: {problem}\nhint: {hint}")]
    Setting { variable: &'static str, problem: String, hint: &'static str },
    #[error(transparent)]
    Flag(#[from] outrigger_policy::flags::FlagError),
}

impl ConfigError {
    /// An error with the setting, its problem, and a valid alternative.
    pub fn setting(variable: &'static str, problem: impl Into<String>, hint: &'static str) -> Self {
        Self::Setting { variable, problem: problem.into(), hint }
    }
}

fn any_path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

impl Settings {
    /// Reads the command line and the environment. An empty optional variable counts as unset, since supervisors and
    /// compose files cannot leave one out.
    ///
    /// # Errors
    /// An argument or variable cannot be parsed, or `--help` or `--version` was given; the error contains their text.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut settings = Self::try_parse_from(arguments)?;
        let some_path = |path: &PathBuf| !path.as_os_str().is_empty();
        let some_text = |text: &String| !text.trim().is_empty();
        settings.socket = settings.socket.filter(some_path);
        let (auth, audit) = (&mut settings.auth, &mut settings.audit);
        auth.api_keys = auth.api_keys.take().filter(|keys| !keys.expose().trim().is_empty());
        auth.jwt_secret = auth.jwt_secret.take().filter(|secret| !secret.expose().is_empty());
        auth.jwt_key_file = auth.jwt_key_file.take().filter(some_path);
        for keys in [&mut audit.audit_keys, &mut audit.audit_pseudonym_key] {
            *keys = keys.take().filter(|keys| !keys.expose().trim().is_empty());
        }
        auth.jwt_audience = auth.jwt_audience.take().filter(some_text);
        auth.jwt_issuer = auth.jwt_issuer.take().filter(some_text);
        Ok(settings)
    }

    /// Checks how the settings fit together.
    ///
    /// # Errors
    /// The first setting that contradicts another, with a hint.
    pub fn check(&self) -> Result<(), ConfigError> {
        let db = &self.database;
        if db.db_pool_min > db.db_pool_max {
            let problem = format!("{} is more than DB_POOL_MAX={}", db.db_pool_min, db.db_pool_max);
            return Err(ConfigError::setting("DB_POOL_MIN", problem, "lower the minimum or raise the maximum"));
        }
        let positive = [
            ("APP_REQUEST_TIMEOUT", self.request_timeout),
            ("DB_POOL_ACQUIRE_TIMEOUT", db.db_pool_acquire_timeout),
            ("DB_POOL_MAX_LIFETIME", db.db_pool_max_lifetime),
            ("DB_POOL_IDLE_TIMEOUT", db.db_pool_idle_timeout),
            ("DB_POOL_LEAK_AFTER", db.db_pool_leak_after),
            ("DB_CONNECT_TIMEOUT", db.db_connect_timeout),
            ("CHROMA_TIMEOUT", self.chroma.chroma_timeout),
        ];
        for (variable, span) in positive {
            if span.get().is_zero() {
                return Err(ConfigError::setting(
                    variable,
                    "must be more than zero",
                    "write \"250ms\", \"30s\" or \"5m\"",
                ));
            }
        }
        let name = &self.chroma.chroma_collection;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !(3..=512).contains(&name.len()) || !name.chars().all(allowed) {
            let problem = format!("ChromaDB does not take {name:?} as a collection's name");
            return Err(ConfigError::setting("CHROMA_COLLECTION", problem, "use 3 to 512 of a-z A-Z 0-9 . _ -"));
        }
        Ok(())
    }
}

/// Reads the feature flags of this process from the environment.
///
/// # Errors
/// Names the variable that cannot be parsed.
pub fn flags(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<(Feature, Flag)>, ConfigError> {
    Feature::ALL.into_iter().map(|feature| Ok((feature, Flag::default().overridden_by(feature, &variable)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &[&str]) -> Settings {
        Settings::read([&["outrigger-app"], arguments].concat().into_iter().map(OsString::from)).unwrap()
    }

    #[test]
    fn an_empty_variable_is_a_missing_one() {
        let settings = settings(&["--socket=", "--api-keys=", "--jwt-secret=", "--jwt-key-file=", "--jwt-issuer="]);
        assert_eq!(settings.socket, None);
        let auth = settings.auth;
        assert_eq!((auth.api_keys, auth.jwt_secret, auth.jwt_key_file, auth.jwt_issuer), (None, None, None, None));
    }

    #[test]
    fn the_breakers_variables_are_read_as_the_proxy_reads_them() {
        let read = |arguments: &[&str]| {
            let breaker = settings(arguments).breaker;
            (breaker.circuit_breaker_failure_threshold, breaker.circuit_breaker_timeout.get().as_millis())
        };
        assert_eq!(read(&[]), (5, 60_000));
        assert_eq!(read(&["--circuit-breaker-failure-threshold=0", "--circuit-breaker-timeout=250"]), (0, 250));
        assert_eq!(read(&["--circuit-breaker-failure-threshold=", "--circuit-breaker-timeout= "]), (5, 60_000));
        for bad in ["five", "-1", "4294967296"] {
            assert!(failures(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_minimum_above_the_maximum_is_rejected_with_a_hint() {
        let error = settings(&["--db-pool-min", "30"]).check().unwrap_err().to_string();
        assert_eq!(error, "DB_POOL_MIN: 30 is more than DB_POOL_MAX=20\nhint: lower the minimum or raise the maximum");
    }

    #[test]
    fn an_invalid_collection_name_is_rejected_at_start() {
        assert!(settings(&["--chroma-collection", "a b c"]).check().is_err());
        assert!(settings(&["--chroma-collection", "notes-1"]).check().is_ok());
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let text =
            format!("{:?}", settings(&["--database-url", "postgres://u:hunter2@h/d", "--jwt-secret", "hunter3"]));
        assert!(!text.contains("hunter"), "{text}");
    }

    #[test]
    fn a_flag_that_cannot_be_read_is_named() {
        let problem = flags(|name| (name == "FF_ENABLE_ENHANCED_POOLING").then(|| "maybe".to_owned())).unwrap_err();
        assert!(problem.to_string().starts_with("FF_ENABLE_ENHANCED_POOLING needs"));
    }
}
