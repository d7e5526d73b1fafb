//! The edge in front of small Machines, one file for each of its promises.

mod autostop;
mod bounds;
mod checks;
mod deploys;
mod dns;
mod fake;
mod headers;
mod program;
mod replays;
mod routing;
mod streams;
