//! What operators change and see while the process runs.

pub mod admin;
pub mod reload;
