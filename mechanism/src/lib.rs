//! Mechanisms that protect the app and its clients: one module each, with its own state.

pub mod abuse;
pub mod access_log;
pub mod affinity;
pub mod audit;
pub mod breakers;
pub mod claims;
pub mod clock;
pub mod connections;
pub mod evidence;
pub mod exposition;
pub mod gate;
pub mod health;
pub mod limits;
pub mod log;
pub mod machines;
pub mod outcome;
pub mod peers;
pub mod saved;
pub mod tally;
pub mod traces;
pub mod traffic;
