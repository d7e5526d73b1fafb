//! The destination of a connection.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// The destination of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Unix(Arc<Path>),
    /// TCP.
    Tcp(SocketAddr),
}
