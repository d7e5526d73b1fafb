//! `[client]`: what a client may send, and how slowly.

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

/// What a client may send, and how slowly.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// From a request's first byte (or a new connection's start) to the end of its head. Later: 408 and close.
    pub head_timeout: Text<Span>,
    /// The largest head, request line and fields together. Larger: 431 and close. At most 1MiB.
    pub max_head: Text<Size>,
    /// The most fields in a head. More: 431 and close.
    #[schemars(range(min = 1, max = 256))]
    pub max_fields: u16,
    /// The memory that unfinished heads may hold together; one address may hold a quarter of it. At least 1MiB.
    pub max_unfinished_heads: Text<Size>,
    /// The largest body, or `"off"` for no bound. Larger: 413. A route may say otherwise.
    pub max_body: Text<OptionalSize>,
    /// How long a connection may rest between two requests.
    pub idle_timeout: Text<Span>,
    /// How long a request's body may pause, and, with a second more for each 500 bytes, how long one that says that it is no longer
    /// than 64 KiB may take in all. Longer: 408 and close.
    pub body_timeout: Text<Span>,
    /// Memory for request bodies that have not arrived whole or wait for their turn, of all clients together. An address gets at
    /// most half of what is free. More: 503. At least 1MiB.
    pub body_memory: Text<Size>,
    /// How long a client may take no byte of an answer.
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
