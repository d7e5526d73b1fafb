//! The listener for peers: a stranger takes connections and memory there, and requests pass from Machine to Machine all the same.

use crate::{harness::Client, machines::pair};

const ATTACKER: u8 = 10;

#[test]
fn connections_and_heads_of_a_stranger_keep_no_peer_out() {
    let (mut a, b) = pair("server.max_connections = 40\nclient.max_unfinished_heads = \"1MiB\"\napp.hold = \"10s\"");
    a.app.stop();
    for bytes in [0, 20, 60 << 10] {
        let held: Vec<Client> = (0..100)
            .map(|_| {
                let mut client = Client::connect_from([127, 0, 0, ATTACKER].into(), b.peers).unwrap();
                if bytes > 0 {
                    // It may have been closed.
                    let _ = client.try_send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(bytes)));
                }
                client
            })
            .collect();
        let served = (0..30).filter(|_| a.proxy.get("/moved").status == 200).count();
        println!("the peers' listener: 100 connections with {bytes} bytes each: {served} of 30 requests served");
        assert_eq!(served, 30);
        assert!(b.proxy.metric("outrigger_open_connections", &[]) <= 80.0);
        drop(held);
    }
    b.app.gets(90, "/moved");
    assert_eq!(b.proxy.get("/").status, 200);
    assert_eq!(b.app.requests_to("/"), 1);
}
