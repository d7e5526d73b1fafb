//! One edge, as its user has it.

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

/// A running edge; ended when dropped, with all its connections.
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
    /// An address cannot be listened on.
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

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the DNS stand-in is, if the settings want one.
    pub fn dns(&self) -> Option<SocketAddr> {
        self.dns
    }

    /// Another Machine, not cordoned; it replaces one of the same id.
    pub fn add(&self, machine: Machine, state: State) {
        add(&self.shared, machine, state, false);
    }

    /// Takes a Machine away as if it had never been; unlike [`State::Destroyed`], routing knows at once.
    pub fn remove(&self, id: &str) {
        self.shared.registry.remove(id);
    }

    /// No new requests, once routing has heard of it. Source: docs:machines/api/machines-resource.html.markerb (facts: 7).
    /// False if there is no such Machine; so with the two that follow.
    pub fn cordon(&self, id: &str) -> bool {
        self.shared.registry.cordon(id, true)
    }

    pub fn uncordon(&self, id: &str) -> bool {
        self.shared.registry.cordon(id, false)
    }

    /// What has become of a Machine; the edge itself neither starts nor stops it. Started is a new run, with its grace period.
    pub fn set_state(&self, id: &str, state: State) -> bool {
        self.shared.registry.set_state(id, state)
    }

    /// Routing and DNS hear at once all that is on its way. With a `propagation` of hours, a test says what has been heard of.
    pub fn settle(&self) {
        self.shared.registry.settle();
    }

    pub fn snapshot(&self) -> Snapshot {
        self.shared.registry.snapshot()
    }

    /// Waits until the snapshot is so; false if it is not within the limit.
    pub async fn until(&self, limit: Duration, mut look: impl FnMut(&Snapshot) -> bool) -> bool {
        let registry = &self.shared.registry;
        registry.until(Instant::now() + limit, || look(&registry.snapshot()).then_some(())).await.is_some()
    }

    /// From now on the DNS stand-in fails like this.
    pub fn dns_fails(&self, fault: DnsFault) {
        self.shared.dns_fault.store(fault as u8, Ordering::Relaxed);
    }

    /// Brings all Machines to their next version, and waits until they are there.
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

/// Closes connections to Machines that were not used for a while.
async fn sweep(shared: Arc<Shared>) {
    let age = shared.settings.scaled(shared.settings.routing.pool_idle);
    loop {
        sleep((age / 4).max(Duration::from_millis(1))).await;
        if let Some(oldest) = Instant::now().checked_sub(age) {
            shared.pool.sweep(oldest);
        }
    }
}

/// Adds a Machine and watches over it.
pub(crate) fn add(shared: &Arc<Shared>, machine: Machine, state: State, is_cordoned: bool) {
    let id = machine.id.clone();
    let birth = shared.registry.add(machine, state, is_cordoned);
    shared.spawn(checks::watch(Arc::clone(shared), id, birth));
}

/// An edge with a runtime of its own, for callers that are not async.
#[derive(Debug)]
pub struct Background {
    // Dropped first: its tasks are ended before their runtime is.
    edge: Edge,
    runtime: Runtime,
}

impl Background {
    /// # Errors
    ///
    /// An address cannot be listened on, or there are no threads.
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
