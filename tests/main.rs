//! Outrigger's guarantees, tested with the real programs: one file for each kind.
//!
//! `cargo xtask test` runs all of them. Every test starts its own proxy and its own app, so they can run concurrently.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a step that fails is a failed test, and says what it did"
)]

mod backend;
mod fleet;
mod harness;
mod house;
mod openmetrics;
mod promtool;

mod abuse;
mod addresses;
mod admin;
mod audit;
mod audit_commands;
mod audit_docs;
mod audit_follow;
mod audit_shipping;
mod audit_store;
mod audit_tampering;
mod backtest;
mod bad_input;
mod breaker;
mod check;
mod compatibility;
mod databases;
mod defaults;
mod dependencies;
mod deploy_autoscaler;
mod deploy_dist;
mod deploy_docker;
mod deploy_fly;
mod deploy_monitoring;
mod deploy_supervisor;
mod deploy_up;
mod diff;
mod differential;
mod drain;
mod examples;
mod failures;
mod guarded_reload;
mod h2_conformance;
mod h2c;
mod health_and_metrics;
mod identity;
mod included;
mod keep_alive_race;
mod limit_headers;
mod limits;
mod live_config;
mod machines;
mod memory;
mod one_against_another;
mod overload;
mod page;
mod pages;
mod paths;
mod pause;
mod peers;
mod protocol;
mod receipts;
mod recovery;
mod run;
mod schema;
mod sessions;
mod shared_limits;
mod slow_attempts;
mod state;
mod status;
mod streams;
mod traces;
mod tracing;
mod uploads;
mod upstream;
mod websocket;
