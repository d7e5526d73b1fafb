use std::path::Path;

use outrigger_identity::client::Client;
use outrigger_policy::limiter::Quota;
use outrigger_rules::sections::log::LogFormat;

use super::*;
use crate::engine::metrics::Metrics;
use crate::mechanism::log::{AccessLog, LogQueue};

const LIMITS: &str = "[rate_limits]\ncritical = \"off\"\nhigh = \"off\"\nmedium = \"5/1h\"\nlow = \"off\"\nstrict = \"off\"\n[[rate_limits.rules]]\nname = \"one\"\nrate = \"5/1h\"\n";

fn state(text: &str) -> State {
    let config = Config::parse(Path::new("test"), text, &|_| None).unwrap();
    let metrics = Metrics::new().unwrap();
    let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log.dropped.clone()).unwrap();
    State::new(config, metrics, AccessLog::new(queue))
}

fn rules() -> StateRules {
    StateRules {
        directory: "unused".into(),
        machine: "m1".to_owned(),
        every: Duration::from_secs(1),
        max_bytes: 1 << 20,
        asks_peers: true,
    }
}

/// Charges one request of each of `clients` to each limit.
fn charge(state: &State, clients: u8) {
    let loaded = state.rules.load();
    let now = state.nanoseconds(clock::now());
    for limit in &loaded.config.limits.all {
        let quota: Quota = limit.quotas[0].unwrap();
        for n in 0..clients {
            let (name, id) = Client::named(&format!("address:192.0.2.{n}")).unwrap();
            assert!(name.starts_with("address"));
            let client = Client { id, address_id: id, ..Client::UNKNOWN };
            state.limits.take(limit.tag(&client, 0), quota, now, 1, || 0).unwrap();
        }
    }
}

#[test]
fn only_keys_of_limits_that_are_still_this_machines_own_are_restored() {
    let before = state(LIMITS);
    let limits = before.rules.load().config.limits.all.len();
    charge(&before, 10);
    let saved = snapshot(&before, &rules());
    assert_eq!(saved.limits.len(), 10 * limits);
    let restored = |text: &str, saved: &Saved| {
        let Restored { limits, dropped, .. } = restore(&state(text), saved, Duration::ZERO);
        (limits, dropped)
    };
    assert_eq!(restored(LIMITS, &saved), (10 * limits, 0));
    assert_eq!(restored(&LIMITS.replace("\"one\"", "\"other\""), &saved), (10 * (limits - 1), 10));
    assert_eq!(restored("[rate_limits]\nmode = \"off\"\n", &saved), (0, 10 * limits));
    let foreign = Saved { fingerprint: saved.fingerprint ^ 1, ..saved.clone() };
    assert_eq!(restored(LIMITS, &foreign), (0, 10 * limits), "other hashes");
    // Those whose quota is full again take no cell.
    let later = state(LIMITS);
    restore(&later, &saved, Duration::from_secs(3601));
    assert_eq!(later.limits.size(later.nanoseconds(clock::now())).0, 0);
}

#[test]
fn limits_in_redis_are_neither_saved_nor_restored() {
    let own = state(LIMITS);
    charge(&own, 10);
    let saved = snapshot(&own, &rules());
    let shared =
        LIMITS.replace("[rate_limits]", "[rate_limits]\nshared = \"redis\"\nredis.url = \"redis://127.0.0.1:1\"");
    let config = Config::parse(Path::new("test"), &shared, &|name| {
        (name == "OUTRIGGER_KEY_SECRET").then(|| "0123456789abcdef0123456789abcdef".to_owned())
    });
    let config = config.unwrap_or_else(|e| panic!("{e}"));
    let metrics = Metrics::new().unwrap();
    let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log.dropped.clone()).unwrap();
    let shared = State::new(config, metrics, AccessLog::new(queue));
    assert_eq!(restore(&shared, &saved, Duration::ZERO).limits, 0);
    charge(&shared, 10);
    assert!(snapshot(&shared, &rules()).limits.is_empty());
}

#[test]
fn of_peers_the_bans_add_up_and_the_limit_is_the_lower_median() {
    let peer = |who: &str, limit: f64| {
        let peer = state("");
        let (who, client) = Client::named(who).unwrap();
        let (now, loaded) = (peer.nanoseconds(clock::now()), peer.rules.load());
        peer.bans.set(client, &who, Duration::from_secs(60), now, &loaded.config.abuse);
        peer.gate.restore_limit(limit, Duration::ZERO);
        (snapshot(&peer, &rules()), Duration::from_secs(1))
    };
    let peers = [peer("address:192.0.2.1", 30.0), peer("address:192.0.2.2", 300.0), peer("address:192.0.2.2", 40.0)];
    let restored = |peers: &[(Saved, Duration)]| {
        let Restored { bans, concurrency, breakers, .. } = restore_from_peers(&state(""), peers);
        (bans, concurrency, breakers)
    };
    assert_eq!(restored(&peers), (2, Some(40), 0));
    assert_eq!(restored(&peers[..2]), (2, Some(30), 0));
    assert_eq!(restored(&[]), (0, None, 0));
}
