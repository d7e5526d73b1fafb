//! The same message gets the same treatment whatever form it arrives in: in one piece, byte by byte, cut anywhere, behind
//! another message, over HTTP/1.1, HTTP/1.0 or HTTP/2.
//!
//! Messages are generated from a fixed seed, valid ones and invalid ones. The differences between protocols for
//! requests are in a table, [`over_http2::DIFFERENCES`]; for responses there are none.

mod over_http1;
mod over_http2;
mod requests;
mod responses;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::Value;

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// The app's response, which is its echo of the request; null for `HEAD`.
    Served(u16, Value),
    /// Outrigger's own response: status and problem type, which a response to `HEAD` lacks.
    Refused(u16, String),
    /// An HTTP/2 stream was reset with this code.
    Reset(u32),
    /// The connection was closed without a response.
    Closed,
}

impl Outcome {
    fn of(status: u16, body: &[u8], is_head: bool) -> Self {
        if is_head && status >= 400 {
            return Self::Refused(status, String::new());
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        match body["type"].as_str() {
            Some(problem) => Self::Refused(status, problem.trim_start_matches("urn:outrigger:problem:").to_owned()),
            None => Self::Served(status, without_ids(body)),
        }
    }

    fn is_malformed(&self) -> bool {
        matches!(self, Self::Refused(400 | 405 | 505, problem) if problem.is_empty() || problem.starts_with("malformed"))
    }
}

/// The same echo without what differs in each request: its id, and how much of its time is left.
fn without_ids(mut echo: Value) -> Value {
    for name in ["x-request-id", "x-request-timeout-ms"] {
        if let Some(value) = echo["headers"].get_mut(name) {
            *value = Value::Null;
        }
    }
    if let Some(head) = echo["head"].as_str() {
        let is_fixed = |line: &&str| !line.starts_with("X-Request-") && !line.starts_with("x-request-");
        echo["head"] = head.split("\r\n").filter(is_fixed).collect::<Vec<_>>().join("\r\n").into();
    }
    echo
}

/// A generator of numbers that are the same in each run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % end
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Mostly one of the first list, sometimes one of the second.
    fn pick_or<T: Copy>(&mut self, usual: &[T], odd: &[T]) -> T {
        if self.one_in(12) { self.pick(odd) } else { self.pick(usual) }
    }
}

/// Runs the check for each item, some at a time; fails with what all of them return.
#[track_caller]
fn each<T: Sync>(items: &[T], check: impl Fn(&T) -> Vec<String> + Sync) {
    let (next, problems) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = check(item);
                    problems.lock().unwrap().extend(found);
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{} differ:\n{}", problems.len(), problems.join("\n"));
}
