//! The sections of the file, one module each: keys and defaults as written, the checked form, and the check in between.

pub mod abuse;
pub mod admin;
pub mod admission;
pub mod affinity;
pub mod app;
pub mod audit;
pub mod breaker;
pub mod client;
pub mod edge;
pub mod fallback;
pub mod faults;
pub mod flags;
pub mod headers;
pub mod health;
pub mod identity;
pub mod limits;
pub mod log;
pub mod peers;
pub mod receipts;
pub mod redis;
pub mod retry;
pub mod route_table;
pub mod routes;
pub mod run;
pub mod server;
pub mod tiers;
