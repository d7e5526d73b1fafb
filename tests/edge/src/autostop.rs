//! Stops idle Machines, at most one per region and round. (`reach.rs` starts one when a request needs it.)
//!
//! Source: docs:reference/fly-proxy-autostop-autostart.html.markerb, c/27544 (facts: 6.1). The close frame that Fly sends into
//! WebSockets is absent.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::sleep;

use crate::deploy;
use crate::machine::{Machine, State};
use crate::settings::{AutostopKind, Settings};
use crate::shared::Shared;
use crate::snapshot::MachineSnapshot;

pub(crate) async fn run(shared: Arc<Shared>) {
    let settings = &shared.settings.autostop;
    if settings.stops == AutostopKind::Off || shared.fleet.is_none() {
        return;
    }
    loop {
        sleep(shared.settings.scaled(settings.interval)).await;
        let machines = shared.registry.snapshot().machines;
        let mut regions: BTreeMap<&str, Vec<&MachineSnapshot>> = BTreeMap::new();
        for machine in machines.iter().filter(|m| m.state == State::Started && !m.is_cordoned && !m.is_soft_cordoned) {
            regions.entry(&machine.machine.region).or_default().push(machine);
        }
        for (region, running) in regions {
            if let Some(machine) = superfluous(region, &running, &shared.settings) {
                stop(&shared, machine).await;
            }
        }
    }
}

/// The Machine of this region that is stopped next. Fly does not say which one that is; here the one with the lowest load.
fn superfluous<'a>(region: &str, running: &[&'a MachineSnapshot], settings: &Settings) -> Option<&'a Machine> {
    let kept = if region == settings.autostop.primary_region { settings.autostop.min_running } else { 0 };
    let busy = running.iter().filter(|m| m.load > settings.concurrency.soft_limit).count();
    let is_too_many = match running {
        [only] => only.load == 0,
        _ => running.len() >= busy + 2,
    };
    let least = running.iter().min_by_key(|m| m.load)?;
    (is_too_many && running.len() > kept).then_some(&least.machine)
}

async fn stop(shared: &Arc<Shared>, machine: &Machine) {
    let Some(fleet) = &shared.fleet else { return };
    let settings = &shared.settings.autostop;
    shared.registry.soft_cordon(&machine.id, true);
    sleep(shared.settings.scaled(settings.cordon_wait)).await;
    let (outcome, state) = match settings.stops {
        AutostopKind::Suspend => (fleet.suspend(machine).await, State::Suspended),
        _ => (fleet.stop(machine, deploy::how(shared)).await, State::Stopped),
    };
    // A Machine that could not be stopped continues, and is tried again in the next round.
    if outcome.is_ok() {
        shared.registry.set_state(&machine.id, state);
    }
    shared.registry.soft_cordon(&machine.id, false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Health;

    fn machine(id: &str, load: usize) -> MachineSnapshot {
        let address = "127.0.0.1:1".parse().unwrap();
        MachineSnapshot {
            machine: Machine {
                id: id.to_owned(),
                region: "ams".to_owned(),
                version: 1,
                public: address,
                private: address.ip(),
            },
            state: State::Started,
            health: Health::Passing,
            is_cordoned: false,
            is_soft_cordoned: false,
            is_routed: true,
            load,
            requests: 0,
            connections: 0,
        }
    }

    fn stopped(loads: &[usize], min_running: usize) -> Option<String> {
        let mut settings = Settings::default();
        (settings.concurrency.soft_limit, settings.autostop.min_running) = (10, min_running);
        let machines: Vec<_> = loads.iter().enumerate().map(|(at, &load)| machine(&at.to_string(), load)).collect();
        superfluous("ams", &machines.iter().collect::<Vec<_>>(), &settings).map(|machine| machine.id.clone())
    }

    #[test]
    fn one_more_than_the_busy_ones_is_kept() {
        assert_eq!(stopped(&[3, 1, 2], 0).as_deref(), Some("1"));
        assert_eq!(stopped(&[11, 1], 0), None, "2 - (1 + 1) < 1");
        assert_eq!(stopped(&[11, 1, 0], 0).as_deref(), Some("2"));
        assert_eq!(stopped(&[11, 11, 11], 0), None);
    }

    #[test]
    fn a_single_machine_is_stopped_only_without_load() {
        assert_eq!(stopped(&[0], 0).as_deref(), Some("0"));
        assert_eq!(stopped(&[1], 0), None);
    }

    #[test]
    fn a_minimum_is_kept_in_the_primary_region() {
        assert_eq!(stopped(&[0, 0], 2), None);
        assert_eq!(stopped(&[0, 0, 0], 2).as_deref(), Some("0"));
    }
}
