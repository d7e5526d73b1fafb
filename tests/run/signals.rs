//! Signals to the app, and processes without parents.

use std::process::Command;

use xtask::Signal;

use super::*;

#[test]
fn signals_reach_the_app_and_hangup_reloads_the_configuration_too() {
    let record = fresh_dir().join("record");
    let mut run = Run::serving(QUICK, &app(&[&format!("record={}", record.display())]));
    let reloads = || run.metric("outrigger_config_reloads_total", &[]);
    let before = reloads();
    for (signal, name) in [(Signal::HUP, "HUP"), (Signal::USR1, "USR1"), (Signal::USR2, "USR2")] {
        xtask::process::signal(run.process.pid(), signal);
        until(name, || executed(&record).contains_key(name));
    }
    until("a reload", || reloads() > before);
    assert_eq!(run.get("/").status, 200);
    run.process.signal(Signal::INT);
    assert!(run.ends().success());
    assert_eq!(executed(&record).len(), 3, "{:?}", executed(&record));
}

#[test]
fn orphans_are_reaped() {
    let run = Run::serving(QUICK, &app(&[]));
    assert_eq!(run.get("/orphan").status, 200);
    until("two orphans", || run.metric("outrigger_orphans_reaped_total", &[]) == 2.0);
    assert_eq!(xtask::process::children(run.process.pid()), [run.child()]);
}

/// As in a container without an init.
#[test]
fn as_the_first_process_it_serves_reaps_and_ends() {
    let isolate = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let is_allowed = Command::new(isolate[0]).args(&isolate[1..]).arg("true").output();
    if !is_allowed.is_ok_and(|output| output.status.success()) {
        println!("not tested: this user may not make a PID namespace");
        return;
    }
    let run = Run::through(&isolate, QUICK, &app(&[]));
    run.serves();
    let [init] = xtask::process::children(run.process.pid())[..] else { panic!("one process") };
    assert_eq!(run.get("/orphan").status, 200);
    until("two orphans", || run.metric("outrigger_orphans_reaped_total", &[]) == 2.0);
    // `docker stop` sends it to the first process.
    xtask::process::signal(init, Signal::TERM);
    let mut run = run;
    assert!(run.ends().success());
}
