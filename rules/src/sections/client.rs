//! `[client]`: bounds on what clients send.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{OptionalSize, OrOff, Size, Span, Text};

const fn seconds(n: u64) -> Text<Span> {
    Text(Span(Duration::from_secs(n)))
}

const fn bytes(n: u64) -> Text<Size> {
    Text(Size(n))
}

/// Bounds on what clients send.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// From a request's first byte (or a new connection's start) to the end of its head. Later: 408 and close.
    pub head_timeout: Text<Span>,
    /// Maximum size of a head, request line and header section together. Larger: 431 and close. At most 1MiB.
    pub max_head: Text<Size>,
    /// Maximum number of headers. More: 431 and close.
    #[schemars(range(min = 1, max = 256))]
    pub max_fields: u16,
    /// Memory for all unfinished heads together; one address may use a quarter of it. At least 1MiB.
    pub max_unfinished_heads: Text<Size>,
    /// Maximum size of a body, or `"off"` for no limit. Larger: 413. A route may override it.
    pub max_body: Text<OptionalSize>,
    /// How long a connection may be idle between two requests.
    pub idle_timeout: Text<Span>,
    /// Longest pause within a request's body. Plus one second for each 500 bytes, also the total time for a body that
    /// declares at most 64 KiB. Longer: 408 and close.
    pub body_timeout: Text<Span>,
    /// Memory for request bodies of all clients that are incomplete or wait in the queue. One address gets at most half of
    /// the free part. More: 503. At least 1MiB.
    pub body_memory: Text<Size>,
    /// How long a client may accept no byte of a response.
    pub write_timeout: Text<Span>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            head_timeout: seconds(10),
            max_head: bytes(32 << 10),
            max_fields: 100,
            max_unfinished_heads: bytes(64 << 20),
            max_body: Text(OrOff(Some(bytes(2 << 30).0))),
            idle_timeout: seconds(75),
            body_timeout: seconds(30),
            body_memory: bytes(64 << 20),
            write_timeout: seconds(60),
        }
    }
}
