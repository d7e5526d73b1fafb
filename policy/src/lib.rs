//! Outrigger's decisions as pure functions and state machines, without sockets.
//!
//! This crate uses no clock, I/O, locks, randomness or async; `clippy.toml` bans them. Time, random numbers and client
//! identity are arguments, decisions are return values, so unit tests call each decision directly. Unless a module says
//! otherwise, times are `u64` nanoseconds on a monotonic clock.
//!
//! Reading order: [`priority`] (importance of a request), [`tier`] (multiplier of a client's rate limits), [`flags`]
//! (feature flags), [`limiter`] (rate limits), [`lease`] (rate limits shared by several Machines), [`concurrency`]
//! (adaptive concurrency limit), [`admission`] (permits and the fair queue), [`abuse`] (bans), [`breaker`] (circuit
//! breakers), [`retry`] (retry budget and backoff), [`latency`] (attempt timeouts and hedged requests), [`saved`] (state that
//! survives a restart), [`affinity`] (sticky sessions), [`audit`] (audit log events), [`supervisor`] (when an app is
//! restarted), [`probation`] (whether changed rules made it worse).

pub mod abuse;
pub mod admission;
pub mod affinity;
pub mod audit;
pub mod breaker;
pub mod concurrency;
pub mod flags;
pub mod hitters;
pub mod latency;
pub mod lease;
pub mod limiter;
pub mod networks;
pub mod priority;
pub mod probation;
pub mod retry;
pub mod saved;
pub mod supervisor;
pub mod tier;
