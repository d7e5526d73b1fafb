//! State that all tasks of one edge share.

use std::future::Future;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::code::Code;
use crate::machine::{Fleet, Machine};
use crate::registry::Registry;
use crate::settings::Settings;
use crate::upstream::Pool;

pub(crate) struct Shared {
    pub(crate) settings: Arc<Settings>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) pool: Pool,
    pub(crate) fleet: Option<Arc<dyn Fleet>>,
    pub(crate) dns_fault: AtomicU8,
    tasks: Mutex<JoinSet<()>>,
    runtime: Handle,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl Shared {
    /// Its tasks run on the runtime in which this is called, even for callers elsewhere.
    pub(crate) fn new(settings: Settings, fleet: Option<Arc<dyn Fleet>>) -> Self {
        let settings = Arc::new(settings);
        let can_wake = settings.autostop.starts && fleet.is_some();
        Self {
            registry: Arc::new(Registry::new(Arc::clone(&settings), can_wake)),
            settings,
            pool: Pool::default(),
            fleet,
            dns_fault: AtomicU8::new(0),
            tasks: Mutex::new(JoinSet::new()),
            runtime: Handle::current(),
        }
    }

    /// Runs a task that ends with the edge at the latest.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.runtime);
    }

    pub(crate) fn end(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// Starts a Machine that `pick` has marked as starting. Source: docs:blueprints/connecting-to-user-machines.html.md (facts:
    /// 2.3).
    pub(crate) fn wake(self: &Arc<Self>, machine: Machine) {
        let shared = Arc::clone(self);
        self.spawn(async move {
            let started = match &shared.fleet {
                Some(fleet) => fleet.start(&machine).await.ok(),
                None => None,
            };
            match started {
                Some(machine) => {
                    shared.registry.started(&machine);
                }
                None => {
                    shared.registry.count(Code::WakeFailed);
                    shared.registry.start_failed(&machine.id);
                }
            }
        });
    }
}
