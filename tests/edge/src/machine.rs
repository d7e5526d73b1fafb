//! What a Machine is, and how the caller's real ones are started and stopped.

use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;

use crate::settings::Stop;

/// What is fixed about a Machine while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub id: String,
    pub region: String,
    /// `FLY_MACHINE_VERSION`: another with each update in place.
    pub version: u64,
    /// What the edge connects to.
    pub public: SocketAddr,
    /// What the DNS says. Machines of one laptop have 127.0.0.2, 127.0.0.3 and so on, with the same port.
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

/// What the service check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not checked since it started.
    Pending,
    Passing,
    Failing,
}

/// The caller's real processes. Each call returns when what it says is done, or with the reason why it cannot be.
#[async_trait]
pub trait Fleet: Send + Sync + 'static {
    /// Another Machine of this region and version: its id and addresses. It does not run yet.
    async fn create(&self, region: &str, version: u64) -> Result<Machine, FleetError>;

    /// Runs it, or lets it run on when it was suspended; returns once it runs, whether or not it is healthy. The addresses of
    /// the answer count from now on.
    async fn start(&self, machine: &Machine) -> Result<Machine, FleetError>;

    /// Sends the signal, waits for the end of the process, and forces it after the timeout. One that does not run is stopped already.
    async fn stop(&self, machine: &Machine, how: Stop) -> Result<(), FleetError>;

    /// Freezes it with all that is in its memory.
    async fn suspend(&self, machine: &Machine) -> Result<(), FleetError>;

    /// Takes away what is left of a stopped Machine.
    async fn destroy(&self, machine: &Machine) -> Result<(), FleetError>;
}

/// Why a Machine could not be started, stopped or made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FleetError(pub String);
