//! Names of headers that more than one module reads or writes, and that [`http::header`] does not have.

use http::HeaderName;

/// The request's name, in requests and responses.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The time that is left, in milliseconds.
pub static X_REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// The addresses that a request came through.
pub static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Tells the app which Machine keeps the session.
pub static X_OUTRIGGER_MACHINE: HeaderName = HeaderName::from_static("x-outrigger-machine");
/// The signed header of a request that one Machine sends to another.
pub static X_OUTRIGGER_HOP: HeaderName = HeaderName::from_static("x-outrigger-hop");
/// In the response of a peer that does not take what is sent to it: the sender serves it itself.
pub static X_OUTRIGGER_REFUSED: HeaderName = HeaderName::from_static("x-outrigger-refused");
/// The client's address, from Fly's edge.
pub static FLY_CLIENT_IP: HeaderName = HeaderName::from_static("fly-client-ip");
/// The request's name at Fly's edge, which every request that came by it has.
pub static FLY_REQUEST_ID: HeaderName = HeaderName::from_static("fly-request-id");
/// In a response: asks Fly's edge to send the request to another Machine.
pub static FLY_REPLAY: HeaderName = HeaderName::from_static("fly-replay");
