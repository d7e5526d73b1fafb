//! TLS to the databases: one way to trust, the system's certificates.

use rustls::{ClientConfig, RootCertStore};

/// Whose certificates to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The system's, or those named by `SSL_CERT_FILE`.
    System,
    /// Nobody's: the address says that TLS is not used, and a machine without certificates must start all the same.
    Nobody,
}

/// There is nothing to verify a server with.
#[derive(Debug, thiserror::Error)]
#[error("this machine has no CA certificates to verify the server with; install ca-certificates or set SSL_CERT_FILE")]
pub struct NoRoots;

/// The client side of every TLS connection.
///
/// # Errors
/// [`NoRoots`] when the system's certificates are asked for and there are none.
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
