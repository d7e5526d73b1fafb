//! Identifies clients: verifiable credentials, the client's identity in limits and bans, and signatures between Machines.
//!
//! ```text
//! credentials   the user or key of a request     jwt, jwks, keys   the three kinds of credentials   cache   bounded cache
//! verified      verified identities, or errors   client            the client of a request          hash    hashes of clients
//! signing       HMAC of cookies, replays, hops   this              this Machine's name and keys     clock   seconds since 1970
//! http_client   asks services that an operator names
//! ```

pub mod cache;
pub mod client;
pub mod clock;
pub mod credentials;
pub mod hash;
pub mod http_client;
pub mod jwks;
pub mod jwt;
pub mod keys;
pub mod signing;
pub mod this;
pub mod verified;
