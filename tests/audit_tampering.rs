//! Somebody who can write to the audit log's directory, but has no key, restores an earlier state of a part or of the whole.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use xtask::Signal;

use crate::audit::entries;
use crate::audit_commands::{KEYS, TRAIL, audit, keys, store};
use crate::backend::Backend;
use crate::harness::{Proxy, Setup, get, until};
use crate::house::postgres_in;

const ROUTES: &str = "[[routes]]\nname = \"admin\"\npath = \"/admin/**\"\naudit = \"administration\"\n";
const DATA: &str = "trail/data-00000000000000000001.jsonl";
const DELETION: &str = "trail/deletion-00000000000000000001.jsonl";
const HEAD: &str = "trail/HEAD";

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().flatten() {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn count(setup: &Setup, class: &str) -> usize {
    entries(setup).iter().filter(|entry| entry["class"] == class).count()
}

/// Whether the last entry of `class` is more than a second later than the time in `HEAD`.
fn is_long_after_head(setup: &Setup, head: &[u8], class: &str) -> bool {
    let slots = head.chunks(4096).filter_map(|slot| serde_json::from_slice::<Value>(slot.trim_ascii_end()).ok());
    let newest = slots.max_by_key(|slot| slot["number"].as_u64()).unwrap();
    let time = |value: &Value| value["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let last = entries(setup).into_iter().rfind(|entry| entry["class"] == class);
    last.is_some_and(|last| time(&last).duration_since(time(&newest)) > jiff::SignedDuration::from_secs(1))
}

fn killed(proxy: &mut Proxy) {
    proxy.signal(Signal::KILL);
    proxy.ends_within(Duration::from_secs(10));
}

#[test]
fn rolled_back_chains_are_detected_and_recorded_at_the_next_start() {
    let app = Backend::start();
    let setup = Setup::new(&app, &format!("{TRAIL}{ROUTES}")).env(KEYS.0, KEYS.1);
    let mut proxy = setup.clone().start();
    let public = audit(&proxy, &["keys"]).ends_with(0).out;
    let verify = |code: i32| {
        let by_auditor = ["verify", "--public-keys", public.trim(), "--directory", "trail"];
        audit(&setup, &by_auditor).ends_with(code).out
    };
    (0..5).for_each(|_| assert_eq!(proxy.get("/documents").status, 200));
    until("five entries", || count(&proxy, "data") == 5);
    until("HEAD to vouch for them", || !verify(0).contains("not signed yet"));
    let (head, data) = (fs::read(setup.dir.join(HEAD)).unwrap(), fs::read(setup.dir.join(DATA)).unwrap());
    let delete = get("/documents/1").replace("GET", "DELETE");
    (0..7).for_each(|_| assert_eq!(proxy.ask(&delete).status, 200));
    until("an entry long after HEAD", || {
        proxy.get("/admin/users");
        is_long_after_head(&setup, &head, "administration")
    });
    until("seven deletions", || count(&setup, "deletion") == 7);
    killed(&mut proxy);
    verify(0);

    fs::remove_file(setup.dir.join(DELETION)).unwrap();
    fs::write(setup.dir.join(DATA), data).unwrap();
    fs::write(setup.dir.join(HEAD), head).unwrap();
    let said = verify(1);
    assert!(said.contains("an older HEAD was restored"), "{said}");

    let mut proxy = setup.clone().start();
    proxy.says("audit.rolled_back");
    assert!(proxy.metric("outrigger_audit_alarms_total", &[("finding", "audit.rolled_back")]) >= 1.0);
    for class in ["security", "administration"] {
        let is_it = |entry: &Value| entry["class"] == class && entry["action"] == "audit.rolled_back";
        assert!(entries(&setup).iter().any(is_it), "{class} has no entry of it");
    }
    proxy.signal(Signal::TERM);
    assert!(proxy.ends_within(Duration::from_secs(15)).success());
    let said = verify(1);
    assert!(said.contains("records a finding of a start: audit.rolled_back"), "{said}");
}

#[test]
fn an_older_copy_of_everything_is_found_by_a_receipt_and_so_is_another_directory() {
    let app = Backend::start();
    let setup = Setup::new(&app, TRAIL).env(KEYS.0, KEYS.1);
    let run = |count: usize| {
        let mut proxy = setup.clone().start();
        (0..count).for_each(|_| assert_eq!(proxy.get("/documents").status, 200));
        proxy.signal(Signal::TERM);
        assert!(proxy.ends_within(Duration::from_secs(15)).success());
    };
    run(3);
    let (trail, older) = (setup.dir.join("trail"), setup.dir.join("older"));
    copy(&trail, &older);
    run(3);
    let receipt = audit(&setup, &["receipt"]).ends_with(0).out;
    fs::write(setup.dir.join("receipt"), &receipt).unwrap();
    audit(&setup, &["verify", "--receipt", "receipt"]).ends_with(0);
    // Entries after the receipt are fine.
    run(1);
    audit(&setup, &["verify", "--receipt", "receipt"]).ends_with(0);

    let newer = setup.dir.join("newer");
    copy(&trail, &newer);
    copy(&older, &trail);
    // With public keys, no entry is written: that would sign a HEAD whose number may reach the receipt's.
    let alone = audit(&setup, &["verify", "--public-keys", &keys().public().to_string()]).ends_with(0);
    assert!(alone.out.contains("whole: "), "docs/audit.md says so: {}", alone.out);
    let said = audit(&setup, &["verify", "--receipt", "receipt"]).ends_with(1).out;
    assert!(said.contains("the receipt has number") && said.contains("but the receipt confirms"), "{said}");

    // A new directory, as after the old one was deleted.
    fs::remove_dir_all(&trail).unwrap();
    audit(&setup, &["verify", "--receipt", "receipt"]).ends_with(2);
    run(2);
    audit(&setup, &["verify"]).ends_with(0);
    let said = audit(&setup, &["verify", "--receipt", "receipt"]).ends_with(1).out;
    assert!(said.contains("no entry of that chain is here"), "{said}");

    copy(&newer, &trail);
    audit(&setup, &["verify", "--receipt", "receipt"]).ends_with(0);
    fs::write(setup.dir.join("receipt"), receipt.replace("\"number\":", "\"number\":1")).unwrap();
    let said = audit(&setup, &["verify", "--receipt", "receipt"]).ends_with(1).err;
    assert!(said.contains("is not as signed"), "{said}");
}

#[test]
fn an_older_copy_of_everything_is_found_by_the_anchor_in_postgresql() {
    let app = Backend::start();
    let setup = Setup::new(&app, TRAIL).env(KEYS.0, KEYS.1);
    let run = || {
        let mut proxy = setup.clone().start();
        (0..3).for_each(|_| assert_eq!(proxy.get("/documents").status, 200));
        proxy.signal(Signal::TERM);
        assert!(proxy.ends_within(Duration::from_secs(15)).success());
    };
    run();
    let (trail, older) = (setup.dir.join("trail"), setup.dir.join("older"));
    copy(&trail, &older);
    let postgres = postgres_in(&setup.dir);
    store(&setup, &postgres);
    let url = postgres.url("app");
    let verify = |code: i32| audit(&setup, &["verify", "--database", &url]).ends_with(code).out;
    verify(0);
    run();
    // The anchor covers entries that are on disk and not shipped yet.
    let head = outrigger_trail::layout::newest_head(&trail, &keys().public()).unwrap().unwrap();
    let number = head.1.number;
    let line = head.0.replace('\'', "''");
    let anchored = format!("update audit_anchors set number = {number}, line = '{line}'");
    postgres.sql("app", &anchored).unwrap();
    verify(0);
    copy(&older, &trail);
    audit(&setup, &["verify", "--public-keys", &keys().public().to_string()]).ends_with(0);
    let said = verify(1);
    assert!(said.contains(&format!("the anchor in PostgreSQL has number {number}")), "{said}");
    let forged = json!(line.replacen("\"last\":", "\"last\":1", 1));
    postgres.sql("app", &format!("update audit_anchors set line = '{}'", forged.as_str().unwrap())).unwrap();
    let said = verify(1);
    assert!(said.contains("audit_anchors: an anchor is not as signed"), "{said}");
}
