//! This worker's HTTP/2 connections, for the requests that Pingora reads from them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use pingora::protocols::SocketDigest;

use crate::mechanism::connections::ConnectionState;

thread_local! {
    /// By [`crate::transport::client_stream::ClientStream::key`].
    static CONNECTIONS: RefCell<HashMap<usize, Arc<ConnectionState>>> = RefCell::default();
}

/// Adds a connection.
pub fn opened(key: usize, connection: Arc<ConnectionState>) {
    CONNECTIONS.with_borrow_mut(|connections| _ = connections.insert(key, connection));
}

/// Removes a connection.
pub fn closed(key: usize) {
    CONNECTIONS.with_borrow_mut(|connections| _ = connections.remove(&key));
}

/// The connection with this socket digest.
pub fn connection(digest: &Arc<SocketDigest>) -> Option<Arc<ConnectionState>> {
    CONNECTIONS.with_borrow(|connections| connections.get(&(Arc::as_ptr(digest) as usize)).cloned())
}
