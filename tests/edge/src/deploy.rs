//! Deploys as flyctl does them, with the caller's real processes.
//!
//! Source: flyctl:internal/command/deploy/strategy_bluegreen.go, machines_deploymachinesapp.go, plan.go, machines.go (facts:
//! 1.1, 5, 7).

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::time::{Instant, sleep, timeout_at};

use crate::edge;
use crate::machine::{Fleet, FleetError, Health, Machine, State};
use crate::settings::{Removal, Stop};
use crate::shared::Shared;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Updates each Machine in place, which keeps its id; as many at a time as `max_unavailable` says. No Machine is cordoned.
    Rolling,
    /// Creates as many new Machines; once all are healthy they take over, and the old ones end.
    BlueGreen,
}

#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error("deploys need a fleet that starts and stops Machines: give one to `Edge::start`")]
    NoFleet,
    /// flyctl:internal/appconfig/validation.go (facts: 1.1).
    #[error("blue-green needs a check, and the settings have none")]
    NoCheck,
    #[error("Machine {id} was not {what} within {waited:?}")]
    Timeout { id: String, what: &'static str, waited: Duration },
    #[error("Machine {id} cannot be {what}")]
    Fleet { id: String, what: &'static str, source: FleetError },
}

pub(crate) async fn run(shared: &Arc<Shared>, strategy: Strategy) -> Result<(), DeployError> {
    let fleet = shared.fleet.clone().ok_or(DeployError::NoFleet)?;
    let all = shared.registry.snapshot().machines;
    let of_state = |is_wanted: fn(State) -> bool| -> Vec<Machine> {
        all.iter().filter(|m| is_wanted(m.state)).map(|m| m.machine.clone()).collect()
    };
    let running = of_state(|state| state == State::Started);
    let deploy = Deploy { shared, fleet };
    match strategy {
        Strategy::Rolling => {
            // A stopped Machine is updated too, and stays stopped.
            for machine in of_state(|state| matches!(state, State::Stopped | State::Suspended | State::Created)) {
                shared.registry.describe(&next_version(&machine));
            }
            for batch in running.chunks(batch_size(shared.settings.deploy.max_unavailable, running.len())) {
                let results = join_all(batch.iter().map(|machine| deploy.update(machine))).await;
                results.into_iter().collect::<Result<Vec<()>, _>>()?;
            }
            Ok(())
        }
        Strategy::BlueGreen if shared.settings.check.is_none() => Err(DeployError::NoCheck),
        Strategy::BlueGreen => deploy.replace(&running).await,
    }
}

/// From 1 on a count, below a share, rounded up.
fn batch_size(max_unavailable: f64, machines: usize) -> usize {
    let size = if max_unavailable >= 1.0 { max_unavailable } else { (machines as f64 * max_unavailable).ceil() };
    (size as usize).max(1)
}

fn next_version(machine: &Machine) -> Machine {
    Machine { version: machine.version + 1, ..machine.clone() }
}

struct Deploy<'a> {
    shared: &'a Arc<Shared>,
    fleet: Arc<dyn Fleet>,
}

