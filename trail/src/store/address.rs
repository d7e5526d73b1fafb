//! The address of PostgreSQL, and connections to it.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How to write an address.
pub const HINT: &str =
    "write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with ?sslmode=disable for a server without TLS";

/// An address of PostgreSQL. `Debug` shows no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(Config);

/// Why an address cannot be used. Never contains the address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is not a URL of PostgreSQL.
    #[error("{0}")]
    Invalid(String),
    /// It has no host.
    #[error("names no host")]
    NoHost,
    /// It has no user.
    #[error("names no user")]
    NoUser,
    /// There are no certificates to verify the server with.
    #[error("no CA certificates on this machine; install ca-certificates or set SSL_CERT_FILE")]
    NoRoots,
    /// TLS cannot be used.
    #[error("TLS cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

impl Address {
    /// Reads a URL, or libpq's `key=value` form. Without `sslmode`, only a server on this machine is reached without TLS.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let url = url.trim();
        // tokio-postgres would take another scheme for a name, and its error would have the password.
        let is_url = url.split('=').next().is_some_and(|start| start.contains("://"));
        if is_url && !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(AddressError::Invalid("it does not begin with postgres://".to_owned()));
        }
        // The certificate is always verified, so libpq's stricter names mean what `require` means here.
        let url = url.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
        let mut config: Config = url.parse().map_err(|e: tokio_postgres::Error| AddressError::Invalid(describe(&e)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(AddressError::NoHost);
        }
        if config.get_user().is_none() {
            return Err(AddressError::NoUser);
        }
        if config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(name) if name.contains('@'))) {
            return Err(AddressError::Invalid("an `@` in user or password is written as %40".to_owned()));
        }
        // Never `prefer`: a machine in the middle could say that the server has no TLS.
        if config.get_ssl_mode() == SslMode::Prefer {
            let addresses = config.get_hostaddrs();
            let is_here = if addresses.is_empty() {
                config.get_hosts().iter().all(is_local)
            } else {
                addresses.iter().all(std::net::IpAddr::is_loopback)
            };
            config.ssl_mode(if is_here { SslMode::Disable } else { SslMode::Require });
        }
        Ok(Self(config))
    }

    /// The client's configuration, with `name` as the application.
    pub fn config(&self, name: &str, connect_timeout: Duration) -> Config {
        let mut config = self.0.clone();
        config
            .application_name(name)
            .connect_timeout(connect_timeout)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(10));
        config
    }

    /// Whether connections are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.0.get_ssl_mode() == SslMode::Require
    }

    /// How connections are encrypted: verified with the system's certificates, or those in `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// There are no certificates.
    pub fn tls(&self) -> Result<MakeRustlsConnect, AddressError> {
        let mut roots = rustls::RootCertStore::empty();
        if self.is_encrypted() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(AddressError::NoRoots);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(MakeRustlsConnect::new(tls.with_root_certificates(roots).with_no_client_auth()))
    }
}

/// The hosts, without user and password.
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts: Vec<_> = self
            .0
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        f.write_str(&hosts.join(","))
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

/// An error with its causes, on one line: tokio-postgres alone displays only "db error".
pub fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_server_is_reached_without_tls_unless_it_is_required() {
        let encrypted = |url| Address::parse(url).unwrap().is_encrypted();
        assert!(!encrypted("postgres://app@127.0.0.1:5432/app"));
        assert!(!encrypted("postgres://app@localhost/app"));
        assert!(!encrypted("postgres://app@db.example/app?sslmode=disable"));
        assert!(encrypted("postgres://app@db.example/app"));
        assert!(encrypted("postgres://app@localhost/app?sslmode=verify-full"));
        assert!(encrypted("postgres://app@localhost/app?hostaddr=192.0.2.1"));
        assert!(encrypted("hostaddr=192.0.2.1 user=app"));
        assert!(!encrypted("hostaddr=127.0.0.1 user=app"));
        assert!(encrypted("host=db.example user=app password=a://b"));
        // With a newline, as secrets in files have one.
        assert!(!encrypted("postgres://app@localhost/app\n"));
    }

    #[test]
    fn an_unusable_address_is_rejected_without_its_password() {
        for url in [
            "not a url",
            "postgres://",
            "postgres://h/app",
            "postgres://app:hunter2@h:x/app",
            "postgres://app@h/app?sslmode=maybe",
            "\"postgres://app:hunter2@h/app?sslmode=disable\"",
            "postgresql+psycopg://app:hunter2@h/app?sslmode=require",
            "mysql://app:hunter2@h/app?x=y",
            "postgres://app:pass@hunter2@h/app",
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(!error.is_empty() && !error.contains("hunter2"), "{error}");
        }
        let address = Address::parse("postgres://app:hunter2@h/app").unwrap();
        assert!(!format!("{address:?}").contains("hunter2"));
    }
}
