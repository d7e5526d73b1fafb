//! `allow` and `deny`, of the listener and of routes.

use std::net::{Ipv4Addr, SocketAddr};

use crate::backend::Backend;
use crate::harness::{Client, Form, Proxy, from_address, get, until};
use crate::limits::EDGE;

/// Whether a connection from 127.0.0.`last` gets a response; one that is closed at once gets no byte.
fn is_served(proxy: &Proxy, address: SocketAddr, last: u8) -> bool {
    let Ok(mut client) = Client::connect_from(Ipv4Addr::new(127, 0, 0, last), address) else { return false };
    // The connection may be closed already.
    let _ = client.try_send(get("/"));
    let served = client.try_answer().is_ok_and(|answer| answer.status == 200);
    assert!(proxy.admin("/healthz").status == 200);
    served
}

#[test]
fn connections_of_others_are_closed_before_a_byte_is_read() {
    let app = Backend::start();
    let mut proxy = Proxy::with(&app, "server.allow = [\"127.0.0.0/29\"]\nserver.deny = [\"127.0.0.3\"]\n");
    let served = |proxy: &Proxy, last| is_served(proxy, proxy.address, last);
    assert!(served(&proxy, 1) && served(&proxy, 7));
    let before = app.connections();
    assert!(!served(&proxy, 3) && !served(&proxy, 9));
    // Also before the client sends a byte.
    for address in [proxy.address, proxy.h2c] {
        let client = Client::connect_from(Ipv4Addr::new(127, 0, 0, 9), address);
        assert!(client.is_err() || client.unwrap().rest().is_ok_and(|rest| rest.is_empty()));
    }
    assert_eq!(app.connections(), before);
    until("them to be counted", || proxy.metric("outrigger_connections_denied_total", &[]) >= 4.0);
    // A change is for open connections, too.
    let mut open = proxy.connect_as(2);
    assert_eq!(open.send(get("/")).answer().status, 200);
    proxy.changes_to("server.deny = [\"127.0.0.2\"]\n");
    open.send(get("/")).answer().is_problem(403, "address_not_allowed");
    proxy.has_receipt("address_not_allowed", "server.deny");
    assert!(!served(&proxy, 2) && served(&proxy, 3) && served(&proxy, 9));
    assert!(proxy.is_running());
}

#[test]
fn behind_a_trusted_proxy_the_address_of_the_client_counts() {
    let app = Backend::start();
    let rules = format!(
        "{EDGE}server.allow = [\"192.0.2.0/24\"]\n[[routes]]\nname = \"office\"\npath = \"/office\"\n\
         allow = [\"192.0.2.0/28\"]\ndeny = [\"192.0.2.7\"]\n\
         [[routes]]\nname = \"soon\"\npath = \"/soon\"\ndeny = [\"192.0.2.7\"]\naddress_mode = \"monitor\"\n"
    );
    let proxy = Proxy::with(&app, &rules);
    let ask = |path: &str, client: &str| proxy.ask(&from_address(&get(path), client));
    assert_eq!(ask("/", "192.0.2.200").status, 200);
    ask("/", "198.51.100.1").is_problem(403, "address_not_allowed");
    proxy.has_receipt("address_not_allowed", "server.allow");
    // The platform's checks come from the edge itself, or anywhere.
    assert_ne!(ask("/health", "198.51.100.1").status, 403);
    assert_eq!(ask("/office", "192.0.2.1").status, 200);
    Form::at_once(&Form::ALL, |form| {
        for (client, status) in [("192.0.2.1", 200), ("192.0.2.7", 403), ("192.0.2.100", 403)] {
            assert_eq!(proxy.ask(&from_address(&form.request("/office"), client)).status, status, "{client}");
        }
    });
    // Other spellings of the path, too: those of this route, and those that are ambiguous.
    for path in ["/OFFICE", "/office/", "/%6Fffice", "//office"] {
        assert!(matches!(ask(path, "192.0.2.7").status, 400 | 403), "{path}");
    }
    assert_eq!(ask("/soon", "192.0.2.7").status, 200);
    proxy.counts("outrigger_refusals_total", &[("reason", "address_not_allowed"), ("mode", "monitor")], 1);
}

/// A client that is not allowed holds no connection of the others.
#[test]
fn those_who_are_not_allowed_take_no_room() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, "server.max_connections = 10\nserver.deny = [\"127.0.0.9\"]\n");
    let mut denied: Vec<Client> = Vec::new();
    for _ in 0..100 {
        denied.extend(Client::connect_from(Ipv4Addr::new(127, 0, 0, 9), proxy.address));
    }
    assert_eq!(proxy.get("/").status, 200);
    for client in &mut denied {
        // The end, or a reset.
        assert!(client.rest().is_ok_and(|rest| rest.is_empty()) || client.rest().is_err());
    }
}
