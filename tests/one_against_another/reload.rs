//! Guarded reload: a client cannot have an operator's change taken back by requests that end badly.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::guarded_reload::{GOOD, Shape, Traffic, app, save, undone};
use crate::harness::{Proxy, get, until};

const ATTACKERS: [u8; 2] = [10, 11];

/// The operator limits clients because two of them flood the app. They go on, so that nearly all requests get 429 now.
#[test]
fn clients_that_flood_do_not_have_their_limit_taken_back() {
    let app = app();
    let proxy = Proxy::with(&app, GOOD);
    let traffic = Traffic::start(&proxy, 5, Shape::Steady);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for attacker in ATTACKERS {
            let (proxy, stop) = (&proxy, &stop);
            scope.spawn(move || {
                let mut client = proxy.connect_as(attacker);
                while !stop.load(Ordering::Relaxed) {
                    // 404 at first, which counts as an error of the client.
                    if client.send(get("/missing")).try_answer().is_err() {
                        client = proxy.connect_as(attacker);
                    }
                }
            });
        }
        traffic.is_usual(&proxy);
        let limited = "reload.probation = \"10s\"\nrate_limits.medium = \"1200/1m\"\n";
        save(&proxy, &proxy.text(limited));
        let rejected = || proxy.metric("outrigger_rejections_total", &[("reason", "quota_exceeded")]);
        proxy.says("the configuration has passed its probation");
        stop.store(true, Ordering::Relaxed);
        assert_eq!(undone(&proxy), 0.0, "{}", proxy.shows("/status")["config"]["undone"]);
        println!("reload: {} requests of two clients got 429 under a new limit, which stays", rejected());
        assert!(rejected() > 500.0, "{}", rejected());
    });
    until("the others to be served", || proxy.ask_as(99, &get("/api/x")).status == 200);
}
