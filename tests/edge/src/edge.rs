//! The public interface of an edge.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};

use crate::deploy::{self, DeployError, Strategy};
use crate::dns::{Dns, DnsFault};
use crate::machine::{Fleet, Machine, State};
use crate::settings::Settings;
use crate::shared::Shared;
use crate::snapshot::Snapshot;
use crate::{autostop, checks, server};

/// A running edge; dropping it ends it, with all its connections.
#[derive(Debug)]
pub struct Edge {
    shared: Arc<Shared>,
    address: SocketAddr,
    dns: Option<SocketAddr>,
}

impl Edge {
    /// Listens, without Machines. Deploys, autostop and autostart need a fleet.
    ///
    /// # Errors
    ///
    /// The edge cannot listen on an address.
    pub async fn start(settings: Settings, fleet: Option<Arc<dyn Fleet>>) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let dns = match settings.dns {
            Some(address) => Some(Dns::bind(address).await?),
            None => None,
        };
        let shared = Arc::new(Shared::new(settings, fleet));
        let dns_address = dns.as_ref().map(Dns::address);
        shared.spawn(server::listen(Arc::clone(&shared), listener));
        shared.spawn(sweep(Arc::clone(&shared)));
        shared.spawn(autostop::run(Arc::clone(&shared)));
        if let Some(dns) = dns {
            shared.spawn(dns.serve(Arc::clone(&shared)));
        }
        Ok(Self { shared, address, dns: dns_address })
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the DNS stand-in, if the settings enable it.
    pub fn dns(&self) -> Option<SocketAddr> {
        self.dns
    }

    /// Adds a Machine, not cordoned; replaces one with the same id.
    pub fn add(&self, machine: Machine, state: State) {
        add(&self.shared, machine, state, false);
    }

    /// Removes a Machine without a trace; unlike [`State::Destroyed`], routing knows at once.
    pub fn remove(&self, id: &str) {
        self.shared.registry.remove(id);
    }

    /// Stops new requests, once routing has heard of it. Source: docs:machines/api/machines-resource.html.markerb (facts: 7).
    /// False if there is no such Machine; the same holds for the next two.
    pub fn cordon(&self, id: &str) -> bool {
        self.shared.registry.cordon(id, true)
    }

    pub fn uncordon(&self, id: &str) -> bool {
        self.shared.registry.cordon(id, false)
    }

    /// Sets a Machine's state; the edge itself neither starts nor stops it. `Started` is a new run, with its grace period.
    pub fn set_state(&self, id: &str, state: State) -> bool {
        self.shared.registry.set_state(id, state)
    }

    /// Delivers all pending changes to routing and DNS. With a `propagation` of hours, a test controls what they know.
    pub fn settle(&self) {
        self.shared.registry.settle();
    }

    pub fn snapshot(&self) -> Snapshot {
        self.shared.registry.snapshot()
    }

    /// Waits until the snapshot matches; false if it does not within the limit.
    pub async fn until(&self, limit: Duration, mut look: impl FnMut(&Snapshot) -> bool) -> bool {
        let registry = &self.shared.registry;
        registry.until(Instant::now() + limit, || look(&registry.snapshot()).then_some(())).await.is_some()
    }

    /// Makes the DNS stand-in fail like this from now on.
    pub fn dns_fails(&self, fault: DnsFault) {
        self.shared.dns_fault.store(fault as u8, Ordering::Relaxed);
    }

    /// Brings all Machines to their next version, and waits for them.
    ///
    /// # Errors
    ///
    /// A Machine could not be started or stopped, or was not started or healthy in time.
    pub async fn deploy(&self, strategy: Strategy) -> Result<(), DeployError> {
        deploy::run(&self.shared, strategy).await
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// Closes connections to Machines that have been idle for a while.
async fn sweep(shared: Arc<Shared>) {
    let age = shared.settings.scaled(shared.settings.routing.pool_idle);
    loop {
        sleep((age / 4).max(Duration::from_millis(1))).await;
        if let Some(oldest) = Instant::now().checked_sub(age) {
            shared.pool.sweep(oldest);
        }
    }
}

/// Adds a Machine and starts its checks.
pub(crate) fn add(shared: &Arc<Shared>, machine: Machine, state: State, is_cordoned: bool) {
    let id = machine.id.clone();
    let birth = shared.registry.add(machine, state, is_cordoned);
    shared.spawn(checks::watch(Arc::clone(shared), id, birth));
}

/// An edge with its own runtime, for callers that are not async.
#[derive(Debug)]
pub struct Background {
    // Dropped first: its tasks end before their runtime does.
    edge: Edge,
    runtime: Runtime,
}

impl Background {
    /// # Errors
    ///
    /// The edge cannot listen on an address, or cannot start threads.
    pub fn start(settings: Settings, fleet: Option<Arc<dyn Fleet>>) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("edge").enable_all().build()?;
        let edge = runtime.block_on(Edge::start(settings, fleet))?;
        Ok(Self { edge, runtime })
    }

    /// See [`Edge::until`].
    pub fn until(&self, limit: Duration, look: impl FnMut(&Snapshot) -> bool) -> bool {
        self.runtime.block_on(self.edge.until(limit, look))
    }

    /// See [`Edge::deploy`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn deploy(&self, strategy: Strategy) -> Result<(), DeployError> {
        self.runtime.block_on(self.edge.deploy(strategy))
    }
}

impl Deref for Background {
    type Target = Edge;

    fn deref(&self) -> &Edge {
        &self.edge
    }
}
