//! Metrics of peers.

use outrigger_metrics::{Declare, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Result};

use crate::peers::hop::{HopRefused, Kind};
use crate::peers::{Peers, Standing};

/// The result of sending a request to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentOn {
    /// The peer responded.
    Answered,
    /// The peer declined it.
    Refused,
    /// The peer cannot be reached.
    Unreachable,
    /// The connection broke, or the response was invalid.
    Broken,
    /// The response was late.
    Late,
}

impl SentOn {
    const ALL: [Self; 5] = [Self::Answered, Self::Refused, Self::Unreachable, Self::Broken, Self::Late];

    const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Late => "late",
        }
    }
}

/// Metrics of peers.
#[derive(Debug)]
pub struct PeerMetrics {
    sent: IntCounterVec,
    received: IntCounterVec,
    refused: [IntCounter; HopRefused::ALL.len()],
    states: IntGaugeVec,
    machines: IntGauge,
    ready: IntGauge,
    /// Up and down.
    scaling: [IntCounter; 2],
}

impl PeerMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Machines and sessions");
        let metrics = Self {
            sent: area
                .when("Failover or sessions do not work: what do peers respond?")
                .of("kind", Kind::CARRYING.map(Kind::name))
                .of("outcome", SentOn::ALL.map(SentOn::name))
                .counters(
                    "outrigger_peer_requests_total",
                    "Requests sent to a peer, for their session or because the local app cannot serve \
                     them.",
                )?,
            received: area
                .when("Uneven load: how much comes from other Machines?")
                .of("kind", Kind::CARRYING.map(Kind::name))
                .counters("outrigger_peer_requests_received_total", "Requests received from peers.")?,
            refused: area
                .when("Any increase: keys or clocks of the Machines differ, or someone forges requests.")
                .counter_for_each(
                    "outrigger_peer_requests_refused_total",
                    "Requests that the peer listener rejected: not signed for this Machine, altered, \
                     stale or used.",
                    "why",
                    HopRefused::ALL.map(HopRefused::name),
                )?,
            states: area
                .when("A Machine gets no failover traffic: how do the others see it?")
                .of("state", Standing::ALL.map(Standing::name))
                .gauges("outrigger_peers", "Peers, by state.")?,
            machines: area
                .when("Is there room? It falls: a Machine stopped.")
                .gauge_at_one("outrigger_machines", "Known Machines that are started, this one included.")?,
            ready: area
                .when("Is there room? Below `outrigger_machines`, some take no failover traffic.")
                .gauge_at_one("outrigger_machines_ready", "Machines that are ready for requests, this one included.")?,
            scaling: area.when("What changed? Machines come or go.").counter_for_each(
                "outrigger_scaling_events_total",
                "Machines that this one saw appear (up) or disappear (down).",
                "direction",
                ["up", "down"],
            )?,
        };
        for kind in Kind::CARRYING {
            // Create all series at the start: the first increment of a new one would not be seen as an increase.
            SentOn::ALL.iter().for_each(|on| drop(metrics.sent.with_label_values(&[kind.name(), on.name()])));
        }
        Ok(metrics)
    }

    /// Counts a request sent to a peer.
    pub fn sent(&self, kind: Kind, outcome: SentOn) {
        self.sent.with_label_values(&[kind.name(), outcome.name()]).inc();
    }

    /// Counts a request from a peer.
    pub fn received(&self, kind: Kind) {
        self.received.with_label_values(&[kind.name()]).inc();
    }

    /// Counts a request that the listener for peers rejected.
    pub fn refused(&self, why: HopRefused) {
        self.refused[why as usize].inc();
    }

    /// Machines that this one saw appear, and disappear.
    pub fn scaled(&self) -> (u64, u64) {
        let [up, down] = &self.scaling;
        (up.get(), down.get())
    }

    /// Shows the number of Machines. A change is a scaling event, except on the first look.
    pub fn show(&self, peers: &Peers, is_first_look: bool) {
        let (known, ready) = peers.machines();
        for standing in Standing::ALL {
            let count = peers.seen().peers.iter().filter(|peer| peer.standing() == standing).count();
            self.states.with_label_values(&[standing.name()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let (before, known) = (self.machines.get(), i64::from(known));
        self.machines.set(known);
        self.ready.set(ready.into());
        if is_first_look {
            return;
        }
        for (direction, change) in self.scaling.iter().zip([known - before, before - known]) {
            direction.inc_by(u64::try_from(change).unwrap_or(0));
        }
        if known != before {
            let direction = if known > before { "up" } else { "down" };
            tracing::info!(event = "scaling", direction, before, machines = known, "there are {known} Machines now");
        }
    }
}
