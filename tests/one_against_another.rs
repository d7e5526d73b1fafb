//! For each resource that requests share, one client takes as much of it as it can get, and another client must not notice.
//! `docs/security.md` has the figures that these tests print.

mod admin_connections;
mod audit;
mod bans;
mod breaker;
mod connections;
mod descriptors;
mod limits;
mod log_queue;
mod metrics_page;
mod page;
mod peers_listener;
mod pools;
mod queue;
mod receipts;
mod reload;
mod retries;
mod stalled_uploads;
mod state;
mod streams;
mod traffic_record;
mod uploads;
