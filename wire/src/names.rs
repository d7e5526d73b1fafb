//! Header names that several modules use and that [`http::header`] lacks.

use http::HeaderName;

/// The request id, in requests and responses.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The remaining time, in milliseconds.
pub static X_REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// The addresses that a request passed through.
pub static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Tells the app the session's home Machine.
pub static X_OUTRIGGER_MACHINE: HeaderName = HeaderName::from_static("x-outrigger-machine");
/// The signed header of a request that one Machine sends to another.
pub static X_OUTRIGGER_HOP: HeaderName = HeaderName::from_static("x-outrigger-hop");
/// In the response of a peer that declines a request: the sender serves it itself.
pub static X_OUTRIGGER_REFUSED: HeaderName = HeaderName::from_static("x-outrigger-refused");
/// The client's address, from Fly's edge.
pub static FLY_CLIENT_IP: HeaderName = HeaderName::from_static("fly-client-ip");
/// The request id of Fly's edge, in every request through it.
pub static FLY_REQUEST_ID: HeaderName = HeaderName::from_static("fly-request-id");
/// In a response: asks Fly's edge to send the request to another Machine.
pub static FLY_REPLAY: HeaderName = HeaderName::from_static("fly-replay");
/// The caller's span (W3C Trace Context).
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
