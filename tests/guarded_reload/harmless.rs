//! Harmless changes stay.

use std::thread;

use super::{GOOD, Shape, Traffic, app, save, undone};
use crate::harness::{Proxy, Setup, until};

/// Each is on probation until the next one; the last one passes.
const HARMLESS: [&str; 12] = [
    "client.max_fields = 50\n",
    "rate_limits.medium = \"60000/1m\"\n",
    "rate_limits.mode = \"monitor\"\nrate_limits.medium = \"1/1h\"\n",
    "[[routes]]\nname = \"api\"\npath = \"/api/**\"\npriority = \"high\"\n",
    "app.timeout = \"10s\"\n",
    "admission.max = 500\n",
    "breaker.failures = 5\n",
    "abuse.mode = \"monitor\"\nabuse.not_found = \"1/1m\"\n",
    "log.access = false\n",
    "retry.statuses = [503]\n",
    "pages.html = false\n",
    "client.max_body = \"1MiB\"\n",
];

#[test]
fn harmless_changes_stay() {
    thread::scope(|scope| {
        scope.spawn(a_dozen_harmless_changes_stay);
        scope.spawn(an_operators_order_is_no_harm);
        scope.spawn(an_app_that_goes_away_is_no_harm);
    });
}

fn a_dozen_harmless_changes_stay() {
    let app = app();
    let proxy = Proxy::with(&app, GOOD);
    let traffic = Traffic::start(&proxy, 8, Shape::Bursty);
    traffic.is_usual(&proxy);
    for lines in HARMLESS {
        save(&proxy, &proxy.text(&format!("{GOOD}{lines}")));
        let served = traffic.served();
        until("requests under it", || traffic.served() > served + 100);
        assert_eq!(undone(&proxy), 0.0, "{lines}: {}", proxy.shows("/status")["config"]["undone"]);
    }
    save(&proxy, &proxy.text("reload.probation = \"5s\"\n"));
    assert_eq!(proxy.metric("outrigger_config_on_probation", &[]), 1.0);
    proxy.says("the configuration has passed its probation");
    until("it to be good", || proxy.metric("outrigger_config_on_probation", &[]) == 0.0);
    assert_eq!(undone(&proxy), 0.0);
}

/// An operator who begins maintenance does not want that undone.
fn an_operators_order_is_no_harm() {
    let app = app();
    let proxy = Setup::new(&app, GOOD).start();
    let traffic = Traffic::start(&proxy, 6, Shape::Steady);
    traffic.is_usual(&proxy);
    save(&proxy, &proxy.text("reload.probation = \"10s\"\nmaintenance.enabled = true\n"));
    proxy.says("the configuration has passed its probation");
    assert_eq!(undone(&proxy), 0.0);
    proxy.get("/api/x").is_problem(503, "maintenance");
}

fn an_app_that_goes_away_is_no_harm() {
    let mut app = app();
    let proxy = Setup::new(&app, GOOD).start();
    let traffic = Traffic::start(&proxy, 6, Shape::Steady);
    traffic.is_usual(&proxy);
    save(&proxy, &proxy.text("reload.probation = \"10s\"\nclient.max_fields = 50\n"));
    app.stop();
    proxy.says("the configuration has passed its probation");
    assert_eq!(undone(&proxy), 0.0, "{}", proxy.shows("/status")["config"]["undone"]);
}
