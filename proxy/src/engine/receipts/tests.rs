use std::path::Path;

use outrigger_rules::config::Config;
use outrigger_rules::sections::log::LogFormat;

use super::*;
use crate::engine::metrics::Metrics;
use crate::mechanism::log::{AccessLog, LogQueue};

fn state() -> State {
    let config = Config::parse(Path::new("test"), "", &|_| None).unwrap();
    let metrics = Metrics::new().unwrap();
    let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log.dropped.clone()).unwrap();
    State::new(config, metrics, AccessLog::new(queue))
}

fn receipt(client: u64, n: u64) -> Arc<Receipt> {
    Arc::new(Receipt {
        ended: SystemTime::now(),
        request_id: RequestId::from_edge(format!("{client}-{n}").as_bytes()).unwrap(),
        config_version: 1,
        method: Method::GET,
        path: "/".into(),
        route: None,
        priority: Priority::default(),
        client: Client { id: client, ..Client::UNKNOWN },
        admission: Mode::Enforce,
        resilience: Mode::Enforce,
        status: 429,
        outcome: Outcome::Rejected,
        duration: Duration::ZERO,
        attempts: 0,
        cause: None,
        steps: Steps::default(),
    })
}

fn len(store: &Store, shard: usize) -> usize {
    store.shards[shard].lock().len()
}

#[test]
fn one_client_pushes_out_only_its_own_receipts() {
    let store = Store::default();
    for n in 0..10 {
        store.add(receipt(2, n), 2, 100);
    }
    for n in 0..10_000 {
        store.add(receipt(1, n), 1, 100);
    }
    assert_eq!((len(&store, 1), len(&store, 2)), (90, 10));
    assert_eq!(store.total.load(Ordering::Relaxed), 100);
    let newest = &store.shards[1].lock()[89];
    assert_eq!(newest.request_id.as_str(), "1-9999");
}

#[test]
fn a_lower_bound_is_reached_after_as_many_receipts() {
    let store = Store::default();
    (0..100).for_each(|n| store.add(receipt(1, n), 1, 100));
    (0..100).for_each(|n| store.add(receipt(1, n), 1, 50));
    assert_eq!(len(&store, 1), 50);
    store.add(receipt(1, 0), 1, 0);
    assert_eq!(len(&store, 1), 50, "none are wanted");
}

#[test]
fn old_receipts_expire() {
    let store = Store::default();
    (0..10).for_each(|n| store.add(receipt(1, n), 1, 100));
    assert_eq!(store.find(Duration::from_secs(60), |_| true).len(), 10);
    assert_eq!(store.find(Duration::ZERO, |_| true).len(), 0);
    store.expire(SystemTime::now() + Duration::from_secs(1));
    assert_eq!((len(&store, 1), store.total.load(Ordering::Relaxed)), (0, 0));
}

/// Every reason has a rule in its receipt, also before there is a request.
#[test]
fn every_rejection_and_failure_has_a_rule() {
    use std::fmt::Write as _;
    let state = state();
    let exchange = Exchange::new(state.rules.load_full());
    let (with, rules) = (Case::of(&state, &exchange), state.rules.load());
    let without = Case { state: &state, rules: &rules, exchange: None, now: std::time::Instant::now() };
    let mut table = String::new();
    let names = |evidence: &Evidence| evidence.numbers().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    for rejection in Rejection::all() {
        let (shown, early) = (with.rejection(rejection), without.rejection(rejection));
        assert!(!early.rule().is_empty(), "{rejection:?}");
        writeln!(table, "{} | {} | {}", rejection.problem().label, shown.rule(), names(&shown)).unwrap();
    }
    for failure in Failure::ALL {
        let shown = with.failure(failure);
        writeln!(table, "{} | {} | {}", failure.problem().label, shown.rule(), names(&shown)).unwrap();
    }
    insta::assert_snapshot!(table);
}
