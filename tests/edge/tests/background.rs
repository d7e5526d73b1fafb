//! The edge for callers that are not async.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_edge::settings::Check;
use outrigger_edge::{Background, Settings, State};
use xtask::http;

use crate::fake::{Fake, PATIENCE};

#[test]
fn callers_that_are_not_async_have_the_same_edge() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let a = runtime.block_on(Fake::running("a"));
    let check = Check { interval: Duration::from_millis(20), ..Check::of("/health") };
    // An address that no other test takes when it is free again.
    let listen = SocketAddr::new(a.machine.private, 0);
    let settings = Settings { check: Some(check), listen, ..Settings::default() };
    let edge = Background::start(settings, None).unwrap();
    edge.add(a.machine, State::Started);
    assert!(edge.until(PATIENCE, |now| now.machine("a").unwrap().is_routed));
    assert_eq!(http::get(edge.address(), "/", PATIENCE).unwrap().status, 200);
    let address = edge.address();
    drop(edge);
    assert!(std::net::TcpStream::connect(address).is_err(), "it has ended");
}
