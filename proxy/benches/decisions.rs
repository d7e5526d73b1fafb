//! The cost of policy decisions: `cargo bench --package outrigger`.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use divan::Bencher;
use outrigger_identity::hash::mix;
use outrigger_mechanism::gate::{Entry, Gate, Wish};
use outrigger_mechanism::limits::shared::{Mode as Sharing, Shared};
use outrigger_mechanism::limits::table::Table;
use outrigger_policy::admission::Settings;
use outrigger_policy::concurrency;
use outrigger_policy::flags::Mode;
use outrigger_policy::limiter::Quota;
use outrigger_policy::priority::Priority;
use outrigger_policy::tier::Multiplier;

fn main() {
    divan::main();
}

fn quota() -> Quota {
    "1000/1s".parse().ok().and_then(|rate| Quota::new(rate, 1000, Multiplier::ONE)).unwrap_or_else(|| unreachable!())
}

/// A table with this many keys in use, and its current time.
fn used(keys: u64) -> (Table, AtomicU64) {
    let table = Table::new(usize::try_from(keys).unwrap_or(usize::MAX));
    let now = 1 << 50;
    for key in 0..keys {
        let _ = table.take(mix(key), quota(), now, 1, || 0);
    }
    (table, AtomicU64::new(now))
}

/// Checks one rate limit for one request, with clients in scattered order.
#[divan::bench(args = [1, 1_000, 100_000, 1_000_000])]
fn limit(bencher: Bencher<'_, '_>, keys: u64) {
    let (table, clock) = used(keys);
    let quota = quota();
    let next = AtomicU64::new(0);
    bencher.bench(|| {
        let key = mix(next.fetch_add(2_654_435_761, Ordering::Relaxed) % keys);
        let now = clock.fetch_add(1_000_000, Ordering::Relaxed);
        black_box(table.take(key, quota, now, 1, || 0).is_ok())
    });
}

/// A request that exceeds its rate limit.
#[divan::bench]
fn limit_refused(bencher: Bencher<'_, '_>) {
    let (table, clock) = used(1);
    let now = clock.load(Ordering::Relaxed);
    while table.take(mix(0), quota(), now, 1, || 0).is_ok() {}
    bencher.bench(|| black_box(table.take(mix(0), quota(), now, 1, || 0).is_err()));
}

/// Two threads, one key.
#[divan::bench(threads = [2])]
fn limit_contended(bencher: Bencher<'_, '_>) {
    let (table, clock) = used(1);
    let quota = quota();
    bencher.bench(|| {
        let now = clock.fetch_add(1_000_000, Ordering::Relaxed);
        black_box(table.take(mix(0), quota, now, 1, || 0).is_ok())
    });
}

/// Checks one shared rate limit for one request, with clients in scattered order and an occasional sync.
#[divan::bench(args = [1, 1_000, 100_000])]
fn limit_shared(bencher: Bencher<'_, '_>, keys: u64) {
    let shared = Shared::new(usize::try_from(keys).unwrap_or(usize::MAX));
    let cells = shared.prepare();
    shared.set(Sharing::Shared, None);
    shared.set_machines(5);
    for key in 0..keys {
        let _ = cells.find_or_claim(mix(key), || Some([key + 1, 1]));
    }
    let (quota, clock, next) = (quota(), AtomicU64::new(1 << 50), AtomicU64::new(0));
    bencher.bench(|| {
        let key = mix(next.fetch_add(2_654_435_761, Ordering::Relaxed) % keys);
        let now = clock.fetch_add(1_000_000, Ordering::Relaxed);
        let Ok(index) = cells.find_or_claim(key, || None) else { return false };
        let spent = black_box(cells.spend(index, quota, 1, shared.law(now)).is_ok());
        if spent && cells.cell(index).account().debt > 50 {
            cells.cell(index).settled(50, now);
        }
        spent
    });
}

/// The name of a key without a cell yet: a keyed hash.
#[divan::bench]
fn limit_shared_name(bencher: Bencher<'_, '_>) {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"outrigger");
    bencher.bench(|| black_box(ring::hmac::sign(&key, black_box(b"medium and an address of a client"))));
}

fn gate(limit: u32) -> Arc<Gate> {
    let concurrency = concurrency::Settings { min: limit, max: limit, initial: limit };
    Arc::new(Gate::new(Settings { concurrency, max_wait: Duration::from_secs(1), max_queue: 1000, max_held: 1000 }))
}

fn wish(priority: Priority) -> Wish {
    Wish { priority, client: 7, class: 3, mode: Mode::Enforce, is_guest: false }
}

/// Takes a permit, records the response, and returns the permit: two decisions.
#[divan::bench(threads = [1, 2])]
fn admission(bencher: Bencher<'_, '_>) {
    let gate = gate(100);
    let now = Instant::now();
    bencher.bench(|| {
        if let Entry::Go(mut permit) = gate.ask(wish(Priority::High), now, |_| {}) {
            permit.answered(now + Duration::from_millis(5));
        }
    });
}

/// No permit is free, and all waiting requests are at least as important.
#[divan::bench]
fn admission_refused(bencher: Bencher<'_, '_>) {
    let gate = gate(100);
    let now = Instant::now();
    let mut held = Vec::new();
    loop {
        match gate.ask(wish(Priority::High), now, |_| {}) {
            Entry::Refused => break,
            entry => held.push(entry),
        }
    }
    bencher.bench(|| black_box(matches!(gate.ask(wish(Priority::Low), now, |_| {}), Entry::Refused)));
}

/// A more important request joins a queue of less important ones, and leaves it.
#[divan::bench]
fn admission_displaced(bencher: Bencher<'_, '_>) {
    let gate = gate(100);
    let now = Instant::now();
    let mut held = Vec::new();
    bencher.bench_local(|| {
        held.push(gate.ask(wish(Priority::Low), now, |_| {}));
        if held.len() > 300 {
            held.clear();
        }
        drop(black_box(gate.ask(wish(Priority::Critical), now, |_| {})));
    });
}
