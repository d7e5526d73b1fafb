//! Tests of the edge in front of small Machines, one file for each guarantee.

#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test, and says what it did")]

mod autostop;
mod background;
mod bounds;
mod checks;
mod deploys;
mod dns;
mod fake;
mod headers;
mod replays;
mod routing;
mod streams;
