//! What a developer's machine needs around Outrigger: databases, tools, free ports, processes that end with us.
//!
//! `cargo xtask` is built on it, and so are the end-to-end tests. No async, hardly a dependency.

pub mod chroma;
pub mod debian;
pub mod error;
pub mod http;
pub mod npm;
pub mod paths;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod python;
pub mod redis;
pub mod reference;
pub mod service;
pub mod tools;
pub mod wait;

pub use chroma::Chroma;
pub use error::{Error, Result};
pub use postgres::Postgres;
pub use process::{Process, Program, Signal};
pub use redis::Redis;
pub use service::Service;
pub use tools::Tool;

/// Tells the person at the terminal what is being done, on standard error.
pub fn say(what: impl std::fmt::Display) {
    eprintln!("outrigger: {what}");
}
