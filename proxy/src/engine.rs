//! A request, the checks that it passes, and what is shared by all requests.

pub mod answer;
pub mod attempt_times;
pub mod attempts;
pub mod bounds;
pub mod claims;
pub mod condition;
pub mod connect;
pub mod exchange;
pub mod health;
pub mod history;
pub mod metrics;
pub mod notices;
pub mod pages;
pub mod pause;
pub mod receipts;
pub mod record;
pub mod rejection;
pub mod reply;
pub mod retries;
pub mod saved;
pub mod stages;
pub mod state;
pub mod steps;
pub mod traces;
pub mod traffic;
