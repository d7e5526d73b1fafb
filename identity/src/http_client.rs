//! The HTTP client for services that an operator names: where keys are published, and the collector of traces.

use std::sync::Arc;
use std::time::Duration;

/// Timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a URL cannot be asked at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// `https` without certificates to verify the server.
    #[error("this machine has no CA certificates to verify the server with")]
    NoRoots,
    /// The HTTP or TLS library failed to start.
    #[error("{0}")]
    Library(String),
}

/// A client that follows no redirects and uses no proxy. `timeout` is for a whole request.
///
/// # Errors
/// [`ClientError`].
pub fn client(has_tls: bool, timeout: Duration) -> Result<reqwest::Client, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    if has_tls {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(ClientError::NoRoots);
        }
    }
    let library = |e: &dyn std::error::Error| ClientError::Library(describe(e));
    // Chosen explicitly, independent of the process's default provider.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(|e| library(&e))?.with_root_certificates(roots).with_no_client_auth();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .pool_max_idle_per_host(0)
        .build()
        .map_err(|e| library(&e))
}

/// An error with its causes, in one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
