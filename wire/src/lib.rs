//! HTTP at the byte level: parsing and checking messages, and writing them for the next hop.
//!
//! No I/O, no locks and no async: bytes in, verdicts and bytes out, so every module can be fuzzed. These modules read a
//! clock or generate random numbers: [`date`], [`request_id`], [`random`], [`retry_after`].
//!
//! ```text
//! scan        end of the head, length of the body, malformed input     chunks      chunked bodies
//! request     the borrowed request that every check reads              names       header names of our own and of Fly
//! path        the ways in which an app may read a path                 cookies     the session cookie in header values
//! client_address   the header that names the client, and its senders   via         `Via` and `CDN-Loop`
//! headers     which headers pass, in both directions: the table        sieve       which senders may set a request header
//! forwarding  which headers are added for the app                      trace_context  W3C Trace Context
//! http2       frames and compressed header sections
//! rewrite     header sections from one buffer into another             ratelimit   `RateLimit` of the app and of the proxy
//! ```

pub mod accept;
pub mod authority;
pub mod chunks;
pub mod client_address;
pub mod cookies;
pub mod date;
pub mod forwarding;
pub mod headers;
pub mod http2;
pub mod malformed;
pub mod names;
pub mod path;
pub mod random;
pub mod ratelimit;
pub mod request;
pub mod request_id;
pub mod retry_after;
pub mod rewrite;
pub mod scan;
pub mod sieve;
mod structured;
pub mod trace_context;
pub mod via;
