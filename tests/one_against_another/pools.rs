//! The app's pool of PostgreSQL connections: one client with many requests and uploads, another one with a few requests.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, get, post, until, with_fields};
use crate::house::{House, document};

const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);
const VICTIM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 20);
const LIST: &str = "/api/v1/documents?limit=100";

fn with_key(request: &str) -> String {
    with_fields(request, &["X-Api-Key: secret", "Content-Type: application/json"])
}

#[test]
fn a_client_that_wants_every_connection_of_the_pool_takes_no_response_from_another() {
    let house = House::with_rules(&[("DB_POOL_MAX", "4"), ("DB_POOL_MIN", "1")], "rate_limits.mode = \"off\"\n");
    for n in 0..100 {
        assert_eq!(house.send("POST", "/api/v1/documents", &document(&n.to_string())).unwrap().status, 201);
    }
    let connect = |from| Client::connect_from(from, house.address).expect("the proxy accepts connections");
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut victims = Vec::new();
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let mut client = connect(ATTACKER);
                while !is_over.load(Ordering::Relaxed) {
                    if client.send(with_key(&get(LIST))).try_answer().is_err() {
                        client = connect(ATTACKER);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut stalled: Vec<Client> = (0..16).map(|_| connect(ATTACKER)).collect();
        for client in &mut stalled {
            client.send(with_key("POST /api/v1/documents HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{"));
        }
        until("the attack to run", || answered.load(Ordering::Relaxed) > 200);
        let requests = [with_key(&get(LIST)), with_key(&post("/api/v1/documents", &document("victim")))];
        for n in 0..60 {
            let began = Instant::now();
            let answer = connect(VICTIM).send(&requests[n % 2]).answer();
            victims.push((answer.status, began.elapsed()));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let served = victims.iter().filter(|(status, _)| matches!(status, 200 | 201)).count();
    let slowest = victims.iter().map(|(_, took)| *took).max().unwrap();
    println!(
        "pool: {served} of 60 requests of the victim served, {slowest:?} at most; {answered:?} of the attacker's answered"
    );
    assert_eq!(served, 60, "{victims:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}
