//! Metrics of connecting.

use outrigger_metrics::{Declare, IntCounter, Result};

use crate::upstream::exhaustion::Resource;

/// Metrics of connecting.
#[derive(Debug)]
pub struct UpstreamMetrics {
    exhausted: [IntCounter; Resource::ALL.len()],
    /// Lookups of a name of the configuration that found no address.
    pub names_failed: IntCounter,
}

impl UpstreamMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Attempts at the app");
        Ok(Self {
            exhausted: area.when("Any increase: this host needs more descriptors, ports or memory.").counter_for_each(
                "outrigger_own_resources_exhausted_total",
                "Connections that could not be opened or accepted because this host lacks a resource.",
                "resource",
                Resource::ALL.map(Resource::name),
            )?,
            names_failed: area.when("The app is unreachable and is configured by name.").counter(
                "outrigger_name_lookups_failed_total",
                "Lookups of the names in app.address and app.metrics that found no address.",
            )?,
        })
    }

    /// Counts that this host lacks a resource.
    pub fn exhausted(&self, resource: Resource) {
        self.exhausted[resource as usize].inc();
    }
}
