//! Properties that must hold for any bytes. A target panics if one does not. A test of the mechanism crate gives them the files
//! in `corpus/`, and changes of these.
//!
//! docs/fuzzing.md says which parsers each target reaches, for how long it has run, and what it has found.

mod app;
mod audit;
mod config;
mod credentials;
mod forwarding;
mod http1;
mod http2;
mod path;
mod signed;
mod small;
mod stored;

use outrigger_wire::scan::Limits;

pub use self::app::{exposition, redis_reply};
pub use self::audit::audit;
pub use self::config::{config, config_values};
pub use self::credentials::credentials;
pub use self::forwarding::forwarding;
pub use self::http1::{chunks, request_head, request_rewrite, response_rewrite};
pub use self::http2::{connection, frames, header_block};
pub use self::path::path;
pub use self::signed::signed;
pub use self::small::small_headers;
pub use self::stored::{snapshot, traffic_record};

const LIMITS: Limits = Limits { max_bytes: 4096, max_fields: 64 };

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its directory in `corpus/`.
    pub name: &'static str,
    /// Panics if a property does not hold for these bytes.
    pub run: fn(&[u8]),
    /// How many changes of each committed input the test tries: fewer if an input takes long.
    pub changes: u64,
}

impl Target {
    const fn new(name: &'static str, run: fn(&[u8]), changes: u64) -> Self {
        Self { name, run, changes }
    }
}

/// All targets, the parsers that the most people reach first.
pub const ALL: [Target; 19] = [
    Target::new("request_head", request_head, 300),
    Target::new("chunks", chunks, 300),
    Target::new("path", path, 100),
    Target::new("request_rewrite", request_rewrite, 300),
    Target::new("forwarding", forwarding, 300),
    Target::new("small_headers", small_headers, 300),
    Target::new("header_block", header_block, 300),
    Target::new("frames", frames, 300),
    Target::new("connection", connection, 300),
    Target::new("credentials", credentials, 300),
    Target::new("signed", signed, 40),
    Target::new("response_rewrite", response_rewrite, 300),
    Target::new("exposition", exposition, 40),
    Target::new("redis_reply", redis_reply, 300),
    Target::new("snapshot", snapshot, 300),
    Target::new("traffic_record", traffic_record, 300),
    Target::new("audit", audit, 5),
    Target::new("config", config, 5),
    Target::new("config_values", config_values, 300),
];

/// The first byte, and the rest.
fn with_choice(data: &[u8]) -> (usize, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest))
}

/// The text before the first byte `end`, and the text after it.
fn split_at_byte(data: &[u8], end: u8) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == end) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, b""),
    }
}
