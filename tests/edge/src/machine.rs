//! A Machine's data, and how the caller's real ones are started and stopped.

use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;

use crate::settings::Stop;

/// A Machine's properties that are fixed while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub id: String,
    pub region: String,
    /// `FLY_MACHINE_VERSION`: changes with each update in place.
    pub version: u64,
    /// The address to which the edge connects.
    pub public: SocketAddr,
    /// The address in DNS. Machines of one laptop have 127.0.0.2, 127.0.0.3 and so on, with the same port.
    pub private: IpAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Created,
    Started,
    Stopped,
    Suspended,
    Destroyed,
}

/// Result of the service check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not checked since it started.
    Pending,
    Passing,
    Failing,
}

/// The caller's real processes. Each call returns when its action is complete, or with the reason why it failed.
#[async_trait]
pub trait Fleet: Send + Sync + 'static {
    /// Creates a Machine of this region and version, not running: its id and addresses.
    async fn create(&self, region: &str, version: u64) -> Result<Machine, FleetError>;

    /// Starts a Machine, or resumes a suspended one; returns once it runs, whether or not it is healthy. The returned addresses
    /// apply from now on.
    async fn start(&self, machine: &Machine) -> Result<Machine, FleetError>;

    /// Sends the signal, waits for the process to end, and kills it after the timeout. Succeeds if the Machine is not running.
    async fn stop(&self, machine: &Machine, how: Stop) -> Result<(), FleetError>;

    /// Freezes it with its memory.
    async fn suspend(&self, machine: &Machine) -> Result<(), FleetError>;

    /// Removes a stopped Machine's data.
    async fn destroy(&self, machine: &Machine) -> Result<(), FleetError>;
}

/// Why a Machine could not be started, stopped or created.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FleetError(pub String);
