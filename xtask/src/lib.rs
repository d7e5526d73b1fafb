//! Sets up a developer's machine around Outrigger: databases, tools, free ports, and processes that end with their
//! parent.
//!
//! Used by `cargo xtask` and by the end-to-end tests. No async, few dependencies.

pub mod chroma;
pub mod debian;
pub mod dist;
pub mod error;
pub mod floors;
pub mod http;
pub mod language;
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
pub mod sizes;
pub mod tools;
pub mod wait;

pub use chroma::Chroma;
pub use error::{Error, Result};
pub use postgres::Postgres;
pub use process::{Process, Program, Signal};
pub use redis::Redis;
pub use service::Service;
pub use tools::Tool;

/// Prints progress to standard error.
pub fn say(what: impl std::fmt::Display) {
    eprintln!("outrigger: {what}");
}
