//! Who asks: credentials that can be verified, the client that limits and bans know, and what Machines sign for each other.
//!
//! ```text
//! credentials   which user or key a request is from      jwt, jwks, keys   the three kinds of credentials     cache   bounded memory
//! verified      who was verified, or why not             client            who a request counts for           hash    what stands for it
//! signing       HMAC of cookies, replays and hops        this              this Machine's name and keys       clock   seconds since 1970
//! ```

pub mod cache;
pub mod client;
pub mod clock;
pub mod credentials;
pub mod hash;
pub mod jwks;
pub mod jwt;
pub mod keys;
pub mod signing;
pub mod this;
pub mod verified;
