//! Every decision that Outrigger takes, without its sockets.
//!
//! The rule for this crate: no clock, no I/O, no locks, no randomness, no async. Time, chance and identity come in as
//! arguments, decisions go out as values, so that each one can be tested by calling it.
//!
//! Read in this order: [`priority`] (how important a request is), [`tier`] (what its client may multiply), [`flags`] (which
//! features are on, and for whom), [`limiter`] (how often), [`lease`] (how often on several Machines), [`concurrency`] (how
//! many at a time), [`admission`] (who waits, who goes), [`abuse`] (who is shut out), [`breaker`] (when to stop asking),
//! [`retry`] (when to ask again), [`affinity`] (which Machine keeps a session), [`audit`] (what is written down about it).

pub mod abuse;
pub mod admission;
pub mod affinity;
pub mod audit;
pub mod breaker;
pub mod concurrency;
pub mod flags;
pub mod lease;
pub mod limiter;
pub mod priority;
pub mod retry;
pub mod tier;
