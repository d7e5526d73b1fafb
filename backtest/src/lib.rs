//! `outrigger backtest`: recorded requests, replayed against other rules on a virtual clock.
//!
//! ```text
//! past.rs      a request of the past · source.rs: where they come from
//! survey.rs    the first reading: when, how many, how long the app took · order.rs: by the time at which they began
//! side.rs      a proxy with one file of rules: the limits, bans, circuit breakers and queue of the real one
//! replay.rs    the second reading: both files of rules, beside what was recorded
//! tally.rs     counts · report.rs: what they say · picture.rs: over time
//! ```
//!
//! Memory is bounded: by the kinds of requests, by those that are in flight at a time, and by the tables of the rules.

pub mod past;
pub mod picture;
pub mod replay;
pub mod report;
pub mod side;
pub mod source;

mod order;
mod survey;
mod tally;
