//! Metrics of client connections.

use outrigger_metrics::{Declare, IntCounter, IntGauge, Result};

/// Metrics of client connections.
#[derive(Debug)]
pub struct ConnectionMetrics {
    /// Open ones.
    pub open: IntGauge,
    /// Accepted ones.
    pub accepted: IntCounter,
    /// Those closed to make room for others.
    pub closed_for_others: IntCounter,
    /// Those closed at once, for their address.
    pub denied: IntCounter,
    refused_streams: [IntCounter; 2],
}

impl ConnectionMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Connections and memory");
        Ok(Self {
            open: area
                .when("Is there room? Compare with `server.max_connections`.")
                .gauge("outrigger_open_connections", "Open client connections.")?,
            accepted: area
                .when("Many connections for few requests: clients do not keep them.")
                .counter("outrigger_connections_total", "Client connections accepted.")?,
            closed_for_others: area.when("It rises: idle clients hold most of `server.max_connections`.").counter(
                "outrigger_connections_evicted_total",
                "Idle client connections closed to make room for new ones, at max_connections or \
                 an address's share.",
            )?,
            denied: area.when("Clients cannot connect: do `server.allow` and `server.deny` say so?").counter(
                "outrigger_connections_denied_total",
                "Client connections closed at once, by `server.allow` and `server.deny`.",
            )?,
            refused_streams: area.when("HTTP/2 clients report REFUSED_STREAM.").counter_for_each(
                "outrigger_refused_streams_total",
                "HTTP/2 requests refused with REFUSED_STREAM, by bound: 100 of a connection, or an \
                 address's share.",
                "bound",
                ["connection", "address"],
            )?,
        })
    }

    /// Counts a request over HTTP/2 that was refused: by the bound of its connection, or of its address.
    pub fn refused_stream(&self, is_of_address: bool) {
        self.refused_streams[usize::from(is_of_address)].inc();
    }
}
