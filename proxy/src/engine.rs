//! Decisions about a request that are the same on both ways through the proxy.

pub mod answer;
pub mod attempts;
pub mod steps;
