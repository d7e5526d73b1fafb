//! The record of a run: each request with its executions and its end, the trace, and the violations of invariants.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_identity::clock;

/// The number of a request, which it carries as a header.
pub type Id = u64;

/// How a request ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A complete response with this status.
    Complete(u16),
    /// The head of a response with this status; then the connection ended, or the client gave up.
    Partial(u16),
    /// The connection ended without a byte of a response.
    Closed,
    /// The client left before the response.
    Left,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its client.
    pub client: usize,
    /// The Machine it was sent to.
    pub machine: usize,
    /// Its method.
    pub method: &'static str,
    /// Its path.
    pub path: &'static str,
    /// When it was sent.
    pub sent: Duration,
    /// The Machines whose app has read it to its end, and when.
    pub executions: Vec<(usize, Duration)>,
    /// How many of them got no response, on purpose: to leave an app that hangs costs no budget.
    pub hung: usize,
    /// An app has broken off a response to it, after its head.
    pub was_broken_off: bool,
    /// An app has not responded to it as HTTP demands.
    pub was_garbled: bool,
    /// How it ended.
    pub end: Option<(End, Duration)>,
}

impl Entry {
    /// Whether a second execution has no effect.
    pub fn is_idempotent(&self) -> bool {
        self.method != "POST"
    }
}

#[derive(Debug)]
struct Inner {
    began: Instant,
    requests: BTreeMap<Id, Entry>,
    trace: Vec<String>,
    violations: Vec<String>,
}

/// The record of a run, shared by all its tasks.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Mutex<Inner>>);

impl Ledger {
    /// An empty one, which begins now.
    pub fn new() -> Self {
        let (requests, trace, violations) = Default::default();
        Self(Arc::new(Mutex::new(Inner { began: clock::now(), requests, trace, violations })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The virtual time since the beginning.
    pub fn now(&self) -> Duration {
        clock::since(self.lock().began)
    }

    /// Adds a line to the trace.
    pub fn note(&self, line: &str) {
        let at = self.now().as_millis();
        self.lock().trace.push(format!("{at:>6} ms  {line}"));
    }

    /// Records that an invariant does not hold.
    pub fn violated(&self, text: String) {
        self.note(&format!("VIOLATION: {text}"));
        self.lock().violations.push(text);
    }

    /// A client sends a request; returns its number.
    pub fn sent(&self, client: usize, machine: usize, method: &'static str, path: &'static str) -> Id {
        let sent = self.now();
        let mut inner = self.lock();
        let id = inner.requests.len() as Id + 1;
        let entry = Entry {
            client,
            machine,
            method,
            path,
            sent,
            executions: Vec::new(),
            hung: 0,
            was_broken_off: false,
            was_garbled: false,
            end: None,
        };
        inner.requests.insert(id, entry);
        drop(inner);
        self.note(&format!("client {client} sends {id}: {method} {path} to m{machine}"));
        id
    }

    /// Changes the entry of a request.
    pub fn change(&self, id: Id, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.lock().requests.get_mut(&id) {
            change(entry);
        }
    }

    /// An app has read a request to its end.
    pub fn executed(&self, id: Id, machine: usize) {
        let now = self.now();
        self.note(&format!("app m{machine} executes {id}"));
        let mut executions = 0;
        let (mut is_idempotent, mut is_known) = (true, false);
        self.change(id, |entry| {
            is_known = true;
            entry.executions.push((machine, now));
            (executions, is_idempotent) = (entry.executions.len(), entry.is_idempotent());
        });
        if !is_known {
            self.violated(format!("app m{machine} got a request that no client has sent: {id}"));
        } else if !is_idempotent && executions > 1 {
            self.violated(format!("request {id} is not idempotent, and was executed {executions} times"));
        }
    }

    /// A request has ended for its client.
    pub fn ended(&self, id: Id, end: End) {
        let now = self.now();
        self.note(&format!("request {id} ends: {end:?}"));
        let mut has_ended = false;
        self.change(id, |entry| has_ended = entry.end.replace((end, now)).is_some());
        if has_ended {
            self.violated(format!("request {id} ended twice"));
        }
    }

    /// The client of a request has left; it may have got its response before.
    pub fn left(&self, id: Id) {
        let mut has_ended = false;
        self.change(id, |entry| has_ended = entry.end.is_some());
        if !has_ended {
            self.ended(id, End::Left);
        }
    }

    /// All requests.
    pub fn requests(&self) -> BTreeMap<Id, Entry> {
        self.lock().requests.clone()
    }

    /// The trace and the violations.
    pub fn close(&self) -> (Vec<String>, Vec<String>) {
        let mut inner = self.lock();
        (std::mem::take(&mut inner.trace), std::mem::take(&mut inner.violations))
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}
