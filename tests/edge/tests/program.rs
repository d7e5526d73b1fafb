//! `outrigger-edge` as a program. This is a separate test program: a child that is being started has all files of its parent,
//! so Machines in the same process could not give up their ports.

#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test, and says what it did")]

#[allow(dead_code, reason = "most of it is for the other test program")]
mod fake;

use std::process::{Command, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};
use xtask::Signal;

use crate::fake::{Fake, PATIENCE};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_outrigger-edge"))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_until_its_signal() {
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
    // b has no region of its own, so it is in the edge's.
    let seen = [a.seen(), b.seen()].concat();
    assert_eq!((seen.len(), seen[0].field("x-forwarded-proto").as_deref()), (1, Some("http")));
    xtask::process::signal(process.id().unwrap(), Signal::TERM);
    let status = tokio::time::timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn an_invalid_machine_argument_is_reported_with_an_example() {
    let output = program().args(["--machine", "a,nowhere,127.0.0.2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--machine a,nowhere,127.0.0.2") && text.contains("a,127.0.0.2:8080,127.0.0.2"), "{text}");
}

#[test]
fn an_address_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = program().args(["--listen", &address, "--machine", "a,127.0.0.2:1,127.0.0.2"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&format!("cannot listen on {address}")), "{text}");
}
