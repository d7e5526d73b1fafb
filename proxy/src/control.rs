//! The admin listener and configuration reloads: everything that operators change and see while the process runs.

pub mod admin;
pub mod page;
pub mod probation;
pub mod reload;
pub mod status;
pub mod turns;
