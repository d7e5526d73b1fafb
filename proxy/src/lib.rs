//! The program `outrigger`, by floors: each module knows only those before it.

pub mod transport;

pub mod mechanism;

pub mod engine;

pub mod general;
pub mod http1;

pub mod accept;

pub mod control;

pub mod start;

pub mod cli;
