//! TLS to the databases, verified with the system's certificates.

use rustls::{ClientConfig, RootCertStore};

/// Which CA certificates to trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The system's, or those in `SSL_CERT_FILE`.
    System,
    /// None, for addresses without TLS: the app must start on a machine without CA certificates.
    Nobody,
}

/// There are no CA certificates to verify a server with.
#[derive(Debug, thiserror::Error)]
#[error("this machine has no CA certificates to verify the server with; install ca-certificates or set SSL_CERT_FILE")]
pub struct NoRoots;

/// The client configuration of TLS connections.
///
/// # Errors
/// [`NoRoots`] if the system's certificates are requested and there are none.
pub fn client_config(trust: Trust) -> Result<ClientConfig, NoRoots> {
    let mut roots = RootCertStore::empty();
    if trust == Trust::System {
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "a CA certificate of this machine cannot be read");
        }
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            return Err(NoRoots);
        }
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}
