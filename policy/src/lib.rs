//! Every decision that Outrigger takes, without its sockets.
//!
//! The rule for this crate: no clock, no I/O, no locks, no randomness, no async. Time, chance and identity come in as
//! arguments, decisions go out as values, so that each one can be tested by calling it.
//!
//! Read in this order: [`priority`] (how important a request is), [`flags`] (which features are on, and for whom).

pub mod flags;
pub mod priority;
