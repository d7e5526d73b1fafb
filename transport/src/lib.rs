//! Connections: timers, the app's addresses, idle connections to it, single requests, and clients' connections.

pub mod app_pool;
pub mod ask;
pub mod body_memory;
pub mod client_stream;
pub mod http2;
pub mod timer;
pub mod upstream;
pub mod witness;
