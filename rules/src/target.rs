//! Where a connection leads.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Unix(Arc<Path>),
    /// TCP.
    Tcp(SocketAddr),
}
