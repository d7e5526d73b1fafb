//! The program `outrigger`, by floors: each module knows only those before it.

pub(crate) use outrigger_mechanism as mechanism;
pub(crate) use outrigger_transport as transport;

pub mod engine;

pub mod http1;

pub mod http2;

pub mod accept;

pub mod run;

pub mod control;

pub mod start;

pub mod cli;
