//! The live page: viewers without a login.

use std::net::Ipv4Addr;

use crate::backend::Backend;
use crate::harness::{Client, Proxy, Setup};

const TOKEN: &str = "a-token-of-the-operators-long-enough";

/// Opens the live stream; returns the status.
fn watch(proxy: &Proxy, last: u8, more: &str) -> (Client, u16) {
    let mut client = Client::connect_from(Ipv4Addr::new(127, 0, 0, last), proxy.admin).unwrap();
    client.send(format!("GET /events HTTP/1.1\r\nHost: localhost\r\n{more}\r\n"));
    let status = client.head().unwrap().status;
    (client, status)
}

#[test]
fn viewers_without_a_login_leave_room_for_operators() {
    let app = Backend::start();
    let proxy = Setup::new(&app, "").env("OUTRIGGER_ADMIN_TOKEN", TOKEN).start();
    let operator = format!("Authorization: Bearer {TOKEN}\r\n");
    let guests: Vec<(Client, u16)> =
        (2..=9).flat_map(|last| [watch(&proxy, last, ""), watch(&proxy, last, "")]).collect();
    let (seen, refused) =
        (guests.iter().filter(|(_, s)| *s == 200).count(), guests.iter().filter(|(_, s)| *s == 503).count());
    assert_eq!((seen, refused), (8, 8), "half of 16");
    let operators: Vec<(Client, u16)> = (20..28).map(|last| watch(&proxy, last, &operator)).collect();
    let served = operators.iter().filter(|(_, status)| *status == 200).count();
    println!("live page: {served} of 8 operators, while 16 others try to look at it");
    assert_eq!(served, 8);
    assert_eq!(proxy.admin("/metrics").status, 200);
}
