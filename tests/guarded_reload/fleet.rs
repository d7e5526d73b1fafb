//! Several Machines: one tries a change first.

use std::fs;

use super::{Shape, Traffic, prepare, undone};
use crate::backend::Backend;
use crate::harness::{Setup, until};
use crate::machines::{KEYS, Machine, place};

/// The file of all Machines: what differs is in their environment.
const RULES: &str = "server.threads = 2\nlog.level = \"debug\"\nrate_limits.mode = \"off\"\nbreaker.mode = \"off\"\n\
                     identity.edge = \"fly\"\npeers.interval = \"100ms\"\nretry.attempts = 1\nreload.probation = \"8s\"\n";

/// Three Machines that know each other.
fn three() -> [Machine; 3] {
    let mut places = [place(), place(), place()];
    let machines = ["a", "b", "c"].map(|name| {
        let app = Backend::start();
        prepare(&app);
        let setup = Setup::new(&app, "");
        fs::write(&setup.file, RULES).unwrap();
        let [own, others @ ..] = places.map(|place| place.to_string());
        let environment = [
            ("OUTRIGGER_MACHINE", name.to_owned()),
            ("OUTRIGGER_LISTEN", setup.address.to_string()),
            ("OUTRIGGER_H2C_LISTEN", setup.h2c.to_string()),
            ("OUTRIGGER_ADMIN_LISTEN", setup.admin.to_string()),
            ("OUTRIGGER_APP_ADDRESS", app.address()),
            ("OUTRIGGER_PEERS_LISTEN", own),
            ("OUTRIGGER_PEERS_LIST", others.join(",")),
            ("OUTRIGGER_AFFINITY_KEYS", KEYS.to_owned()),
        ];
        let setup = environment.iter().fold(setup, |setup, (name, value)| setup.env(name, value));
        let machine = Machine { proxy: setup.start(), app, peers: places[0] };
        places.rotate_left(1);
        machine
    });
    machines.iter().for_each(|machine| machine.sees(2, "ready"));
    machines
}

/// Adds lines to the rules on all Machines, the last one first.
fn save_on_all(machines: &[Machine; 3], lines: &str) {
    machines.iter().rev().for_each(|machine| fs::write(&machine.proxy.file, format!("{RULES}{lines}")).unwrap());
}

fn versions(machines: &[Machine; 3]) -> [f64; 3] {
    [0, 1, 2].map(|at: usize| machines[at].proxy.metric("outrigger_config_version", &[]))
}

#[test]
fn one_machine_tries_a_change_first() {
    let machines = three();
    let traffic = Traffic::start(&machines[0].proxy, 6, Shape::Steady);
    traffic.is_usual(&machines[0].proxy);
    save_on_all(&machines, "app.timeout = \"1ms\"\n");
    until("the first Machine to take it back", || undone(&machines[0].proxy) == 1.0);
    assert_eq!(versions(&machines), [3.0, 1.0, 1.0]);
    for machine in &machines[1..] {
        machine.proxy.says("config_undone_elsewhere");
        until("the status to show it", || machine.proxy.shows("/status")["config"]["undone"]["measure"] == "elsewhere");
    }
    save_on_all(&machines, "app.timeout = \"20s\"\n");
    until("the first Machine to try the next one", || versions(&machines) == [4.0, 1.0, 1.0]);
    machines[1].proxy.says("is tried on Machine a first");
    until("the others to follow", || versions(&machines) == [4.0, 2.0, 2.0]);
    assert_eq!(machines[0].proxy.metric("outrigger_config_on_probation", &[]), 0.0, "it has passed there");
    assert_eq!(undone(&machines[0].proxy), 1.0);
}