impl Deploy<'_> {
    /// Rolling, one Machine.
    async fn update(&self, machine: &Machine) -> Result<(), DeployError> {
        let Shared { registry, settings, .. } = &**self.shared;
        let is_removed_first = settings.deploy.removal == Removal::BeforeSignal;
        if is_removed_first {
            registry.soft_cordon(&machine.id, true);
        }
        let stopped = self.leave_and_stop(machine, is_removed_first).await;
        if stopped.is_ok() && is_removed_first {
            registry.set_state(&machine.id, State::Stopped);
        }
        registry.soft_cordon(&machine.id, false);
        stopped?;
        match self.start(&next_version(machine)).await {
            Ok(machine) => self.wait_until_healthy(&machine).await,
            Err(e) => {
                registry.set_state(&machine.id, State::Stopped);
                Err(e)
            }
        }
    }

    /// Sends the signal; with `leaves_first`, after routing has stopped using the Machine.
    async fn leave_and_stop(&self, machine: &Machine, leaves_first: bool) -> Result<(), DeployError> {
        let registry = &self.shared.registry;
        let has_left = || registry.snapshot().machine(&machine.id).is_none_or(|m| !m.is_routed);
        if leaves_first {
            self.wait(machine, "taken out of routing", has_left).await?;
        }
        self.stop(machine).await
    }

    /// Blue-green, all Machines.
    async fn replace(&self, blue: &[Machine]) -> Result<(), DeployError> {
        let Shared { registry, settings, .. } = &**self.shared;
        let version = blue.iter().map(|machine| machine.version).max().unwrap_or_default() + 1;
        let mut green = Vec::new();
        if let Err(e) = self.bring_up(blue, version, &mut green).await {
            // As flyctl rolls back: green is removed, blue is not affected.
            for machine in &green {
                let _ = self.stop(machine).await;
                let _ = self.destroy(machine).await;
            }
            return Err(e);
        }
        for machine in &green {
            registry.cordon(&machine.id, false);
        }
        sleep(settings.scaled(settings.deploy.before_cordon)).await;
        for machine in blue {
            registry.cordon(&machine.id, true);
        }
        sleep(settings.scaled(settings.deploy.before_stop)).await;
        let stop = |machine| async move {
            self.stop(machine).await?;
            registry.set_state(&machine.id, State::Stopped);
            Ok(())
        };
        try_join_all(blue.iter().map(stop)).await?;
        for machine in blue {
            self.destroy(machine).await?;
        }
        Ok(())
    }

    /// Green: created, cordoned; started; all healthy. `green` gets all that were created, whether or not they succeed.
    async fn bring_up(&self, blue: &[Machine], version: u64, green: &mut Vec<Machine>) -> Result<(), DeployError> {
        for old in blue {
            let created = self.fleet.create(&old.region, version).await;
            let machine = created.map_err(|source| DeployError::Fleet {
                id: format!("like {}", old.id),
                what: "created",
                source,
            })?;
            edge::add(self.shared, machine.clone(), State::Created, true);
            green.push(machine);
        }
        *green = try_join_all(green.iter().map(|machine| self.start(machine))).await?;
        try_join_all(green.iter().map(|machine| self.wait_until_healthy(machine))).await?;
        Ok(())
    }

    async fn start(&self, machine: &Machine) -> Result<Machine, DeployError> {
        let (deadline, waited) = self.deadline();
        match timeout_at(deadline, self.fleet.start(machine)).await {
            Ok(Ok(machine)) => {
                self.shared.registry.started(&machine);
                Ok(machine)
            }
            Ok(Err(source)) => Err(DeployError::Fleet { id: machine.id.clone(), what: "started", source }),
            Err(_) => Err(DeployError::Timeout { id: machine.id.clone(), what: "started", waited }),
        }
    }

    async fn stop(&self, machine: &Machine) -> Result<(), DeployError> {
        let stopped = self.fleet.stop(machine, how(self.shared)).await;
        stopped.map_err(|source| DeployError::Fleet { id: machine.id.clone(), what: "stopped", source })
    }

    async fn destroy(&self, machine: &Machine) -> Result<(), DeployError> {
        self.shared.registry.set_state(&machine.id, State::Destroyed);
        let destroyed = self.fleet.destroy(machine).await;
        destroyed.map_err(|source| DeployError::Fleet { id: machine.id.clone(), what: "destroyed", source })
    }

    async fn wait_until_healthy(&self, machine: &Machine) -> Result<(), DeployError> {
        let registry = &self.shared.registry;
        let is_healthy = || {
            let snapshot = registry.snapshot();
            snapshot.machine(&machine.id).is_some_and(|m| m.state == State::Started && m.health == Health::Passing)
        };
        self.wait(machine, "healthy", is_healthy).await
    }

    async fn wait(
        &self,
        machine: &Machine,
        what: &'static str,
        is_so: impl Fn() -> bool + Send,
    ) -> Result<(), DeployError> {
        let (deadline, waited) = self.deadline();
        let timeout = || DeployError::Timeout { id: machine.id.clone(), what, waited };
        self.shared.registry.until(deadline, || is_so().then_some(())).await.ok_or_else(timeout)
    }

    fn deadline(&self) -> (Instant, Duration) {
        let settings = &self.shared.settings;
        let wait = settings.scaled(settings.deploy.wait_timeout);
        (Instant::now() + wait, wait)
    }
}

/// How Machines are stopped, in the test's time scale.
pub(crate) fn how(shared: &Shared) -> Stop {
    let stop = shared.settings.deploy.stop;
    Stop { timeout: shared.settings.scaled(stop.timeout), ..stop }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_unavailable_is_a_count_or_a_share_rounded_up() {
        assert_eq!(batch_size(0.33, 3), 1);
        assert_eq!(batch_size(0.33, 4), 2);
        assert_eq!(batch_size(2.0, 10), 2);
        assert_eq!(batch_size(0.0, 3), 1);
    }
}
