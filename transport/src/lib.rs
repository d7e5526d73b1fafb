//! Connections: timers, the app's addresses, idle connections to it, single requests, and the client's connection as Pingora sees it.

pub mod app_pool;
pub mod ask;
pub mod client_stream;
pub mod timer;
pub mod upstream;
pub mod witness;
