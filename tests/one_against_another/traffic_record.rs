//! The traffic record: a client with endless paths takes no room from the paths of others.

use crate::backend::Backend;
use crate::backtest::{backtest, has_recorded, recording, rejected};
use crate::harness::{Proxy, fresh_dir, get};
use crate::limits::{NO_DEFAULTS, rule};

/// Letters for a number: a word.
fn word(mut number: usize) -> String {
    let mut word = String::new();
    for _ in 0..4 {
        word.push(char::from(b"ghklmnprst"[number % 10]));
        word.push('a');
        number /= 10;
    }
    word
}

#[test]
fn endless_paths_keep_no_path_of_another_client_from_the_record() {
    const ATTACKS: usize = 3_000;
    let directory = fresh_dir().join("record");
    let app = Backend::start();
    let proxy = Proxy::with(&app, &recording(&directory, NO_DEFAULTS));
    let (mut attacker, mut victim) = (proxy.connect_as(66), proxy.connect_as(7));
    let ask = |client: &mut crate::harness::Client, path: &str| assert_eq!(client.send(get(path)).answer().status, 200);
    (0..10).for_each(|_| ask(&mut victim, "/early/orders"));
    (0..ATTACKS).for_each(|number| ask(&mut attacker, &format!("/{}/{}", word(number), word(number / 7))));
    (0..10).for_each(|_| ask(&mut victim, "/late/orders"));
    has_recorded(&proxy, ATTACKS + 20);
    let routes =
        ["early", "late"].map(|name| format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}/orders\"\n")).concat();
    let limit = rule("few", "4/1d", "by = \"client-and-route\"\nroutes = [\"early\", \"late\"]");
    let report = backtest(&proxy, &recording(&directory, &format!("{NO_DEFAULTS}{limit}{routes}")));
    let of = |route: &str| rejected(&report, "proposed")[&(route.to_owned(), "anonymous".to_owned())];
    assert_eq!((of("early"), of("late")), (6, 6), "{report:#}");
    let bytes: u64 = std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    println!("{ATTACKS} different paths of one client: {} bytes a request", bytes / (ATTACKS as u64 + 20));
    assert!(bytes < (ATTACKS as u64 + 20) * 60, "the paths are not in the record: {bytes}");
}
