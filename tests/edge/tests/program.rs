//! `outrigger-edge` as a program, and the edge for callers that are not async.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use outrigger_edge::settings::Check;
use outrigger_edge::{Background, Settings, State};
use tokio::io::{AsyncBufReadExt, BufReader};
use xtask::{Signal, http};

use crate::fake::{Fake, PATIENCE};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_outrigger-edge"))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_until_it_is_told_to_end() {
    let (a, b) = (Fake::running("a").await, Fake::running("b").await);
    let of = |fake: &Fake| format!("{},{},{}", fake.machine.id, fake.machine.public, fake.machine.private);
    let machines = [format!("{},syd", of(&a)), of(&b)];
    let mut process = tokio::process::Command::from(program())
        .args(["--listen", "127.0.0.1:0", "--app", "shop", "--dns", "127.0.0.1:0", "--region", "syd"])
        .args(["--check-path", "/health", "--soft-limit", "5", "--hard-limit", "10", "--concurrency", "requests"])
        .args(["--machine", &machines[0], "--machine", &machines[1], "--http"])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
    let line = log.next_line().await.unwrap().unwrap();
    let address = line.strip_prefix("outrigger-edge: listening on ").expect(&line).parse().unwrap();
    let answer = crate::fake::send(address, crate::fake::request("GET", "/", &[], b"")).await;
    assert_eq!((answer.status, answer.field("fly-request-id").unwrap().ends_with("-syd")), (200, true));
    // b has no region of its own, so it is in the edge's as well.
    let seen = [a.seen(), b.seen()].concat();
    assert_eq!((seen.len(), seen[0].field("x-forwarded-proto").as_deref()), (1, Some("http")));
    xtask::process::signal(process.id().unwrap(), Signal::TERM);
    let status = tokio::time::timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_machine_that_makes_no_sense_is_said_with_an_example() {
    let output = program().args(["--machine", "a,nowhere,127.0.0.2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--machine a,nowhere,127.0.0.2") && text.contains("a,127.0.0.2:8080,127.0.0.2"), "{text}");
}

#[test]
fn an_address_that_is_taken_is_said() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = program().args(["--listen", &address, "--machine", "a,127.0.0.2:1,127.0.0.2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&format!("cannot listen on {address}")), "{text}");
}

#[test]
fn callers_that_are_not_async_have_the_same_edge() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let a = runtime.block_on(Fake::running("a"));
    let check = Check { interval: Duration::from_millis(20), ..Check::of("/health") };
    // An address that nobody else takes when it is free again.
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
