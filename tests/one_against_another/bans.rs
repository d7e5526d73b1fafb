//! Bans: only the client that caused a ban is banned.

use crate::{
    backend::Backend,
    harness::{Form, Proxy, from_address, sha256, with_fields},
    limits::EDGE,
};

const SHARED: &str = "203.0.113.7";

fn app() -> Backend {
    let app = Backend::start();
    app.says("/login", "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    app
}

fn rules() -> String {
    let key =
        |name: &str| format!("[[identity.keys]]\nname = \"{name}\"\nsha256 = \"{}\"\n", sha256(&format!("{name}-key")));
    format!(
        "{EDGE}abuse.mode = \"enforce\"\nabuse.login_failures = \"5/1h\"\nabuse.ban = \"1h\"\n{}{}",
        key("victim"),
        key("attacker")
    )
}

/// Requests for `path` from the shared address, with a key or without; returns their statuses.
fn ask(proxy: &Proxy, path: &str, key: Option<&str>, times: usize) -> Vec<u16> {
    let key = key.map(|name| format!("X-Api-Key: {name}-key"));
    let fields: Vec<&str> = key.iter().map(String::as_str).collect();
    let request = |n: usize| from_address(&with_fields(&Form::nth(n).request(path), &fields), SHARED);
    (0..times).map(|n| proxy.ask(&request(n)).status).collect()
}

fn served(statuses: &[u16]) -> usize {
    statuses.iter().filter(|status| **status == 200).count()
}

#[test]
fn a_ban_of_an_address_does_not_ban_clients_with_a_key() {
    let app = app();
    let proxy = Proxy::with(&app, &rules());
    let attack = ask(&proxy, "/login", None, 20);
    // A response is counted after it was sent, a moment before or after the next request.
    assert!(attack[10..].iter().all(|status| *status == 403), "{attack:?}");
    // An unknown key proves nothing.
    assert_eq!(served(&ask(&proxy, "/", Some("unknown"), 10)), 0);
    assert_eq!(served(&ask(&proxy, "/", None, 10)), 0);
    let victim = served(&ask(&proxy, "/", Some("victim"), 50));
    println!("bans, an anonymous client of the same address: {victim} of 50 requests of the key are served");
    assert_eq!(victim, 50);
}

#[test]
fn a_ban_of_a_key_does_not_ban_its_address() {
    let app = app();
    let proxy = Proxy::with(&app, &rules());
    ask(&proxy, "/login", Some("attacker"), 20);
    assert_eq!(served(&ask(&proxy, "/", Some("attacker"), 10)), 0);
    let (anonymous, key) = (served(&ask(&proxy, "/", None, 50)), served(&ask(&proxy, "/", Some("victim"), 50)));
    println!("bans, a key of the same address: {anonymous} and {key} of 50 requests of others are served");
    assert_eq!((anonymous, key), (50, 50));
}

#[test]
fn an_operators_ban_of_an_address_bans_all_clients_from_it() {
    let app = app();
    let proxy = Proxy::with(&app, &rules());
    crate::abuse::ban(&proxy, &format!("address:{SHARED}"), "1h");
    assert_eq!(served(&ask(&proxy, "/", Some("victim"), 4)), 0);
}
