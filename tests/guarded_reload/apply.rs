//! `outrigger apply`, with and without a confirmation.

use std::fs;

use super::orders::run;
use super::{GOOD, Shape, Traffic, app, undone};
use crate::backend::Backend;
use crate::harness::{Proxy, until};
use crate::pause::act;

/// A file with these rules beside the one that the proxy watches.
fn beside(proxy: &Proxy, name: &str, rules: &str) -> String {
    let file = proxy.dir.join(name);
    fs::write(&file, proxy.text(rules)).unwrap();
    file.to_str().unwrap().to_owned()
}

fn fields(proxy: &Proxy) -> u16 {
    proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n").status
}

#[test]
fn an_applied_change_is_taken_back_unless_it_is_confirmed() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, GOOD);
    let watched = fs::read_to_string(&proxy.file).unwrap();
    let few = beside(&proxy, "few.toml", &format!("{GOOD}client.max_fields = 3\n"));

    let (is_done, text) = run(&proxy, &["apply", &few, "--confirm", "2s", "--no-wait"]);
    assert!(is_done && text.contains("taken back in 2 s") && text.contains("outrigger confirm"), "{text}");
    assert_eq!(fields(&proxy), 431);
    until("it to be taken back", || fields(&proxy) == 200);
    proxy.counts("outrigger_config_rollbacks_total", &[("measure", "unconfirmed")], 1);
    let (is_done, text) = run(&proxy, &["confirm"]);
    assert!(!is_done && text.contains("no change waits to be confirmed"), "{text}");

    // Without a token, any process of the machine may have sent it: nothing is read for it.
    let secret =
        format!("{GOOD}[[routes]]\nname = \"a\"\npath = \"/a\"\nfallback = {{ body = \"${{HOME}}\", status = 503 }}\n");
    let (is_done, text) =
        run(&proxy, &["apply", &beside(&proxy, "secret.toml", &secret), "--no-wait", "--confirm", "2s"]);
    assert!(!is_done && text.contains("without a token"), "{text}");
    let empty = proxy.dir.join("empty.toml");
    fs::write(&empty, "\n").unwrap();
    let (is_done, text) = run(&proxy, &["apply", empty.to_str().unwrap(), "--force"]);
    assert!(!is_done && text.contains("is empty"), "{text}");

    // The same content is not tried again without --force.
    let (is_done, text) = run(&proxy, &["apply", &few, "--confirm", "60s", "--no-wait"]);
    assert!(!is_done && text.contains("it was not confirmed in time"), "{text}");
    let (is_done, text) = run(&proxy, &["apply", &few, "--confirm", "60s", "--no-wait", "--force"]);
    assert!(is_done, "{text}");
    until("the status to show it", || proxy.shows("/status")["config"]["probation"]["confirm_until"].is_string());
    let (is_done, text) = run(&proxy, &["confirm"]);
    assert!(is_done && text.contains("confirmed"), "{text}");
    assert_eq!((fields(&proxy), proxy.metric("outrigger_config_on_probation", &[])), (431, 0.0));
    assert_eq!(fs::read_to_string(&proxy.file).unwrap(), watched, "the file is not touched");

    // A change of the watched file takes its place.
    proxy.changes_to(&format!("{GOOD}client.max_fields = 50\n"));
    assert_eq!(fields(&proxy), 200);
}

#[test]
fn mistakes_and_strangers_change_nothing() {
    let app = Backend::start();
    let proxy = crate::harness::Setup::new(&app, GOOD).env("OUTRIGGER_ADMIN_TOKEN", "secret-of-operators").start();
    let version = proxy.metric("outrigger_config_version", &[]);
    let wrong = beside(&proxy, "wrong.toml", "client.max_feilds = 3\n");
    let (is_done, text) = run(&proxy, &["apply", &wrong]);
    assert!(!is_done && text.contains("max_feilds") && text.contains("422"), "{text}");
    for path in ["/config/apply", "/config/reload", "/config/confirm"] {
        assert_eq!(act(&proxy, path, "{\"text\":\"\"}").status, 401);
    }
    let large = beside(&proxy, "large.toml", &format!("# {}\n", "x".repeat(300 << 10)));
    let (is_done, text) = run(&proxy, &["apply", &large]);
    assert!(!is_done, "{text}");
    assert_eq!(proxy.metric("outrigger_config_version", &[]), version);
}

#[test]
fn an_applied_change_is_on_probation_too() {
    let app = app();
    let proxy = Proxy::with(&app, GOOD);
    let traffic = Traffic::start(&proxy, 6, Shape::Steady);
    traffic.is_usual(&proxy);
    let harmful = beside(&proxy, "harmful.toml", &format!("{GOOD}app.timeout = \"1ms\"\n"));
    let (is_done, text) = run(&proxy, &["apply", &harmful]);
    assert!(is_done && text.contains("on probation for 120 s"), "{text}");
    until("it to be taken back", || undone(&proxy) == 1.0);
    assert_eq!(proxy.shows("/status")["config"]["undone"]["is_in_file"], false);
    assert_eq!(proxy.get("/api/x").status, 200);
}
